"""A layer's output becomes maps whose positions are those of the image, in whatever order its dimensions are."""

import pytest
import torch
from torch import nn

from cam_callbacks import GradCAM
from cam_callbacks.explain.axes import AxisTracker
from cam_callbacks.explain.isolation import isolated
from cam_callbacks.explain.layouts import Layout, Run, transformed
from cam_callbacks.explain.network import Network

CHANNELS = 8


class Patches(nn.Module):
    """One position for each patch of an image, and nothing of a position in any other.

    Args:
        patch: The size of a patch along each axis.
        order: How the positions are laid out before `norm`.
        extra: How many tokens of no position there are before those of the image, or after them if it is negative.
        known: Whether patches are made by a convolution, whose positions are known, or cut and joined by indices.
    """

    def __init__(self, patch, order="tokens", extra=0, known=True):
        super().__init__()
        self.patch, self.order, self.known = patch, order, known
        convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(patch)]
        self.embed = convolution(3, CHANNELS, patch, patch)
        self.extra = nn.Parameter(torch.randn(1, abs(extra), CHANNELS))
        self.after = extra < 0
        self.norm = nn.LayerNorm(CHANNELS)
        self.head = nn.Linear(CHANNELS, 4)

    def forward(self, images):
        maps = self.embed(images)
        if not self.known:  # an operation on the whole storage, which says nothing about positions
            maps = maps.flatten()[torch.arange(maps.numel())].reshape(maps.shape)
        if self.order == "channels last":
            return self.head(self.norm(maps.movedim(1, -1)).flatten(1, -2).mean(dim=1))
        if self.order == "columns":
            maps = maps.transpose(-1, -2)
        tokens, extra = maps.flatten(2).transpose(1, 2), self.extra.expand(len(maps), -1, -1)
        tokens = torch.cat([tokens, extra] if self.after else [extra, tokens], dim=1)
        if self.order == "tokens first":
            tokens = tokens.transpose(0, 1)
        tokens = self.norm(tokens)
        return self.head(tokens.mean(dim=0 if self.order == "tokens first" else 1))


def maps_of(model, images, layer="norm"):
    with isolated(model):
        return Network(model, images).forward_pass(layer, 1).activations[0]


