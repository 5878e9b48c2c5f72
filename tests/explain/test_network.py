"""The model as a method finds it: whatever it does to its input, in whatever type, compiled or not."""

import functools
import warnings

import pytest
import torch
from torch import nn

from cam_callbacks import GradCAM, ScoreCAM

exact = functools.partial(ScoreCAM, tolerance=0)

WEIGHTINGS = ["probability", "logit-softmax", "increase", "matlab"]


class Around(nn.Module):
    """A model that does something before and after another one."""

    def __init__(self, model, before=lambda images: images, after=lambda images, output: output):
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, images):
        images = self.before(images)
        return self.after(images, self.model(images))


def assert_same_maps(explanation, reference, atol=1e-5):
    torch.testing.assert_close(explanation.heatmaps, reference.heatmaps, atol=atol, rtol=0)
    torch.testing.assert_close(explanation.layer_maps, reference.layer_maps, atol=atol, rtol=atol)
    assert torch.equal(explanation.targets, reference.targets)
    assert torch.equal(explanation.passes, reference.passes)


class TestInPlaceOperations:
    @pytest.mark.parametrize("layer", ["features.4", "features.5", "features"])
    def test_of_a_relu_after_the_layer_do_not_change_the_map(self, small_cnn, blobs, layer):
        images = blobs(2, 24, 24)
        assert_same_maps(
            exact()(small_cnn(inplace=True), images, layer), exact()(small_cnn(inplace=False), images, layer)
        )

    @pytest.mark.parametrize("layer", ["model.features", None])
    def test_on_the_images_change_neither_the_map_nor_the_images(self, small_cnn, blobs, layer):
        images = blobs(3, 24, 24).contiguous(memory_format=torch.channels_last)
        kept = images.clone()
        explanation = exact()(Around(small_cnn(), before=lambda x: x.sub_(0.5)), images, layer)
        assert torch.equal(images, kept)
        assert_same_maps(explanation, exact()(Around(small_cnn(), before=lambda x: x - 0.5), images, layer))


class TestMemoryLayout:
    class Viewing(nn.Module):
        """Reads its activations with `.view`, which refuses all but contiguous ones."""

        def __init__(self, model):
            super().__init__()
            self.features, self.pool, self.head = model.features, nn.AdaptiveAvgPool2d(2), nn.Linear(48, 5)

        def forward(self, images, flatten=lambda x: x.view(len(x), -1)):
            return self.head(flatten(self.pool(self.features(images))))

    @pytest.mark.parametrize("layer", ["features", None])
    def test_a_model_that_needs_contiguous_activations_is_explained(self, small_cnn, blobs, layer):
        network, images = self.Viewing(small_cnn()), blobs(3, 24, 24)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the run that fails does not count as a call of the layer
            explanation = exact(batch_size=4)(network, images, layer)
        reference = exact(batch_size=4)(
            network, images, "features", forward_fn=lambda model, x: model(x, flatten=lambda x: x.flatten(1))
        )
        assert explanation.target_layer == "features"
        assert_same_maps(explanation, reference)

    @pytest.mark.parametrize("size", [(28, 28), (8, 12, 12)])
    @pytest.mark.parametrize("method", [GradCAM(), exact()])
    def test_gray_images_that_are_viewed_are_explained(self, size, method):
        """With one channel the strides of both layouts count as contiguous, also where `.view` refuses them."""

        class Gray(nn.Module):
            def __init__(self):
                super().__init__()
                self.features = (nn.Conv2d if len(size) == 2 else nn.Conv3d)(1, 4, 3, 2)
                self.head = nn.LazyLinear(3)

            def forward(self, images):
                return self.head(self.features(images.view(-1, *images.shape[1:])).view(len(images), -1))

        network = Gray()
        network(torch.rand(1, 1, *size))
        assert method(network.eval(), torch.rand(3, 1, *size)).target_layer == "features"

    @pytest.mark.parametrize("refuse", [AssertionError, RuntimeError("images must be contiguous")])
    def test_a_model_that_asks_for_contiguous_images_gets_them(self, small_cnn, blobs, refuse):
        class Asks(nn.Module):
            def __init__(self, model):
                super().__init__()
                self.model = model

            def forward(self, images):
                if not images.is_contiguous():
                    raise refuse
                return self.model(images)

        images = blobs(3, 24, 24)
        explanation = exact()(Asks(small_cnn()), images, "model.features")
        assert_same_maps(explanation, exact()(small_cnn(), images, "features"))

    def test_of_the_images_changes_nothing(self, small_cnn, blobs):
        network, images = small_cnn(), blobs(3, 24, 24)
        reference = exact()(network, images, "features")
        for other in (
            images.contiguous(memory_format=torch.channels_last),
            images.transpose(2, 3).contiguous().transpose(2, 3),
            images.repeat_interleave(2, dim=0)[::2],
        ):
            assert_same_maps(exact()(network, other, "features"), reference)


