"""Stage: steps that all ranks take together, the base of an evaluation and of its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch
from torch import Tensor

from cam_callbacks import tags
from cam_callbacks.callback import trainer as of_trainer
from cam_callbacks.callback.data_source import DataSource
from cam_callbacks.callback.entry_point import only_network
from cam_callbacks.callback.memory import Memory
from cam_callbacks.callback.notices import Notices
from cam_callbacks.callback.outlet import Outlet
from cam_callbacks.callback.overhead import Overhead
from cam_callbacks.callback.retries import Retries
from cam_callbacks.callback.settings import MonitorSettings
from cam_callbacks.callback.trainer import Misconfiguration
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.forwarding import ForwardFn, of_entry
from cam_callbacks.explain.sharding import RanksPartedError, together
from cam_callbacks.explain.targets import Targets

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

P = ParamSpec("P")
T = TypeVar("T")


class StepFailedError(Exception):
    """A step has failed on some rank; raised on all of them.

    Attributes:
        error: The error of this rank; None where another one has failed.
    """

    def __init__(self, error: Exception | None) -> None:
        super().__init__(str(error))
        self.error = error


class NotUnderstoodError(Exception):
    """Something about the data or the model could not be found out.

    The message says what was seen, what is therefore not shown, and the argument that would change it.

    Attributes:
        leaves_nothing: Whether nothing can be shown; else it is the heatmaps that are missing.
    """

    def __init__(self, message: str, leaves_nothing: bool = True) -> None:
        super().__init__(message)
        self.leaves_nothing = leaves_nothing


@dataclass(frozen=True, eq=False)
class MonitorParts:
    """The parts of a CAMMonitor that outlive an evaluation."""

    settings: MonitorSettings
    memory: Memory
    data: DataSource
    outlet: Outlet
    retries: Retries
    notices: Notices
    overhead: Overhead

    @classmethod
    def of(cls, settings: MonitorSettings) -> MonitorParts:
        """Make the parts of a monitor with these settings."""
        retries, notices = Retries(), Notices()
        return cls(
            settings=settings,
            memory=Memory(settings),
            data=DataSource(settings, notices.warn_once),
            outlet=Outlet(settings, retries),
            retries=retries,
            notices=notices,
            overhead=Overhead(settings.max_overhead),
        )


class Stage:
    """What the stages of an evaluation share.

    Args:
        parts: The long-lived parts of the monitor.
        trainer: The trainer of either Lightning.
        pl_module: The module that it trains.
    """

    def __init__(self, parts: MonitorParts, trainer: Trainer, pl_module: LightningModule) -> None:
        self.parts, self.trainer, self.pl_module = parts, trainer, pl_module
        self.settings, self.memory, self.notices = parts.settings, parts.memory, parts.notices

    def agreed(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Take a step on all ranks. None of them goes on where it has failed on any.

        What one rank does alone and what the ranks send each other are steps of their own: so an error in the one
        never leaves the others waiting in the other. Ranks that can only run the model together stop together.

        Raises:
            StepFailedError: On all ranks.
        """
        error: Exception | None = None
        is_done = False
        try:
            # What is kept from `validate()` must serve in a later `fit`: no inference tensors.
            with torch.inference_mode(False), torch.no_grad(), together(self.pl_module):
                result = step(*args, **kwargs)
            is_done = True
        except RanksPartedError:  # another rank has failed
            pass
        except Exception as caught:
            error = caught
        if not of_trainer.all_ranks_ok(self.trainer, is_done):
            raise StepFailedError(error) from error
        return result

    def stated(self, error: Exception) -> Exception:
        """Return the error to raise where what the user states is wrong: in the sanity check it ends the run."""
        if not self.trainer.sanity_checking or isinstance(error, Misconfiguration):
            return error
        stated = Misconfiguration(f"CAMMonitor: {error}")
        stated.__cause__ = error
        return stated

    def targets_of(self, probes: ProbeSet) -> Targets:
        """Return what is explained of the probes, as `Method.__call__` takes it."""
        explain, task = self.settings.explain, self.memory.task
        if not isinstance(explain, str):
            return explain
        if task is not None:
            return task.targets(probes, explain)
        return None if explain == "prediction" else probes.labels

    @property
    def whole_forward_fn(self) -> ForwardFn:
        """The model's forward, or that of its only network, in the precision of the trainer."""
        given, network = self.settings.forward_fn, only_network(self.pl_module)
        if given is None and network is not None:
            return of_trainer.forward_in_precision(
                self.trainer, lambda model, images: model.get_submodule(network)(images)
            )
        return of_trainer.forward_in_precision(self.trainer, given)

    @property
    def forward_fn(self) -> ForwardFn:
        """The forward, of which only the entry is returned that is the answer, if a tuple has several that may be."""
        whole, task = self.whole_forward_fn, self.memory.task
        return whole if task is None or task.place is None else of_entry(whole, task.place)

    @property
    def draws_pictures(self) -> bool:
        """Whether this rank draws what is logged."""
        return bool(self.trainer.is_global_zero) and not self.trainer.barebones

    def rows_of_rank(self, count: int) -> Tensor:
        """Return the indices (n,) of those of `count` images that this rank handles."""
        return of_trainer.indices_of_rank(self.trainer, self.pl_module, count)

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks that handle images."""
        return of_trainer.gather(self.trainer, self.pl_module, value)

    def largest(self, scalars: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Return numbers by name, of each the largest that a rank has: only seconds differ. Call it on all ranks.

        Raises:
            StepFailedError: On all ranks.
        """
        of_ranks = self.agreed(of_trainer.gather_from_all, self.trainer, self.agreed(scalars))
        return {name: max(each[name] for each in of_ranks) for name in of_ranks[0]}

    def log_scalars(self, scalars: dict[str, float]) -> None:
        """Log numbers by name, the same on all ranks, so that all callbacks can monitor them."""
        if self.trainer.barebones:
            return
        for name, value in scalars.items():
            self.pl_module.log(
                tags.tag(self.settings.name, name, self.trainer.testing),
                value,
                on_step=False,
                on_epoch=True,
                reduce_fx="max",  # each is logged once: the mean would need the size of a batch
                add_dataloader_idx=False,
                sync_dist=self.trainer.world_size > 1,  # Lightning warns without it
                rank_zero_only=True,  # so that Lightning does not exchange what is the same everywhere, one by one
            )
