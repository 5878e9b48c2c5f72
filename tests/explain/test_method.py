"""What a method refuses, and how it says so: the argument, the value it got, what to do. `check` refuses the same."""

import pytest
import torch
from torch import nn

from cam_callbacks import GradCAM, Method, ScoreCAM


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=["call", "check"])
def ask(request):
    """Explain, or only check."""
    return ScoreCAM() if request.param == "call" else ScoreCAM().check


@pytest.fixture
def network(small_cnn):
    return small_cnn()


@pytest.fixture
def images(blobs):
    return blobs(3, 24, 24)


class TestImages:
    @pytest.mark.parametrize("wrong", [None, [1.0, 2.0], "photo.jpg"], ids=["None", "list", "path"])
    def test_that_are_not_a_tensor_are_refused(self, ask, network, wrong):
        with pytest.raises(TypeError, match=f"images must be a tensor of real numbers.*got {type(wrong).__name__}"):
            ask(network, wrong, "features")

    @pytest.mark.parametrize("dtype", [torch.complex64])
    def test_of_complex_numbers_are_refused(self, ask, network, images, dtype):
        with pytest.raises(TypeError, match=rf"images must be a tensor of real numbers, as the model .* got {dtype}"):
            ask(network, images.to(dtype), "features")

    @pytest.mark.parametrize("shape", [(), (3,), (3, 24), (1, 1, 3, 8, 8, 8), (0, 3, 24, 24), (2, 3, 0, 24)])
    def test_of_a_shape_without_space_are_refused(self, ask, network, shape):
        with pytest.raises(ValueError, match=r"images has shape \(.*\); give \(N, C, \*spatial\)") as error:
            ask(network, torch.zeros(shape), "features")
        assert str(tuple(shape)) in str(error.value)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_that_are_not_finite_are_refused_and_counted(self, ask, network, images, value):
        images[1:, 0, 2, 3] = value
        with pytest.raises(ValueError, match=r"images contains NaN or infinity, in 2 of 3 images: \[1, 2\]"):
            ask(network, images, "features")

    @pytest.mark.parametrize("layer", ["features", None])
    def test_that_do_not_fit_the_model_are_refused_with_their_shape(self, ask, network, layer):
        with pytest.raises(
            ValueError, match=r"SmallCNN cannot be run on images of shape \(\d, 4, 24, 24\), torch.float32"
        ):
            ask(network, torch.zeros(2, 4, 24, 24), layer)


