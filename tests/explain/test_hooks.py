"""Forward hooks fire inside the context, and none stays behind."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from cam_callbacks.explain.hooks import hooked, pre_hooked


@pytest.fixture
def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU())


def hooks_of(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


def test_fire_for_each_module_inside_only(network: nn.Sequential) -> None:
    seen: list[nn.Module] = []

    def note(module: nn.Module, _inputs: Any, _output: Any) -> None:
        seen.append(module)

    with hooked(network, note):
        network(torch.zeros(1, 2))
    network(torch.zeros(1, 2))
    assert seen == list(network)


def test_replace_the_output_by_what_they_return(network: nn.Sequential) -> None:
    with hooked([network[1]], lambda module, inputs, output: output + 1):
        assert (network(torch.zeros(1, 2)) >= 1).all()


def test_are_given_keyword_arguments_on_demand(network: nn.Sequential) -> None:
    seen: list[Tensor] = []

    def note(_module: nn.Module, _inputs: Any, named: dict[str, Tensor], _output: Tensor) -> None:
        seen.append(named["input"])

    images = torch.zeros(1, 2)
    with hooked([network[0]], note, with_kwargs=True):
        network[0](input=images)
    assert seen == [images]


def test_leave_those_of_the_user_in_place(network: nn.Sequential) -> None:
    network[1].register_forward_hook(lambda module, inputs, output: None)
    with hooked(network, lambda *arguments: None), hooked(network, lambda *arguments: None):
        assert hooks_of(network) == 5
    assert hooks_of(network) == 1


def test_are_gone_after_an_error_inside(network: nn.Sequential) -> None:
    with pytest.raises(KeyboardInterrupt), hooked(network, lambda *arguments: None):
        raise KeyboardInterrupt
    assert hooks_of(network) == 0


def test_are_gone_where_one_module_fails_at_its_hook(network: nn.Sequential) -> None:
    class Fails(nn.Module):
        def register_forward_hook(self, *_arguments: Any, **_options: Any) -> Any:
            raise KeyError("no hooks here")

    with pytest.raises(KeyError, match="no hooks"), hooked([*network, Fails()], lambda *arguments: None):
        pass
    assert hooks_of(network) == 0


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("fails", [False, True])
def test_fire_for_scripted_modules_which_refuse_them(network: nn.Sequential, fails: bool) -> None:
    scripted, inputs = torch.jit.script(network), torch.zeros(1, 2)
    plain, seen = scripted(inputs), []

    def note(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        seen.append(module)
        return output + 1

    def shift(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0] + 1,)

    try:
        with hooked(scripted.modules(), note), hooked(network, note):
            assert torch.equal(scripted(inputs), plain + 1)
            nn.Linear(2, 2)(inputs)
            with pre_hooked([scripted], shift):
                assert torch.equal(scripted(inputs - 1), plain + 1)
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert seen == [scripted, scripted]
    assert torch.equal(scripted(inputs), plain)
    assert not _global_forward_hooks
    assert not _global_forward_pre_hooks
