"""The adaptive Score-CAM: fewer passes, a known error."""

from dataclasses import replace

import pytest
import torch
import torchvision.models
from passes import NEIGHBORS
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from cam_callbacks import ScoreCAM
from cam_callbacks.explain import progress
from cam_callbacks.explain.surrogate import (
    HeatmapError,
    Surrogate,
    _trace_and_norm,
    difference_of_sides,
    scales_of_sides,
)
from cam_callbacks.explain.trust import correlation

READINGS = {
    weighting: ScoreCAM(weighting, tolerance=0.02)
    for weighting in ("probability", "logit-softmax", "increase", "contrast")
}
READINGS["one side"] = ScoreCAM("contrast", tolerance=0.02, complement=False)


class Wide(nn.Module):
    """A network of smooth features: many channels at 7 x 7, most of them alike."""

    def __init__(self, channels=256, classes=5):
        super().__init__()
        torch.manual_seed(5)
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 5, padding=2), nn.Tanh(), nn.AvgPool2d(4))
        self.features = nn.Sequential(nn.Conv2d(12, channels, 3, padding=1), nn.Softplus())
        self.head = nn.Linear(channels, classes)

    def forward(self, images):
        return 6 * self.head(self.features(self.stem(images)).mean(dim=(2, 3)))


def correlations(explanation, exact):
    maps = zip(explanation.layer_maps.flatten(1), exact.layer_maps.flatten(1), strict=True)
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in maps])


@pytest.fixture
def images(blobs):
    return blobs(6, 28, 28)


