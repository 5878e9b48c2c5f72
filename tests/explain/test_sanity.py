"""Methods that tell classes apart and need the weights pass the sanity checks; those that do not, fail by them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cam_callbacks import GradCAM, Method, ReciproCAM, RegressionTarget, ScoreCAM
from cam_callbacks.explain import sanity
from cam_callbacks.explain.method import LayerMap
from cam_callbacks.explain.sanity import _with_random_weights, complexity, sanity_checks

SIZE, CLASSES = 32, 3


def scenes(classes, seed):
    """Make images (N, 3, 32, 32) of noise with a square in one of four corners for each class (N, S): its color."""
    draw = torch.Generator().manual_seed(seed)
    images = 0.2 * torch.randn(len(classes), 3, SIZE, SIZE, generator=draw)
    for image, colors in zip(images, classes.tolist(), strict=True):
        for color, corner in zip(colors, torch.randperm(4, generator=draw).tolist(), strict=False):
            row, column = (4 + 14 * place for place in divmod(corner, 2))
            image[color, row : row + 10, column : column + 10] += 2
    return images


@pytest.fixture(scope="module")
def trained(small_cnn):
    """A network that has learned what color the square is."""
    model = small_cnn(classes=CLASSES)
    labels = torch.arange(48) % CLASSES
    images = scenes(labels.unsqueeze(1), seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    model.train()
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert (model.eval()(images).argmax(dim=1) == labels).all()
    return model


@pytest.fixture(scope="module")
def pairs():
    """Images with two squares, each of another class."""
    first = torch.arange(8) % CLASSES
    return scenes(torch.stack([first, (first + 1) % CLASSES], dim=1), seed=1)


@dataclass(frozen=True)
class MeanActivation(Method):
    """The plain mean of the channels, the same for all classes."""

    def forward_pass(self, network, target_layer, targets):
        found = network.forward_pass(target_layer, targets, "logit")
        counts = [maps.shape[1] for maps in found.activations]
        return replace(found, weights=[torch.ones(*found.target_scores.shape, count) for count in counts])


@dataclass(frozen=True)
class Brightness(MeanActivation):
    """How bright the image is at each position, whatever the network."""

    def layer_map(self, network, forward_pass, layer):
        found = LayerMap.weighted(forward_pass.activations[layer], forward_pass.weights[layer])
        bright = F.adaptive_avg_pool2d(network.images.mean(dim=1), found.maps.shape[2:]).relu()
        return LayerMap(bright.unsqueeze(1).expand_as(found.maps), found.passes, found.error)


@dataclass(frozen=True)
class Kept(GradCAM):
    """Keeps what it has explained."""

    explanations: list = field(default_factory=list, compare=False)

    def __call__(self, *given, **named):
        self.explanations.append(super().__call__(*given, **named))
        return self.explanations[-1]


@pytest.mark.parametrize("method", [GradCAM(), ScoreCAM("contrast"), ReciproCAM("evidence")])
def test_maps_of_classes_that_are_in_different_places_differ(trained, pairs, method):
    found = sanity_checks(method, trained, pairs, "features")
    assert found.other_class.nanmean() < 0.3
    assert found.random_weights.nanmean() < 0.8


def test_the_mean_activation_says_nothing_about_the_class(trained, pairs):
    found = sanity_checks(MeanActivation(), trained, pairs, "features")
    assert found.other_class.tolist() == pytest.approx([1] * len(pairs))
    assert found.random_weights.mean() < 0.9


def test_maps_that_need_no_network_do_not_change_with_its_weights(trained, pairs):
    found = sanity_checks(Brightness(), trained, pairs, "features")
    assert found.other_class.tolist() == found.random_weights.tolist() == pytest.approx([1] * len(pairs))
    assert found.complexity_rise.tolist() == [0] * len(pairs)


def entropy_by_hand(values):
    counts = np.histogram(values, bins=100)[0]
    shares = counts[counts > 0] / counts.sum()
    return -(shares * np.log(shares)).sum()


def test_complexity_is_the_entropy_of_the_histogram():
    draw = torch.Generator().manual_seed(0)
    maps = torch.stack(
        [
            torch.rand(16, 16, generator=draw),
            torch.randn(16, 16, generator=draw).relu(),
            100 + torch.randn(16, 16, generator=draw) ** 3,
            torch.arange(256).view(16, 16) % 5,
            torch.full((16, 16), 0.3),
        ]
    )
    expected = [entropy_by_hand(each) for each in maps.numpy()]
    assert complexity(maps).tolist() == pytest.approx(expected, abs=1e-6)
    assert complexity(7 * maps).tolist() == pytest.approx(expected, abs=1e-6)
    maps[1, 3, 3] = torch.nan
    assert complexity(maps).isnan().tolist() == [False, True, False, False, False]


def test_checks_are_their_definitions(trained, pairs):
    method = Kept()
    found = sanity_checks(method, trained, pairs, "features", seed=3)
    both, random = method.explanations  # each map is made once
    ranked = trained(pairs).argsort(dim=1, descending=True)
    assert torch.equal(both.targets, ranked[:, :2])
    assert torch.equal(random.targets, ranked[:, 0])
    maps, drawn = both.layer_maps.flatten(2).numpy(), random.layer_maps.flatten(1).numpy()
    alike = [np.corrcoef(own, rival)[0, 1] for own, rival in maps]
    assert found.other_class.tolist() == pytest.approx(alike, abs=1e-5)
    xi_own, xi_random = ([entropy_by_hand(each) for each in some] for some in (maps[:, 0], drawn))
    rises = [(after - before) / before for before, after in zip(xi_own, xi_random, strict=True)]
    known = ~random.blank
    assert found.complexity_rise[known].tolist() == pytest.approx(np.array(rises)[known.numpy()], abs=1e-5)
    assert found.complexity_rise[~known].isnan().all()


def test_random_weights_are_those_of_the_randomization_test(trained, pairs):
    explanation = GradCAM()(trained, pairs, "features", 1)
    alike = sanity.randomization(trained, pairs, explanation, GradCAM())
    found = sanity_checks(GradCAM(), trained, pairs, "features", 1)
    torch.testing.assert_close(found.random_weights, alike, equal_nan=True)
    other = sanity_checks(GradCAM(), trained, pairs, "features", 1, seed=1)
    assert not torch.allclose(found.random_weights, other.random_weights, equal_nan=True)
    torch.testing.assert_close(found.other_class, other.other_class, equal_nan=True)


class Spoiled(nn.Module):
    """Its features do not depend on the first image, and are not finite for the second."""

    def __init__(self, model):
        super().__init__()
        self.model, self.features = model, nn.Identity()

    def forward(self, images):
        maps = self.model.features(images)
        marks = images[:, 0, 0, 0].view(-1, 1, 1, 1)
        maps = torch.where(marks == 50, 1.0, torch.where(marks == 60, torch.nan, maps))
        return self.model.head(self.features(maps).flatten(2).mean(dim=2))


def test_blank_and_skipped_maps_have_no_answer(trained, pairs):
    images = pairs.clone()
    images[0, 0, 0, 0], images[1, 0, 0, 0] = 50, 60
    found = sanity_checks(MeanActivation(), Spoiled(trained), images, "features")
    for check in ("other_class", "random_weights", "complexity_rise"):
        assert getattr(found, check).isnan().tolist() == [True, True, *[False] * 6]
    rows = found.rows()
    assert [row["check"] for row in rows] == ["other_class", "random_weights", "complexity_rise"]
    for row in rows:
        assert row["images"] == 6
        assert row["low"] <= row["mean"] <= row["high"]


def test_a_rival_that_nothing_speaks_for_has_no_answer(trained):
    alone = scenes(torch.zeros(4, 1).long(), seed=2)
    method = Kept()
    found = sanity_checks(method, trained, alone, "features")
    blank = method.explanations[0].blank[:, 1]
    assert blank.any()  # the square of a class says nothing for another
    assert torch.equal(found.other_class.isnan(), blank)


def test_the_model_and_random_numbers_are_left_as_they_were(small_cnn, blobs):
    model, images = small_cnn().train(), blobs(4, SIZE, SIZE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    sanity_checks(ScoreCAM(), model, images, model.features, [0, 1, 2, 3])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("method", "targets", "kind", "words"),
    [
        (GradCAM(), RegressionTarget(1), ValueError, r"targets=RegressionTarget\(index=1\) must be one class for each"),
        (GradCAM(), [[0, 1], [1, 2]], ValueError, r"targets=\[\[0, 1\], \[1, 2\]\] must be one .* leave targets out"),
        (GradCAM(), [0, 7], ValueError, r"targets contains \[7\], but the model has 5 classes"),
        (GradCAM, None, TypeError, r"method=.* must be a method with its settings, such as GradCAM\(\)"),
    ],
)
def test_what_does_not_fit_is_named(small_cnn, blobs, method, targets, kind, words):
    with pytest.raises(kind, match=words):
        sanity_checks(method, small_cnn(), blobs(2, SIZE, SIZE), "features", targets)


class TestRandomization:
    def test_a_map_of_a_callable_is_compared_with_one_of_the_same_callable(self, small_cnn, blobs):
        model, images, target = small_cnn(), blobs(4, 32, 32), RegressionTarget(2)
        explanation = GradCAM()(model, images, "features", target)
        of_class = GradCAM()(model, images, "features", 2)
        with pytest.raises(ValueError, match=r"targets is missing; give the callable .* RegressionTarget"):
            sanity.randomization(model, images, explanation, GradCAM())
        alike = sanity.randomization(model, images, explanation, GradCAM(), targets=target)
        same = sanity.randomization(model, images, of_class, GradCAM())
        torch.testing.assert_close(alike, same, equal_nan=True)

    def test_random_weights_change_the_maps_and_leave_the_model(self, small_cnn, blobs):
        model, images = small_cnn(), blobs(6, 32, 32)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        explanation = GradCAM()(model, images, "features")
        state = torch.get_rng_state()
        alike = sanity.randomization(model, images, explanation, GradCAM())
        assert alike.nanmean() < 0.8
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class InBuffers(nn.Module):
    """Keeps its weights where nothing trains them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randn(4, 3, 3, 3))

    def forward(self, images):
        return nn.functional.conv2d(images, self.weight).amax(dim=(2, 3))


class CannotBeCopied(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.layer(images).amax(dim=(2, 3))

    def __deepcopy__(self, memo):
        raise RuntimeError("no copies")


@pytest.mark.parametrize(
    ("model", "words"), [(InBuffers(), "no parameters that can be random"), (CannotBeCopied(), "cannot be copied")]
)
def test_weights_that_cannot_be_random_are_named(model, words):
    with pytest.raises(TypeError, match=words):
        _with_random_weights(model)


def test_a_parameter_of_one_number_keeps_it():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model.temperature = nn.Parameter(torch.ones(1, 1))
    other = _with_random_weights(model)
    assert torch.equal(other.temperature, model.temperature)
    assert not torch.equal(other[0].weight, model[0].weight)
