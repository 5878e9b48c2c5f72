"""Probabilities are told from logits, whatever made them."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from passes import NEIGHBORS
from torch import nn

from cam_callbacks import GradCAM, ScoreCAM, SegmentationTarget
from cam_callbacks.explain.explanation import Explanation

TO_PROBABILITY = {
    "sigmoid": torch.sigmoid,
    "squeezed": lambda z: z.sigmoid().squeeze(1),
    "clamped": lambda z: z.sigmoid().clamp(1e-6, 1 - 1e-6),
    "ensemble": lambda z: torch.stack([z.sigmoid(), (0.9 * z).sigmoid(), (1.1 * z).sigmoid()]).mean(0),
    "complement": lambda z: 1 - (-z).sigmoid(),
    "hard sigmoid": F.hardsigmoid,
    "tanh": lambda z: (torch.tanh(z / 2) + 1) / 2,
    "exp of logsigmoid": lambda z: F.logsigmoid(z).exp(),
    "softmax column": lambda z: torch.cat([-z / 2, z / 2], dim=1).softmax(1)[:, 1],
    "half precision": lambda z: z.bfloat16().sigmoid(),
    "object": lambda z: SimpleNamespace(logits=z.sigmoid()),
}
TO_DISTRIBUTION = {
    "softmax": lambda z: z.softmax(1),
    "temperature": lambda z: (z / 20).softmax(1),
    "bfloat16": lambda z: z.bfloat16().softmax(1),
    "float16 that became float32": lambda z: z.half().softmax(1).float(),
    "clamped in float16": lambda z: z.half().softmax(1).clamp(1e-3, 1 - 1e-3),
    "ensemble": lambda z: (z.softmax(1) + (2 * z).softmax(1)) / 2,
}
TO_LOGIT = {
    "plain": lambda z: z,
    "in the unit interval for these images": lambda z: 0.5 + 0.01 * z,
    "log of softmax": lambda z: z.log_softmax(1) if z.shape[1] > 1 else F.logsigmoid(z),
    "object": lambda z: SimpleNamespace(logits=z),
    "half precision": lambda z: (0.5 + 0.01 * z).bfloat16(),
}


class Ends(nn.Module):
    """A network whose logits go through `end`."""

    def __init__(self, end, classes=1, norm=False):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.norm = nn.LayerNorm(8, elementwise_affine=False) if norm else nn.Identity()
        self.head = nn.Linear(8, classes)
        self.end = end

    def logits(self, images):
        return 4 * self.head(self.norm(self.features(images).mean((2, 3))))

    def forward(self, images):
        return self.end(self.logits(images))


@pytest.fixture
def images(blobs):
    return blobs(5, 16, 16)


def explained(model, images, **options) -> Explanation:
    return GradCAM(**options)(model, images, "features")


@pytest.mark.parametrize("norm", [False, True], ids=["", "normalized features"])
class TestOneColumn:
    @pytest.mark.parametrize("name", TO_PROBABILITY)
    def test_of_probabilities_is_read_as_such(self, images, name, norm):
        model = Ends(TO_PROBABILITY[name], norm=norm)
        found = explained(model, images)
        returned = model(images)
        p = getattr(returned, "logits", returned).detach().flatten().float()
        assert found.outputs == "probabilities"
        torch.testing.assert_close(found.probabilities, torch.stack([1 - p, p], dim=1))
        torch.testing.assert_close(found.logits[:, 1], p.logit(1e-7))
        torch.testing.assert_close(found.logits[:, 0], -p.logit(1e-7))

    @pytest.mark.parametrize("name", TO_LOGIT)
    def test_of_logits_is_read_as_such(self, images, name, norm):
        assert explained(Ends(TO_LOGIT[name], norm=norm), images).outputs == "logits"


@pytest.mark.parametrize("classes", [2, 1000])
class TestSeveralColumns:
    @pytest.mark.parametrize("name", TO_DISTRIBUTION)
    def test_that_sum_to_one_are_probabilities(self, images, name, classes):
        model = Ends(TO_DISTRIBUTION[name], classes)
        found = explained(model, images)
        p = model(images).detach().float()
        assert found.outputs == "probabilities"
        torch.testing.assert_close(found.probabilities, p)
        torch.testing.assert_close(found.logits.exp(), p)

    def test_of_sigmoids_are_read_as_with_multi_label(self, images, classes):
        model = Ends(torch.sigmoid, classes)
        found, told = explained(model, images), explained(model, images, multi_label=True)
        p = model(images).detach()
        assert found.outputs == told.outputs == "probabilities"
        for each in (found, told):
            torch.testing.assert_close(each.probabilities, p)
            torch.testing.assert_close(each.logits, p.logit(1e-7))
        torch.testing.assert_close(found.layer_maps, told.layer_maps)

    @pytest.mark.parametrize("name", TO_LOGIT)
    def test_of_logits_are_read_as_such(self, images, name, classes):
        assert explained(Ends(TO_LOGIT[name], classes), images).outputs == "logits"


class TestTheUser:
    def test_decides(self, images):
        for end in (torch.sigmoid, lambda z: z):
            for outputs in ("logits", "probabilities"):
                assert explained(Ends(end), images, outputs=outputs).outputs == outputs

    def test_is_told_what_may_be_chosen(self):
        with pytest.raises(ValueError, match=r"outputs='logit' is unknown; choose one of 'auto', 'logits'"):
            GradCAM(outputs="logit")


class TestTheDecision:
    @pytest.mark.parametrize("batch_size", [1, 2, 5])
    def test_does_not_depend_on_the_batch_size(self, images, batch_size):
        class LeavesForTheLast(Ends):
            def forward(self, given):
                is_last = (given == images[-1:]).flatten(1).all(dim=1, keepdim=True)
                z = self.logits(given)
                return torch.where(is_last, 3 + z, z.sigmoid())

        assert explained(LeavesForTheLast(None), images, batch_size=batch_size).outputs == "logits"
        assert explained(Ends(torch.sigmoid), images, batch_size=batch_size).outputs == "probabilities"

    def test_takes_no_more_passes_for_plain_logits(self, images, forwarded):
        model = Ends(lambda z: z, classes=3)
        sizes = forwarded(model)
        explained(model, images)
        assert sum(sizes) == len(images) + NEIGHBORS

    def test_survives_a_model_that_refuses_extreme_images(self, images):
        class Strict(Ends):
            def forward(self, given):
                assert given.abs().max() <= images.abs().max()
                return super().forward(given)

        assert explained(Strict(torch.sigmoid), images).outputs == "probabilities"
        assert explained(Strict(lambda z: 0.5 + 0.01 * z), images).outputs == "logits"

    def test_is_the_same_for_one_image(self, images):
        for end, outputs in ((torch.sigmoid, "probabilities"), (lambda z: 0.5 + 0.01 * z, "logits")):
            assert explained(Ends(end), images[:1]).outputs == outputs


class TestTheLoss:
    def constant(self, end, *losses):
        model = Ends(end)
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
        model.losses = nn.ModuleList(losses)
        return model

    def test_decides_where_outputs_are_constant(self, images):
        assert explained(self.constant(torch.sigmoid, nn.BCELoss()), images).outputs == "probabilities"
        assert explained(self.constant(torch.sigmoid, nn.BCEWithLogitsLoss()), images).outputs == "logits"

    @pytest.mark.parametrize("losses", [(), (nn.BCELoss(), nn.BCEWithLogitsLoss())], ids=["none", "both"])
    def test_is_missed_where_there_is_no_single_one(self, images, losses):
        with pytest.warns(UserWarning, match="may be logits or probabilities"):
            assert explained(self.constant(torch.sigmoid, *losses), images).outputs == "logits"

    def test_is_not_missed_by_a_head_of_zeros(self, images, recwarn):
        assert explained(self.constant(lambda z: z), images).outputs == "logits"
        assert not recwarn.list

    def test_of_exclusive_classes_makes_bounded_outputs_logits(self, images):
        model = Ends(torch.sigmoid, classes=4)
        model.loss = nn.CrossEntropyLoss()
        assert explained(model, images).outputs == "logits"

    def test_that_disagrees_with_the_outputs_is_warned_of(self, images):
        model = Ends(torch.sigmoid)
        model.loss = nn.BCEWithLogitsLoss()
        with pytest.warns(UserWarning, match="But it holds a BCEWithLogitsLoss"):
            assert explained(model, images).outputs == "probabilities"


class TestSegmentation:
    class Segments(nn.Module):
        def __init__(self, classes, end):
            super().__init__()
            torch.manual_seed(1)
            self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
            self.head = nn.Conv2d(8, classes, 1)
            self.end = end

        def forward(self, images):
            return {"out": self.end(self.head(self.features(images)))}

    @pytest.mark.parametrize(("classes", "end"), [(1, torch.sigmoid), (3, torch.sigmoid), (3, lambda z: z.softmax(1))])
    @pytest.mark.parametrize("index", [0, 1])
    def test_is_explained_by_the_logits_of_its_probabilities(self, images, classes, end, index):
        model = self.Segments(classes, end)
        found = GradCAM()(model, images, "features", SegmentationTarget(index))
        plain = model
        plain.end = (lambda z: z) if end is torch.sigmoid else (lambda z: z.log_softmax(1))
        expected = GradCAM()(plain, images, "features", SegmentationTarget(index))
        assert (found.outputs, expected.outputs) == ("probabilities", "logits")
        torch.testing.assert_close(found.target_scores, expected.target_scores, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.layer_maps, expected.layer_maps, rtol=1e-3, atol=1e-5)

    def test_callables_are_given_what_the_model_returned(self, images):
        model = self.Segments(1, torch.sigmoid)
        found = ScoreCAM()(model, images, "features", lambda output: output["out"].flatten(1).mean(1))
        torch.testing.assert_close(found.target_scores, model(images)["out"].detach().flatten(1).mean(1))
        assert found.outputs is None
