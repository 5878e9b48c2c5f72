"""What may go wrong while CAMMonitor looks, and what becomes of the run; `docs/faults.md` is made from it.

Standard library only; `fault_makers` brings each about.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Outcome:
    """What becomes of a run in which something goes wrong, at the second look unless said otherwise.

    Attributes:
        words: The same for people.
        looks: The epochs after which the probes were explained.
        pictures: The epochs whose pictures were logged; None for those of the looks.
        audits: The epochs after which there was an audit; None for those of the looks.
        tracebacks: The number of warnings with a traceback.
        remarks: The number of warnings without one; None for any number of them.
        error: Whether `on_error="raise"` ends the run.
        epochs: The number of epochs of the run.
    """

    words: str
    looks: tuple[int, ...] = (0, 1, 2)
    pictures: tuple[int, ...] | None = None
    audits: tuple[int, ...] | None = None
    tracebacks: int = 0
    remarks: int | None = 0
    error: bool = True
    epochs: int = 3


SKIPPED = "This look is skipped, with one warning; the next one works."
FIRST_SKIPPED = Outcome(SKIPPED, looks=(1, 2), tracebacks=1)
SECOND_SKIPPED = Outcome(SKIPPED, looks=(0, 2), tracebacks=1)
LOOKS_DISABLED = Outcome(
    "Three looks in a row are skipped, with one warning each; after that there are no more looks.",
    looks=(),
    tracebacks=3,
    epochs=4,
)
NO_PICTURES = Outcome(
    "Numbers and heatmaps are kept; this look's pictures and audit are skipped, with one warning; the next look works.",
    pictures=(0, 2),
    audits=(0, 2),
    tracebacks=1,
)
LOGGER_FAILS = Outcome(
    "Everything else is logged, including pictures in other loggers, with one warning; "
    "this logger gets the pictures of the next look.",
    pictures=(0, 2),
    tracebacks=1,
)
LOGGER_DISABLED = Outcome(
    "Everything else is logged; after three looks, with one warning each, this logger is sent no more pictures.",
    looks=(0, 1, 2, 3),
    pictures=(),
    tracebacks=3,
    epochs=4,
)
NO_AUDIT = Outcome(
    "Heatmaps are logged; this audit is skipped, with one warning; the next one works.",
    audits=(0, 2),
    tracebacks=1,
)
REMARKED = Outcome("The look goes on, with one warning that says what is left out.", remarks=1, error=False)
SHOWN = Outcome("The look goes on; what could not be computed is marked and counted.", error=False)
PASSES_THROUGH = Outcome("It is passed on: the run ends as it does without the monitor, and everything is restored.")


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        stage: Where.
        what: How it is brought about.
        outcome: What happens then.
        says: A part of each warning.
    """

    stage: str
    what: str
    outcome: Outcome
    says: str = ""

    def __str__(self) -> str:
        return f"{self.stage}: {self.what.replace('`', '')}"


OUT_OF_LUCK = "out of luck"
DISK_FULL = "No space left on device"

FAULTS = {
    "batch_fn": Fault(
        "probe capture",
        "`batch_fn` raises on a batch",
        replace(REMARKED, words="The look goes on without this batch, with one warning that says so.", error=True),
        "KeyError: 'label'",
    ),
    "other batch": Fault(
        "probe capture",
        "each validation has a batch of another kind than those of the sanity check",
        replace(REMARKED, words="The look goes on without this batch, with one warning that says what it is."),
        "the batch is not understood",
    ),
    "larger images": Fault(
        "probe capture",
        "some images are larger than those of the sanity check",
        REMARKED,
        "CAMMonitor left out 4 images that are not finite, or whose size",
    ),
    "images not finite": Fault(
        "probe capture", "some images are not finite", REMARKED, "CAMMonitor left out 4 images that are not finite"
    ),
    "data set": Fault(
        "probe capture", "the data set of `probes` cannot be read at first", FIRST_SKIPPED, "the drive is gone"
    ),
    "forward of the probes": Fault(
        "forward", "`forward_fn` raises on the probes themselves", SECOND_SKIPPED, OUT_OF_LUCK
    ),
    "masked passes": Fault(
        "forward", "`forward_fn` raises in the middle of the masked passes", SECOND_SKIPPED, OUT_OF_LUCK
    ),
    "every look": Fault("forward", "`forward_fn` raises at every look", LOOKS_DISABLED, OUT_OF_LUCK),
    "answers not finite": Fault(
        "forward",
        "the model's answers are not finite",
        replace(REMARKED, words="The look goes on; what could not be computed is marked, counted and said."),
        "heatmaps are empty",
    ),
    "fewer classes": Fault(
        "forward", "the model answers for fewer classes than there are", SECOND_SKIPPED, "targets contains"
    ),
    "answers in words": Fault("forward", "the model answers in words", SECOND_SKIPPED, "returned dict"),
    "hook": Fault("hook", "a hook of the user's module raises", SECOND_SKIPPED, "batches of four only"),
    "little memory": Fault(
        "memory",
        "memory runs out with more than four images at once",
        replace(REMARKED, remarks=None, words="Chunks are halved, with a warning each time, and the look goes on."),
        "out of memory",
    ),
    "no memory": Fault(
        "memory",
        "memory runs out with a single image",
        replace(
            SECOND_SKIPPED,
            remarks=None,
            words="Chunks are halved, with warnings; then this look is skipped, with one more; the next one works.",
        ),
        "out of memory",
    ),
    "audit": Fault("audit", "`forward_fn` raises on the images of the audit", NO_AUDIT, OUT_OF_LUCK),
    "masks of three values": Fault(
        "audit",
        "masks of the last batch have three values",
        replace(REMARKED, remarks=2, words="The look goes on without these masks and images, with two warnings."),
        "masks",
    ),
    "empty masks": Fault("audit", "all masks are empty", SHOWN),
    "style": Fault("figures", "a style is set that does not exist", NO_PICTURES, "style='rainbow' is unknown"),
    "TensorBoard": Fault("TensorBoard", "its writer raises", LOGGER_FAILS, "the tracking server is gone"),
    "another logger": Fault(
        "another logger",
        "its server hangs up in the middle of a picture",
        replace(LOGGER_FAILS, pictures=None),
        "the tracking server hung up",
    ),
    "no logger, disk full": Fault("no logger", "the disk is full", LOGGER_FAILS, DISK_FULL),
    "CSVLogger, disk full": Fault("CSVLogger", "the disk is full", LOGGER_FAILS, DISK_FULL),
    "file in the way": Fault("no logger", "a file has the name of the folder", LOGGER_DISABLED, "cam'"),
    "Ctrl-C": Fault("the whole process", "Ctrl-C in the middle of the masked passes", PASSES_THROUGH),
    "SIGTERM": Fault("the whole process", "SIGTERM in the middle of the masked passes", PASSES_THROUGH),
}

ON_TWO_RANKS = {"probe capture": REMARKED, "forward": SECOND_SKIPPED, "audit": NO_AUDIT, "logger": LOGGER_FAILS}
"""What happens if one of two processes fails."""