class TestFloatingTypes:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_close_to_single(self, small_cnn, blobs, dtype):
        images = blobs(3, 24, 24)
        reference = exact()(small_cnn(), images, "features")
        half = exact()(small_cnn().to(dtype), images, "features", reference.targets)
        assert half.heatmaps.dtype == half.layer_maps.dtype == half.logits.dtype == torch.float32
        torch.testing.assert_close(half.heatmaps, reference.heatmaps, atol=0.05, rtol=0)

    def test_autocast_is_close_to_single_and_gives_single_precision_maps(self, small_cnn, blobs):
        network, images = small_cnn(), blobs(3, 24, 24)
        reference = exact()(network, images, "features")
        with torch.autocast("cpu", torch.bfloat16):
            explanation = exact()(network, images, "features", reference.targets)
        assert explanation.heatmaps.dtype == explanation.layer_maps.dtype == torch.float32
        torch.testing.assert_close(explanation.heatmaps, reference.heatmaps, atol=0.05, rtol=0)

    def test_images_are_converted_to_the_type_of_the_model(self, small_cnn, blobs):
        images = blobs(2, 24, 24)
        assert_same_maps(exact()(small_cnn(), images.double(), "features"), exact()(small_cnn(), images, "features"))


class TestNotFinite:
    """One image of four is bright; a model that fails on bright images must not harm the other three."""

    @pytest.fixture
    def images(self, blobs):
        images = blobs(4, 24, 24)
        images[1] = images[1].abs() + 5
        return images

    @staticmethod
    def spoil(value):
        """Write `value` over all that belongs to a bright image."""

        def after(images, output):
            bright = (images.flatten(1).mean(dim=1) > 4).view(-1, *[1] * (output.ndim - 1))
            return torch.where(bright, value, output)

        return after

    def assert_only_the_second_is_skipped(self, explanation, reference):
        assert explanation.skipped.tolist() == [False, True, False, False]
        assert explanation.heatmaps[1].isnan().all()
        assert explanation.layer_maps[1].isnan().all()
        assert not explanation.blank[1]
        for i in (0, 2, 3):
            torch.testing.assert_close(explanation.heatmaps[i], reference.heatmaps[i], atol=1e-5, rtol=0)
            torch.testing.assert_close(explanation.probabilities[i], reference.probabilities[i])
            assert explanation.targets[i] == reference.targets[i]

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_activations_of_one_image_skip_it_alone(self, small_cnn, images, value):
        network = Around(small_cnn(), before=lambda x: self.spoil(value)(x, x))
        reference = exact()(Around(small_cnn()), images, "model.features")
        explanation = exact(batch_size=8)(network, images, "model.features")
        self.assert_only_the_second_is_skipped(explanation, reference)
        assert explanation.passes[1] == 1

    def test_a_skipped_image_shares_the_pass_of_the_empty_image(self, small_cnn, images):
        network = Around(small_cnn(), before=lambda x: self.spoil(torch.nan)(x, x))
        explanation = exact("increase")(network, images, "model.features")
        self.assert_only_the_second_is_skipped(
            explanation, exact("increase")(Around(small_cnn()), images, "model.features")
        )
        assert explanation.passes[1] == 2

    def test_scores_of_one_image_skip_it_alone(self, small_cnn, images):
        network = Around(small_cnn(), after=self.spoil(torch.nan))
        reference = exact()(Around(small_cnn()), images, "model.features")
        self.assert_only_the_second_is_skipped(exact()(network, images, "model.features"), reference)

    def test_probabilities_of_one_image_skip_it_alone(self, small_cnn, images):
        classifier = nn.Sequential(small_cnn(), nn.Softmax(dim=1))
        reference = exact()(small_cnn(), images, "features")
        explanation = exact()(Around(classifier, after=self.spoil(torch.nan)), images, "model.0.features")
        assert explanation.outputs == "probabilities"
        self.assert_only_the_second_is_skipped(explanation, reference)

    @pytest.mark.parametrize("weighting", WEIGHTINGS)
    def test_scores_of_masked_images_alone_skip_it_too(self, small_cnn, images, weighting):
        corner = images[1, 0, 0, 0].item()

        def after(images, output):
            # Of the second image, only the masked forms: their corner is darker than its own.
            masked = (images[:, 0, 0, 0] > 1) & (images[:, 0, 0, 0] < 0.9 * corner)
            return torch.where(masked.unsqueeze(1), torch.nan, output)

        reference = exact(weighting)(Around(small_cnn()), images, "model.features")
        explanation = exact(weighting)(Around(small_cnn(), after=after), images, "model.features")
        self.assert_only_the_second_is_skipped(explanation, reference)
        assert explanation.logits.isfinite().all()


