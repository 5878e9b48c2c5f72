"""See, while a PyTorch Lightning model trains, what it looks at and whether it is right for the wrong reasons.

The public names are loaded on first use, so that importing a part of the package that needs no torch imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cam_callbacks._version import __version__ as __version__
    from cam_callbacks.audit.judge import judge
    from cam_callbacks.audit.measuring import audit_model
    from cam_callbacks.audit.registry import Intervention
    from cam_callbacks.audit.result import AuditResult
    from cam_callbacks.audit.settings import Audit
    from cam_callbacks.audit.verdict import Verdict
    from cam_callbacks.callback.monitor import CAMMonitor
    from cam_callbacks.data.probes import ProbeSet
    from cam_callbacks.explain.cam import CAM
    from cam_callbacks.explain.explanation import Explanation
    from cam_callbacks.explain.grad_cam import GradCAM
    from cam_callbacks.explain.hires_cam import HiResCAM
    from cam_callbacks.explain.layer_cam import LayerCAM
    from cam_callbacks.explain.le_grad import LeGrad
    from cam_callbacks.explain.method import Method
    from cam_callbacks.explain.recipro_cam import ReciproCAM
    from cam_callbacks.explain.score_cam import ScoreCAM
    from cam_callbacks.explain.targets import (
        ContrastTarget,
        LargestSegment,
        RegressionTarget,
        SegmentationTarget,
        Target,
    )
    from cam_callbacks.figures.drawing import overlay
    from cam_callbacks.figures.settings import Figures

__all__ = [
    "CAM",
    "Audit",
    "AuditResult",
    "CAMMonitor",
    "ContrastTarget",
    "Explanation",
    "Figures",
    "GradCAM",
    "HiResCAM",
    "Intervention",
    "LargestSegment",
    "LayerCAM",
    "LeGrad",
    "Method",
    "ProbeSet",
    "ReciproCAM",
    "RegressionTarget",
    "ScoreCAM",
    "SegmentationTarget",
    "Target",
    "Verdict",
    "audit_model",
    "judge",
    "overlay",
]

_HOME = {
    "Audit": "cam_callbacks.audit.settings",
    "AuditResult": "cam_callbacks.audit.result",
    "CAM": "cam_callbacks.explain.cam",
    "CAMMonitor": "cam_callbacks.callback.monitor",
    "ContrastTarget": "cam_callbacks.explain.targets",
    "Explanation": "cam_callbacks.explain.explanation",
    "Figures": "cam_callbacks.figures.settings",
    "GradCAM": "cam_callbacks.explain.grad_cam",
    "HiResCAM": "cam_callbacks.explain.hires_cam",
    "Intervention": "cam_callbacks.audit.registry",
    "LargestSegment": "cam_callbacks.explain.targets",
    "LayerCAM": "cam_callbacks.explain.layer_cam",
    "LeGrad": "cam_callbacks.explain.le_grad",
    "Method": "cam_callbacks.explain.method",
    "ProbeSet": "cam_callbacks.data.probes",
    "ReciproCAM": "cam_callbacks.explain.recipro_cam",
    "RegressionTarget": "cam_callbacks.explain.targets",
    "ScoreCAM": "cam_callbacks.explain.score_cam",
    "SegmentationTarget": "cam_callbacks.explain.targets",
    "Target": "cam_callbacks.explain.targets",
    "Verdict": "cam_callbacks.audit.verdict",
    "__version__": "cam_callbacks._version",
    "audit_model": "cam_callbacks.audit.measuring",
    "judge": "cam_callbacks.audit.judge",
    "overlay": "cam_callbacks.figures.drawing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cam_callbacks' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(_HOME)
