"""Models are called as the user says; class scores are read out of whatever they return."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cam_callbacks import CAM, GradCAM, ScoreCAM
from cam_callbacks.explain.forwarding import forward
from cam_callbacks.explain.model_outputs import (
    class_scores,
    log_odds_of,
    logits_of,
)

ROW = torch.zeros(1, dtype=torch.int64)
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]])


class TestClassScores:
    @pytest.mark.parametrize(
        "output",
        [
            LOGITS,
            (LOGITS, torch.zeros(7)),
            [LOGITS],
            {"logits": LOGITS, "loss": None},
            OrderedDict(logits=LOGITS),
            SimpleNamespace(logits=LOGITS),
            {"out": LOGITS, "aux": torch.zeros(7)},
        ],
        ids=["tensor", "tuple", "list", "dict", "OrderedDict", "attribute", "torchvision's segmentation"],
    )
    def test_are_found_in(self, output):
        scores = class_scores(output)
        assert torch.equal(scores.logits, LOGITS)
        torch.testing.assert_close(scores.probabilities, LOGITS.softmax(dim=1))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_are_single_precision(self, dtype):
        scores = class_scores(LOGITS.to(dtype))
        assert scores.logits.dtype == scores.probabilities.dtype == torch.float32

    @pytest.mark.parametrize("shape", [(3,), (3, 1)])
    def test_of_one_logit_are_those_of_two_classes(self, shape):
        logits = torch.tensor([-2.0, 0.0, 5.0])
        scores = class_scores(logits.view(shape))
        assert torch.equal(scores.logits, torch.stack([-logits, logits], dim=1))
        torch.testing.assert_close(scores.probabilities[:, 1], logits.sigmoid())
        torch.testing.assert_close(scores.probabilities.sum(dim=1), torch.ones(3))

    def test_of_probabilities_are_these_and_their_logarithm(self):
        probabilities = torch.tensor([[0.25, 0.75, 0.0]])
        scores = class_scores(probabilities, probabilities=True)
        assert torch.equal(scores.probabilities, probabilities)
        assert scores.logits.isfinite().all()
        torch.testing.assert_close(scores.logits[:, :2], probabilities[:, :2].log())

    def test_of_several_labels_are_sigmoids(self):
        scores = class_scores(LOGITS, multi_label=True)
        assert torch.equal(scores.logits, LOGITS)
        torch.testing.assert_close(scores.probabilities, LOGITS.sigmoid())
        again = class_scores(LOGITS.sigmoid(), probabilities=True, multi_label=True)
        torch.testing.assert_close(again.logits, LOGITS)
        torch.testing.assert_close(again.probabilities, LOGITS.sigmoid())

    @pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 4), (2, 0)])
    def test_of_another_shape_are_refused(self, shape):
        with pytest.raises(ValueError, match=r"the model returned a tensor of shape .* Give forward_fn") as error:
            class_scores(torch.zeros(shape))
        assert str(tuple(shape)) in str(error.value)

    @pytest.mark.parametrize(
        ("output", "said"),
        [
            (None, "NoneType"),
            (0.5, "float"),
            ((), "tuple"),
            (("features", LOGITS), "tuple"),
            ({"aux": LOGITS, "boxes": LOGITS}, r"dict with the keys \['aux', 'boxes'\]"),
            ({"logits": [1.0]}, "dict with the keys"),
            (SimpleNamespace(scores=LOGITS), "SimpleNamespace"),
        ],
        ids=str,
    )
    def test_are_not_guessed(self, output, said):
        with pytest.raises(TypeError, match=rf"the model returned {said}.*Give forward_fn"):
            logits_of(output)


class TestLogOdds:
    @pytest.mark.parametrize("scale", [0.1, 3.0, 300.0])
    def test_are_exact_also_where_a_probability_is_rounded_to_0_or_1(self, scale):
        logits = scale * torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
        others = [torch.cat([logits[:, :c], logits[:, c + 1 :]], dim=1).double().logsumexp(dim=1) for c in range(7)]
        expected = logits.double() - torch.stack(others, dim=1)
        torch.testing.assert_close(log_odds_of(logits).double(), expected, rtol=1e-5, atol=1e-4)

    def test_of_two_classes_are_opposite(self):
        found = log_odds_of(torch.tensor([[2.0, -1.0], [90.0, -90.0]]))
        torch.testing.assert_close(found, torch.tensor([[3.0, -3.0], [180.0, -180.0]]))


class TestForward:
    class Conditional(nn.Module):
        def forward(self, images, *, condition):
            return images * condition

    def test_calls_the_model_with_the_images(self):
        assert forward(nn.ReLU(), torch.tensor([-1.0, 2.0]), ROW).tolist() == [0, 2]

    def test_calls_forward_fn_instead(self):
        assert forward(self.Conditional(), torch.ones(2), ROW, lambda model, x: model(x, condition=3)).tolist() == [
            3,
            3,
        ]

    def test_names_forward_fn_where_the_model_needs_more(self):
        with pytest.raises(TypeError, match=r"Conditional\.forward needs more .*condition.*; give forward_fn"):
            forward(self.Conditional(), torch.ones(2), ROW)

    def test_names_forward_fn_where_the_model_has_no_forward(self):
        with pytest.raises(TypeError, match=r"Module has no forward method; define it, or give forward_fn"):
            forward(nn.Module(), torch.ones(2), ROW)

    @pytest.mark.parametrize("error", [TypeError("mine"), NotImplementedError("mine"), RuntimeError("mine")], ids=repr)
    def test_leaves_other_errors_of_the_model_alone(self, error):
        class Fails(nn.Module):
            def forward(self, images):
                raise error

        with pytest.raises(type(error), match=r"^mine$"):
            forward(Fails(), torch.ones(2), ROW)


class TestHeads:
    def test_a_head_that_squeezes_its_output_is_understood(self, small_cnn, blobs):
        class Squeezes(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = small_cnn(classes=1)

            def forward(self, images):
                return self.net(images).squeeze()

        network, images = Squeezes(), blobs(2, 24, 24)
        for method in (ScoreCAM("increase"), ScoreCAM(batch_size=1), GradCAM(), CAM()):
            for count in (1, 2):
                explained = method(network, images[:count], "net.features", 1)
                expected = method(network.net, images[:count], "features", 1)
                torch.testing.assert_close(explained.layer_maps, expected.layer_maps)

    def test_a_binary_head_with_a_sigmoid_gives_the_maps_of_its_logits(self, small_cnn, blobs):
        network, images = small_cnn(classes=1), blobs(3, 24, 24)
        explanation = ScoreCAM()(nn.Sequential(network, nn.Sigmoid()), images, "0.features")
        expected = ScoreCAM()(network, images, "features")
        torch.testing.assert_close(explanation.probabilities, expected.probabilities)
        torch.testing.assert_close(explanation.layer_maps, expected.layer_maps, rtol=1e-4, atol=1e-5)
