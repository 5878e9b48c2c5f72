"""The target layer is found by name or chosen; what it puts out is recorded as it was."""

import re

import pytest
import torch
import torchvision.models
from torch import nn

from cam_callbacks import ScoreCAM
from cam_callbacks.explain import layer_choice, layers
from cam_callbacks.explain.isolation import isolated
from cam_callbacks.explain.layouts import Layout, Run


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def chosen(network, images):
    with isolated(network):
        return layer_choice.choose(network, images, network).name


class TestChoose:
    @pytest.mark.parametrize(
        ("name", "layer"),
        [
            ("resnet18", "layer4"),
            ("mobilenet_v2", "features"),
            ("densenet121", "features"),
            ("googlenet", "inception5b"),
            ("squeezenet1_1", "features"),  # what follows is the map of each class
            ("alexnet", "features.11"),  # the ReLU before the last pooling
            ("vgg11", "features.19"),
        ],
    )
    @pytest.mark.slow
    def test_takes_the_last_features_of_a_torchvision_model(self, name, layer):
        # Only the shapes matter here: on the meta device a model has no weights to draw.
        with torch.device("meta"):
            options = {"init_weights": False} if name == "googlenet" else {}
            network = torchvision.models.get_model(name, num_classes=10, **options)
            assert chosen(network, torch.zeros(1, 3, 224, 224)) == layer

    def test_passes_over_pooling_dropout_and_identity(self):
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Dropout2d(0.2),
            nn.MaxPool2d(2),
            nn.Identity(),
            nn.AdaptiveAvgPool2d(2),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(32, 5),
        )
        assert chosen(network, torch.zeros(1, 3, 24, 24)) == "4"

    @pytest.mark.parametrize("inplace", [False, True])
    def test_names_the_block_where_a_block_ends_in_the_layer(self, small_cnn, inplace):
        assert chosen(small_cnn(inplace=inplace), torch.zeros(1, 3, 24, 24)) == "features"

    @pytest.mark.parametrize("size", [(24,), (24, 24, 24)], ids=["1-D", "3-D"])
    def test_finds_layers_of_signals_and_volumes(self, small_cnn, size):
        assert chosen(small_cnn(dimensions=len(size)), torch.zeros(1, 3, *size)) == "features"

    def test_keeps_features_with_as_many_channels_as_there_are_classes(self, small_cnn):
        network = small_cnn(channels=12, classes=12)
        assert chosen(network, torch.zeros(1, 3, 24, 24)) == "features"

    def test_takes_a_layer_that_is_called_again_without_space(self, blobs):
        class SharesItsReLU(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.relu = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()
                self.hidden, self.head = nn.Linear(6, 7), nn.Linear(7, 4)

            def forward(self, images):
                features = self.relu(self.conv(images)).mean(dim=(2, 3))
                return self.head(self.relu(self.hidden(features)))

        explanation = ScoreCAM()(SharesItsReLU(), blobs(2, 8, 8))
        assert explanation.target_layer == "relu[0]"
        assert explanation.layer_maps.shape == (2, 8, 8)

    def test_passes_over_whole_numbers(self, blobs):
        class Codes(nn.Module):
            def forward(self, maps):
                return (maps > 0).long()

        class ReadsCodes(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.codes, self.head = nn.Conv2d(3, 6, 3, padding=1), Codes(), nn.Linear(6, 4)

            def forward(self, images):
                return self.head(self.codes(self.conv(images)).float().mean(dim=(2, 3)))

        network = ReadsCodes()
        assert ScoreCAM()(network, blobs(1, 16, 16)).target_layer == "conv"
        with pytest.raises(ValueError, match=r"target_layer='codes' has an output of shape \(1, 6, 16, 16\)"):
            ScoreCAM()(network, blobs(1, 16, 16), "codes")

    def test_leaves_the_names_of_compiled_modules_out(self, small_cnn):
        network = small_cnn()
        assert chosen(torch.compile(network, backend="eager"), torch.zeros(1, 3, 24, 24)) == "features"
        network.features = torch.compile(network.features, backend="eager")
        assert chosen(network, torch.zeros(1, 3, 24, 24)) == "features"

    def test_refuses_a_model_without_space(self):
        network = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
        with pytest.raises(
            ValueError, match=r"no layer of Sequential puts out positions, .*\(2, 3, 4, 4\).*name it by"
        ):
            chosen(network, torch.zeros(2, 3, 4, 4))

    def test_leaves_no_hook_when_the_model_fails(self, small_cnn):
        network = small_cnn()
        with pytest.raises(RuntimeError):
            chosen(network, torch.zeros(1, 7, 16, 16))
        assert not any(module._forward_hooks for module in network.modules())


class TestFind:
    @pytest.fixture
    def resnet(self):
        with torch.device("meta"):
            return torchvision.models.resnet18()

    def test_gives_the_module_of_a_dotted_name(self, resnet):
        assert layers.find(resnet, "layer4.1.conv2") is resnet.layer4[1].conv2

    def test_needs_no_orig_mod_in_the_name_of_a_compiled_part(self, small_cnn):
        network = small_cnn()
        assert layers.find(torch.compile(network, backend="eager"), "features.3") is network.features[3]
        inner = network.features[3]
        network.features = torch.compile(network.features, backend="eager")
        assert layers.find(network, "features.3") is inner

    def test_names_the_nearest_where_there_is_none(self, resnet):
        with pytest.raises(ValueError, match="target_layer='layer5' is not in ResNet; nearest: 'layer4'"):
            layers.find(resnet, "layer5")

    def test_names_the_full_path_where_only_the_beginning_is_missing(self, resnet):
        wrapper = nn.ModuleDict({"backbone": resnet})
        with pytest.raises(ValueError, match=r"'layer4' is not in ModuleDict; nearest: 'backbone\.layer4'"):
            layers.find(wrapper, "layer4")

    @pytest.mark.parametrize("name", ["", "zzzzzz"])
    def test_lists_some_names_where_none_is_near(self, resnet, name):
        with pytest.raises(ValueError, match=rf"target_layer='{name}' is not in ResNet; it has 'conv1', 'bn1'"):
            layers.find(resnet, name)

    def test_takes_no_parameter_for_a_layer(self, resnet):
        with pytest.raises(ValueError, match=r"target_layer='conv1\.weight' is not in ResNet"):
            layers.find(resnet, "conv1.weight")


class TestLayerName:
    def test_keeps_a_name_and_finds_that_of_a_module(self, small_cnn):
        network = small_cnn()
        assert layers.layer_name(network, "features.3") == "features.3"
        assert layers.layer_name(network, network.features[3]) == "features.3"

    def test_refuses_unknown_names_and_foreign_modules(self, small_cnn):
        with pytest.raises(ValueError, match="target_layer='absent' is not in SmallCNN"):
            layers.layer_name(small_cnn(), "absent")
        with pytest.raises(ValueError, match=r"target_layer=Conv2d\(\.\.\.\) is not a submodule of SmallCNN"):
            layers.layer_name(small_cnn(), nn.Conv2d(1, 1, 1))


class TestRecorded:
    def test_keeps_the_output_as_it_was_before_an_in_place_operation(self):
        layer = nn.Conv2d(1, 2, 1)
        with layers.recorded([layer]) as (outputs,):
            layer(torch.randn(1, 1, 4, 4)).relu_()
        assert (outputs[0] < 0).any()
        assert not outputs[0].requires_grad

    def test_has_an_entry_for_each_call(self):
        layer = nn.ReLU()
        with layers.recorded([layer]) as (outputs,):
            layer(torch.zeros(1))
            layer(torch.ones(2))
        layer(torch.ones(3))
        assert [len(output) for output in outputs] == [1, 2]

    def test_removes_its_hook_also_after_an_error(self):
        layer = nn.ReLU()

        def fail():
            with layers.recorded([layer]):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fail()
        assert not layer._forward_hooks


class TestReadLayer:
    images = torch.zeros(2, 3, 8, 8)
    maps = Layout(0, 1, ((2, Run((0,), (4,))), (3, Run((1,), (4,)))), 2)

    def read(self, outputs, name, layout=maps):
        return layers.read_layer(outputs, name, self.images, lambda _output, _call: layout)

    def test_takes_the_last_of_several_calls_and_says_how_to_choose(self):
        with pytest.warns(UserWarning, match=r"'relu' is called 2 times .* the last call is used\. 'relu\[0\]' names"):
            assert self.read([torch.zeros(2, 5, 4, 4), torch.ones(2, 5, 4, 4)], "relu").call == 1

    @pytest.mark.parametrize(("name", "place"), [("relu[0]", 0), ("relu[1]", 1), ("relu[-1]", 1), ("relu[-2]", 0)])
    def test_takes_the_call_that_is_named(self, name, place):
        assert self.read([torch.zeros(2, 5, 4, 4), torch.ones(2, 5, 4, 4)], name).call == place

    def test_takes_the_last_call_that_has_positions(self):
        outputs = [torch.zeros(2, 5, 4, 4), torch.zeros(2, 7)]
        layouts = {4: self.maps, 2: None}
        with pytest.warns(UserWarning, match=r"'relu' is called 2 times .*; 'relu\[0\]' is used, because"):
            read = layers.read_layer(outputs, "relu", self.images, lambda output, _call: layouts[output.ndim])
        assert read.call == 0
        assert read.to_maps(outputs[0]).shape == (2, 5, 4, 4)

    @pytest.mark.parametrize("name", ["relu[2]", "relu[-3]"])
    def test_refuses_a_call_out_of_range(self, name):
        with pytest.raises(
            ValueError, match=rf"target_layer='{re.escape(name)}' is out of range: 'relu' is called 2 times"
        ):
            self.read([torch.zeros(2, 5, 4, 4)] * 2, name)

    def test_refuses_a_layer_that_was_not_called(self):
        with pytest.raises(ValueError, match="target_layer='spare' was never called in the forward pass; name a layer"):
            self.read([], "spare")

    @pytest.mark.parametrize("output", [(torch.zeros(2, 5, 4, 4),), {"out": torch.zeros(2, 5, 4, 4)}, None])
    def test_refuses_what_is_no_tensor(self, output):
        kind = type(output).__name__
        with pytest.raises(
            ValueError, match=f"target_layer='lstm' returns {kind}, not a tensor; name a layer inside it"
        ):
            self.read([output], "lstm")

    def test_refuses_an_output_whose_layout_is_not_known(self):
        with pytest.raises(
            ValueError, match=r"'fc' has an output of shape \(2, 3, 5\) for images .* Name an earlier layer"
        ):
            self.read([torch.zeros(2, 3, 5)], "fc", layout=None)

    @pytest.mark.parametrize("name", ["1", "3", "5"])
    def test_refuses_outputs_without_space(self, name, blobs):
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.ReLU(), nn.Flatten(), nn.ReLU(), nn.Linear(6, 4)
        )
        with pytest.raises(ValueError, match=rf"target_layer='{name}' has an output of shape \(2, .* Name an earlier"):
            ScoreCAM()(network, blobs(2, 16, 16), name)


class TestOtherLayouts:
    def test_channels_last_are_explained(self, blobs):
        class ChannelsLast(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = nn.Conv2d(3, 64, 4, stride=4)
                self.norm = nn.LayerNorm(64)
                self.mix = nn.Linear(64, 64)
                self.head = nn.Linear(64, 4)

            def forward(self, images):
                return self.head(self.mix(self.norm(self.stem(images).permute(0, 2, 3, 1))).mean(dim=(1, 2)))

        network = ChannelsLast()
        assert chosen(network, blobs(1, 24, 24)) == "norm"
        assert ScoreCAM()(network, blobs(1, 24, 24), "mix").layer_maps.shape == (1, 6, 6)

    def test_of_a_transformer_with_a_class_token_the_last_read_is_chosen(self, blobs):
        import timm

        network = timm.create_model("vit_tiny_patch16_224", img_size=64)
        assert chosen(network, blobs(1, 64, 64)) == "blocks.11.norm1"

    def test_of_a_transformer_that_averages_its_tokens_the_last_is_chosen(self, blobs):
        import timm

        network = timm.create_model("vit_tiny_patch16_224", img_size=64, global_pool="avg", class_token=False)
        assert chosen(network, blobs(1, 64, 64)) == "blocks"


def test_a_side_branch_is_not_chosen(blobs):
    class WithDecoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
            self.decoder, self.head = nn.ConvTranspose2d(8, 3, 2, 2), nn.Linear(8, 4)

        def forward(self, images):
            maps = self.encoder(images)
            self.reconstruction = self.decoder(maps)
            return self.head(maps.mean(dim=(2, 3)))

    assert chosen(WithDecoder(), blobs(1, 16, 16)) == "encoder"
