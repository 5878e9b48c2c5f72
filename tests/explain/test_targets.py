"""What the user asks for becomes scores of images: classes, numbers of a regression, regions of a segmentation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cam_callbacks import ContrastTarget, GradCAM, LargestSegment, RegressionTarget, ScoreCAM, SegmentationTarget
from cam_callbacks.explain.model_outputs import OutputReader, class_scores
from cam_callbacks.explain.output_form import OutputForm
from cam_callbacks.explain.score_readers import CallableScoreReader, ClassScoreReader, TargetRequest

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]])
SCORES = class_scores(LOGITS)


def returns_logits():
    return OutputReader("logits", False, decide=lambda columns: pytest.fail("it is known"), find_form=OutputForm)


def settled(targets, chunk=slice(0, 2)):
    return TargetRequest(targets, 2).resolve(chunk, LOGITS[chunk], class_scores(LOGITS[chunk]), returns_logits())


class TestTargetRequest:
    def test_is_the_predicted_class_for_none(self):
        assert settled(None).tolist() == [[0], [2]]

    @pytest.mark.parametrize("targets", [1, torch.tensor(1), [1, 1], (1, 1), torch.tensor([1, 1], dtype=torch.uint8)])
    def test_is_one_class_an_image(self, targets):
        assert settled(targets).tolist() == [[1], [1]]
        assert settled(targets).dtype == torch.int64
        assert not TargetRequest(targets, 2).several

    def test_is_several_classes_an_image(self):
        assert settled([[0, 1], [2, 0]]).tolist() == [[0, 1], [2, 0]]
        assert TargetRequest([[0, 1], [2, 0]], 2).several

    def test_goes_chunk_by_chunk(self):
        assert settled([1, 2], slice(1, 2)).tolist() == [[2]]
        assert settled(torch.tensor([[True] * 3, [True, True, False]]), slice(1, 2)).tolist() == [[1]]

    def test_is_the_strongest_of_the_marked_classes(self):
        assert settled(torch.tensor([[False, True, True], [True, True, False]])).tolist() == [[2], [1]]
        assert settled(torch.tensor([[False, True, False], [False, False, False]])).tolist() == [[1], [2]]
        assert not TargetRequest(torch.ones(2, 3).bool(), 2).several

    @pytest.mark.parametrize("shape", [(2, 4), (3, 3)])
    def test_refuses_marks_of_other_classes_or_images(self, shape):
        with pytest.raises(ValueError, match="targets marks classes"):
            settled(torch.ones(shape).bool())

    def test_does_not_share_memory_with_what_was_given(self):
        given = torch.tensor([0, 1])
        settled(given)[0] = 2
        assert given.tolist() == [0, 1]

    @pytest.mark.parametrize("targets", [0.0, [0.0, 1.0], True, torch.tensor([True, False])])
    def test_refuses_what_is_not_a_whole_number(self, targets):
        with pytest.raises(TypeError, match=r"targets must be whole numbers, .*, or callables; got torch\."):
            TargetRequest(targets, 2)

    @pytest.mark.parametrize("targets", ["cat", ["cat", "dog"]])
    def test_refuses_class_names(self, targets):
        with pytest.raises(TypeError, match="targets must be whole numbers, the class indices, or callables"):
            TargetRequest(targets, 2)

    @pytest.mark.parametrize("targets", [[0], [0, 1, 2], [[0, 1]], [], [[[0]], [[1]]]], ids=str)
    def test_refuses_another_number_of_classes_than_of_images(self, targets):
        with pytest.raises(ValueError, match=r"targets has shape .*; 2 images need one class each, \(2,\), or T of"):
            TargetRequest(targets, 2)

    def test_refuses_another_number_of_callables_than_of_images(self):
        with pytest.raises(ValueError, match="targets holds 3 callables; 2 images need one each: 2"):
            TargetRequest([len] * 3, 2)

    @pytest.mark.parametrize(("targets", "named"), [(3, "3"), (-1, "-1"), ([7, 5], "5, 7"), ([[0, 9], [1, 1]], "9")])
    def test_refuses_classes_that_the_model_does_not_have(self, targets, named):
        with pytest.raises(ValueError, match=rf"targets contains \[{named}\], but the model has 3 classes: 0 to 2"):
            settled(targets)

    def test_calls_callables_by_their_name(self):
        def angle(output):
            return output[:, 0]

        def score(targets):
            request = TargetRequest(targets, 2)
            return request.reader(
                [request.resolve(slice(0, 2), LOGITS, None, returns_logits())], "logit", returns_logits()
            ).score

        assert score(angle) == "angle"
        assert score([angle, RegressionTarget()]) == "2 callables"
        assert score(RegressionTarget(2)) == "RegressionTarget(index=2)"


class TestScoreReader:
    image = torch.tensor([1, 0, 1])

    @pytest.mark.parametrize("score", ["logit", "probability"])
    def test_gives_each_masked_image_the_scores_of_its_own_classes(self, score):
        output = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
        read = ClassScoreReader(torch.tensor([[0, 1], [2, 0]]), score, returns_logits()).read(output, self.image)
        values = output if score == "logit" else output.softmax(dim=1)
        assert torch.equal(read, torch.stack([values[0, [2, 0]], values[1, [0, 1]], values[2, [2, 0]]]))

    def test_lets_the_output_of_one_image_stand_for_all(self):
        read = ClassScoreReader(torch.tensor([[0], [2]]), "logit", returns_logits()).read(
            LOGITS[:1], torch.tensor([0, 1]), shared=True
        )
        assert read.tolist() == [[2.0], [0.5]]
        assert CallableScoreReader([RegressionTarget(1)] * 2, "", returns_logits()).read(
            LOGITS[:1], torch.tensor([0, 1]), shared=True
        ).tolist() == [
            [-1.0],
            [-1.0],
        ]

    def test_asks_each_callable_for_its_own_images(self):
        first, second = RegressionTarget(0), RegressionTarget(1)
        output = torch.arange(6.0).view(3, 2)
        assert CallableScoreReader([first, second], "", returns_logits()).read(output, self.image).tolist() == [
            [1.0],
            [2.0],
            [5.0],
        ]

    @pytest.mark.parametrize(
        ("returned", "said"),
        [
            (torch.zeros(3, 2), r"a tensor of shape \(3, 2\)"),
            (torch.zeros(()), r"a tensor of shape \(\)"),
            (torch.zeros(1), r"a tensor of shape \(1,\)"),
            (torch.zeros(3, dtype=torch.complex64), r"a tensor of shape \(3,\)"),
            (1.0, "float"),
            (None, "NoneType"),
        ],
        ids=str,
    )
    def test_refuses_what_is_not_one_number_an_image(self, returned, said):
        def wrong(output):
            return returned

        with pytest.raises(ValueError, match=rf"targets=wrong returned {said}; it must return one number .* 3 images"):
            CallableScoreReader([wrong] * 2, "wrong", returns_logits()).read(LOGITS, self.image)

    def test_takes_the_single_number_of_a_model_that_squeezes_its_output(self, small_cnn, blobs):
        class Squeezes(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = small_cnn(classes=1)

            def forward(self, images):
                return self.inner(images).squeeze()

        def number(output):
            return output

        def column(output):
            return output[:, 0]

        network, image = Squeezes(), blobs(1, 24, 24)
        assert network(image).shape == ()
        explanation = ScoreCAM(tolerance=0)(network, image, "inner.features", number)
        expected = ScoreCAM(tolerance=0)(network.inner, image, "features", column)
        torch.testing.assert_close(explanation.layer_maps, expected.layer_maps)
        assert not explanation.blank.any()


class Shaped(nn.Module):
    """Three classes in a shape of any kind."""

    def __init__(self, shape):
        super().__init__()
        self.features, self.shape = nn.Conv2d(3, 3, 3, padding=1), shape

    def forward(self, images):
        return self.features(images).mean(dim=(2, 3)).view(len(images), *self.shape[1:])


class TestContrastTarget:
    def test_is_the_logit_minus_the_mean_of_the_others(self):
        assert ContrastTarget(0, against=1)(LOGITS).tolist() == [3, -1]
        assert ContrastTarget(2, against=[0, 1])({"logits": LOGITS}).tolist() == [0, 2.5]

    def test_of_one_logit_is_twice_that_logit(self):
        assert ContrastTarget(1, against=0)(torch.tensor([4.0, -5.0])).tolist() == [8, -10]

    @pytest.mark.parametrize("shape", [(2, 1, 3), (2, 3, 1), (2, 3, 1, 1)])
    def test_reads_classes_wherever_a_class_is_read(self, shape):
        found = GradCAM()(Shaped(shape), torch.rand(2, 3, 8, 8), "features", ContrastTarget(2, against=[0, 1]))
        assert found.target_scores.shape == (2,)

    def test_is_a_value(self):
        assert ContrastTarget(3, [7]) == ContrastTarget(3, (7,)) == ContrastTarget(3, 7)
        assert len({ContrastTarget(3, [7, 8]), ContrastTarget(3, (7, 8))}) == 1

    def test_weighs_channels_by_the_difference_of_their_weights(self, small_cnn, blobs):
        network, images = small_cnn(), blobs(2, 24, 24)

        def weights(target):
            channels = GradCAM()(network, images, "features", target).channels
            return torch.zeros(2, 12).scatter(1, channels.index, channels.weight)

        contrast = weights(ContrastTarget(3, against=[0, 1]))
        torch.testing.assert_close(contrast, weights(3) - (weights(0) + weights(1)) / 2)

    def test_is_the_target_of_grad_cam_for_one_other_class(self):
        targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
        theirs = targets.FinerWeightedTarget(2, [0], alpha=1)
        torch.testing.assert_close(ContrastTarget(2, 0)(LOGITS), theirs(LOGITS))

    def test_reads_logits_where_the_model_returns_probabilities(self, small_cnn, blobs):
        network, images = small_cnn(), blobs(2, 24, 24)
        target = ContrastTarget(3, against=1)
        expected = network(images).detach()[:, 3] - network(images).detach()[:, 1]
        found = ScoreCAM(max_passes=4)(nn.Sequential(network, nn.Softmax(dim=1)), images, "0.features", target)
        torch.testing.assert_close(found.target_scores, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("against", "message"),
        [
            (3, "against=3 must name classes other than class_index=3"),
            ([], r"against=\[\] must name classes other than"),
            ([1, 3], "other than class_index=3"),
            ([1, 1], "other than class_index=3, each once"),
            (-1, "against=-1 must be a whole number of at least 0"),
            ("cat", "against='cat' must be a whole number"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, against, message):
        with pytest.raises(ValueError, match=message):
            ContrastTarget(3, against)

    def test_classes_that_the_model_does_not_have_are_named(self):
        with pytest.raises(
            ValueError,
            match=r"ContrastTarget\(class_index=0, against=\(9,\)\) names classes that are not among the model's 3",
        ):
            ContrastTarget(0, against=9)(LOGITS)


class TestRegressionTarget:
    def test_reads_one_output(self):
        assert RegressionTarget(2)(LOGITS).tolist() == [0.5, 3.0]
        assert RegressionTarget()(torch.tensor([4.0, 5.0])).tolist() == [4, 5]
        assert RegressionTarget(0)({"logits": LOGITS}).tolist() == [2, 0]

    @pytest.mark.parametrize("output", [LOGITS, torch.zeros(2), torch.zeros(2, 4, 4)], ids=["few", "one", "many"])
    def test_refuses_an_output_without_it(self, output):
        with pytest.raises(ValueError, match=r"RegressionTarget\(index=3\) reads outputs of shape \(N, outputs\)"):
            RegressionTarget(3)(output)


class TestLargestSegment:
    def test_is_the_class_with_the_most_positions_but_0(self):
        logits = F.one_hot(torch.tensor([[[0, 0, 0], [2, 2, 1]], [[0, 0, 0], [0, 0, 0]]]), 3).movedim(-1, 1).float()
        first, second = LargestSegment().resolve({"out": logits})
        assert (first.class_index, second.class_index) == (2, 0)
        assert first.region.tolist() == [[False] * 3, [True, True, False]]
        assert LargestSegment()({"out": logits}).tolist() == [2, 6]

    @pytest.mark.parametrize("method", [ScoreCAM(), GradCAM()])
    def test_tells_which_class_was_explained(self, method):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1))
        images = torch.rand(5, 3, 8, 8)
        explanation = method(model, images, "1", LargestSegment())
        predicted = model(images).argmax(dim=1)
        largest = [max(range(1, 4), key=lambda c: int((one == c).sum())) if one.any() else 0 for one in predicted]
        assert explanation.targets.tolist() == largest
        assert explanation.logits is None
        assert explanation.score_kind == repr(LargestSegment())

    def test_refuses_what_has_no_positions(self):
        with pytest.raises(ValueError, match="LargestSegment needs logits"):
            LargestSegment().resolve(LOGITS)


class TestSegmentationTarget:
    output = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))

    def test_sums_the_positions_predicted_as_the_class(self):
        predicted = self.output.argmax(dim=1) == 1
        expected = [float(image[1][mask].sum()) for image, mask in zip(self.output, predicted, strict=True)]
        torch.testing.assert_close(SegmentationTarget(1)(self.output), torch.tensor(expected))

    def test_keeps_the_positions_of_the_unmasked_image(self):
        other = torch.randn_like(self.output)
        first, second = SegmentationTarget(1).resolve({"out": self.output})
        for target, image in ((first, 0), (second, 1)):
            mask = self.output[image].argmax(dim=0) == 1
            torch.testing.assert_close(target(other)[0], other[0, 1][mask].sum())

    @pytest.mark.parametrize("wrong", ["x", 5, [0.5, 1]])
    def test_refuses_what_is_no_region(self, wrong):
        with pytest.raises(TypeError, match=r"region=.* must be a position"):
            SegmentationTarget(1, region=wrong)

    def test_takes_a_mask_of_numpy(self):
        output, mask = torch.rand(2, 3, 4, 5), torch.rand(4, 5) > 0.5
        assert torch.equal(SegmentationTarget(1, mask.numpy())(output), SegmentationTarget(1, mask)(output))

    def test_sums_a_region_or_reads_one_position(self):
        mask = torch.zeros(4, 5, dtype=torch.bool)
        mask[1, 2:4] = True
        torch.testing.assert_close(SegmentationTarget(2, mask)(self.output), self.output[:, 2, 1, 2:4].sum(dim=1))
        assert torch.equal(SegmentationTarget(2, (3, 4))(self.output), self.output[:, 2, 3, 4])

    def test_of_one_channel_has_two_classes(self):
        output = self.output[:, :1]
        assert torch.equal(SegmentationTarget(1, (0, 0))(output), output[:, 0, 0, 0])
        assert torch.equal(SegmentationTarget(0, (0, 0))(output), -output[:, 0, 0, 0])

    def test_is_nothing_where_the_class_is_not_predicted(self):
        output = torch.zeros(1, 2, 3, 3)
        output[:, 0] = 1
        assert SegmentationTarget(1)(output).tolist() == [0]

    @pytest.mark.parametrize(
        ("target", "output", "said"),
        [
            (SegmentationTarget(3), output, "class_index=3 is not among the 3 classes: 0 to 2"),
            (SegmentationTarget(0, (4, 0)), output, r"region=\(4, 0\) is not in the model's output of size \(4, 5\)"),
            (SegmentationTarget(0, (1,)), output, r"region=\(1,\) is not in"),
            (
                SegmentationTarget(0, torch.ones(2, 2)),
                output,
                r"region has shape \(2, 2\); the model's output has \(4, 5\)",
            ),
            (SegmentationTarget(0), LOGITS, r"SegmentationTarget needs logits \(N, classes, \*spatial\)"),
        ],
        ids=["class", "position", "dimension", "mask", "classifier"],
    )
    def test_refuses(self, target, output, said):
        with pytest.raises(ValueError, match=said):
            target(output)


@pytest.mark.parametrize("wrong", [-1, "a", 1.5, True])
def test_an_index_that_is_none_is_refused_at_once(wrong):
    with pytest.raises(ValueError, match=r"index=.* must be a whole number of at least 0"):
        RegressionTarget(wrong)
    with pytest.raises(ValueError, match=r"class_index=.* must be a whole number of at least 0"):
        SegmentationTarget(wrong)
