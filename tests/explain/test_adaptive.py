"""The adaptive Score-CAM: fewer passes, a known error."""

from dataclasses import replace

import pytest
import torch
import torchvision.models
from passes import NEIGHBORS
from PIL import Image
from setting import Counted
from torch import nn
from torchvision.transforms import v2

from cam_callbacks import ScoreCAM
from cam_callbacks.explain import progress
from cam_callbacks.explain.adaptive import AdaptiveSearch
from cam_callbacks.explain.heatmap_error import HeatmapErrors, _norm
from cam_callbacks.explain.surrogate import Surrogates, difference_of_sides, scales_of_sides
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


@pytest.mark.parametrize("method", READINGS.values(), ids=READINGS)
def test_images_without_a_live_channel_have_blank_maps(method):
    layers = nn.Conv2d(3, 40, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 3)
    explanation = method(nn.Sequential(*layers), torch.zeros(2, 3, 16, 16), "0", 0)
    assert explanation.blank.all()
    assert (explanation.passes <= 2).all()


@pytest.mark.parametrize("factor", [1e15, 1e-15])
def test_scores_too_large_for_covariances_are_all_found_out(images, factor):
    explanation = ScoreCAM("contrast")(Wide(40), images[:2], "features", lambda output: output[:, 1] * factor)
    assert not explanation.estimated_error.isnan().any()
    exact = ScoreCAM("contrast", tolerance=0)(Wide(40), images[:2], "features", lambda output: output[:, 1] * factor)
    assert (1 - correlations(explanation, exact) <= explanation.estimated_error + 1e-4).all()


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


@pytest.mark.parametrize("weighting", ["probability", "contrast"])
def test_deciding_takes_as_many_operators_for_many_images_as_for_one(weighting):
    maps = torch.rand(1, 40, 5, 5, generator=torch.Generator().manual_seed(0))
    sides = 2 if weighting == "contrast" else 1

    def score(_image, channel, turned):
        return (0.3 + 0.01 * channel + (0 if turned is None else 0.02 * turned)).sin().unsqueeze(1)

    def calls_for(count):
        search = AdaptiveSearch(score, weighting, sides, tolerance=1e-4, max_passes=48)
        with Counted() as counted:
            search.weights(maps.repeat(count, 1, 1, 1), torch.ones(count, 40, dtype=bool), torch.zeros(count, 1))
        return counted.count

    assert calls_for(24) == calls_for(2)


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


