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
        by: The title of a table with a row for each.
        lost: What the gap is, in few words.
        effect: A gap in a sentence: `{place}` is "background" or "edge", `{hundredths}` of 100 are lost, `{of}` names
            what it was found of, `{gap}` is the number with its interval.
        pasted: What the picture of swapped backgrounds shows.
        no_heatmaps: Why there are none; empty if there may be.
        heated: What heatmaps are of.
        shown: What stands above the pictures.
        donors: Above those with a background of either kind.
        may_be_negative: Whether `right` may be below 0.
        told: What is said of a class or a label that a property of the data goes with: "(it) can be told apart ... by".
        told_apart: What a color that goes with it tells.
        area: What the number is called that says how surely.
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
    by: str = "Numbers by class"
    lost: str = "accuracy lost to another class's background"
    effect: str = "Another class's {place} costs {hundredths} of 100 answers{of} ({gap})."
    pasted: str = "Objects on backgrounds of their own and of another class"
    no_heatmaps: str = ""
    heated: str = "the true class"
    shown: str = "the probability of the true class"
    donors: tuple[str, str] = ("own class", "other class")
    may_be_negative: bool = False
    told: str = "can be told apart from the others by"
    told_apart: str = "the classes apart"
    area: str = "AUC"
    least: float = 0.0


_WORDS = {
    "single-label": Words(),
    "multi-label": Words(
        chance="that of always answering what is more frequent",
        one="label",
        many="labels",
        of_same="of images that agree in the label",
        of_other="of images that differ in the label",
        by="Numbers by label",
        lost="accuracy lost to the background of an image that differs in the label",
        effect="The {place} of an image that differs in the label costs {hundredths} of 100 answers{of} ({gap}).",
        pasted="Objects on backgrounds of images that agree and that differ in the label",
        heated="the true label",
        shown="the probability of what is true",
        donors=("same truth", "other truth"),
        told="can be told apart from images without it by",
        told_apart="images with a label from those without it",
    ),
    "regression": Words(
        right="skill",
        right_is="skill",
        chance="that of always answering the median",
        one="number",
        many="numbers",
        of_same="of an image with nearly the same number",
        of_other="of an image with another number",
        gap="the slope of the answer on the number of the image whose background it is, 1 if that decides",
        by="Numbers by output",
        lost="slope of the answer on the number of the image whose background it is",
        effect="If the {place} is of an image whose number is 1 higher, the answer{of} is {gap} higher.",
        pasted="Objects on backgrounds of images with nearly the same number and with another one",
        heated="the number",
        shown="the number that is answered",
        donors=("near number", "far number"),
        may_be_negative=True,
        told_apart="large numbers from small ones",
        area="rank agreement",
    ),
    "segmentation": Words(
        right="iou",
        right_is="IoU",
        chance="that of seeing the class everywhere, and 0.1",
        of_other="of an image without the class",
        lost="IoU lost to the background of an image without the class",
        effect="The {place} of an image without the class lowers the IoU{of} by {gap}.",
        pasted="Objects on backgrounds of images with their class and without it",
        shown="the mean probability on the object",
        donors=("own class", "without it"),
        least=0.1,
    ),
    "detection": Words(
        right="recall",
        right_is="the share of objects found",
        chance="0.1",
        lost="share of objects that another class's background hides",
        effect="Another class's {place} hides {hundredths} of 100 objects{of} ({gap}).",
        no_heatmaps="No heatmaps: the audit of a detector asks for boxes, and has no score of a class to explain.",
        shown="the largest IoU times score",
        least=0.1,
    ),
    "embedding": Words(
        right_is="the share of images nearest to their class",
        chance="the share of the largest class",
        lost="right answers lost to another class's background; right: nearest to its class",
        no_heatmaps="No heatmaps: an embedding has no score of a class to explain.",
        shown="the cosine to the true class",
    ),
}


def words_of(task: str) -> Words:
    """Return what is said of a task."""
    return _WORDS[task]


TASKS = tuple(_WORDS)
"""Their names; the first is the task of those who say none."""
