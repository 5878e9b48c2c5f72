"""Grad-CAM is the formula of the paper, by gradients with respect to the activations only."""

import copy

import pytest
import torch
from torch import nn

from cam_callbacks import GradCAM, ScoreCAM


@pytest.fixture
def network(small_cnn):
    return small_cnn()


@pytest.fixture
def images(blobs):
    return blobs(3, 24, 24)


def by_hand(network, images, classes, score="logit"):
    """The formula of the paper, one image at a time; (N, h, w)."""
    maps = []
    for image, target in zip(images, classes, strict=True):
        activations = network.features(image.unsqueeze(0)).detach().requires_grad_()
        logits = network.head(activations.flatten(2).mean(dim=2))
        scores = logits if score == "logit" else logits.softmax(dim=1)
        (gradient,) = torch.autograd.grad(scores[0, target], activations)
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        maps.append((weights * activations.detach()).sum(dim=1).relu()[0])
    return torch.stack(maps)


@pytest.mark.parametrize("score", ["logit", "probability"])
@pytest.mark.parametrize("inplace", [False, True])
def test_it_is_the_formula(small_cnn, images, score, inplace):
    network = small_cnn(inplace=inplace)
    explanation = GradCAM(score)(network, images, "features", [0, 3, 4])
    torch.testing.assert_close(explanation.layer_maps, by_hand(network, images, [0, 3, 4], score))
    assert explanation.score_kind == score
    assert explanation.passes.tolist() == [1, 1, 1]
    assert explanation.estimated_error.tolist() == [0, 0, 0]


def test_several_targets_are_each_explained(network, images):
    targets = torch.tensor([[0, 1], [2, 3], [4, 0]])
    explanation = GradCAM()(network, images, "features", targets)
    assert explanation.heatmaps.shape == (3, 2, 24, 24)
    assert explanation.target_scores.shape == explanation.estimated_error.shape == explanation.blank.shape == (3, 2)
    for column in range(2):
        alone = GradCAM()(network, images, "features", targets[:, column])
        torch.testing.assert_close(explanation.heatmaps[:, column], alone.heatmaps)
        torch.testing.assert_close(explanation.target_scores[:, column], alone.target_scores)
    assert torch.equal(explanation.targets, targets)


def test_several_layers_are_the_mean_of_their_scaled_maps(network, images):
    images, names = images[:1], ["features.2", "features"]
    explanation = GradCAM()(network, images, names)
    alone = [GradCAM()(network, images, name) for name in names]
    assert explanation.target_layer == ("features.2", "features")
    assert explanation.channels is None
    first, second = (each.layer_maps for each in alone)

    def scale(maps):
        low, high = (pick(dim=(1, 2), keepdim=True) for pick in (maps.amin, maps.amax))
        return (maps - low) / (high - low)

    second = nn.functional.interpolate(second.unsqueeze(1), first.shape[1:], mode="bilinear").squeeze(1)
    torch.testing.assert_close(explanation.layer_maps, (scale(first) + scale(second)) / 2)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_it_works_in_any_number_of_dimensions(small_cnn, blobs, dimensions):
    images = blobs(2, *[24] * dimensions)
    explanation = GradCAM()(small_cnn(dimensions=dimensions), images)
    assert explanation.heatmaps.shape == (2, *images.shape[2:])
    assert explanation.target_layer == "features"
    assert not explanation.blank.any()


def test_frozen_parameters_and_their_gradients_are_left_alone(network, images):
    expected = GradCAM()(network, images, "features")
    network.requires_grad_(False)
    assert torch.equal(GradCAM()(network, images, "features").layer_maps, expected.layer_maps)
    network.requires_grad_(True)
    network(images).sum().backward()
    before = copy.deepcopy([parameter.grad for parameter in network.parameters()])
    GradCAM()(network, images, "features")
    assert all(torch.equal(a, p.grad) for a, p in zip(before, network.parameters(), strict=True))
    assert not any(
        tensor.requires_grad for tensor in vars(GradCAM()(network, images)).values() if torch.is_tensor(tensor)
    )


def test_it_works_inside_inference_mode_and_no_grad(network, images):
    expected = GradCAM()(network, images, "features").layer_maps
    with torch.no_grad():
        assert torch.equal(GradCAM()(network, images, "features").layer_maps, expected)
    with torch.inference_mode():
        assert torch.equal(GradCAM()(network, images.clone(), "features").layer_maps, expected)


def test_it_works_in_half_precision(network, images):
    expected = GradCAM()(network, images, "features")
    half = GradCAM()(copy.deepcopy(network).bfloat16(), images, "features", expected.targets)
    assert half.layer_maps.dtype == torch.float32
    correlation = torch.corrcoef(torch.stack([expected.layer_maps.flatten(), half.layer_maps.flatten()]))[0, 1]
    assert correlation > 0.99


def test_small_chunks_give_the_same(network, images):
    images = images.repeat(20, 1, 1, 1)  # more than one chunk
    explanation = GradCAM()(network, images, "features", 2)
    torch.testing.assert_close(explanation.layer_maps, by_hand(network, images[:3], [2, 2, 2]).repeat(20, 1, 1))


