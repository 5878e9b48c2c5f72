"""Settings of a CAMMonitor: its arguments, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset

from cam_callbacks._checks import (
    check_bool,
    check_callable,
    check_choice,
    check_positive,
    check_share,
    check_type,
    is_list,
)
from cam_callbacks.audit.settings import Audit
from cam_callbacks.callback.trainer import Misconfiguration
from cam_callbacks.data.batches import BatchFn
from cam_callbacks.data.class_names import ClassNames
from cam_callbacks.data.normalization import Normalization, as_normalization
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.forwarding import ForwardFn, takes_rows
from cam_callbacks.explain.method import Method
from cam_callbacks.explain.model_outputs import Outputs
from cam_callbacks.explain.recipro_cam import ReciproCAM
from cam_callbacks.explain.targets import TargetFn
from cam_callbacks.figures.settings import Figures
from cam_callbacks.review.json_values import in_words

DEFAULT_METHOD = ReciproCAM("evidence")

_WITHOUT_EFFECT_ON_MAPS = ("upsampling", "batch_size", "compile")  # on those of the layer, that is

ProbeSource = str | Path | Dataset[Any]
"""A folder of photos, or a map-style data set."""


@dataclass(frozen=True, eq=False)
class MonitorSettings:
    """The arguments of `CAMMonitor`; its docstring explains each.

    Raises:
        MisconfigurationException: An argument out of range; the message names it, its value and the remedy.
    """

    target_layer: str | Sequence[str] | None
    method: Method
    outputs: Outputs
    probes: ProbeSource | ProbeSet | None
    num_probes: int
    explain: Literal["label", "prediction", "both"] | int | TargetFn
    every_n_epochs: int
    max_overhead: float | None
    audit: Audit | None
    figures: Figures
    class_names: ClassNames
    normalization: Normalization | None
    batch_fn: BatchFn | None
    forward_fn: ForwardFn | None
    report: bool
    on_error: Literal["warn", "raise"]
    name: str

    @classmethod
    def of(cls, **arguments: Any) -> MonitorSettings:
        """Check arguments, and bring what may be given in several forms into one."""
        target_layer, explain, audit = (arguments[name] for name in ("target_layer", "explain", "audit"))
        method, outputs = arguments["method"], arguments["outputs"]
        try:
            check_choice("outputs", outputs, get_args(Outputs))
            if isinstance(method, Method) and outputs != "auto":
                method = replace(method, outputs=outputs)
            return cls(
                **arguments
                | {
                    "method": method,
                    "target_layer": tuple(target_layer) if is_list(target_layer) and target_layer else target_layer,
                    "explain": int(explain) if _is_index(explain) else explain,
                    "audit": None if audit is False else audit,
                    "class_names": ClassNames(arguments["class_names"]),
                    "normalization": as_normalization(arguments["normalization"]),
                }
            )
        except (TypeError, ValueError) as error:
            raise Misconfiguration(str(error)) from error

    @property
    def has_audit(self) -> bool:
        """Whether there is an audit: one is asked for, and classes are explained."""
        return self.audit is not None and not callable(self.explain)

    def way_of_explaining(self, layer: str | Sequence[str]) -> str:
        """Say all that decides how maps are made: only maps made in one way can be compared."""
        method, explain = self.method, "label" if self.explain == "both" else self.explain
        how = {field.name: getattr(method, field.name) for field in fields(method) if field.compare}
        chosen = [f"{name}={in_words(value)}" for name, value in how.items() if name not in _WITHOUT_EFFECT_ON_MAPS]
        return f"{type(method).__qualname__}({', '.join(chosen)}) of {layer}, {in_words(explain)}"

    def __post_init__(self) -> None:
        _check_layer_names(self.target_layer)
        check_type("method", self.method, Method, "a method such as GradCAM()")
        _check_probes(self.probes)
        check_positive("num_probes", self.num_probes)
        check_positive("every_n_epochs", self.every_n_epochs)
        check_share("max_overhead", self.max_overhead, "a share of the training's time, such as 0.05, or None")
        _check_explain(self.explain)
        check_type("audit", self.audit, (Audit, type(None)), "Audit(...), or None for no audit")
        check_type("figures", self.figures, Figures, "Figures(...)")
        check_callable("batch_fn", self.batch_fn, "a callable: batch -> (images, labels)", takes=1)
        check_callable(
            "forward_fn",
            self.forward_fn,
            "a callable: (pl_module, images) -> logits",
            3 if takes_rows(self.forward_fn) else 2,
        )
        check_bool("report", self.report)
        check_choice("on_error", self.on_error, ("warn", "raise"))
        _check_name(self.name)


def _check_layer_names(target_layer: Any) -> None:
    if isinstance(target_layer, nn.Module):
        raise TypeError(
            f"target_layer={type(target_layer).__name__}(...) must be the dotted name of a layer in the "
            "LightningModule, so that it is found again after a resume"
        )
    several = is_list(target_layer) and target_layer and all(isinstance(name, str) for name in target_layer)
    if not several:
        check_type(
            "target_layer", target_layer, (str, type(None)), "the dotted name of a layer, a list of them, or None"
        )


def _check_probes(probes: Any) -> None:
    if isinstance(probes, str) and not probes:
        raise ValueError("probes='' names no folder; leave probes out, and they are picked from the batches")
    if not isinstance(probes, (str, Path, ProbeSet, type(None))) and not _is_dataset(probes):
        raise TypeError(
            f"probes={type(probes).__name__}(...) is not understood; give a folder of photos, a map-style data set, or "
            "a ProbeSet(images, labels)"
        )


def _is_dataset(value: Any) -> bool:
    """Return whether a value is a map-style data set."""
    is_indexed = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    return is_indexed and not isinstance(value, (tuple, list, Mapping, Tensor, np.ndarray))


def _is_index(explain: Any) -> bool:
    return isinstance(explain, Integral) and not isinstance(explain, bool) and int(explain) >= 0


def _check_explain(explain: Any) -> None:
    if isinstance(explain, type):
        raise TypeError(f"explain={explain.__name__} is a class; give {explain.__name__}(...), with brackets")
    if not _is_index(explain) and not callable(explain):
        check_choice("explain", explain, ("label", "prediction", "both"), "or a class index, or a callable")


def _check_name(name: Any) -> None:
    check_type("name", name, str, "a string")
    if not name.strip() or "/" in name or name in (".", ".."):
        raise ValueError(
            f"name={name!r} is the first part of every tag, and the name of a folder; it must not be empty or contain "
            "'/'"
        )