class TestTargetLayer:
    def test_that_is_unknown_is_refused_with_the_nearest_names(self, ask, network, images):
        with pytest.raises(ValueError, match="target_layer='feature' is not in SmallCNN; nearest: 'features'"):
            ask(network, images, "feature")

    def test_that_belongs_to_another_model_is_refused(self, ask, network, images):
        with pytest.raises(ValueError, match=r"target_layer=Linear\(\.\.\.\) is not a submodule of SmallCNN"):
            ask(network, images, nn.Linear(2, 2))

    def test_that_is_not_called_is_refused(self, ask, network, images):
        network.spare = nn.Conv2d(3, 4, 1)
        with pytest.raises(ValueError, match="target_layer='spare' was never called in the forward pass; name a layer"):
            ask(network, images, "spare")

    def test_without_space_is_refused(self, ask, network, images):
        with pytest.raises(
            ValueError, match=r"target_layer='head' has an output of shape \(3, 5\) .* leave target_layer"
        ):
            ask(network, images, "head")

    @pytest.mark.parametrize("wrong", [3, [3], ["features", 3]], ids=str)
    def test_that_is_neither_name_nor_module_is_refused(self, ask, network, images, wrong):
        with pytest.raises(TypeError, match="target_layer=3 must be the dotted name of a layer, or the module itself"):
            ask(network, images, wrong)

    @pytest.mark.parametrize("wrong", [[], ()], ids=str)
    def test_in_a_list_without_any_is_refused(self, ask, network, images, wrong):
        with pytest.raises(
            ValueError, match=r"target_layer=(\[\]|\(\)) names no layer; leave it out, and one is chosen"
        ):
            ask(network, images, wrong)

    @pytest.mark.parametrize("method", [ScoreCAM(), GradCAM()], ids=lambda method: method.name)
    def test_that_returns_a_tuple_is_refused(self, images, method):
        class ReadsInTurn(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.lstm = nn.Conv2d(3, 4, 4, stride=4), nn.LSTM(4, 6, batch_first=True)
                self.head = nn.Linear(6, 5)

            def forward(self, images):
                positions, _ = self.lstm(self.conv(images).flatten(2).transpose(1, 2))
                return self.head(positions[:, -1])

        for ask in (method, method.check):
            with pytest.raises(ValueError, match="target_layer='lstm' returns tuple, not a tensor; name a layer"):
                ask(ReadsInTurn(), images, "lstm")

    def test_given_as_module_is_found(self, ask, network, images):
        answer = ask(network, images, network.features[3])
        assert getattr(answer, "target_layer", answer) == "features.3"


class TestReshapeTransform:
    @pytest.mark.parametrize("method", [ScoreCAM, GradCAM])
    def test_that_cannot_be_called_is_refused(self, method):
        with pytest.raises(TypeError, match="reshape_transform=3 must be a callable from a layer's output to"):
            method(reshape_transform=3)


class TestSettings:
    @pytest.mark.parametrize("method", [ScoreCAM, GradCAM])
    def test_refuse_a_model_and_show_the_call(self, method):
        with pytest.raises(TypeError, match=rf"takes its settings first.*write {method.__name__}\(\)\(model, images\)"):
            method(nn.Linear(2, 2))

    def test_may_be_a_module_that_rearranges(self):
        assert isinstance(ScoreCAM(reshape_transform=nn.Identity()).reshape_transform, nn.Identity)


class TestSwitches:
    @pytest.mark.parametrize(
        ("method", "name"), [(ScoreCAM, "multi_label"), (GradCAM, "multi_label"), (ScoreCAM, "compile")]
    )
    @pytest.mark.parametrize("wrong", ["yes", 1, None])
    def test_that_are_not_bools_are_refused(self, method, name, wrong):
        with pytest.raises(TypeError, match=f"{name}={wrong!r} must be True or False"):
            method(**{name: wrong})


class TestTargets:
    @pytest.mark.parametrize("wrong", [0.5, [0.0, 1.0, 2.0], True, torch.tensor([1.0, 2.0, 0.0])])
    def test_that_are_not_whole_numbers_are_refused(self, ask, network, images, wrong):
        with pytest.raises(
            TypeError, match=r"targets must be whole numbers, the class indices, or callables; got torch\.(float|bool)"
        ):
            ask(network, images, "features", wrong)

    @pytest.mark.parametrize("wrong", [[1, 2], [0, 1, 2, 3], [[0, 1], [1, 2]]])
    def test_of_another_number_than_the_images_are_refused(self, ask, network, images, wrong):
        with pytest.raises(ValueError, match=r"targets has shape .*; 3 images need one class each, \(3,\)"):
            ask(network, images, "features", wrong)

    @pytest.mark.parametrize(("wrong", "named"), [(5, 5), (-1, -1), ([0, 9, 1], 9)])
    def test_outside_the_classes_are_refused(self, ask, network, images, wrong, named):
        with pytest.raises(ValueError, match=rf"targets contains \[{named}\], but the model has 5 classes: 0 to 4"):
            ask(network, images, "features", wrong)


class TestModel:
    class Answers(nn.Module):
        """Has a layer with space, and returns whatever it was told to."""

        def __init__(self, answer):
            super().__init__()
            self.conv, self.answer = nn.Conv2d(3, 4, 3), answer

        def forward(self, images):
            return self.answer(self.conv(images))

    def test_without_forward_is_refused(self, ask, images):
        with pytest.raises(TypeError, match="ModuleDict has no forward method; define it, or give forward_fn"):
            ask(nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3)}), images, "conv")

    def test_that_needs_more_than_images_is_refused(self, ask, images):
        with pytest.raises(TypeError, match=r"Bilinear\.forward needs more than the images .* give forward_fn"):
            ask(nn.Bilinear(2, 2, 2), images)

    def test_that_fails_inside_fails_with_its_own_error(self, ask, images):
        class Miscalls(nn.Module):
            def forward(self, images):
                return nn.functional.linear(images)

        with pytest.raises(TypeError, match=r"linear\(\) missing"):
            ask(Miscalls(), images)

    @pytest.mark.parametrize("layer", ["conv", None])
    def test_whose_output_is_not_understood_is_refused(self, ask, images, layer):
        with pytest.raises(TypeError, match=r"the model returned dict with the keys \['scores'\].* Give forward_fn"):
            ask(self.Answers(lambda x: {"scores": x}), images, layer)

    @pytest.mark.parametrize("layer", ["conv", None])
    def test_whose_forward_fn_returns_nothing_is_refused(self, ask, images, layer):
        with pytest.raises(TypeError, match="forward_fn returned None"):
            ask(self.Answers(lambda x: x), images, layer, forward_fn=lambda model, images: None)

    def test_whose_output_has_space_is_refused(self, ask, images):
        with pytest.raises(
            ValueError, match=r"the model returned a tensor of shape \(3, 4, 22, 22\).* Give forward_fn"
        ):
            ask(self.Answers(lambda x: x), images, "conv")

    def test_that_fails_on_masked_images_alone_says_why(self, images):
        def answer(activations):
            if len(activations) == 2:
                raise RuntimeError("out of luck")
            return activations.mean(dim=(2, 3))

        with pytest.raises(ValueError, match=r"out of luck\. It answers 1 at once, but not 2"):
            ScoreCAM("probability", batch_size=5)(
                self.Answers(answer), images, "conv"
            )  # 3 images, then 12 masked ones: 5, 5, 2


class TestCheck:
    def test_names_the_layer_that_would_be_used(self, network, images):
        assert ScoreCAM().check(network, images) == ScoreCAM()(network, images).target_layer == "features"
        assert ScoreCAM().check(network, images, "features.3") == "features.3"

    def test_spends_one_pass_an_image_and_three_more(self, network, images, forwarded):
        sizes = forwarded(network)
        ScoreCAM().check(network, images, "features")
        assert sizes == [1, 2, 3]  # whether images influence each other is asked with the first one

    def test_calls_forward_fn(self, network, images):
        def forward_fn(model, images):
            return {"scores": model(images)}

        with pytest.raises(TypeError, match="keys"):
            ScoreCAM().check(network, images, "features", forward_fn=forward_fn)


class TestName:
    def test_is_that_of_the_class_if_it_gives_none(self, network, images):
        class MeanGradients(Method):
            def forward_pass(self, network, target_layer, targets):
                return network.forward_pass(target_layer, targets, "logit", gradients=True)

        assert MeanGradients.name == "MeanGradients"
        own, reference = (method(network, images, "features") for method in (MeanGradients(), GradCAM()))
        assert torch.equal(own.layer_maps, reference.layer_maps)

    def test_is_not_that_of_the_class_it_derives_from(self):
        class Mine(ScoreCAM):
            pass

        class Nameless(Method):
            def forward_pass(self, network, target_layer, targets):
                return network.forward_pass(target_layer, targets, "logit", gradients=True)

        class Derived(Nameless):
            pass

        assert (ScoreCAM().name, Mine().name, Derived().name) == ("Score-CAM", "Mine", "Derived")
