"""See, while a PyTorch Lightning model trains, what it looks at and whether it is right for the wrong reasons.

The public names are loaded on first use, so that importing a part of the package that needs no torch imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cam_callbacks.explanation import Explanation
    from cam_callbacks.methods.cam import CAM
    from cam_callbacks.methods.grad_cam import GradCAM
    from cam_callbacks.methods.method import Method
    from cam_callbacks.methods.score_cam import ScoreCAM
    from cam_callbacks.monitor import CAMMonitor
    from cam_callbacks.probes import ProbeSet
    from cam_callbacks.targets import RegressionTarget, SegmentationTarget, Target

__version__ = "0.1.0"
__all__ = [
    "CAM",
    "CAMMonitor",
    "Explanation",
    "GradCAM",
    "Method",
    "ProbeSet",
    "RegressionTarget",
    "ScoreCAM",
    "SegmentationTarget",
    "Target",
]

_HOME = {
    "CAM": "cam_callbacks.methods.cam",
    "CAMMonitor": "cam_callbacks.monitor",
    "Explanation": "cam_callbacks.explanation",
    "GradCAM": "cam_callbacks.methods.grad_cam",
    "Method": "cam_callbacks.methods.method",
    "ProbeSet": "cam_callbacks.probes",
    "RegressionTarget": "cam_callbacks.targets",
    "ScoreCAM": "cam_callbacks.methods.score_cam",
    "SegmentationTarget": "cam_callbacks.targets",
    "Target": "cam_callbacks.targets",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cam_callbacks' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
