"""Where a layer's positions lie in the image, if the model pads, crops or resizes: the heat lies on what was seen."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cam_callbacks import CAM, GradCAM, ScoreCAM
from cam_callbacks.explain.axes import AxisTracker
from cam_callbacks.explain.stretches import Stretch, merged


class Seen(nn.Module):
    """Its layer is bright where the image is, after whatever `before` does to it; that speaks for class 1."""

    def __init__(self, before, axes=2, kernel=1, stride=1, padding=0, after=lambda maps: maps):
        super().__init__()
        self.before, self.after = before, after
        self.layer = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes](1, 2, kernel, stride, padding, bias=False)
        self.out = nn.Identity()
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.abs_().add_(0.1)
            self.layer.weight.fill_(1.0)
            self.head.weight[0].neg_()

    def forward(self, images):
        maps = self.out(self.after(self.layer(self.before(images))))
        return self.head(maps.mean(dim=tuple(range(2, maps.ndim))))


def with_square(axes=2, side=36, start=24, size=6):
    images = torch.zeros(2, 1, *[side] * axes)
    images[(..., *[slice(start, start + size)] * axes)] = 1
    return images


def center_of(heatmaps):
    """Return the center of heat (axes,) in pixels."""
    hot = (heatmaps[0] > 0.5).nonzero().double()
    return hot.mean(dim=0)


def assert_heat_is_on_the_square(model, images, method=None, within=1.5):
    where = images[0, 0].nonzero().double().mean(dim=0)
    found = center_of((method or GradCAM())(model.eval(), images, "out", targets=1).heatmaps)
    assert (found - where).abs().max() <= within


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


TO_64 = (14, 14, 14, 14)
CASES = {
    "padded to a multiple": (lambda x: F.pad(x, TO_64), {}, 1.5),
    "reflected": (lambda x: F.pad(x, (14, 14, 9, 3), mode="reflect"), {}, 1.5),
    "repeated edges": (lambda x: F.pad(x, (0, 20, 5, 0), mode="replicate"), {}, 1.5),
    "padded on one side": (lambda x: F.pad(x, (28, 0, 0, 28)), {}, 1.5),
    "cropped above": (lambda x: x[:, :, 12:], {}, 1.5),
    "cropped left and below": (lambda x: x[:, :, :-4, 10:], {}, 1.5),
    "cropped, then padded": (lambda x: F.pad(x[:, :, 12:], (0, 0, 12, 0)), {}, 1.5),
    "joined with zeros": (lambda x: torch.cat([x.new_zeros(len(x), 1, 12, 36), x], dim=2), {}, 1.5),
    "strided slices": (lambda x: F.pad(x, TO_64)[..., ::2, 1::2], {}, 2.0),
    "valid convolution": (lambda x: x, {"kernel": 9}, 1.5),
    "reflected for a valid convolution": (lambda x: F.pad(x, (3,) * 4, mode="reflect"), {"kernel": 7}, 1.5),
    "padded as TensorFlow does": (lambda x: F.pad(x, (0, 1, 0, 1)), {"kernel": 3, "stride": 2}, 2.0),
    "padded, then strided": (lambda x: F.pad(x, TO_64), {"kernel": 3, "stride": 2, "padding": 1}, 2.0),
    "padded, pooled, upsampled": (
        lambda x: F.pad(x, TO_64),
        {"after": lambda maps: F.interpolate(F.max_pool2d(maps, 4), scale_factor=4)},
        3.0,
    ),
    "padded, as tokens and back": (
        lambda x: F.pad(x, TO_64),
        {"after": lambda maps: maps.flatten(2).transpose(1, 2).transpose(1, 2).reshape(-1, 2, 64, 64)},
        1.5,
    ),
}


@pytest.mark.parametrize(("before", "options", "within"), CASES.values(), ids=CASES)
class TestHeat:
    def test_is_on_what_was_seen(self, before, options, within):
        assert_heat_is_on_the_square(Seen(before, **options), with_square(), within=within)


class TestHeatOfOtherKinds:
    @pytest.mark.parametrize("axes", [1, 3])
    def test_is_on_what_was_seen_in_signals_and_volumes(self, axes):
        images = with_square(axes, 20, 12, 4)
        assert_heat_is_on_the_square(Seen(lambda x: F.pad(x, (8, 0) * axes), axes), images)
        assert_heat_is_on_the_square(Seen(lambda x: x[:, :, 8:], axes), images)

    @pytest.mark.parametrize("method", [ScoreCAM(tolerance=0), CAM()], ids=["ScoreCAM", "CAM"])
    @pytest.mark.parametrize("before", [lambda x: F.pad(x, TO_64), lambda x: x[:, :, 12:]], ids=["padded", "cropped"])
    def test_is_on_what_was_seen_by_every_method(self, method, before):
        assert_heat_is_on_the_square(Seen(before), with_square(), method)

    @pytest.mark.parametrize("weighting", ["probability", "increase", "logit-softmax"])
    def test_of_channels_that_live_in_the_padding_only_costs_nothing(self, weighting):
        """Where the image is, such a channel has no contrast, and masks nothing."""
        signs = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
        model = Seen(lambda x: F.pad(x, TO_64, value=-1.0), after=lambda maps: (maps * signs).relu())
        explanation = ScoreCAM(weighting)(model.eval(), with_square(), "out", targets=1)
        assert not explanation.skipped.any()
        assert torch.isfinite(explanation.heatmaps).all()
        assert torch.isfinite(explanation.estimated_error).all()

    def test_is_none_where_nothing_was_seen(self):
        heatmaps = GradCAM()(Seen(lambda x: x[:, :, 12:]).eval(), torch.ones(2, 1, 36, 36), "out", targets=1).heatmaps
        assert (heatmaps[:, :11] == 0).all()
        assert (heatmaps[:, 13:] == 1).all()


class TestSums:
    """A sum with what was made from the images and is not understood is not understood either."""

    @pytest.mark.parametrize(
        "after",
        [
            lambda m: m.flip(3) * 0.99 + m * 0.01,
            lambda m: m[..., torch.arange(35, -1, -1)] + m * 0.001,
            lambda m: m.roll(9, 2) + m * 0.001,
        ],
        ids=["mirrored", "indexed", "rolled"],
    )
    def test_of_displaced_maps_are_refused(self, after):
        with pytest.raises(ValueError, match=r"target_layer='out' has an output .* give reshape_transform"):
            GradCAM()(Seen(lambda x: x, after=after).eval(), torch.rand(2, 1, 36, 36), "out", targets=1)

    @pytest.mark.parametrize(
        "function",
        [
            lambda m: m + torch.rand(36),
            lambda m: m * m.mean(dim=(2, 3), keepdim=True),
            lambda m: m + m.mean(dim=3, keepdim=True).expand_as(m),
            lambda m: m + torch.zeros_like(m),
            lambda m: m.roll(5, 3).relu().roll(-5, 3) + m,
        ],
        ids=["constant", "one value", "repeated", "zeros", "rolled back"],
    )
    def test_with_what_has_no_positions_are_known(self, function):
        images = torch.rand(2, 1, 36, 36)
        with AxisTracker(images) as tracker:
            layout = tracker.layout(function(images))
        assert layout is not None
        assert layout.spatial == (36, 36)
        assert not layout.margins


class TestStretch:
    def test_of_padded_convolutions_needs_no_margins(self):
        stretch = Stretch()
        for kernel, padding in [(7, 3), (3, 1), (3, 1), (3, 1), (3, 1)]:
            stretch = stretch.in_windows(kernel, 2, padding)
        assert stretch.margins(7, 224) == (0, 0)
        assert stretch.margins(8, 225) == (0, 0)

    def test_of_a_transposed_convolution_is_that_before_the_convolution(self):
        assert Stretch().in_windows(4, 2, 1).in_spread_windows(4, 2, 1).margins(32, 32) == (0, 0)
        assert Stretch().in_spread_windows(5).margins(36, 32) == (-2, -2)

    def test_of_valid_convolutions_begins_in_the_middle_of_the_first_window(self):
        stretch = Stretch().in_windows(5).in_windows(2, 2).in_windows(5)
        assert (stretch.most, stretch.width, stretch.margins(8, 28)) == (6, 2, (3, 3))

    def test_of_a_sum_is_that_of_the_finest(self):
        coarse = Stretch().in_windows(2, 2).in_windows(2, 2).resized(7, 15)
        assert merged([coarse, Stretch().in_windows(2, 2)], 15).width == 2
        assert merged([Stretch(), Stretch().from_position(2)], 15) is None