class TestSurrogates:
    @pytest.fixture
    def maps(self):
        centers = torch.linspace(0, 1, 60)
        grid = torch.linspace(0, 1, 36)
        return (-((grid - centers.unsqueeze(1)) ** 2) / 0.02).exp().view(60, 6, 6) + 0.1

    def test_begin_with_different_channels_of_much_contrast(self, maps):
        maps[7] *= 1e-4
        chosen = of_one(maps).landmarks(12)[0]
        assert len(chosen.unique()) == 12
        assert 7 not in chosen

    def test_begin_with_live_channels_alone(self, maps):
        live = torch.zeros(1, 60, dtype=torch.bool)
        live[:, 5:9] = True
        chosen = Surrogates(maps[None], live, torch.zeros(1, 1), "score").landmarks(6)[0]
        assert sorted(chosen.tolist()) == [-1, -1, 5, 6, 7, 8]

    def test_keep_seen_scores_and_predict_a_smooth_function_of_the_masks(self, maps):
        scores = torch.sin(torch.linspace(0, 3, 60)) - 2
        surrogates = of_one(maps)
        seen = surrogates.landmarks(15)
        surrogates.observe(seen, scores[seen].unsqueeze(2))
        weights = surrogates.weights[0, 0, 0]
        torch.testing.assert_close(weights[seen[0]], scores[seen[0]].double().exp())
        torch.testing.assert_close(weights, scores.double().exp(), rtol=0.1, atol=0)

    def test_ask_for_what_they_have_not_seen_until_nothing_is_left(self, maps):
        scores = torch.randn(60, generator=torch.Generator().manual_seed(0)) - 3
        surrogates = of_one(maps)
        wanted, seen = surrogates.landmarks(10), []
        while (wanted >= 0).any():
            asked = wanted[wanted >= 0]
            seen += asked.tolist()
            surrogates.observe(asked[None], scores[asked][None, :, None])
            errors = HeatmapErrors(surrogates)
            wanted = errors.next_passes(9, FIRST)
            assert 0 <= errors.estimates <= 1
        assert sorted(seen) == list(range(60))
        assert errors.estimates == 0

    def test_a_side_that_is_flat_so_far_is_not_known(self, maps):
        surrogates = of_one(maps, "contrast", sides=2)
        seen = surrogates.landmarks(8)
        scores = torch.cat([torch.linspace(-3, 3, 8), torch.zeros(8)])
        surrogates.observe(torch.cat([seen, 60 + seen], dim=1), scores[None, :, None])
        errors = HeatmapErrors(surrogates)
        assert errors.estimates == 1
        assert (errors.next_passes(8, FIRST) >= 60).all()  # of the flat side

    def test_of_two_sides_each_is_asked_for_what_it_does_not_know(self, maps):
        grid = torch.linspace(0, 3, 60)
        scores = torch.stack([torch.sin(grid), 0.1 * torch.cos(grid)])
        surrogates = of_one(maps, "contrast", sides=2)
        wanted, asked = torch.tensor([[*range(0, 60, 6), *range(60, 120, 6)]]), []
        while True:
            asked += wanted[0].tolist()
            surrogates.observe(wanted, scores.flatten()[wanted].unsqueeze(2))
            errors = HeatmapErrors(surrogates)
            if errors.estimates <= 0.002:
                break
            wanted = errors.next_passes(4, FIRST)
        assert len(set(asked)) == len(asked)
        sides, spreads = surrogates.weights[0, 0], surrogates.spread[0, 0]
        weights = difference_of_sides(list(sides), scales_of_sides(list(spreads)))
        in_units_of_spread = [(each - each.mean()) / each.std() for each in scores]
        expected = (in_units_of_spread[0] - in_units_of_spread[1]).double()
        found, exact = ((each - each.mean()) @ maps.flatten(1).double() for each in (weights, expected))
        assert correlation(found.relu()[None], exact.relu()[None]) > 0.998

    def test_are_sure_where_all_scores_are_the_same(self, maps):
        surrogates = of_one(maps)
        surrogates.observe(surrogates.landmarks(16), torch.full((1, 16, 1), -1.0))
        error = HeatmapErrors(surrogates).estimates
        assert error.item() == pytest.approx(0.001)  # the least that is ever claimed while scores are predicted

    def test_weights_are_below_the_ceiling_and_the_offset_is_taken_off(self, maps):
        surrogates = of_one(maps, offset=0.25)
        surrogates.observe(surrogates.landmarks(16), torch.linspace(-30, -0.01, 16)[None, :, None])
        assert (surrogates.weights <= 0.75 + 1e-9).all()
        assert (surrogates.weights >= -0.25 - 1e-9).all()

    def test_images_and_targets_do_not_know_of_each_other(self, maps):
        torch.manual_seed(0)
        three, scores = torch.stack([maps, maps.flip(0) ** 2, maps**3]), torch.randn(3, 60, 2)
        live = torch.rand(3, 60) < 0.8
        together = Surrogates(three, live, torch.zeros(3, 2), "score")
        seen = torch.where(torch.rand(3, 14) < 0.9, together.landmarks(14), -1)
        together.observe(seen, scores.gather(1, seen.clamp_min(0).unsqueeze(2).expand(-1, -1, 2)))
        errors = HeatmapErrors(together)
        target = torch.tensor([0, 1, 1])
        picked = errors.next_passes(6, target)
        for image in range(3):
            own = seen[image][seen[image] >= 0]
            alone = Surrogates(three[image, None], live[image, None], torch.zeros(1, 1), "score")
            alone.observe(own[None], scores[image, own, target[image]][None, :, None])
            error = HeatmapErrors(alone)
            torch.testing.assert_close(alone.weights[0, 0], together.weights[image, target[image]])
            torch.testing.assert_close(error.estimates[0, 0], errors.estimates[image, target[image]])
            assert torch.equal(error.next_passes(6, FIRST)[0], picked[image])

    @pytest.mark.parametrize(("channels", "positions"), [(5, 40), (40, 5), (7, 7)])
    def test_norm_of_the_covariance_is_the_same_however_it_is_taken(self, channels, positions):
        a, b = torch.randn(2, 1, 1, 2, channels, positions, generator=torch.Generator().manual_seed(0)).double()
        norm = torch.linalg.matrix_norm(sum(a[0, 0, side].T @ b[0, 0, side] for side in range(2)))
        torch.testing.assert_close(_norm(a, b)[0, 0], norm)


FIRST = torch.tensor([0])


def of_one(maps, scale="probability", offset=0.0, sides=1):
    """Surrogates of one image with maps (n, *spatial), all live, and one target."""
    live = torch.ones(1, len(maps), dtype=torch.bool)
    return Surrogates(maps.unsqueeze(0), live, torch.tensor([[offset]]), scale, sides)