class CutsGradients(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        with torch.no_grad():
            return self.network(images)


def test_a_model_without_gradients_is_refused_with_what_explains_it(network, images):
    model = CutsGradients(network)
    with pytest.raises(ValueError, match=r"the explained score has no gradient.*ScoreCAM does not"):
        GradCAM()(model, images, "network.features")
    assert not ScoreCAM()(model, images, "network.features").blank.all()


def test_a_layer_that_the_score_does_not_depend_on_is_refused(network, images):
    class TwoBranches(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = network, nn.Conv2d(3, 4, 3)

        def forward(self, images):
            return self.used(images), self.unused(images)

    with pytest.raises(ValueError, match=r"no gradient|does not depend on the target layer"):
        GradCAM()(TwoBranches(), images, "unused")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"score": "softmax"}, "score='softmax' is unknown; choose one of 'logit', 'probability'"),
        ({"upsampling": "cubic"}, "upsampling='cubic' is unknown; choose one of 'bilinear', 'bicubic'"),
    ],
    ids=str,
)
def test_unknown_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        GradCAM(**settings)


def test_upsampling(network, images):
    raw = GradCAM()(network, images, "features").layer_maps
    none = GradCAM(upsampling="none")(network, images, "features").heatmaps
    assert none.shape == raw.shape
    torch.testing.assert_close(none.amax(dim=(1, 2)), (raw.amax(dim=(1, 2)) > 0).float())
    nearest = GradCAM(upsampling="nearest")(network, images, "features").heatmaps
    assert torch.equal(nearest, none.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2))
    bicubic = GradCAM(upsampling="bicubic")(network, images, "features").heatmaps
    assert bicubic.shape == (3, 24, 24)
    assert 0 <= bicubic.min() <= bicubic.max() <= 1


@pytest.mark.parametrize(
    "ask", [GradCAM(upsampling="bicubic"), GradCAM(upsampling="bicubic").check], ids=["call", "check"]
)
def test_bicubic_is_for_images_only(small_cnn, blobs, ask):
    with pytest.raises(ValueError, match=r'upsampling="bicubic" needs images with two .* have 1; use "bilinear"'):
        ask(small_cnn(dimensions=1), blobs(2, 40), "features")


class FrozenBackbone(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.features, self.head = network.features, network.head

    def forward(self, images):
        with torch.no_grad():
            maps = self.features(images)
        return self.head(maps.mean(dim=(2, 3)))


def test_a_backbone_without_gradients_is_explained_at_its_end(network, images):
    explanation = GradCAM()(FrozenBackbone(network), images, "features", 1)
    assert torch.equal(explanation.layer_maps, GradCAM()(network, images, "features", 1).layer_maps)


def test_branches_with_frozen_parameters_are_fused(images):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(8, 3)

        def forward(self, images):
            return self.head(torch.cat([self.a(images), self.b(images)], dim=1).relu().mean((2, 3)))

    torch.manual_seed(0)
    model = Branches().eval()
    expected = GradCAM()(model, images, ["a", "b"], 1)
    model.requires_grad_(False)
    torch.testing.assert_close(GradCAM()(model, images, ["a", "b"], 1).layer_maps, expected.layer_maps)


def test_backward_hooks_of_the_user_are_silent_and_stay(network, images):
    called = []
    network.head.register_full_backward_hook(lambda *_: called.append(1))
    GradCAM()(network, images)
    assert called == []
    network(images).sum().backward()
    assert called == [1]


def test_a_tensor_made_in_inference_mode_is_named_with_the_remedy(network, images):
    class Caches(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.scale = network, None

        def forward(self, images):
            maps = self.network.features(images)
            if self.scale is None:
                self.scale = torch.linspace(0.5, 1.5, maps.shape[-1])
            return self.network.head((maps * self.scale).mean((2, 3)))

    model = Caches()
    with torch.inference_mode():
        model(images)
    with pytest.raises(ValueError, match=r"made in inference mode.* use ScoreCAM.* or Trainer\(inference_mode=False"):
        GradCAM()(model, images, "network.features")


def test_gradients_that_vanish_in_half_precision_are_scaled(small_cnn, blobs):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 100)
    )
    images = blobs(1, 96, 96)
    expected = GradCAM("probability")(network, images, "1", 3).layer_maps
    half = GradCAM("probability")(copy.deepcopy(network).half(), images, "1", 3).layer_maps
    assert torch.corrcoef(torch.stack([expected.flatten(), half.flatten()]))[0, 1] > 0.999


def test_gradients_that_would_overflow_in_half_precision_are_scaled_less(blobs):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    nn.init.normal_(network[-1].weight, std=10)
    images = blobs(1, 24, 24)
    expected = GradCAM()(network, images, "1", 3)
    half = GradCAM()(copy.deepcopy(network).half(), images, "1", 3)
    assert not expected.blank.any()
    torch.testing.assert_close(
        half.layer_maps, expected.layer_maps, atol=1e-2 * float(expected.layer_maps.max()), rtol=0
    )