class TestProbabilities:
    def test_of_a_softmax_at_the_end_give_the_map_of_the_logits(self, small_cnn, blobs):
        images = blobs(3, 24, 24)
        classifier = nn.Sequential(small_cnn(), nn.Softmax(dim=1))
        explanation = exact()(classifier, images, "0.features")
        assert explanation.outputs == "probabilities"
        reference = exact()(small_cnn(), images, "features")
        assert_same_maps(explanation, reference)
        torch.testing.assert_close(explanation.probabilities, reference.probabilities)

    def test_have_their_logarithm_for_logits(self, small_cnn, blobs):
        images = blobs(3, 24, 24)
        explanation = exact("logit-softmax")(nn.Sequential(small_cnn(), nn.Softmax(1)), images, "0.features")
        logarithms = nn.Sequential(small_cnn(), nn.LogSoftmax(dim=1))
        assert_same_maps(explanation, exact("logit-softmax")(logarithms, images, "0.features"))

    def test_that_are_not_certain_are_warned_of_outside_of_the_package(self, small_cnn, blobs):
        network = small_cnn(classes=1)
        with torch.no_grad():
            network.head.weight.zero_()
            network.head.bias.zero_()
        with pytest.warns(UserWarning, match=r"may be logits or probabilities.*outputs=") as caught:
            exact()(nn.Sequential(network, nn.Sigmoid()), blobs(1, 24, 24), "0.features")
        assert caught[0].filename == __file__

    def test_in_logits_are_not_warned_of(self, small_cnn, blobs, recwarn):
        exact()(small_cnn(), blobs(2, 24, 24), "features")
        assert not recwarn.list


class TestInferenceModeAndCompiledModels:
    def test_a_map_is_the_same_in_inference_mode(self, small_cnn, blobs):
        network, images = small_cnn(), blobs(2, 24, 24)
        reference = exact()(network, images)
        with torch.inference_mode():
            inside = exact()(network, images.clone())
        assert_same_maps(inside, reference)

    def test_images_made_in_inference_mode_are_explained_outside(self, small_cnn, blobs):
        images = blobs(2, 24, 24)
        with torch.inference_mode():
            inference_images = images.contiguous(memory_format=torch.channels_last).clone()
        assert_same_maps(exact()(small_cnn(), inference_images), exact()(small_cnn(), images))

    @pytest.fixture(params=["whole", "inner part", "whole in place", "inner part in place"])
    def compiled(self, request, small_cnn):
        torch.compiler.reset()
        network = small_cnn()
        if request.param == "whole":
            return torch.compile(network, backend="eager")
        if request.param == "inner part":
            network.features = torch.compile(network.features, backend="eager")
        elif request.param == "whole in place":
            network.compile(backend="eager")
        else:
            network.features.compile(backend="eager")
        return network

    @pytest.mark.parametrize(("layer", "called_before"), [("features.3", False), (None, True)])
    def test_a_compiled_model_gives_the_map_of_the_model(self, small_cnn, blobs, compiled, layer, called_before):
        images = blobs(2, 24, 24)
        if called_before:
            compiled(images)
        explanation = exact()(compiled, images, layer)
        reference = exact()(small_cnn(), images, layer)
        assert explanation.target_layer == reference.target_layer
        assert_same_maps(explanation, reference)

    def test_a_layer_of_a_compiled_model_has_the_same_name_given_as_a_module(self, small_cnn, blobs):
        network, images = small_cnn(), blobs(2, 24, 24)
        compiled = torch.compile(network, backend="eager")
        assert exact()(compiled, images, network.features).target_layer == "features"


class TestForwardFn:
    class NeedsTwo(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images, factor):
            return {"logits": self.model(images) * factor}

    def test_calls_the_model_for_every_pass(self, small_cnn, blobs):
        images = blobs(2, 24, 24)
        explanation = exact("increase")(
            self.NeedsTwo(small_cnn()), images, "model.features", forward_fn=lambda model, x: model(x, factor=1.0)
        )
        assert_same_maps(explanation, exact("increase")(small_cnn(), images, "features"))

    def test_is_named_where_it_is_needed(self, small_cnn, blobs):
        with pytest.raises(TypeError, match=r"NeedsTwo\.forward needs more than the images .*factor.*give forward_fn"):
            exact()(self.NeedsTwo(small_cnn()), blobs(2, 24, 24), "model.features")
