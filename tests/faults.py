"""What may go wrong while CAMMonitor looks, and what becomes of the run; the source of `docs/faults.md`.

python tests/faults.py > docs/faults.md
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning_runs import BATCH, Squares, TinyModule, loader, when
from pages import markdown_table
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from cam_callbacks import CAMMonitor, GradCAM, ScoreCAM

STEPS = 3
"""Of an epoch."""
PROBES = 4
AUDITED = 12


@dataclass(frozen=True)
class Outcome:
    """What becomes of a run in which something goes wrong, at the second look if not said otherwise.

    Attributes:
        words: The same for people.
        looks: The epochs after which the probes were explained.
        pictures: The epochs whose pictures were logged; None for those of the looks.
        audits: The epochs after which there was an audit; None for those of the looks.
        tracebacks: Warnings with one.
        remarks: Warnings without; None for any number of them.
        error: Whether `on_error="raise"` ends the run.
        epochs: How many the run has.
    """

    words: str
    looks: tuple[int, ...] = (0, 1, 2)
    pictures: tuple[int, ...] | None = None
    audits: tuple[int, ...] | None = None
    tracebacks: int = 0
    remarks: int | None = 0
    error: bool = True
    epochs: int = 3


FIRST_LEFT_OUT = Outcome("This look is left out, with one warning; the next one works.", looks=(1, 2), tracebacks=1)
LEFT_OUT = Outcome("This look is left out, with one warning; the next one works.", looks=(0, 2), tracebacks=1)
GIVES_UP = Outcome(
    "Three looks in a row are left out, with a warning each; then there are none any more.",
    looks=(),
    tracebacks=3,
    epochs=4,
)
NO_PICTURES = Outcome(
    "Numbers and heatmaps are there; its pictures and its audit are left out, with one warning; the next look works.",
    pictures=(0, 2),
    audits=(0, 2),
    tracebacks=1,
)
LOGGER_FAILS = Outcome(
    "All else is logged, also the pictures in other loggers, with one warning; it gets the pictures of the next look.",
    pictures=(0, 2),
    tracebacks=1,
)
LOGGER_GIVEN_UP = Outcome(
    "All else is logged; after three looks, with a warning each, it is sent no more pictures.",
    looks=(0, 1, 2, 3),
    pictures=(),
    tracebacks=3,
    epochs=4,
)
NO_AUDIT = Outcome(
    "Heatmaps are logged; this audit is left out, with one warning; the next one works.",
    audits=(0, 2),
    tracebacks=1,
)
REMARKED = Outcome("The look goes on, with one warning that says what is done.", remarks=1, error=False)
SHOWN = Outcome("The look goes on; what could not be computed is shown and counted as such.", error=False)
PASSES_THROUGH = Outcome("It passes through: the run ends as it does without the monitor, and all is put back.")


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        stage: Where.
        what: How it is brought about.
        outcome: What happens then.
        says: A part of each warning.
        monitor: Makes arguments of CAMMonitor.
        module: Makes the module, which has the fault without a monitor too.
        val: Makes the validation data.
        options: Makes arguments of the Trainer, given the folder of the run.
        meddler: Makes a callback that brings the fault about, given the monitor.
    """

    stage: str
    what: str
    outcome: Outcome
    says: str = ""
    monitor: Callable[[], dict[str, Any]] = dict
    module: Callable[[], TinyModule] = TinyModule
    val: Callable[[], Any] = field(default=lambda: loader(Squares(12, seed=1)))
    options: Callable[[Path], dict[str, Any]] = field(default=lambda folder: {})
    meddler: Callable[[CAMMonitor], Callback] | None = None

    def __str__(self) -> str:
        return f"{self.stage}: {re.sub('`', '', self.what)}"


def lowered(words: str) -> str:
    return words[0].lower() + words[1:]


def in_epoch_1(module: Any) -> bool:
    return not module.trainer.sanity_checking and module.current_epoch == 1


class FailsAtCall:
    """A forward_fn that raises at its n-th call in the second look."""

    def __init__(self, call: int, error: BaseException) -> None:
        self.call, self.error, self.calls = call, error, 0

    def __call__(self, module: Any, images: Tensor) -> Any:
        if in_epoch_1(module):
            self.calls += 1
            if self.calls == self.call:
                raise self.error
        return module(images)


