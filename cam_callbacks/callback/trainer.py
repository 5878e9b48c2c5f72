"""What we ask of the Trainer: the two Lightnings, the loop, the step, the data, precision, ranks. No hook methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from cam_callbacks._checks import is_kind
from cam_callbacks.explain import model_outputs, sharding

if TYPE_CHECKING:
    from lightning_fabric.utilities.exceptions import MisconfigurationException
    from pytorch_lightning import Callback, Trainer

    CallbackBase = Callback
    Misconfiguration = MisconfigurationException

T = TypeVar("T")


def _classes(module: str, name: str) -> tuple[type, ...]:
    """The class of that name in each installed Lightning; `pytorch_lightning` and `lightning.pytorch` are two."""
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
    """Whether the evaluation batch that has just ended is the last one, over all loaders."""
    return bool(_evaluation_loop(trainer).batch_progress.is_last_batch)


def is_fitting(trainer: Trainer) -> bool:
    """Whether the trainer is in `fit`, as opposed to `validate` or `test`."""
    return trainer.state.fn == "fit"


def step(trainer: Trainer) -> int:
    """The step at which Lightning writes the scalars of this evaluation; not `global_step`, which is one further."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def folder(trainer: Trainer) -> str:
    """Where the trainer keeps its logs. To be called on all ranks: Lightning lets the first one tell the others."""
    return trainer.log_dir or trainer.default_root_dir


def logs_to_tensorboard(trainer: Trainer) -> bool:
    """Whether one of its loggers is TensorBoard's, of either Lightning."""
    return any(is_kind(logger, "TensorBoardLogger") for logger in trainer.loggers)


def will_validate(trainer: Trainer) -> bool:
    """Whether this `fit` validates at all."""
    return bool(trainer.enable_validation)


def datasets(trainer: Trainer) -> Iterator[Any]:
    """What may know class names and normalization: the data sets being evaluated, then the datamodule."""
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


def forward_in_precision(trainer: Trainer, forward_fn: model_outputs.ForwardFn | None) -> model_outputs.ForwardFn:
    """The user's forward in the precision that the trainer validates in: autocast is off in callbacks otherwise."""

    def call(model: nn.Module, images: Tensor) -> Any:
        with trainer.precision_plugin.val_step_context(), _logging_nothing(trainer.lightning_module, model):
            return model_outputs.forward(model, images, forward_fn)

    return call


@contextmanager
def _logging_nothing(*modules: nn.Module) -> Iterator[None]:
    """What a module logs in its forward is of its own steps: passes of masked images must not change its metrics.

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
    """Raise where the weights are spread over processes in a way that a callback cannot run the model.

    Raises:
        MisconfigurationException: The weights of a layer come together only where the strategy itself runs it.
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
    """Whether every rank holds the whole model and can run it alone, so that they can share out the work.

    Where the weights are spread over the ranks, all of them have to run it together, on the same images.
    """
    return trainer.world_size > 1 and is_kind(trainer.strategy, "DDPStrategy") and sharding.device_mesh(model) is None


def indices_of_rank(trainer: Trainer, model: nn.Module, count: int) -> Tensor:
    """The indices, of `count` images, that this rank handles, (n,) int64."""
    if can_split_work(trainer, model):
        return torch.arange(trainer.global_rank, count, trainer.world_size)
    return torch.arange(count)


def gather(trainer: Trainer, model: nn.Module, value: T) -> list[T]:
    """The values of all ranks that `share` gives images to. To be called on all ranks."""
    if not can_split_work(trainer, model):
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def broadcast(trainer: Trainer, value: T) -> T:
    """The value that the first rank has, on all ranks."""
    return value if trainer.world_size == 1 else trainer.strategy.broadcast(value)


def all_ranks_ok(trainer: Trainer, fine: bool) -> bool:
    """Whether all ranks are fine, so that they go on, or give up, together."""
    return fine if trainer.world_size == 1 else bool(trainer.strategy.reduce_boolean_decision(fine, all=True))


@contextmanager
def shown_progress(trainer: Trainer, name: str) -> Iterator[Callable[[int, int], None]]:
    """Show `name 192 of at most 512` in the description of Lightning's progress bar, if one is on; then put it back."""
    describe = _description_setter(trainer)
    before = describe(None)
    try:

        def show(done: int, total: int) -> None:
            describe(f"{name} {done} of at most {total}")

        yield show
    finally:
        describe(before)


def _description_setter(trainer: Trainer) -> Callable[[str | None], str | None]:
    """A function that sets the description of the bar being shown, and returns the one before; None sets nothing."""
    bar: Any = trainer.progress_bar_callback
    which = "test_progress_bar" if trainer.testing else "val_progress_bar"
    if bar is None or not getattr(bar, "is_enabled", False) or not trainer.is_global_zero:
        return lambda text: None
    if getattr(bar, "progress", None) is not None and getattr(bar, f"{which}_id", None) is not None:  # rich

        def describe_rich(text: str | None) -> str | None:
            task = getattr(bar, which)
            before = str(task.description)
            if text is not None:
                bar.progress.update(task.id, description=text)
                bar.progress.refresh()  # at once: a chunk may take long
            return before

        return describe_rich
    if hasattr(bar, f"_{which}") and hasattr(getattr(bar, f"_{which}"), "set_description_str"):  # tqdm

        def describe_tqdm(text: str | None) -> str | None:
            shown = getattr(bar, which)
            before = str(shown.desc)
            if text is not None:
                shown.set_description_str(text)
            return before

        return describe_tqdm
    return lambda text: None
