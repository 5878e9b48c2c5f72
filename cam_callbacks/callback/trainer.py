"""Adapter to Lightning's Trainer: both packages, loop, step, data, precision, ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from cam_callbacks._checks import is_kind
from cam_callbacks.callback.let_go import letting_go
from cam_callbacks.explain import forwarding, sharding

if TYPE_CHECKING:
    from lightning_fabric.utilities.exceptions import MisconfigurationException
    from pytorch_lightning import Callback, Trainer

    CallbackBase = Callback
    Misconfiguration = MisconfigurationException

T = TypeVar("T")


def _classes(module: str, name: str) -> tuple[type, ...]:
    """Return the class of that name in each installed Lightning.

    `pytorch_lightning` and `lightning.pytorch` are two packages with classes of their own. A user has either, or both,
    so that our classes inherit from those of both.
    """
    found = []
    for package in ("pytorch_lightning", "lightning.pytorch"):
        try:
            found.append(getattr(import_module(f"{package}.{module}"), name))
        except ModuleNotFoundError:
            continue
    return tuple(found)


if not TYPE_CHECKING:
    CallbackBase = type("CallbackBase", _classes("callbacks", "Callback"), {"__doc__": "A callback for every Trainer."})
    Misconfiguration = type(
        "Misconfiguration",
        _classes("utilities.exceptions", "MisconfigurationException"),
        {"__doc__": "The MisconfigurationException of every installed Lightning."},
    )


def _evaluation_loop(trainer: Trainer) -> Any:
    if trainer.testing:
        return trainer.test_loop
    if trainer.state.fn == "fit":
        return trainer.fit_loop.epoch_loop.val_loop
    return trainer.validate_loop


def is_last_batch(trainer: Trainer) -> bool:
    """Return whether the evaluation batch that has just ended is the last one, over all loaders."""
    return bool(_evaluation_loop(trainer).batch_progress.is_last_batch)


def is_fitting(trainer: Trainer) -> bool:
    """Return whether the trainer is in `fit`, as opposed to `validate` or `test`."""
    return trainer.state.fn == "fit"


def log_step(trainer: Trainer) -> int:
    """Return the step at which Lightning writes the scalars of this evaluation; `global_step` is one further."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def log_folder(trainer: Trainer) -> str:
    """Return the folder of the trainer's logs. Call it on all ranks: Lightning lets the first one tell the others."""
    return trainer.log_dir or trainer.default_root_dir


def logs_to_tensorboard(trainer: Trainer) -> bool:
    """Return whether one of its loggers is the `TensorBoardLogger` of either Lightning."""
    return any(is_kind(logger, "TensorBoardLogger") for logger in trainer.loggers)


def will_validate(trainer: Trainer) -> bool:
    """Return whether this `fit` validates at all."""
    return bool(trainer.enable_validation)


def datasets(trainer: Trainer) -> Iterator[Any]:
    """Yield what may know class names and normalization: the data sets being evaluated, then the datamodule."""
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    yield from _datasets(loaders)
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is not None:
        yield datamodule


def _datasets(loaders: Any) -> Iterator[Any]:
    if hasattr(loaders, "dataset"):
        yield loaders.dataset
    elif hasattr(loaders, "iterables"):
        yield from _datasets(loaders.iterables)
    elif isinstance(loaders, Mapping):
        for loader in loaders.values():
            yield from _datasets(loader)
    elif isinstance(loaders, Sequence):
        for loader in loaders:
            yield from _datasets(loader)


def forward_in_precision(trainer: Trainer, forward_fn: forwarding.ForwardFn | None) -> forwarding.ForwardFn:
    """Return the user's forward in the precision that the trainer validates in; in callbacks autocast is off."""

    def call(model: nn.Module, images: Tensor, rows: Tensor) -> Any:
        with trainer.precision_plugin.val_step_context(), _logging_nothing(trainer.lightning_module, model):
            return forwarding.forward(model, images, rows, forward_fn)

    if forwarding.takes_rows(forward_fn):
        return call
    none = torch.empty(0, dtype=torch.int64)
    return lambda model, images: call(model, images, none)


@contextmanager
def _logging_nothing(*modules: nn.Module) -> Iterator[None]:
    """Keep what a module logs in its forward out of its metrics, which masked images must not change.

    Args:
        modules: The LightningModule, and the module that is run: the same, a copy of it, or one that wraps it.
    """
    names = ("log", "log_dict")
    silenced = [vars(module) for module in dict.fromkeys(modules)]
    before = [{name: value for name, value in each.items() if name in names} for each in silenced]
    try:
        for each in silenced:
            each.update(dict.fromkeys(names, _nothing))
        yield
    finally:
        for each, values in zip(silenced, before, strict=True):
            for name in names:
                each.pop(name, None)
            each.update(values)


def _nothing(*_args: Any, **_options: Any) -> None:
    """Do nothing."""


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies that shard weights so that a callback cannot run the model.

    Raises:
        MisconfigurationException: Only the strategy itself can gather the weights of a layer.
    """
    if is_kind(trainer.strategy, "FSDPStrategy"):
        raise Misconfiguration(
            "FSDPStrategy flattens the weights of layers, so that CAMMonitor cannot run the model; use "
            "ModelParallelStrategy, with torch.distributed.fsdp.fully_shard in configure_model"
        )
    if getattr(trainer.strategy, "zero_stage_3", False):
        raise Misconfiguration(
            "DeepSpeedStrategy(stage=3) gathers weights in its own engine only, so that CAMMonitor cannot "
            "run the model; use stage 1 or 2"
        )


def can_split_work(trainer: Trainer, model: nn.Module) -> bool:
    """Return whether every rank holds the whole model and can run it alone, so that they can split the work.

    Where weights are sharded across ranks, all of them have to run the model together, on the same images.
    """
    return trainer.world_size > 1 and is_kind(trainer.strategy, "DDPStrategy") and sharding.device_mesh(model) is None


def indices_of_rank(trainer: Trainer, model: nn.Module, count: int) -> Tensor:
    """Return the indices (n,) int64 of those of `count` images that this rank handles."""
    if can_split_work(trainer, model):
        return torch.arange(trainer.global_rank, count, trainer.world_size)
    return torch.arange(count)


def gather(trainer: Trainer, model: nn.Module, value: T) -> list[T]:
    """Return the values of all ranks that `indices_of_rank` deals images to. Call it on all ranks."""
    if not can_split_work(trainer, model):
        return [value]
    values: list[Any] = [None] * trainer.world_size
    with letting_go():
        torch.distributed.all_gather_object(values, value)
    return values


def gather_from_all(trainer: Trainer, value: T) -> list[T]:
    """Return the values of all ranks, in their order; where they cannot send each other objects, that of the first."""
    if trainer.world_size == 1:
        return [value]
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [broadcast(trainer, value)]
    values: list[Any] = [None] * trainer.world_size
    with letting_go():
        torch.distributed.all_gather_object(values, value)
    return values


def broadcast(trainer: Trainer, value: T, rank: int = 0) -> T:
    """Return the value of a rank, the first one by default, on all ranks."""
    if trainer.world_size == 1:
        return value
    with letting_go():
        return trainer.strategy.broadcast(value, rank)


def all_ranks_ok(trainer: Trainer, ok: bool) -> bool:
    """Return whether all ranks are ok, so that they go on, or stop, together."""
    if trainer.world_size == 1:
        return ok
    with letting_go():
        return bool(trainer.strategy.reduce_boolean_decision(ok, all=True))