def slow(forward_fn: Any) -> dict[str, Any]:
    """A look of many small chunks: one pass over the probes, two of one image, then the masked ones."""
    return {"method": ScoreCAM(batch_size=4), "forward_fn": forward_fn}


IN_THE_MASKED_PASSES = 5


def for_more_than(count: int, error: Exception) -> Callable[[Any, Tensor], Any]:
    """A forward_fn that raises on large batches in the second look."""

    def forward(module: Any, images: Tensor) -> Any:
        if in_epoch_1(module) and len(images) > count:
            raise error
        return module(images)

    return forward


class BatchFn:
    """Raises at its n-th call; the sanity check makes two."""

    def __init__(self, call: int) -> None:
        self.call, self.calls = call, 0

    def __call__(self, batch: Any) -> Any:
        self.calls += 1
        if self.calls == self.call:
            raise KeyError("label")
        return batch


class ProbesFrom(Dataset):
    """Squares on a drive that cannot be reached at first."""

    def __init__(self) -> None:
        self.squares, self.asked = Squares(12, seed=1), 0

    def __len__(self) -> int:
        return len(self.squares)

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        if self.asked == 1:
            raise OSError("the drive is gone")
        return self.squares[index]


class LastBatch(Dataset):
    """Squares of which those after the sanity check are passed through a function."""

    def __init__(self, change: Callable[[Tensor, Tensor], Any], masks: bool = False) -> None:
        self.squares, self.change, self.masks = Squares(12, seed=1), change, masks

    def __len__(self) -> int:
        return len(self.squares)

    def __getitem__(self, index: int) -> Any:
        image, target = self.squares[index]
        if index >= 2 * BATCH:
            return self.change(image, target)
        return (image, target, upper_half()) if self.masks else (image, target)


def upper_half() -> Tensor:
    return (torch.arange(16).view(16, 1).expand(16, 16) < 8).long()


def with_trimap(image: Tensor, target: Tensor) -> Any:
    mask = upper_half()
    mask[0] = 2
    return image, target, mask


class ReadsMappings(TinyModule):
    """Takes mappings too, in words that CAMMonitor does not know."""

    def _loss_of(self, batch: Any) -> Tensor:
        return super()._loss_of((batch["photo"], batch["kind"]) if isinstance(batch, dict) else batch)


class Refuses(TinyModule):
    """Its hook raises on batches that are larger than those of its own training."""

    def __init__(self) -> None:
        super().__init__()
        self.features[2].register_forward_hook(self._refuse)

    def _refuse(self, part: Any, inputs: Any, output: Tensor) -> None:
        if in_epoch_1(self) and len(output) > BATCH:
            raise RuntimeError("the hook knows batches of four only")


class LittleMemory(TinyModule):
    """Has no memory for more images than those of its own batches, or none at all while the monitor looks."""

    def __init__(self, enough_for: int = BATCH) -> None:
        super().__init__()
        self.enough_for = enough_for

    def forward(self, images: Tensor) -> Any:
        if not self.trainer.sanity_checking and len(images) > self.enough_for:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(images)


def no_memory(module: Any, images: Tensor) -> Any:
    if in_epoch_1(module):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return module(images)


class SetsStyle(Callback):
    """Sets a style that does not exist, for the second look."""

    def __init__(self, monitor: CAMMonitor) -> None:
        self.monitor = monitor

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.monitor.style = "rainbow" if in_epoch_1(pl_module) else "blend"


def answers_not_finite(module: Any, images: Tensor) -> Any:
    output = module(images)
    return output * torch.nan if in_epoch_1(module) else output


def answers_for_other_classes(module: Any, images: Tensor) -> Any:
    output = module(images)
    return output[:, :1] if in_epoch_1(module) else output


def answers_in_words(module: Any, images: Tensor) -> Any:
    output = module(images)
    return {"answer": "cat"} if in_epoch_1(module) else output


class BrokenUploads(TensorBoardLogger):
    """TensorBoard whose writer takes no picture at the second look."""

    @property
    def experiment(self) -> Any:
        writer = super().experiment
        writer.add_image = self._add_image
        return writer

    def _add_image(self, tag: str, picture: Any, step: int, dataformats: str) -> None:
        if step == 2 * STEPS - 1:
            raise ConnectionError("the tracking server is gone")
        SummaryWriter.add_image(super().experiment, tag, picture, step, dataformats=dataformats)


