"""How each of the faults in `faults` is brought about."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning_runs import BATCH, Squares, TinyModule, loader, when
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from cam_callbacks import CAMMonitor, Figures, GradCAM, ScoreCAM

STEPS = 3
"""Of an epoch."""
PROBES = 4
AUDITED = 12


@dataclass(frozen=True)
class Maker:
    """A run with a fault.

    Attributes:
        monitor: Makes arguments of CAMMonitor.
        module: Makes the module, which has the fault without a monitor too.
        val: Makes the validation data.
        options: Makes arguments of the Trainer, given the folder of the run.
        meddler: Makes a callback that brings the fault about, given the monitor.
    """

    monitor: Callable[[], dict[str, Any]] = dict
    module: Callable[[], TinyModule] = TinyModule
    val: Callable[[], Any] = field(default=lambda: loader(Squares(12, seed=1)))
    options: Callable[[Path], dict[str, Any]] = field(default=lambda folder: {})
    meddler: Callable[[CAMMonitor], Callback] | None = None


def in_epoch_1(module: Any) -> bool:
    return not module.trainer.sanity_checking and module.current_epoch == 1


class FailsAtCall:
    """A forward_fn that raises at its n-th call with more than two images, in the second look."""

    def __init__(self, call: int, error: BaseException) -> None:
        self.call, self.error, self.calls = call, error, 0

    def __call__(self, module: Any, images: Tensor) -> Any:
        if in_epoch_1(module) and len(images) > 2:
            self.calls += 1
            if self.calls == self.call:
                raise self.error
        return module(images)


def slow(forward_fn: Any) -> dict[str, Any]:
    """A look of many small chunks: one pass over the probes, then the masked ones."""
    return {"method": ScoreCAM(batch_size=4), "forward_fn": forward_fn}


IN_THE_MASKED_PASSES = 3


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
        image, label = self.squares[index]
        if index >= 2 * BATCH:
            return self.change(image, label)
        return (image, label, upper_half()) if self.masks else (image, label)


def upper_half() -> Tensor:
    return (torch.arange(16).view(16, 1).expand(16, 16) < 8).long()


def with_trimap(image: Tensor, label: Tensor) -> Any:
    mask = upper_half()
    mask[0] = 2
    return image, label, mask


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
        figures = Figures()
        if in_epoch_1(pl_module):
            object.__setattr__(figures, "overlay_style", "rainbow")  # around its check
        object.__setattr__(self.monitor.settings, "figures", figures)


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
    """TensorBoard whose writer takes no picture at the second look, and a corner of each at the others."""

    @property
    def experiment(self) -> Any:
        writer = super().experiment
        writer.add_image = self._add_image
        return writer

    def _add_image(self, tag: str, picture: Any, step: int, dataformats: str) -> None:
        if step == 2 * STEPS - 1:
            raise ConnectionError("the tracking server is gone")
        SummaryWriter.add_image(super().experiment, tag, picture[:8, :8], step, dataformats=dataformats)


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
            client = socket.create_connection(server.getsockname(), timeout=300)
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


def out_of_luck() -> RuntimeError:
    return RuntimeError("out of luck")


MAKERS = {
    "batch_fn": Maker(lambda: {"batch_fn": BatchFn(4)}),
    "other batch": Maker(
        module=ReadsMappings,
        val=lambda: loader(LastBatch(lambda image, label: {"photo": image, "kind": label})),
    ),
    "larger images": Maker(
        lambda: {"num_probes": 12},
        val=lambda: loader(LastBatch(lambda image, label: (image.repeat(1, 2, 2), label))),
    ),
    "images not finite": Maker(
        lambda: {"num_probes": 12},
        val=lambda: loader(LastBatch(lambda image, label: (image * torch.nan, label))),
    ),
    "data set": Maker(lambda: {"probes": ProbesFrom()}, options=lambda folder: {"num_sanity_val_steps": 0}),
    "forward of the probes": Maker(lambda: slow(for_more_than(2, out_of_luck()))),
    "masked passes": Maker(lambda: slow(FailsAtCall(IN_THE_MASKED_PASSES, out_of_luck()))),
    "every look": Maker(lambda: {"forward_fn": when(lambda module: True, out_of_luck())}),
    "answers not finite": Maker(lambda: {"forward_fn": answers_not_finite}),
    "fewer classes": Maker(lambda: {"forward_fn": answers_for_other_classes}),
    "answers in words": Maker(lambda: {"forward_fn": answers_in_words}),
    "hook": Maker(lambda: {"method": ScoreCAM()}, Refuses),
    "little memory": Maker(lambda: {"method": ScoreCAM()}, LittleMemory),
    "no memory": Maker(lambda: {"forward_fn": no_memory}),
    "audit": Maker(lambda: {"forward_fn": for_more_than(PROBES, out_of_luck()), "method": GradCAM()}),
    "masks of three values": Maker(val=lambda: loader(LastBatch(with_trimap, masks=True))),
    "empty masks": Maker(
        val=lambda: loader(TensorDataset(Squares(12, seed=1).images, Squares(12).labels, torch.zeros(12, 16, 16)))
    ),
    "style": Maker(meddler=SetsStyle),
    "TensorBoard": Maker(options=lambda folder: {"logger": BrokenUploads(folder, "", "run")}),
    "another logger": Maker(
        options=lambda folder: {"logger": [TensorBoardLogger(folder, "", "run"), Tracker(hangs_up=True)]}
    ),
    "no logger, disk full": Maker(options=without_logger),
    "CSVLogger, disk full": Maker(options=with_table),
    "file in the way": Maker(options=file_in_the_way),
}
"""By the name of the fault; those of the whole process have tests of their own."""


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
