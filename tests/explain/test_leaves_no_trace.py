"""After an explanation, finished or broken off, the model and the process are as they were."""

import random

import numpy as np
import pytest
import states
import torch
import torch.nn.functional as F
from states import as_bytes
from torch import nn

from cam_callbacks import GradCAM, ReciproCAM, ScoreCAM
from cam_callbacks.explain import progress


class DrawsNumbers(nn.Module):
    """Takes numbers from all generators, also in evaluation, and keeps its result free of them."""

    def forward(self, x):
        return x + 0 * (torch.rand(1) + random.random() + np.random.rand())  # noqa: NPY002 - the global generator is meant


class FrozenNorm(nn.BatchNorm2d):
    """Batch norm that `train()` cannot switch: it stays as its owner set it."""

    def train(self, mode=True):
        return self


class Fails(nn.Module):
    """Raises from one of its calls on."""

    def __init__(self, error, at):
        super().__init__()
        self.error, self.at, self.calls = error, at, 0

    def forward(self, x):
        self.calls += 1
        if self.calls >= self.at:
            raise self.error
        return x


@pytest.fixture
def images(blobs):
    return blobs(3, 24, 24)


@pytest.fixture
def network(images):
    """A network in the middle of its training: flags are mixed, gradients are there, some weights are frozen."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        FrozenNorm(8),
        nn.ReLU(inplace=True),
        DrawsNumbers(),
        nn.Dropout2d(0.5),
        nn.Conv2d(8, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    network.train()
    F.cross_entropy(network(images), torch.tensor([0, 1, 2])).backward()
    network[6].eval()
    network[7][1].eval()
    network[1].training = True
    network[0].bias.requires_grad_(False)
    network[0].bias.grad = None
    network.register_forward_hook(lambda _module, _inputs, output: output)  # the user's own hook stays
    return network


def state_of(network, images):
    """All that an explanation could change, in values that compare with `==`."""
    return states.state_of(network) | {"images": (as_bytes(images), images.requires_grad, images.grad)}


@pytest.mark.parametrize("layer", [None, "7", "5"])
@pytest.mark.parametrize(
    "method", [ScoreCAM(batch_size=4), ScoreCAM("increase", batch_size=4), GradCAM(), ReciproCAM()], ids=repr
)
def test_an_explanation_leaves_all_as_it_was(network, images, method, layer):
    before = state_of(network, images)
    method(network, images, layer)
    assert state_of(network, images) == before


def test_a_check_leaves_all_as_it_was(network, images):
    before = state_of(network, images)
    ScoreCAM().check(network, images)
    assert state_of(network, images) == before


def test_images_that_require_gradients_are_left_without(network, images):
    images.requires_grad_()
    before = state_of(network, images)
    explanation = ScoreCAM()(network, images)
    assert state_of(network, images) == before
    assert not any(
        getattr(explanation, name).requires_grad for name in ("heatmaps", "layer_maps", "logits", "probabilities")
    )


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_grad_mode_stays_what_it_was(network, images, grad_mode):
    with grad_mode():
        before = state_of(network, images)
        ScoreCAM()(network, images)
        assert state_of(network, images) == before


CHOOSING, UNMASKED, MASKED = 1, 2, 6
"""The forward pass in which the network fails."""


@pytest.mark.parametrize(
    ("error", "raised", "place", "at"),
    [
        (RuntimeError, ValueError, 0, CHOOSING),
        (RuntimeError, ValueError, 3, UNMASKED),
        (RuntimeError, ValueError, 10, MASKED),
        (ArithmeticError, ArithmeticError, 10, CHOOSING),
        (ArithmeticError, ArithmeticError, 0, UNMASKED),
        (ArithmeticError, ArithmeticError, 3, MASKED),
        (KeyboardInterrupt, KeyboardInterrupt, 3, CHOOSING),
        (KeyboardInterrupt, KeyboardInterrupt, 10, UNMASKED),
        (KeyboardInterrupt, KeyboardInterrupt, 0, MASKED),
    ],
)
def test_an_error_in_the_middle_leaves_all_as_it_was(network, images, error, raised, place, at, forwarded):
    network.insert(place, Fails(error("broken"), at))
    calls = forwarded(network[place])
    before = state_of(network, images)
    with pytest.raises(raised, match="broken"):
        ScoreCAM(batch_size=4)(network, images)
    assert len(calls) >= at
    assert state_of(network, images) == before


def test_an_error_in_progress_leaves_all_as_it_was(network, images):
    def interrupt(done, total):
        raise KeyboardInterrupt

    before = state_of(network, images)
    with pytest.raises(KeyboardInterrupt), progress.shown(interrupt):
        ScoreCAM()(network, images)
    assert state_of(network, images) == before


@pytest.mark.parametrize("arguments", [{"target_layer": "8"}, {"target_layer": "absent"}, {"targets": 9}], ids=str)
def test_a_refused_argument_leaves_all_as_it_was(network, images, arguments):
    before = state_of(network, images)
    with pytest.raises(ValueError, match=r"target"):
        ScoreCAM()(network, images, **arguments)
    assert state_of(network, images) == before


def test_the_next_training_step_is_the_one_without_an_explanation(network, images):
    """Also where the model keeps a tensor of its forward pass that the backward pass needs."""

    class Caches(nn.Module):
        cache = None

        def forward(self, x):
            if self.cache is None:
                self.cache = torch.linspace(0.5, 1.5, x.shape[1]).view(-1, 1, 1)
            return x * self.cache

    def step():
        torch.manual_seed(7)
        random.seed(7)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        optimizer.zero_grad()
        F.cross_entropy(network(images), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
        return {name: as_bytes(tensor) for name, tensor in network.state_dict().items()}

    network.insert(1, Caches())
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ScoreCAM()(network, images)
    with_explanation = step()
    network.load_state_dict(start)
    network[1].cache = None
    assert step() == with_explanation


class TestCompiledModels:
    @pytest.fixture
    def runs(self):
        return {"compiled": 0, "run": 0}

    @pytest.fixture
    def compiled(self, small_cnn, runs):
        """A model whose compiler counts what it compiles and how often that runs."""

        def backend(graph, _inputs):
            runs["compiled"] += 1

            def run(*arguments):
                runs["run"] += 1
                return graph.forward(*arguments)

            return run

        torch.compiler.reset()
        return torch.compile(small_cnn(), backend=backend)

    def test_stay_compiled_and_are_not_compiled_again(self, compiled, runs, images):
        expected = compiled(images)
        assert runs == {"compiled": 1, "run": 1}
        ScoreCAM(batch_size=5)(compiled, images)
        assert runs == {"compiled": 1, "run": 1}
        assert torch.equal(compiled(images), expected)
        assert runs == {"compiled": 1, "run": 2}

    def test_can_still_be_compiled_after_their_first_explanation(self, compiled, runs, images):
        ScoreCAM()(compiled, images)
        compiled(images)
        assert runs == {"compiled": 1, "run": 1}

    def test_stay_compiled_when_an_explanation_breaks_off(self, compiled, runs, images):
        compiled(images)
        with pytest.raises(ValueError, match="absent"):
            ScoreCAM()(compiled, images, "absent")
        compiled(images)
        assert runs == {"compiled": 1, "run": 2}