class Tracker(Logger):
    """A tracking server on this machine, which is sent pictures; it hangs up at the second look, if it is to."""

    name, version = "tracker", "0"

    def __init__(self, hangs_up: bool) -> None:
        super().__init__()
        self.hangs_up = hangs_up

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        """Takes all."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Takes all."""

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            client = socket.create_connection(server.getsockname(), timeout=10)
            answering = threading.Thread(target=self._answer, args=(server, step))
            answering.start()
            with client:
                client.sendall(images[0].tobytes()[:100])
                answer = client.recv(2)
            answering.join()
        if answer != b"ok":
            raise ConnectionError("the tracking server hung up")

    def _answer(self, server: socket.socket, step: int) -> None:
        with server.accept()[0] as connection:
            connection.recv(100)
            if not (self.hangs_up and step == 2 * STEPS - 1):
                connection.sendall(b"ok")


def full_disk(folder: Path) -> None:
    """What is written of the second look's heatmaps goes to a device that is full."""
    (folder / "cam").mkdir(parents=True)
    (folder / "cam" / f"heatmaps_step={2 * STEPS - 1:06d}.png").symlink_to("/dev/full")


def without_logger(folder: Path) -> dict[str, Any]:
    full_disk(folder)
    return {"logger": False}


def with_table(folder: Path) -> dict[str, Any]:
    full_disk(folder / "table")
    return {"logger": CSVLogger(folder, name="", version="table")}


