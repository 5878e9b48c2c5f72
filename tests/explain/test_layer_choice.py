"""Where no layer is named, the last one is taken whose map says where; `test_layers.py` has what is passed over."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from cam_callbacks import CAM, GradCAM, ScoreCAM
from cam_callbacks.explain import layer_choice
from cam_callbacks.explain.isolation import isolated


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def choice(network, *size):
    images = torch.randn(1, 3, *size)
    with isolated(network):
        return layer_choice.choose(network, images, network)


def chosen(network, *size):
    """The name of the layer that is chosen, which is found again under that name, and its positions."""
    name = choice(network, *size).name
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a name that could mean several calls
        explanation = GradCAM()(network.eval(), torch.randn(1, 3, *size))
    assert explanation.target_layer == name
    return name, explanation.positions


class TestRule:
    @pytest.mark.parametrize(
        ("size", "layer", "positions"),
        [
            (192, "layer4", (6, 6)),
            (160, "layer3", (10, 10)),
            (64, "layer2", (8, 8)),
            (32, "layer1", (8, 8)),
            (16, "relu", (8, 8)),
        ],
    )
    @pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
    def test_a_resnet_is_explained_earlier_the_smaller_its_images(self, block, size, layer, positions):
        network = ResNet(block, [1, 1, 1, 1], num_classes=3)
        assert chosen(network, size, size) == (layer, positions)

    def test_of_a_plain_network_it_is_the_last_before_pooling_leaves_too_few(self):
        def stage(channels, wider):
            return [nn.Conv2d(channels, wider, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]

        network = nn.Sequential(*stage(3, 4), *stage(4, 6), *stage(6, 8), nn.Flatten(), nn.LazyLinear(3))
        network(torch.zeros(1, 3, 20, 20))
        assert chosen(network, 20, 20) == ("4", (10, 10))  # 5 x 5 before the last pooling
        network[-1] = nn.LazyLinear(3)
        network(torch.zeros(1, 3, 24, 24))
        assert chosen(network, 24, 24) == ("7", (6, 6))

    @pytest.mark.parametrize(("size", "positions"), [(96, (6, 6)), (64, (4, 4))])
    def test_the_layers_of_a_transformer_are_alike_so_the_last_is_taken(self, size, positions):
        import timm

        network = timm.create_model("vit_tiny_patch16_224", img_size=size, depth=2)
        assert chosen(network, size, size) == ("blocks.1.norm1", positions)

    @pytest.mark.parametrize("fused", [True, False])
    def test_where_all_tokens_are_read_it_comes_before_the_last_attention(self, fused):
        import timm

        network = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=3, class_token=False, global_pool="avg")
        for block in network.blocks:
            block.attn.fused_attn = fused
        assert chosen(network, 96, 96) == ("blocks.1", (6, 6))

    @pytest.mark.parametrize(
        ("size", "layer", "positions"),
        [
            ((24,), "features", (6,)),
            ((20,), "features.2", (10,)),
            ((24, 24, 24), "features", (6, 6, 6)),
            ((16, 16, 16), "features.2", (8, 8, 8)),
            ((12, 48), "features", (3, 12)),
            ((12, 40), "features.2", (6, 20)),
            ((8, 32, 56), "features", (2, 8, 14)),
        ],
        ids=str,
    )
    def test_six_positions_along_each_axis_are_enough_in_any_proportion(self, small_cnn, size, layer, positions):
        assert chosen(small_cnn(dimensions=len(size)), *size) == (layer, positions)

    def test_where_none_has_enough_the_last_of_the_finest_is_taken(self, small_cnn):
        assert chosen(small_cnn(), 8, 8) == ("features.2", (4, 4))
        assert choice(small_cnn(), 8, 8).reason == "the finest that fits: none has 6 x 6 positions"

    @pytest.mark.parametrize(("dimensions", "least"), [(1, "6"), (2, "6 x 6"), (3, "6 x 6 x 6")])
    def test_the_reason_is_said(self, small_cnn, dimensions, least):
        reason = choice(small_cnn(dimensions=dimensions), *[24] * dimensions).reason
        assert reason == f"the last with at least {least} positions"

    def test_cam_keeps_the_last_layer_and_says_so(self, small_cnn):
        images = torch.randn(2, 3, 8, 8)
        layer, reason = CAM().check_and_choose(small_cnn(), images)
        assert (layer, reason) == ("features", "the last with positions, which the weights of CAM belong to")
        assert ScoreCAM().check_and_choose(small_cnn(), images, "features") == ("features", None)


class TestWays:
    """All of the image passes through the layer."""

    def test_a_branch_that_a_shortcut_leads_around_is_passed_over(self):
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU())  # as fine as what the block is given
                self.down, self.shortcut = nn.Conv2d(6, 6, 3, 2, 1), nn.Conv2d(6, 6, 1, 2)

            def forward(self, maps):
                return (self.down(self.inner(maps)) + self.shortcut(maps)).relu()

        network = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.ReLU(), Block(), nn.Flatten(), nn.Linear(6 * 25, 3))
        assert chosen(network, 10, 10) == ("1", (10, 10))

    def test_of_two_streams_it_is_where_they_part_or_it_is_said(self):
        class TwoStreams(nn.Module):
            def __init__(self, stem):
                super().__init__()
                self.stem = stem
                self.first, self.second = (
                    nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU())
                    for _ in range(2)
                )
                self.head = nn.Linear(8, 3)

            def forward(self, images):
                images = self.stem(images)
                streams = [self.second(images), self.first(images)]
                return self.head(torch.cat(streams, dim=1).mean(dim=(2, 3)))

        apart = TwoStreams(nn.Identity())
        assert chosen(apart, 16, 16) == ("first.1", (8, 8))
        assert "only a part of the image" in choice(apart, 16, 16).reason
        parting = TwoStreams(nn.Sequential(nn.Conv2d(3, 3, 3, 1, 1), nn.ReLU()))
        assert chosen(parting, 16, 16) == ("stem", (16, 16))
        assert "part" not in choice(parting, 16, 16).reason

    @pytest.mark.parametrize("join", [torch.add, torch.mul, lambda maps, more: torch.cat([maps, more], 1)])
    def test_what_is_joined_to_it_outside_of_modules_counts(self, join):
        """A shortcut around the last module, a mask that its output is multiplied by, features of two depths."""

        class Joins(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
                self.last, self.head = nn.Conv2d(4, 4, 3, 1, 1), nn.LazyLinear(3)

            def forward(self, images):
                maps = self.stem(images)
                return self.head(join(maps, self.last(maps).sigmoid()).mean(dim=(2, 3)))

        network = Joins()
        network(torch.zeros(1, 3, 16, 16))
        assert chosen(network, 16, 16) == ("stem", (8, 8))

    @pytest.mark.parametrize(
        "cut",
        [torch.detach, lambda maps: torch.tensor(maps.detach().numpy()), lambda maps: (maps > maps.mean()).float()],
    )
    @pytest.mark.parametrize("is_first", [True, False])
    def test_a_stream_that_no_gradient_passes_is_said(self, cut, is_first):
        class Cuts(nn.Module):
            def __init__(self, does_cut):
                super().__init__()
                self.frozen, self.trained = (nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU()) for _ in range(2))
                self.head, self.does_cut = nn.Linear(8, 3), does_cut

            def forward(self, images):
                trained = None if is_first else self.trained(images)
                frozen = cut(self.frozen(images)) if self.does_cut else self.frozen(images).detach() * 0
                maps = torch.cat([frozen, self.trained(images) if is_first else trained], dim=1)
                return self.head(maps.mean(dim=(2, 3)))

        images = torch.rand(3, 3, 8, 8)
        for does_cut in (True, False):
            network = Cuts(does_cut)
            with isolated(network):
                found = layer_choice.choose(network, images, network)
            assert found.name == "trained"
            assert ("only a part of the image" in found.reason) == does_cut

    def test_pixels_that_are_read_past_all_layers_are_said(self):
        class ReadsPixels(nn.Module):
            def __init__(self):
                super().__init__()
                self.last, self.head = nn.Conv2d(3, 4, 3, 1, 1), nn.Linear(7, 3)

            def forward(self, images):
                return self.head(torch.cat([self.last(images), images], dim=1).mean(dim=(2, 3)))

        assert choice(ReadsPixels(), 8, 8).name == "last"
        assert "only a part of the image" in choice(ReadsPixels(), 8, 8).reason

    @pytest.mark.parametrize(
        "rearranged",
        [
            lambda maps: maps[:, [2, 0, 1]],
            lambda maps: maps.flip(1),
            lambda maps: maps.roll(1, 1),
            lambda maps: maps.index_select(1, torch.tensor([2, 1, 0])),
            lambda maps: maps.repeat(1, 2, 1, 1),
            lambda maps: maps.sort(dim=1).values,
            lambda maps: maps.cumsum(dim=1),
            lambda maps: F.grid_sample(maps, F.affine_grid(torch.eye(2, 3).repeat(len(maps), 1, 1), maps.shape)),
        ],
    )
    @pytest.mark.parametrize("place", ["images", "maps"])
    def test_layers_after_a_rearrangement_are_known_or_probed(self, rearranged, place):
        class Rearranges(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = nn.Sequential(nn.Conv2d(3, 3, 3, 1, 1), nn.ReLU()) if place == "maps" else nn.Identity()
                self.body = nn.Sequential(nn.LazyConv2d(4, 3, 2, 1), nn.ReLU())
                self.head = nn.Linear(4, 3)

            def forward(self, images):
                return self.head(self.body(rearranged(self.stem(images))).mean(dim=(2, 3)))

        network = Rearranges()
        network(torch.rand(1, 3, 16, 16))
        assert choice(network, 16, 16).name == "body"

    def test_a_layer_that_is_called_again_is_named_with_its_call(self):
        class SharesItsReLU(nn.Module):
            def __init__(self):
                super().__init__()
                self.convolutions = nn.ModuleList(nn.Conv2d(4 if at else 3, 4, 3, 2, 1) for at in range(3))
                self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(4, 3)

            def forward(self, maps):
                for convolution in self.convolutions:
                    maps = self.relu(convolution(maps))
                return self.head(maps.mean(dim=(2, 3)))

        assert chosen(SharesItsReLU(), 24, 24) == ("relu[1]", (6, 6))

    def test_inside_a_part_without_gradients_none_is_taken_for_grad_cam(self, small_cnn):
        class Frozen(nn.Module):
            def __init__(self):
                super().__init__()
                self.features, self.head = small_cnn().features, small_cnn().head

            def forward(self, images):
                with torch.no_grad():
                    maps = self.features(images)
                return self.head(maps.mean(dim=(2, 3)))

        network, images = Frozen().eval(), torch.randn(1, 3, 16, 16)
        assert GradCAM()(network, images).target_layer == "features"
        assert ScoreCAM()(network, images).target_layer == "features.2"

    def test_positions_that_nothing_tells_are_probed_until_they_are_enough(self):
        class Rearranged(nn.Module):
            def forward(self, maps):  # an operation on the whole storage, which says nothing about positions
                return maps.flatten()[torch.arange(maps.numel())].reshape(maps.shape)

        network = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 6, 2, 2), Rearranged(), nn.BatchNorm2d(6)),
            nn.Sequential(nn.Conv2d(6, 6, 4, 4), Rearranged(), nn.BatchNorm2d(6)),
            nn.Flatten(),
            nn.Linear(6 * 16, 3),
        )
        assert chosen(network, 32, 32) == ("0", (16, 16))
