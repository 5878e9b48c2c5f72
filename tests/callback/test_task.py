"""What a model is trained to answer is recognized, and said in one line."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC

from cam_callbacks import ProbeSet, SegmentationTarget
from cam_callbacks.callback.answer import recognize_entry
from cam_callbacks.callback.task import BatchSigns, NothingToExplainError, Task, recognize
from cam_callbacks.explain.model_outputs import class_columns
from cam_callbacks.explain.targets import LargestSegment

N = 4
DRAW = torch.Generator().manual_seed(0)
IMAGES = torch.rand(N, 3, 8, 8, generator=DRAW)
CLASSES = torch.tensor([0, 1, 2, 0])
PAIRS = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 1]]).bool()
PIXELS = torch.randint(0, 3, (N, 8, 8), generator=DRAW)


def numbers(*shape: int) -> Tensor:
    return torch.randn(N, *shape, generator=DRAW)


class Holds(nn.Module):
    """A module that keeps a loss, or metric, or function."""

    def __init__(self, *kept: Any) -> None:
        super().__init__()
        for index, each in enumerate(kept):
            setattr(self, f"kept{index}", each)


def known(labels: Tensor | None = None, annotations: Tensor | None = None, names: list[str] | None = None) -> ProbeSet:
    return ProbeSet(IMAGES, labels, class_names=names, annotations=annotations)


class DinoTransformer(nn.Module):
    """A backbone that is named as the loss it was once trained with."""


class GaussianBlur(nn.Module):
    pass


@pytest.mark.parametrize(
    ("probes", "output", "held", "task"),
    [
        (known(CLASSES), numbers(3), Holds(), Task("single-label", 3)),
        (known(CLASSES), numbers(3), Holds(nn.BCEWithLogitsLoss()), Task("single-label", 3, multi_label=True)),
        (known(CLASSES), {"logits": numbers(3)}, Holds(nn.CrossEntropyLoss()), Task("single-label", 3)),
        (known(CLASSES.clamp(max=1)), numbers(1), Holds(), Task("single-label", 2)),
        (known(CLASSES.clamp(max=1)), numbers(), Holds(nn.BCEWithLogitsLoss()), Task("single-label", 2)),
        (known(CLASSES.clamp(max=1)), numbers(1), Holds(nn.MSELoss()), Task("regression", 1)),
        (known(CLASSES.clamp(max=1)), numbers(1), Holds(F.smooth_l1_loss), Task("regression", 1)),
        (known(CLASSES + 30), numbers(1), Holds(), Task("regression", 1)),
        (known(annotations=numbers(1)), numbers(1), Holds(), Task("regression", 1)),
        (known(annotations=numbers(5)), numbers(5), Holds(), Task("regression", 5)),
        (known(annotations=numbers(1)), numbers(1), Holds(nn.BCELoss()), Task("regression", 1)),
        (known(annotations=numbers(1).sigmoid()), numbers(1), Holds(nn.BCELoss()), Task("no labels", 2)),
        (known(annotations=numbers(1)), numbers(5), Holds(nn.CrossEntropyLoss()), Task("no labels", 5)),
        (known(annotations=numbers(1)), numbers(2), Holds(nn.GaussianNLLLoss()), Task("regression", 2)),
        (known(CLASSES), numbers(64), Holds(partial(F.cross_entropy, label_smoothing=0.1)), Task("single-label", 64)),
        (known(CLASSES), numbers(64), Holds(DinoTransformer(), F.nll_loss), Task("single-label", 64)),
        (known(CLASSES), numbers(8), Holds(DinoTransformer(), GaussianBlur()), Task("single-label", 8)),
        (known(annotations=PAIRS), numbers(3), Holds(), Task("multi-label", 3, multi_label=True)),
        (known(annotations=PAIRS), numbers(4), Holds(nn.BCELoss()), Task("no labels", 4, multi_label=True)),
        (known(annotations=PIXELS), numbers(3, 8, 8), Holds(), Task("segmentation", 3, size=(8, 8))),
        (
            known(annotations=PIXELS.clamp(max=1)),
            {"out": numbers(1, 4, 4)},
            Holds(),
            Task("segmentation", 2, size=(4, 4)),
        ),
        (known(), numbers(3), Holds(), Task("no labels", 3)),
        (known(), numbers(64), Holds(F.cross_entropy), Task("no labels", 64)),
        (known(names=[f"class {i}" for i in range(64)]), numbers(64), Holds(), Task("no labels", 64)),
        (known(CLASSES), numbers(2), Holds(nn.CrossEntropyLoss(ignore_index=2)), Task("single-label", 2)),
        (known(CLASSES), numbers(3), Holds(BinaryAUROC()), Task("single-label", 3)),
        (known(CLASSES.clamp(max=1) * 255), numbers(1), Holds(), Task("single-label", 2)),
    ],
)
def test_tasks(probes: ProbeSet, output: Any, held: nn.Module, task: Task) -> None:
    assert recognize(probes, class_columns(output), held) == task


class NTXentLoss(nn.Module):
    """Named as in the libraries for contrastive learning."""


class SupConLoss(nn.Module):
    """Likewise."""


@pytest.mark.parametrize(
    ("probes", "output", "held", "says"),
    [
        (known(), numbers(3, 8, 8), Holds(), "images, as an autoencoder"),
        (known(CLASSES), (numbers(3, 8, 8), numbers(4), numbers(4)), Holds(), "images, as an autoencoder"),
        (known(CLASSES), numbers(16, 2, 2), Holds(), "no pixel labels"),
        (known(), numbers(64), Holds(), "neither labels nor a loss"),
        (known(CLASSES), numbers(64), Holds(NTXentLoss()), "features"),
        (known(CLASSES), numbers(8), Holds(nn.TripletMarginLoss()), "features"),
        (known(CLASSES), numbers(8), Holds(SupConLoss(), nn.GaussianNLLLoss()), "features"),
        (known(CLASSES), F.normalize(numbers(64), dim=1), Holds(nn.CrossEntropyLoss()), "features"),
        (known(CLASSES, names=["a", "b", "c"]), numbers(64), Holds(), "64 numbers .* 3 classes"),
        (known(CLASSES + 1000), numbers(5), Holds(), "all labels are above 4"),
        (known(CLASSES + 253), numbers(2), Holds(), "all labels are above 1"),
        (known(CLASSES), numbers(2), Holds(), "2 numbers .* labels are 0 to 2, as ranks are told by thresholds"),
        (known(CLASSES + 1), numbers(3), Holds(), "labels are 1 to 3: if the step subtracts 1, let batch_fn"),
        (known(CLASSES.clamp(max=1) + 1), numbers(1), Holds(nn.BCEWithLogitsLoss()), "labels are 1 to 2"),
        (known(annotations=PIXELS + 1), numbers(3, 8, 8), Holds(), "labels go up to 3: if the step subtracts 1"),
        (known(annotations=PIXELS), numbers(2, 8, 8), Holds(), "labels go up to 2: give batch_fn"),
        (known(annotations=PIXELS), numbers(8, 8), Holds(), r"\(4, 8, 8\), not \(N, classes"),
        (known(CLASSES), CLASSES, Holds(), "torch.int64, such as the index of a class"),
        (known(annotations=numbers(1)), numbers(5), Holds(), "5 numbers .* a label has 1"),
    ],
)
def test_nothing_is_explained_of_what_is_not_classes_or_numbers(
    probes: ProbeSet, output: Any, held: nn.Module, says: str
) -> None:
    with pytest.raises(NothingToExplainError, match=says):
        recognize(probes, class_columns(output), held)


SCORES = numbers(3)


@pytest.mark.parametrize(
    ("probes", "entries", "made", "place"),
    [
        (known(CLASSES), {0: numbers(64), 1: numbers(3)}, None, 1),
        (known(CLASSES), {0: numbers(3), 2: numbers(64)}, 2, 0),
        (known(CLASSES), {0: numbers(5), 1: numbers(64)}, 0, 0),
        (known(CLASSES, names=list("abcde")), {0: numbers(3), 1: numbers(5)}, None, 1),
        (known(CLASSES), {0: numbers(16, 2, 2), 1: numbers(8)}, None, 1),
        (known(CLASSES), {0: numbers(3), 1: numbers(3), 2: numbers(3)}, 1, 1),
        (known(CLASSES.clamp(max=1)), {0: numbers(2), 1: numbers(1)}, 1, 0),
        (known(CLASSES.clamp(max=1)), {0: numbers(1), 1: numbers(64)}, None, 0),
        (known(annotations=PAIRS), {0: numbers(64), 1: numbers(3)}, None, 1),
        (known(annotations=PIXELS), {0: numbers(3, 4, 4), 1: numbers(8, 2, 2)}, None, 0),
        (known(annotations=PIXELS), {0: numbers(3, 4, 4), 1: numbers(3, 8, 8)}, 1, 1),
        (known(torch.where(CLASSES == 2, 255, CLASSES)), {0: numbers(64), 1: numbers(2)}, None, 1),
        (known(), {0: SCORES, 1: SCORES.softmax(dim=1)}, 1, 0),
        (known(), {0: SCORES.sigmoid(), 1: SCORES}, 0, 1),
    ],
)
def test_of_a_tuple_the_answer_is_told_by_the_classes_or_the_graph(
    probes: ProbeSet, entries: dict[int, Tensor], made: int | None, place: int
) -> None:
    assert recognize_entry(probes, entries, made, Holds(), BatchSigns()).place == place


@pytest.mark.parametrize(
    ("probes", "entries", "made", "says"),
    [
        (
            known(CLASSES),
            {0: numbers(3), 1: numbers(3)},
            None,
            r"answer: output\[0\] \(N, 3\) and output\[1\] \(N, 3\)\. Give",
        ),
        (known(), {0: numbers(3), 1: numbers(3)}, 1, r"output\[0\] \(N, 3\) and output\[1\]"),
        (known(), {0: numbers(3), 1: numbers(1)}, 1, r"output\[0\] \(N, 3\) and output\[1\] \(N, 1\)"),
        (known(CLASSES), {0: numbers(64), 1: numbers(10)}, None, r"output\[0\] \(N, 64\) and output\[1\] \(N, 10\)"),
        (known(CLASSES), {0: numbers(3, 8, 8), 1: numbers(4), 2: numbers(4)}, 0, "images, as an autoencoder"),
        (known(CLASSES), {0: numbers(3, 8, 8), 1: numbers(3), 2: numbers(3)}, 0, "images, as an autoencoder"),
    ],
)
def test_of_a_tuple_with_several_answers_none_is_explained(
    probes: ProbeSet, entries: dict[int, Tensor], made: int | None, says: str
) -> None:
    with pytest.raises(NothingToExplainError, match=says):
        recognize_entry(probes, entries, made, Holds(), BatchSigns())


def test_views_of_the_images_mean_features_which_can_be_audited() -> None:
    with pytest.raises(NothingToExplainError, match=r'8 features .* \(Audit\(task="embedding"\) audits them\)'):
        recognize(known(CLASSES), numbers(8), Holds(nn.CrossEntropyLoss()), BatchSigns(have_views=True))
    assert recognize(known(CLASSES), numbers(3), Holds(), BatchSigns(have_views=True)).outputs == 3


def test_a_loss_for_numbers_decides_where_labels_are_not_understood() -> None:
    signs = BatchSigns(have_other_labels=True)
    assert recognize(known(), numbers(136), Holds(nn.MSELoss()), signs) == Task("regression", 136)
    assert recognize(known(), numbers(3), Holds(), signs) == Task("no labels", 3)


class Steps(nn.Module):
    """Its steps call a loss that it does not keep; what they do not call does not count."""

    def predict_step(self, batch: Any) -> Tensor:
        return F.cross_entropy(batch[0], batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._loss(batch)

    def _loss(self, batch: Any) -> Tensor:
        return F.mse_loss(batch[0], batch[1])


def test_losses_are_read_in_the_steps() -> None:
    assert recognize(known(CLASSES.clamp(max=1)), numbers(1), Steps()) == Task("regression", 1)
    with pytest.raises(NothingToExplainError, match="a loss for numbers, where the labels are classes"):
        recognize(known(CLASSES), numbers(8), Steps())
    assert recognize(known(CLASSES), numbers(3), Steps()) == Task("single-label", 3)


def test_an_output_for_each_class_of_a_larger_head_is_told_from_features() -> None:
    """A head of 1000 outputs that has been trained on three classes answers with one of these."""
    scores = numbers(1000)
    scores[:, :3] += 10
    three = known(CLASSES, names=["a", "b", "c"])
    assert recognize(three, scores, Holds()) == Task("single-label", 1000)
    with pytest.raises(NothingToExplainError, match=r"1000 numbers .* 3 classes"):
        recognize(three, numbers(1000), Holds(nn.CrossEntropyLoss()))


def test_the_largest_class_but_0_is_explained_where_it_is() -> None:
    pixels = torch.zeros(N, 8, 8, dtype=torch.int64)
    pixels[0, :2], pixels[0, 2:3], pixels[1, 0, 0], pixels[3] = 2, 1, 7, -100
    task = Task("segmentation", 3, size=(4, 4))
    first, second, third, fourth = task.targets(known(annotations=pixels), "label")  # type: ignore[misc]
    assert isinstance(first, SegmentationTarget)
    assert isinstance(first.region, Tensor)
    assert first.class_index == 2
    assert torch.equal(first.region, torch.arange(4).view(4, 1).expand(4, 4) < 1)
    assert (second.class_index, third.class_index) == (0, 0)
    assert fourth == LargestSegment()
    assert task.targets(known(annotations=pixels), "prediction") == LargestSegment()


@pytest.mark.parametrize(("name", "largest"), [("background", 2), ("road", 0)])
def test_class_0_stands_back_only_if_its_name_says_so(name: str, largest: int) -> None:
    pixels = torch.zeros(N, 8, 8, dtype=torch.int64)
    pixels[:, :2] = 2
    probes = known(annotations=pixels, names=[name, "car", "sky"])
    task = recognize(probes, numbers(3, 8, 8), Holds())
    assert {target.class_index for target in task.targets(probes, "label")} == {largest}  # type: ignore[union-attr]
    assert task.targets(probes, "prediction") == LargestSegment(has_background=name != "road")
    assert ("0 only if there is no other" in task.describe("label")) == (name != "road")