def file_in_the_way(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    (folder / "cam").write_text("not a folder")
    return {"logger": False}


FAULTS = (
    Fault("probe capture", "`batch_fn` raises", FIRST_LEFT_OUT, "KeyError: 'label'", lambda: {"batch_fn": BatchFn(4)}),
    Fault(
        "probe capture",
        "a batch comes, in each validation, that is of another kind than those of the sanity check",
        GIVES_UP,
        "the batch is not understood",
        module=ReadsMappings,
        val=lambda: loader(LastBatch(lambda image, target: {"photo": image, "kind": target})),
    ),
    Fault(
        "probe capture",
        "images come that are larger than those of the sanity check",
        REMARKED,
        "CAMMonitor left out 4 images that are not finite, or whose size",
        val=lambda: loader(LastBatch(lambda image, target: (image.repeat(1, 2, 2), target))),
        monitor=lambda: {"num_probes": 12},
    ),
    Fault(
        "probe capture",
        "images come that are not finite",
        REMARKED,
        "CAMMonitor left out 4 images that are not finite",
        val=lambda: loader(LastBatch(lambda image, target: (image * torch.nan, target))),
        monitor=lambda: {"num_probes": 12},
    ),
    Fault(
        "probe capture",
        "the data set of `probes` cannot be read at first",
        FIRST_LEFT_OUT,
        "the drive is gone",
        lambda: {"probes": ProbesFrom()},
        options=lambda folder: {"num_sanity_val_steps": 0},
    ),
    Fault(
        "forward",
        "`forward_fn` raises on the probes themselves",
        LEFT_OUT,
        "out of luck",
        lambda: slow(FailsAtCall(1, RuntimeError("out of luck"))),
    ),
    Fault(
        "forward",
        "`forward_fn` raises in the middle of the masked passes",
        LEFT_OUT,
        "out of luck",
        lambda: slow(FailsAtCall(IN_THE_MASKED_PASSES, RuntimeError("out of luck"))),
    ),
    Fault(
        "forward",
        "`forward_fn` raises at every look",
        GIVES_UP,
        "out of luck",
        lambda: {"forward_fn": when(lambda module: True, RuntimeError("out of luck"))},
    ),
    Fault("forward", "the model's answers are not finite", SHOWN, monitor=lambda: {"forward_fn": answers_not_finite}),
    Fault(
        "forward",
        "the model answers for fewer classes than there are",
        LEFT_OUT,
        "targets contains",
        lambda: {"forward_fn": answers_for_other_classes},
    ),
    Fault("forward", "the model answers in words", LEFT_OUT, "returned dict", lambda: {"forward_fn": answers_in_words}),
    Fault("hook", "a hook of the user's module raises", LEFT_OUT, "batches of four only", module=Refuses),
    Fault(
        "memory",
        "memory runs out with more than four images at once",
        replace(REMARKED, remarks=None, words="Chunks are halved, with a warning each time, and the look goes on."),
        "out of memory",
        module=LittleMemory,
    ),
    Fault(
        "memory",
        "memory runs out with a single image",
        replace(LEFT_OUT, remarks=None, words="Chunks are halved, with warnings; " + lowered(LEFT_OUT.words)),
        "out of memory",
        monitor=lambda: {"forward_fn": no_memory},
    ),
    Fault(
        "audit",
        "`forward_fn` raises on the images of the audit",
        NO_AUDIT,
        "out of luck",
        lambda: {"forward_fn": for_more_than(PROBES, RuntimeError("out of luck")), "method": GradCAM()},
    ),
    Fault(
        "audit",
        "masks of the last batch have three values",
        replace(REMARKED, remarks=2, words="The look goes on without these masks and images, with two warnings."),
        "masks",
        val=lambda: loader(LastBatch(with_trimap, masks=True)),
    ),
    Fault(
        "audit",
        "all masks are empty",
        SHOWN,
        val=lambda: loader(TensorDataset(Squares(12, seed=1).images, Squares(12).labels, torch.zeros(12, 16, 16))),
    ),
    Fault(
        "rendering",
        "a style is set that does not exist",
        NO_PICTURES,
        "style='rainbow' is unknown",
        meddler=SetsStyle,
    ),
    Fault(
        "TensorBoard",
        "its writer raises",
        LOGGER_FAILS,
        "the tracking server is gone",
        options=lambda folder: {"logger": BrokenUploads(folder, "", "run")},
    ),
    Fault(
        "another logger",
        "its server hangs up in the middle of a picture",
        replace(LOGGER_FAILS, pictures=None),
        "the tracking server hung up",
        options=lambda folder: {"logger": [TensorBoardLogger(folder, "", "run"), Tracker(hangs_up=True)]},
    ),
    Fault("no logger", "the disk is full", LOGGER_FAILS, "No space left on device", options=without_logger),
    Fault("CSVLogger", "the disk is full", LOGGER_FAILS, "No space left on device", options=with_table),
    Fault("no logger", "a file stands where the folder should be", LOGGER_GIVEN_UP, "cam'", options=file_in_the_way),
    Fault("the whole process", "Ctrl-C in the middle of the masked passes", PASSES_THROUGH),
    Fault("the whole process", "SIGTERM in the middle of the masked passes", PASSES_THROUGH),
)

ON_TWO_RANKS = {"probe capture": FIRST_LEFT_OUT, "forward": LEFT_OUT, "audit": NO_AUDIT, "logger": LOGGER_FAILS}
"""What happens where one of two processes fails."""


class Watches(Callback):
    """Notes the epochs after whose validation the monitor has a new explanation, or a new audit."""

    def __init__(self, monitor: CAMMonitor) -> None:
        self.monitor = monitor
        self.looks: list[int] = []
        self.audits: list[int] = []
        self.last: tuple[Any, Any] = (None, None)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        now = (self.monitor.explanation, self.monitor.audit_result)
        for epochs, new, old in zip((self.looks, self.audits), now, self.last, strict=True):
            if new is not old:
                epochs.append(trainer.current_epoch)
        self.last = now


def page() -> str:
    """What `docs/faults.md` holds."""
    lines = [
        "# Faults",
        "",
        f"{len(FAULTS)} things that go wrong once training has begun, and what happens then.",
        "`tests/test_faults.py` brings each about. Except for the last two the run goes on to its end; weights,",
        "optimizer state and metrics are bit for bit those of a run without CAMMonitor; no hook, train flag, gradient",
        "or random number state is left behind. A warning of what is left out holds the traceback.",
        "",
        f"Errors of one of two processes are brought about in {', '.join(ON_TWO_RANKS)}:",
        "both leave the same out.",
        "",
        'The last column says what becomes of the run with `on_error="raise"` instead of `"warn"`.',
        "",
    ]
    rows = []
    for fault in FAULTS:
        ends = fault.outcome.error and fault.outcome is not PASSES_THROUGH
        raises = "it ends with the error" if ends else "the same"
        rows.append([fault.stage, fault.what, fault.outcome.words, raises])
    lines += markdown_table(["where", "what goes wrong", "what happens", 'with `on_error="raise"`'], rows)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