@pytest.mark.parametrize("method", READINGS.values(), ids=READINGS)
def test_needs_few_passes_and_comes_near_the_exact_map(method, images):
    network = Wide()
    exact = replace(method, tolerance=0)(network, images, "features")
    adaptive = method(network, images, "features")
    assert (exact.passes >= 256).all()
    assert (adaptive.passes <= exact.passes // 3).all()
    assert (adaptive.estimated_error <= 0.02).all()
    assert torch.equal(adaptive.blank, exact.blank)
    assert (correlations(adaptive, exact)[~exact.blank] > 0.95).all()
    assert torch.equal(adaptive.targets, exact.targets)


def test_the_passes_reported_are_those_that_the_model_saw(images, forwarded):
    network = Wide()
    seen = forwarded(network)
    explanation = ScoreCAM()(network, images, "features")
    assert sum(seen) == explanation.passes.sum() + NEIGHBORS


def test_each_image_has_its_own_number_of_passes(images):
    images[0] = images[0].mean()
    passes = ScoreCAM(tolerance=0.002)(Wide(), images, "features").passes
    assert len(passes.unique()) > 1


def test_a_smaller_tolerance_costs_more_and_comes_nearer(images):
    network = Wide()
    exact = ScoreCAM(tolerance=0)(network, images, "features")
    loose, tight = (ScoreCAM(tolerance=t)(network, images, "features") for t in (0.3, 0.001))
    assert loose.passes.sum() < tight.passes.sum() < exact.passes.sum()
    assert correlations(tight, exact).mean() > correlations(loose, exact).mean()
    assert (correlations(tight, exact) > 0.999).all()


def test_max_passes_binds_and_the_error_says_so(images):
    explanation = ScoreCAM(tolerance=0.00001, max_passes=20)(Wide(), images, "features")
    assert (explanation.passes == 21).all()
    assert (explanation.estimated_error > 0.00001).all()
    assert (explanation.estimated_error <= 1).all()


def test_max_passes_holds_also_where_the_tolerance_asks_for_every_channel(images):
    explanation = ScoreCAM(tolerance=0, max_passes=40)(Wide(), images, "features")
    assert (explanation.passes == 41).all()


@pytest.mark.parametrize("most", [1, 2, 5])
def test_max_passes_may_be_tiny(most, images):
    explanation = ScoreCAM("probability", max_passes=most)(Wide(), images, "features")
    assert (explanation.passes == 1 + most).all()
    assert torch.isfinite(explanation.heatmaps).all()


@pytest.mark.parametrize("method", READINGS.values(), ids=READINGS)
def test_a_layer_of_few_channels_is_exact(method, images):
    network = Wide(channels=24 // method._sides)
    exact = replace(method, tolerance=0)(network, images, "features")
    adaptive = method(network, images, "features")
    assert torch.equal(adaptive.estimated_error, torch.zeros(6))
    assert torch.equal(adaptive.passes, exact.passes)
    torch.testing.assert_close(adaptive.layer_maps, exact.layer_maps)


def test_matlab_is_always_exact(images):
    explanation = ScoreCAM("matlab")(Wide(), images, "features")
    assert (explanation.estimated_error == 0).all()
    assert (explanation.passes == 257).all()


def test_is_deterministic_and_draws_no_random_numbers(images):
    network = Wide()
    state = torch.get_rng_state()
    first, second = (ScoreCAM()(network, images, "features") for _ in range(2))
    assert torch.equal(first.heatmaps, second.heatmaps)
    assert torch.equal(first.passes, second.passes)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("convolution", [nn.Conv1d, nn.Conv3d])
def test_works_on_signals_and_volumes(convolution):
    torch.manual_seed(0)
    spatial = (40,) if convolution is nn.Conv1d else (6, 6, 6)
    network = nn.Sequential(convolution(2, 96, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.LazyLinear(4))
    images = torch.randn(2, 2, *spatial)
    network(images)
    exact = ScoreCAM(tolerance=0)(network, images, "1")
    adaptive = ScoreCAM(tolerance=0.01)(network, images, "1")
    assert adaptive.heatmaps.shape == images[:, 0].shape
    assert (adaptive.passes <= exact.passes).all()
    assert (correlations(adaptive, exact) > 0.9).all()


def test_scores_that_are_not_finite_skip_their_image_alone(images):
    class Overflows(Wide):
        def forward(self, batch):
            logits = super().forward(batch)
            masked_first = (batch - images[:1]).flatten(1).norm(dim=1) < images[0].norm() * 0.9
            clean = (batch - images[:1]).flatten(1).norm(dim=1) == 0
            return torch.where((masked_first & ~clean).unsqueeze(1), torch.nan, logits)

    explanation = ScoreCAM()(Overflows(), images, "features")
    assert explanation.skipped[0]
    assert explanation.heatmaps[0].isnan().all()
    assert explanation.estimated_error[0].isnan()
    assert torch.isfinite(explanation.heatmaps[~explanation.skipped]).all()


def test_progress_counts_what_was_not_needed_as_done(images):
    told = []
    with progress.shown(lambda *counts: told.append(counts)):
        explanation = ScoreCAM()(Wide(), images, "features")
    assert told[-1] == (6 * 257, 6 * 257)
    assert explanation.passes.sum() < 6 * 128
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert {total for _, total in told} == {6, 6 * 257}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": -0.1}, "tolerance=-0.1 must be"),
        ({"tolerance": 1}, "tolerance=1 must be"),
        ({"max_passes": 0}, "max_passes=0 must be a whole number of at least 1"),
        ({"weighting": "matlab", "max_passes": 9}, "max_passes=9 cannot be kept"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ScoreCAM(**arguments)


@pytest.mark.slow
def test_on_photos_few_passes_are_enough_and_the_error_is_honest(data_folder):
    state = torch.load(data_folder / "weights" / "squeezenet1_1_imagenet_fp16.pth", weights_only=True)
    network = torchvision.models.squeezenet1_1()
    network.load_state_dict({name: weight.float() for name, weight in state.items()})
    prepare = v2.Compose(
        [
            v2.Resize(110),
            v2.CenterCrop(96),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    paths = sorted((data_folder / "imagenet-sample").glob("*.jpg"))[::5]
    images = torch.stack([prepare(Image.open(path).convert("RGB")) for path in paths])
    exact = ScoreCAM(tolerance=0)(network.eval(), images, "features")
    adaptive = ScoreCAM()(network, images, "features")
    truth = correlations(adaptive, exact)
    assert exact.passes.sum() > 4 * adaptive.passes.sum()
    assert truth.mean() > 0.99
    assert truth.min() > 0.96
    assert (1 - truth <= adaptive.estimated_error).float().mean() >= 0.7  # 8 photos; the benchmark has 40


class TestSurrogate:
    @pytest.fixture
    def maps(self):
        centers = torch.linspace(0, 1, 60)
        grid = torch.linspace(0, 1, 36)
        return (-((grid - centers.unsqueeze(1)) ** 2) / 0.02).exp().view(60, 6, 6) + 0.1

    def test_begins_with_different_channels_of_much_contrast(self, maps):
        maps[7] *= 1e-4
        chosen = Surrogate(maps).landmarks(12)
        assert len(chosen.unique()) == 12
        assert 7 not in chosen

    def test_keeps_seen_scores_and_predicts_a_smooth_function_of_the_masks(self, maps):
        scores = torch.sin(torch.linspace(0, 3, 60)) - 2
        surrogate = Surrogate(maps)
        seen = surrogate.landmarks(15)
        surrogate.observe(seen, scores[seen])
        torch.testing.assert_close(surrogate.weights[seen], scores[seen].double().exp())
        torch.testing.assert_close(surrogate.weights, scores.double().exp(), rtol=0.1, atol=0)

    def test_asks_for_what_it_has_not_seen_until_nothing_is_left(self, maps):
        scores = torch.randn(60, generator=torch.Generator().manual_seed(0)) - 3
        surrogate = Surrogate(maps)
        wanted, seen = surrogate.landmarks(10), []
        while len(wanted):
            seen += wanted.tolist()
            surrogate.observe(wanted, scores[wanted])
            error = HeatmapError([surrogate])
            wanted = error.next_passes(9)
            assert 0 <= error.estimate <= 1
        assert sorted(seen) == list(range(60))
        assert error.estimate == 0

    def test_a_side_that_is_flat_so_far_is_not_known(self, maps):
        sides = [Surrogate(maps, "contrast") for _ in range(2)]
        seen = sides[0].landmarks(8)
        for surrogate, scores in zip(sides, (torch.linspace(-3, 3, 8), torch.zeros(8)), strict=True):
            surrogate.observe(seen, scores)
        error = HeatmapError(sides)
        assert error.estimate == 1
        assert (error.next_passes(8) >= 60).all()  # of the flat side

    def test_of_two_sides_each_is_asked_for_what_it_does_not_know(self, maps):
        grid = torch.linspace(0, 3, 60)
        scores = [torch.sin(grid), 0.1 * torch.cos(grid)]
        sides = [Surrogate(maps, "contrast") for _ in scores]
        wanted, asked = torch.tensor([*range(0, 60, 6), *range(60, 120, 6)]), []
        while True:
            asked += wanted.tolist()
            for side, surrogate in enumerate(sides):
                own = wanted[wanted // 60 == side] % 60
                if len(own):
                    surrogate.observe(own, scores[side][own])
            error = HeatmapError(sides)
            if error.estimate <= 0.002:
                break
            wanted = error.next_passes(4)
        assert len(set(asked)) == len(asked)
        scales = scales_of_sides([side.spread for side in sides])
        weights = difference_of_sides([side.weights for side in sides], scales)
        in_units_of_spread = [(each - each.mean()) / each.std() for each in scores]
        expected = (in_units_of_spread[0] - in_units_of_spread[1]).double()
        found, exact = ((each - each.mean()) @ maps.flatten(1).double() for each in (weights, expected))
        assert correlation(found.relu()[None], exact.relu()[None]) > 0.998

    def test_is_sure_where_all_scores_are_the_same(self, maps):
        surrogate = Surrogate(maps)
        seen = surrogate.landmarks(16)
        surrogate.observe(seen, torch.full((16,), -1.0))
        error = HeatmapError([surrogate]).estimate
        assert error == pytest.approx(0.001)  # the least that is ever claimed while scores are predicted

    def test_weights_are_below_the_ceiling_and_the_offset_is_taken_off(self, maps):
        surrogate = Surrogate(maps, offset=0.25)
        seen = surrogate.landmarks(16)
        surrogate.observe(seen, torch.linspace(-30, -0.01, 16))
        assert (surrogate.weights <= 0.75 + 1e-9).all()
        assert (surrogate.weights >= -0.25 - 1e-9).all()

    @pytest.mark.parametrize(("channels", "positions"), [(5, 40), (40, 5), (7, 7)])
    def test_norm_of_the_covariance_is_the_same_however_it_is_taken(self, channels, positions):
        a, b = torch.randn(2, channels, positions, generator=torch.Generator().manual_seed(0)).double()
        trace, norm = _trace_and_norm(a, b)
        torch.testing.assert_close(trace, (a.T @ b).trace())
        torch.testing.assert_close(norm, torch.linalg.matrix_norm(a.T @ b))