def assert_each_patch_has_its_position(model, patch, images, layer="norm"):
    """Change one patch of the image at a time: the position that answers must be the patch's own.

    Patches at the ends of each axis, beside one and in the middle, no two of them in the same place of two axes.
    """
    before = maps_of(model, images, layer)
    grid = tuple(side // size for side, size in zip(images.shape[2:], patch, strict=True))
    assert before.shape == (len(images), CHANNELS, *grid)
    places = [(0, 1, count // 2, count - 1) for count in grid]
    for turn in range(4):
        cell = tuple(along[(turn + axis) % 4] for axis, along in enumerate(places))
        changed = images.clone()
        window = (slice(at * size, (at + 1) * size) for at, size in zip(cell, patch, strict=True))
        changed[(..., *window)] += 3 * torch.rand(images.shape[1], *patch).to(images)
        answer = (maps_of(model, changed, layer) - before).abs().sum(dim=(0, 1))
        assert torch.unravel_index(answer.argmax(), grid) == cell


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("known", [True, False], ids=["known", "probed"])
class TestPositions:
    @pytest.mark.parametrize("order", ["channels last", "tokens", "tokens first", "columns"])
    def test_are_found_in_any_order(self, order, known):
        model = Patches((8, 8), order, known=known).eval()
        assert_each_patch_has_its_position(model, (8, 8), torch.randn(1, 3, 64, 64))

    @pytest.mark.parametrize("order", ["channels last", "tokens"])
    @pytest.mark.parametrize(
        ("patch", "size"),
        [
            ((4, 16), (32, 96)),
            ((16, 4), (64, 48)),
            ((8, 8), (CHANNELS * 8, 80)),
            ((2, 8, 4), (8, 48, 32)),
            ((2, 8, 8), (4, 64, 40)),
        ],
        ids=str,
    )
    def test_are_found_with_uneven_strides_and_sides(self, patch, size, order, known):
        model = Patches(patch, order, known=known).eval()
        assert_each_patch_has_its_position(model, patch, torch.randn(1, 3, *size))

    @pytest.mark.parametrize("order", ["channels last", "tokens"])
    def test_are_found_in_signals(self, order, known):
        model = Patches((8,), order, known=known).eval()
        assert_each_patch_has_its_position(model, (8,), torch.randn(1, 3, 96))

    @pytest.mark.parametrize("extra", [-5, -1, 1, 2, 3, 4, 5, 6])
    def test_are_found_among_tokens_of_no_position(self, extra, known):
        model = Patches((8, 8), extra=extra, known=known).eval()
        assert_each_patch_has_its_position(model, (8, 8), torch.randn(1, 3, 48, 64))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
    def test_are_found_in_any_precision(self, dtype, known):
        model = Patches((8, 8), extra=2, known=known).eval().to(dtype)
        assert_each_patch_has_its_position(model, (8, 8), torch.randn(1, 3, 64, 48).to(dtype))

    @pytest.mark.parametrize("count", [2, 10, 14])
    def test_are_found_however_many_images_there_are(self, count, known):
        model = Patches((8, 8), "tokens first", known=known).eval()
        assert_each_patch_has_its_position(model, (8, 8), torch.randn(count, 3, 32, 48))

    def test_are_found_by_models_that_take_one_image_at_a_time(self, known):
        class OneImage(Patches):
            def forward(self, images):
                assert len(images) == 1
                return super().forward(images)

        model = OneImage((8, 8), extra=1, known=known).eval()
        assert_each_patch_has_its_position(model, (8, 8), torch.randn(1, 3, 48, 64))

    def test_are_found_where_an_attention_has_mixed_them(self, known):
        class Mixed(Patches):
            def __init__(self):
                super().__init__((8, 8), extra=3, known=known)
                attention = nn.TransformerEncoderLayer(CHANNELS, 2, 16, 0.0, batch_first=True, norm_first=True)
                self.norm = nn.Sequential(attention, nn.LayerNorm(CHANNELS))

        assert_each_patch_has_its_position(Mixed().eval(), (8, 8), torch.randn(1, 3, 48, 64))

    def test_are_chosen_alike(self, known):
        explanation = GradCAM()(Patches((8, 8), extra=4, known=known).eval(), torch.randn(1, 3, 48, 64), targets=1)
        assert explanation.target_layer == "norm"
        assert explanation.layer_maps.shape == (1, 6, 8)


class TestUndecided:
    @pytest.fixture
    def images(self):
        return torch.randn(1, 3, 48, 64)

    @pytest.mark.parametrize(
        "order",
        [torch.randperm(48, generator=torch.Generator().manual_seed(0)), torch.arange(47, -1, -1)],
        ids=["shuffled", "backwards"],
    )
    def test_tokens_in_another_order_are_refused(self, order, images):
        class Reordered(Patches):
            def forward(self, images):
                return self.head(self.norm(self.embed(images).flatten(2).transpose(1, 2)[:, order]).mean(dim=1))

        model = Reordered((8, 8)).eval()
        with pytest.raises(ValueError, match=r"target_layer='norm' has an output of shape \(1, 48, 8\).*neither its"):
            GradCAM()(model, images, "norm", targets=1)
        with pytest.raises(ValueError, match=r"no layer can be chosen: 'norm' comes late .* give reshape_transform"):
            GradCAM()(model, images, targets=1)

    def test_a_grid_that_is_made_from_the_whole_image_is_none(self, images):
        model = nn.Sequential(
            nn.Conv2d(3, 4, 8, 8),
            nn.Sequential(nn.Flatten(), nn.Linear(4 * 48, 64), nn.Unflatten(1, (4, 4, 4))),
            nn.Flatten(),
            nn.Linear(64, 4),
        )
        with pytest.raises(ValueError, match=r"target_layer='1' has an output .* Name an earlier layer"):
            GradCAM()(model, images, "1", targets=1)
        assert GradCAM()(model, images, targets=1).target_layer == "0"

    def test_the_users_word_is_enough(self, images):
        order = torch.randperm(48)

        class Reordered(Patches):
            def forward(self, images):
                return self.head(self.norm(self.embed(images).flatten(2).transpose(1, 2)[:, order]).mean(dim=1))

        def to_maps(tokens):
            return tokens[:, order.argsort()].transpose(1, 2).unflatten(2, (6, 8))

        model = Reordered((8, 8)).eval()
        explanation = GradCAM(reshape_transform=to_maps)(model, images, "norm", targets=1)
        assert explanation.layer_maps.shape == (1, 6, 8)


class TestTracker:
    def layout(self, function, *shape):
        images = torch.randn(*shape)
        with AxisTracker(images) as tracker:
            return tracker.layout(function(images))

    def test_knows_convolutions_and_rearrangements(self):
        convolution = nn.Conv2d(3, 8, 4, (4, 8))
        maps = Layout(0, 1, ((2, Run((0,), (8,))), (3, Run((1,), (8,)))), 2)
        assert self.layout(convolution, 1, 3, 32, 64) == maps
        tokens = Layout(1, 2, ((0, Run((0, 1), (8, 8))),), 2)
        assert self.layout(lambda images: convolution(images).flatten(2).permute(2, 0, 1), 1, 3, 32, 64) == tokens

    def test_counts_what_is_joined_before_the_positions(self):
        convolution = nn.Conv2d(3, 8, 8, 8)

        def joined(images):
            tokens = convolution(images).flatten(2).transpose(1, 2)
            return torch.cat([torch.zeros(1, 5, 8), tokens, torch.zeros(1, 2, 8)], dim=1)[:, 1:]

        assert self.layout(joined, 1, 3, 32, 48) == Layout(0, 2, ((1, Run((0, 1), (4, 6), before=4)),), 2)

    @pytest.mark.parametrize(
        "function",
        [
            lambda images: images.mean(dim=(2, 3)),
            lambda images: images[:, :, :1, :1],
            lambda images: images.sort(dim=-1).values,
            lambda images: (images > 0).long(),
            lambda images: images.flatten(1),
        ],
        ids=["no position", "one position", "sorted", "whole numbers", "flat"],
    )
    def test_claims_nothing_that_it_does_not_know(self, function):
        assert self.layout(function, 2, 3, 8, 8) is None


class TestReshapeTransform:
    def test_has_the_last_word(self):
        tokens = torch.rand(2, 10, 4)
        maps = transformed(tokens, lambda output: output[:, 1:].transpose(1, 2).unflatten(2, (3, 3)), 2)
        assert torch.equal(maps.flatten(2), tokens[:, 1:].transpose(1, 2))
        assert transformed(tokens, lambda output: output, 2) is None

    def test_must_return_a_tensor(self):
        with pytest.raises(
            TypeError, match=r"reshape_transform returned list, not a tensor \(N, channels, \*spatial\)"
        ):
            transformed(torch.rand(2, 10, 4), list, 2)
