"""Each precision of the Trainer: a look is computed in it, and shows what the method shows in it without a trainer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from direct_calls import Call, assert_logged, recording
from lightning_runs import TinyModule, fit, own_warnings
from torch import Tensor

from cam_callbacks import CAM, Audit, CAMMonitor, GradCAM, Method, ScoreCAM
from cam_callbacks.explain.trust import correlation

METHODS = {kind.__name__: kind for kind in (ScoreCAM, GradCAM, CAM)}


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


# Of each precision: the type of the weights, what the forward runs in, and the type of what it returns.
PRECISIONS: dict[str, tuple[torch.dtype, Callable[[], AbstractContextManager[Any]], torch.dtype]] = {
    "32-true": (torch.float32, nullcontext, torch.float32),
    "16-mixed": (torch.float32, autocast, torch.bfloat16),  # on a CPU, Lightning takes bf16 for it
    "bf16-mixed": (torch.float32, autocast, torch.bfloat16),
    "bf16-true": (torch.bfloat16, nullcontext, torch.bfloat16),
    "16-true": (torch.float16, nullcontext, torch.float16),
    "64-true": (torch.float64, nullcontext, torch.float64),
}


class Watched(TinyModule):
    """Notes the types of what it returns in evaluation. SGD, since Adam's epsilon is 0 in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.returned: set[torch.dtype] = set()

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = super().forward(images)
        if not self.training:
            self.returned.add(output.dtype)
        return output

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def assert_explained_in(precision: str, call: Call, weights: dict[str, Tensor], method: Method) -> None:
    """The call gave what a direct one does for a model of these weights in this precision, and nearly in 32 bits."""
    dtype, context, _ = PRECISIONS[precision]
    shown = call.explanation

    def forward(model: Any, images: Tensor) -> Any:
        with context():
            return model(images)

    def direct(dtype: torch.dtype, forward_fn: Any) -> Any:
        model = TinyModule().to(dtype)
        model.load_state_dict(weights)
        return method(model, call.images, "features", call.targets, forward_fn=forward_fn)

    same = direct(dtype, forward)
    torch.testing.assert_close(shown.layer_maps, same.layer_maps, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(shown.logits, same.logits, atol=1e-5, rtol=1e-3)
    assert torch.equal(shown.passes, same.passes)
    full = direct(torch.float32, None)
    torch.testing.assert_close(shown.logits.float(), full.logits, atol=0.02, rtol=0.02)
    alike = correlation(shown.layer_maps, full.layer_maps)
    assert alike[~full.blank].nanmean() > 0.98


LOOKS = [("16-mixed", "GradCAM"), *((each, name) for each in PRECISIONS for name in METHODS if each != "16-mixed")]
"""One method is enough where a CPU computes as it does in bf16-mixed."""


@pytest.mark.parametrize(("precision", "name"), LOOKS)
def test_looks_are_those_of_direct_calls_in_the_same_precision(tmp_path: Path, precision: Any, name: str) -> None:
    method, module = recording(METHODS[name]), Watched()
    audit = Audit(num_images=12) if name == "ScoreCAM" else None
    monitor = CAMMonitor(method=method, num_probes=6, audit=audit, on_error="raise")
    with own_warnings() as said:
        fit(tmp_path, monitor, module, precision=precision)
    assert said == []
    assert module.returned == {PRECISIONS[precision][2]}
    assert len(method.calls) == len(module.validated) == 1
    for call, weights in zip(method.calls, module.validated, strict=True):
        assert_explained_in(precision, call, weights, METHODS[name]())
    assert_logged(tmp_path, [2], method.calls)
    assert monitor.explanation is not None
    assert monitor.explanation.heatmaps.dtype == torch.float32
    assert not monitor.explanation.skipped.any()
    assert (monitor.audit_result is None) == (audit is None)
    if monitor.audit_result is not None:
        gap = monitor.audit_result.measures[monitor.audit_result.gap_name].overall
        assert -1 <= gap.low <= gap.value <= gap.high <= 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_weights_are_those_of_a_run_without_the_monitor(tmp_path: Path, precision: Any) -> None:
    finished = []
    for monitor in (None, CAMMonitor(num_probes=6, audit=Audit(num_images=12), on_error="raise")):
        module = Watched()
        fit(tmp_path / str(monitor is None), monitor, module, precision=precision, val_check_interval=2)
        finished.append(module.state_dict())
    without, with_it = finished
    assert all(torch.equal(without[key], with_it[key]) for key in without)
    assert all(torch.isfinite(value).all() for value in with_it.values())
