"""Forward hooks fire inside the context, and none stays behind."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cam_callbacks.explain.hooks import hooked


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


def test_are_gone_where_one_module_refuses_its_hook(network: nn.Sequential) -> None:
    class Refuses(nn.Module):
        def register_forward_hook(self, *_arguments: Any, **_options: Any) -> Any:
            raise RuntimeError("no hooks here")

    with pytest.raises(RuntimeError, match="no hooks"), hooked([*network, Refuses()], lambda *arguments: None):
        pass
    assert hooks_of(network) == 0
