"""The arguments of CAMMonitor: checked before anything begins."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cam_callbacks._checks import (
    check_callable,
    check_choice,
    check_fraction,
    check_list,
    check_positive,
    check_type,
    is_list,
)
from cam_callbacks.callback.trainer import Misconfiguration
from cam_callbacks.data.normalization import as_normalization
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.method import Method
from cam_callbacks.figures.settings import Figures

_SWITCHES = ("log_channels", "audit", "check_randomization", "report")


def check_arguments(given: Mapping[str, Any]) -> None:
    """Raise unless all arguments of CAMMonitor, by name, are what its docstring says.

    Raises:
        MisconfigurationException: It names the argument, the value and the remedy.
    """
    try:
        _check_layer_names(given["target_layer"])
        check_type("method", given["method"], Method, "a method such as ScoreCAM()")
        _check_probes(given["probes"])
        for argument in ("num_probes", "every_n_epochs", "num_audit_images"):
            check_positive(argument, given[argument])
        _check_explain(given["explain"])
        check_list("class_names", given["class_names"], object, "a list of names")
        as_normalization(given["normalization"])
        check_callable("batch_fn", given["batch_fn"], "a callable: batch -> (images, targets)", takes=1)
        check_callable("forward_fn", given["forward_fn"], "a callable: (pl_module, images) -> logits", takes=2)
        Figures(given["style"], given["heat_scale"])
        for argument in _SWITCHES:
            check_type(argument, given[argument], bool, "True or False")
        check_list("foreground_values", given["foreground_values"], Integral, "a list of whole numbers")
        check_fraction("alarm_threshold", given["alarm_threshold"], "a number of at least 0 and below 1")
        if not callable(given["on_alarm"]):
            check_choice("on_alarm", given["on_alarm"], ("warn", "stop"), "or a callable")
        check_choice("on_error", given["on_error"], ("warn", "raise"))
        _check_name(given["name"])
    except (TypeError, ValueError) as error:
        raise Misconfiguration(str(error)) from error


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
    if not isinstance(probes, (str, Path, ProbeSet, type(None))) and not _is_dataset(probes):
        raise TypeError(
            f"probes={type(probes).__name__}(...) is not understood; give a folder of photos, a map-style data set, or "
            "a ProbeSet(images, targets)"
        )


def _is_dataset(value: Any) -> bool:
    """Whether a value is a map-style data set."""
    return hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, (tuple, list, Tensor))


def _check_explain(explain: Any) -> None:
    index = isinstance(explain, Integral) and not isinstance(explain, bool) and int(explain) >= 0
    if not index and not callable(explain):
        check_choice("explain", explain, ("true", "predicted", "both"), "or a class index, or a callable")


def _check_name(name: Any) -> None:
    check_type("name", name, str, "a string")
    if not name or "/" in name:
        raise ValueError(f"name={name!r} is the first part of every tag; it must not be empty nor contain '/'")
