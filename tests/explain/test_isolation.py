"""Inside, a model is evaluated; outside, the model and the process are as they were, whatever happened."""

import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import CatMetric, MeanMetric

from cam_callbacks.explain.isolation import isolated, random_state_kept


class TrainsItsOwnWay(nn.Linear):
    """`train()` and `eval()` do more than set a flag: they must not be called."""

    def __init__(self):
        super().__init__(2, 2)
        self.calls = 0

    def train(self, mode=True):
        self.calls += 1
        return self


@pytest.fixture
def network():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Sequential(nn.BatchNorm1d(2), TrainsItsOwnWay()))
    network.train()
    network[1].eval()
    network[2][0].eval()
    return network


def flags(network):
    return [module.training for module in network.modules()]


def draw():
    """A number from each global generator."""
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002 - the global generators are meant


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [None, ValueError, Interrupted])
class TestWhateverHappens:
    def run(self, network, error, inside=lambda: None):
        try:
            with isolated(network):
                inside()
                if error is not None:
                    raise error
        except (ValueError, Interrupted):
            assert error is not None

    def test_mixed_train_flags_are_put_back(self, network, error):
        before = flags(network)
        assert len(set(before)) == 2
        self.run(network, error)
        assert flags(network) == before

    def test_flags_that_change_inside_are_put_back(self, network, error):
        before = flags(network)
        self.run(network, error, inside=lambda: [setattr(module, "training", True) for module in network.modules()])
        assert flags(network) == before

    def test_generators_are_put_back(self, network, error):
        with random_state_kept():
            expected = draw()
        self.run(network, error, inside=draw)
        assert draw() == expected

    def test_the_grad_mode_is_put_back(self, network, error):
        self.run(network, error)
        assert torch.is_grad_enabled()
        with torch.no_grad():
            self.run(network, error)
            assert not torch.is_grad_enabled()
        with torch.inference_mode():
            self.run(network, error)
            assert torch.is_inference_mode_enabled()

    def test_compiled_models_run_compiled_again(self, network, error):
        runs = []

        def backend(graph, _inputs):
            return lambda *arguments: runs.append("compiled") or graph.forward(*arguments)

        torch.compiler.reset()
        network = nn.Linear(2, 2)
        compiled = torch.compile(network, backend=backend)
        compiled(torch.ones(1, 2))
        self.run(compiled, error, inside=lambda: compiled(torch.ones(1, 2)))
        assert runs == ["compiled"]
        compiled(torch.ones(1, 2))
        assert runs == ["compiled", "compiled"]


def test_every_module_is_in_evaluation_inside(network):
    with isolated(network):
        assert not any(flags(network))


def test_train_and_eval_of_the_model_are_not_called(network):
    network[2][1].calls = 0
    with isolated(network):
        pass
    assert network[2][1].calls == 0


def test_gradients_are_off_inside(network):
    with isolated(network):
        assert not network(torch.ones(1, 2)).requires_grad


@pytest.mark.parametrize("around", [nullcontext, torch.no_grad, torch.inference_mode])
def test_tensors_made_inside_can_be_trained_with(network, around):
    """A model may keep one of them for its next training step; validation runs in inference mode."""
    with around(), isolated(network):
        cached = torch.ones(2)
    assert not cached.is_inference()
    (network[0](torch.ones(1, 2)) * cached).sum().backward()
    assert network[0].weight.grad is not None


def test_forward_hooks_of_a_compiled_model_fire_inside():
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager")
    compiled(torch.ones(1, 2))
    seen = []
    with isolated(compiled):
        handle = network[1].register_forward_hook(lambda *_: seen.append(1))
        compiled(torch.ones(1, 2))
        handle.remove()
    assert seen == [1]


def test_the_stance_of_the_user_towards_compilation_is_put_back(network):
    compiled = torch.compile(network[0], backend=lambda graph, _inputs: pytest.fail("compiled against the user's wish"))
    torch.compiler.reset()
    with torch.compiler.set_stance("force_eager"):
        with isolated(compiled):
            pass
        compiled(torch.ones(1, 2))


def test_works_inside_itself(network):
    before = flags(network)
    with isolated(network):
        with isolated(network):
            assert not any(flags(network))
        assert not any(flags(network))
        assert not torch.is_grad_enabled()
    assert flags(network) == before
    assert torch.is_grad_enabled()


def test_a_module_that_stands_in_two_places_is_put_back():
    shared = nn.Dropout()
    network = nn.Sequential(shared, nn.Linear(2, 2), shared)
    with isolated(network):
        assert not shared.training
    assert shared.training


def test_random_state_kept_puts_the_generators_back():
    with random_state_kept():
        first = draw()
    assert draw() == first


