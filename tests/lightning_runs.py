"""Small Lightning runs: a tiny model, tiny labeled images, `fit`, and what the event files say afterwards."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytorch_lightning
import torch
import torch.nn.functional as F
from lightning.fabric.utilities import registry as registry_of_lightning
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.connectors.logger_connector import result as result_of_lightning
from lightning_fabric.utilities import registry as registry_of_fabric
from lightning_utilities.core import rank_zero
from pytorch_lightning.trainer.connectors.logger_connector import result as result_of_pytorch_lightning
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from cam_callbacks import CAMMonitor, Explanation, ScoreCAM

# On busy cores the threads of tiny operations wait for each other far longer than they compute.
torch.set_num_threads(1)
# Each Trainer looks through all installed packages, which takes longer than a step; nothing is installed meanwhile.
for registry in (registry_of_lightning, registry_of_fabric):
    registry.entry_points = functools.cache(registry.entry_points)


def _unless_there(move: Callable[..., Any]) -> Callable[..., Any]:
    """Moves a number that is logged, unless it is on the CPU and is to stay there."""

    @functools.wraps(move)
    def moved(number: Any, *args: Any, **kwargs: Any) -> Any:
        devices = {value.device for value in vars(number).values() if isinstance(value, Tensor)}
        return number if {*args, *devices} == {torch.device("cpu")} and not kwargs else move(number, *args, **kwargs)

    return moved


# For each number, Lightning looks through all that it keeps of it, which takes longer than a step, too.
for result in (result_of_lightning, result_of_pytorch_lightning):
    result._ResultMetric.to = _unless_there(result._ResultMetric.to)

CLASSES = ("cat", "dog", "owl")
BATCH = 4
CHANNELS = 6
"""Of the last layer with spatial output."""


class Squares(Dataset):
    """Labeled images in [0, 1], each class with a bright square of another color; the classes take turns."""

    classes = CLASSES

    def __init__(self, count: int = 24, size: int = 16, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.images = torch.rand(count, 3, size, size, generator=draw) * 0.4
        self.labels = torch.arange(count) % len(CLASSES)
        for image, target in zip(self.images, self.labels, strict=True):
            row, column = torch.randint(0, size // 2, (2,), generator=draw).tolist()
            image[target, row : row + size // 2, column : column + size // 2] += 0.6

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


class ChangedSquares(Dataset):
    """Twelve squares, each item passed through a function of image and label."""

    def __init__(self, change: Callable[[Tensor, Tensor], Any]) -> None:
        self.squares, self.change = Squares(12), change

    def __len__(self) -> int:
        return len(self.squares)

    def __getitem__(self, index: int) -> Any:
        return self.change(*self.squares[index])


def loader(data: Any, **options: Any) -> DataLoader:
    return DataLoader(data, **({"batch_size": BATCH} | options))


class _Tiny:
    """The body of the modules below, which differ in the Lightning that they come from."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.features = nn.Sequential(
                nn.Conv2d(3, 4, 3, stride=2, padding=1),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Conv2d(4, CHANNELS, 3, padding=1),
                nn.ReLU(),
                nn.Dropout(0.3),
            )
            self.head = nn.Linear(CHANNELS, classes)
        self.validated: list[dict[str, Tensor]] = []  # the weights of each validation in fit

    def forward(self, images: Tensor) -> Any:
        return self.head(self.features(images).mean(dim=(2, 3)))

    def loss(self, output: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(output, targets)

    def _loss_of(self, batch: Any) -> Tensor:
        return self.loss(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self._loss_of(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if batch_idx == 0 and dataloader_idx == 0 and not self.trainer.sanity_checking:
            self.validated.append({key: value.clone() for key, value in self.state_dict().items()})
        self.log("val_loss", self._loss_of(batch))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("test_loss", self._loss_of(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class TinyModule(_Tiny, lightning.LightningModule):
    """Two convolutions with batch norm and dropout."""


class TinyModuleOfPytorchLightning(_Tiny, pytorch_lightning.LightningModule):
    """The same, of the other namespace."""


@dataclass(frozen=True)
class CountingCAM(ScoreCAM):
    """Score-CAM that keeps its explanations."""

    explanations: list[Explanation] = field(default_factory=list, compare=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Explanation:
        self.explanations.append(super().__call__(*args, **kwargs))
        return self.explanations[-1]


class CutsPictures(TensorBoardLogger):
    """TensorBoard that keeps a corner of each picture: to compress all of it takes longer than the look."""

    @property
    def experiment(self) -> Any:
        writer = super().experiment
        if isinstance(writer, SummaryWriter):  # that of the first rank
            writer.add_image = self._add_image  # type: ignore[method-assign]
        return writer

    def _add_image(self, tag: str, picture: Any, step: int, dataformats: str) -> None:
        SummaryWriter.add_image(super().experiment, tag, picture[:8, :8], step, dataformats=dataformats)


def quiet(folder: Path, **options: Any) -> dict[str, Any]:
    """Arguments of a small Trainer that prints nothing and logs into `folder`."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "default_root_dir": folder,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    if "logger" not in options:
        settings["logger"] = CutsPictures(folder, name="", version="run")
    return settings | options


def fit(
    folder: Path,
    monitor: CAMMonitor | Sequence[Any] | None,
    module: Any = None,
    train: Any = None,
    val: Any = None,
    ckpt_path: str | None = None,
    **options: Any,
) -> lightning.Trainer:
    """Train the module, by default the tiny one on 12 images, validated on 12 others, and return the trainer."""
    torch.manual_seed(0)
    callbacks = [] if monitor is None else list(monitor) if isinstance(monitor, Sequence) else [monitor]
    trainer = lightning.Trainer(callbacks=callbacks, **quiet(folder, **options))
    trainer.fit(
        TinyModule() if module is None else module,
        loader(Squares(12)) if train is None else train,
        loader(Squares(12, seed=1)) if val is None else val,
        ckpt_path=ckpt_path,
    )
    return trainer


def _events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each scalar tag in the event files of `folder/run`."""
    events = _events(folder / "run")
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def image_steps(folder: Path) -> dict[str, list[int]]:
    """The steps of each image tag in the event files of `folder/run`."""
    events = _events(folder / "run")
    return {tag: [e.step for e in events.Images(tag)] for tag in events.Tags()["images"]}


def looks(folder: Path, name: str = "cam") -> int:
    """How many looks were logged."""
    return len(scalars(folder).get(f"{name}/passes", []))


@contextmanager
def own_warnings() -> Iterator[list[str]]:
    """Collect the warnings that CAMMonitor and its helpers give."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(w.message) for w in caught if any(mark in str(w.message) for mark in _MARKS)]


_MARKS = ("CAMMonitor", "heatmaps", "probes", "class names", "normaliz", "Score-CAM", "audit")


@contextmanager
def infos() -> Iterator[list[str]]:
    """Collect what is said through `rank_zero_info`."""
    texts: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    rank_zero.log.addHandler(handler)
    try:
        yield texts
    finally:
        rank_zero.log.removeHandler(handler)


def but_what_looks_cost(said: Iterable[str]) -> list[str]:
    """What CAMMonitor says, but for the two lines on what the first look does and takes."""
    cost = ("CAMMonitor: explains ", "CAMMonitor: the first look took ")
    return [text for text in said if "CAMMonitor" in text and not text.startswith(cost)]


def when(condition: Callable[[Any], bool], error: BaseException) -> Callable[[Any, Tensor], Any]:
    """A forward_fn that raises where the module meets the condition, never in the sanity check."""

    def forward(module: Any, images: Tensor) -> Any:
        if not module.trainer.sanity_checking and condition(module):
            raise error
        return module(images)

    return forward


def hooks_left(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())
