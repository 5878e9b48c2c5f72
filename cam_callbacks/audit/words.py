"""What is said of each task: what a right answer is, and whose backgrounds are compared. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """What is said of a task.

    Attributes:
        right: The name of the measure of right answers.
        right_is: That measure in words, within a sentence.
        chance: What it has to be above.
        one: What images are asked about.
        many: Several of them.
        of_same: Whose background, or what else is exchanged, goes with what is true: "of the same class".
        of_other: Whose does not.
        gap: What the gap is, where that is not `right_is` with the one minus `right_is` with the other.
        shown: What stands above the pictures.
        donors: Above those with a background of either kind.
        may_be_negative: Whether `right` may be below 0.
        told: What is said of a class, a label or a number that a property of the data goes with: "(it) is told ... by".
        told_apart: What a color that goes with it tells.
        least: Of `right`, to have learned something, where what is right by chance is next to nothing.
    """

    right: str = "accuracy"
    right_is: str = "accuracy"
    chance: str = "that of always answering the most frequent class"
    one: str = "class"
    many: str = "classes"
    of_same: str = "of the same class"
    of_other: str = "of another class"
    gap: str = ""
    shown: str = "the probability of the true class"
    donors: tuple[str, str] = ("own class", "other class")
    may_be_negative: bool = False
    told: str = "is told from the rest by"
    told_apart: str = "the classes apart"
    least: float = 0.0


_WORDS = {
    "single-label": Words(),
    "multi-label": Words(
        chance="that of always answering what is more frequent",
        one="label",
        many="labels",
        of_same="of images that agree in the label",
        of_other="of images that do not",
        shown="the probability of what is true",
        donors=("same truth", "other truth"),
        told="is told from images without it by",
        told_apart="images with a label from those without it",
    ),
    "regression": Words(
        right="skill",
        right_is="skill",
        chance="that of always answering the median",
        one="number",
        many="numbers",
        of_same="of an image with nearly the same number",
        of_other="of one with another number",
        gap="the slope of the answer on the number of the image whose background it is, 1 if that decides",
        shown="the number that is answered",
        donors=("near number", "far number"),
        may_be_negative=True,
        told="goes with",
        told_apart="large numbers from small ones",
    ),
    "segmentation": Words(
        right="iou",
        right_is="IoU",
        chance="that of seeing the class everywhere, and 0.1",
        of_other="of an image without it",
        shown="the mean probability on the object",
        donors=("own class", "without it"),
        least=0.1,
    ),
    "detection": Words(
        right="recall",
        right_is="the share of objects found",
        chance="0.1",
        shown="the largest IoU times score",
        least=0.1,
    ),
    "embedding": Words(
        right_is="the share of images nearest to their class",
        chance="the share of the largest class",
        shown="the cosine to the true class",
    ),
}


def words_of(task: str) -> Words:
    """Return what is said of a task."""
    return _WORDS[task]