class Writes(nn.Module):
    """Its forward writes into it: buffers in place, past their version, and anew; a number, a tensor, a metric."""

    def __init__(self):
        super().__init__()
        self.register_buffer("in_place", torch.zeros(2))
        self.register_buffer("hidden", torch.zeros(2))
        self.register_buffer("anew", torch.zeros(2))
        self.register_buffer("none", None)
        self.count, self.last, self.metric, self.all = 0, torch.zeros(2), MeanMetric(), CatMetric()

    def forward(self, x):
        self.in_place += x
        self.hidden.data += x
        self.anew = self.anew + x
        self.none = x
        self.count += 1
        self.last = x
        self.metric.update(x)
        self.all.update(x)
        return x


def what_is_in(module):
    tensors = [module.in_place, module.hidden, module.anew, module.last, module.metric.mean_value]
    return [tensor.tolist() for tensor in tensors], module.none, module.count, len(module.all.value)


@pytest.mark.parametrize("nested", [False, True])
def test_what_a_forward_writes_into_the_model_is_put_back(nested):
    module = Writes()
    module(torch.ones(2))
    module.none = None
    before, buffer = what_is_in(module), module.in_place
    with isolated(module):
        with isolated(module) if nested else nullcontext():
            module(torch.full((2,), 3.0))
        module(torch.full((2,), 5.0))
    assert what_is_in(module) == before
    assert module.in_place is buffer
    with isolated(module):  # and again: nothing is left of the first time
        module(torch.full((2,), 7.0))
    assert what_is_in(module) == before


class HooksItsLayers(nn.Module):
    """Hooks its layer when it runs for the first time, as libraries do that collect features on request."""

    def __init__(self):
        super().__init__()
        self.layer, self.kept = nn.Linear(2, 2), []

    def forward(self, images):
        if not hasattr(self, "is_hooked"):
            self.layer.register_forward_hook(lambda _module, _inputs, output: self.kept.append(output))
            self.layer.register_forward_pre_hook(lambda _module, inputs: inputs)
            self.is_hooked = True
        return self.layer(images)


def test_hooks_that_a_forward_registers_do_not_stay():
    model = HooksItsLayers()
    for _ in range(2):
        with isolated(model):
            model(torch.ones(1, 2))
    assert not model.layer._forward_hooks
    assert not model.layer._forward_pre_hooks
    model(torch.ones(1, 2))
    model(torch.ones(1, 2))
    assert len(model.kept) == 2  # one for each pass outside


def test_nothing_is_written_where_nothing_has_changed():
    module = Writes()
    before = module.in_place._version
    with isolated(module):
        pass
    assert module.in_place._version == before


def test_buffers_that_were_made_in_inference_mode_are_put_back():
    with torch.inference_mode():
        module = Writes()
        before = what_is_in(module)
        with isolated(module), torch.inference_mode():
            module(torch.ones(2))
        assert what_is_in(module) == before


def test_a_buffer_that_changes_its_shape_in_place_is_restored():
    module = Writes().train()
    with isolated(module):
        module.in_place.resize_(5).fill_(1)
    assert module.training
    assert module.in_place.tolist() == [0, 0]


def test_a_buffer_that_is_a_view_of_another_is_put_back_with_it():
    module = nn.Module()
    module.register_buffer("base", torch.zeros(1))
    module.register_buffer("wide", module.base.expand(4))
    with isolated(module):
        module.base += 1
    assert module.wide.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("buffer", [torch.eye(3).to_sparse(), torch.zeros(2, device="meta"), torch.zeros(0), None])
def test_buffers_of_any_kind_are_tolerated(buffer):
    module = nn.Module()
    module.register_buffer("buffer", buffer)
    with isolated(module):
        pass
    assert module.buffer is buffer


class Grows(nn.Module):
    """Makes its head at the first forward."""

    def __init__(self):
        super().__init__()
        self.built, self.calls = False, 0

    def forward(self, x):
        if not self.built:
            self.head, self.built = nn.Linear(x.shape[1], 2), True
        self.calls += 1
        return self.head(x)


@pytest.mark.parametrize("make", [Grows, lambda: nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())])
def test_a_module_that_is_made_inside_stays_made(make):
    module = make()
    with isolated(module):
        module(torch.rand(3, 4))
    made = dict(module.named_parameters())
    module.eval()(torch.rand(3, 4))
    assert made
    assert all(parameter is made[name] for name, parameter in module.named_parameters())


def test_scripted_parts_are_tolerated():
    scripted = torch.jit.trace(nn.BatchNorm1d(2).eval(), torch.rand(3, 2))
    with isolated(nn.Sequential(scripted)):
        scripted(torch.rand(3, 2))
