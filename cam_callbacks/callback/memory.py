"""Memory: what a CAMMonitor keeps from one look to the next, and saves in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cam_callbacks.audit.verdict import Verdict
from cam_callbacks.callback.audit_images import AuditImages
from cam_callbacks.callback.settings import MonitorSettings, ProbeSource
from cam_callbacks.callback.task import Task
from cam_callbacks.callback.watched_images import WatchedImages
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.compilation import CompiledModel
from cam_callbacks.explain.method import Method
from cam_callbacks.history import History
from cam_callbacks.snapshot import AuditSnapshot, Snapshot

_MAX_BYTES_IN_CHECKPOINT = 10 * 2**20


class Memory:
    """Images, layer, earlier maps and the last verdict of a monitor, and its latest results.

    Attributes:
        layer: The layer that is explained; None until it is chosen.
        reason_for_layer: Why it was chosen, in words; None if it is known from elsewhere.
        method: The user's method; from the first look on, with what the model's outputs were taken for.
        task: What the model is trained to answer; None until it is recognized, or where a callable is explained.
        unread: The folder or data set of the probes, until they are read.
        probes: The images that are explained.
        audit_images: Draws the images that are audited, and keeps half of them; None without an audit.
        no_heatmaps: Why the model of this run cannot be explained, in words; empty as long as it can.
        history: Maps of earlier looks.
        compiled: A compiled copy of the model, if the method makes one.
        previous_verdict: The verdict of the last look in `fit`, which the next one is judged with.
        snapshot: The latest snapshot.
        audit: The latest audit.
        is_audit_new: Whether it is of the evaluation that was begun last.
    """

    def __init__(self, settings: MonitorSettings) -> None:
        given = settings.probes
        self._settings = settings
        self.layer: str | Sequence[str] | None = settings.target_layer
        self.reason_for_layer: str | None = None
        self.method: Method = settings.method
        self.unread: ProbeSource | None = None if isinstance(given, ProbeSet) else given
        self.probes = WatchedImages(
            settings.num_probes, given if isinstance(given, ProbeSet) else None, are_given=given is not None
        )
        self.audit_images: AuditImages | None = None
        if settings.audit is not None and settings.has_audit:
            self.audit_images = AuditImages(settings.audit.num_images)
        self.task: Task | None = None
        self.no_heatmaps = ""
        self.history = History()
        self.compiled = CompiledModel()
        self.previous_verdict: Verdict | None = None
        self.snapshot: Snapshot | None = None
        self.audit: AuditSnapshot | None = None
        self.is_audit_new = False

    @property
    def are_heatmaps_off(self) -> bool:
        """Whether the model of this run cannot be explained."""
        return bool(self.no_heatmaps)

    def begin_run(self) -> None:
        """Explain again, whatever was not understood in the last run."""
        self.task = None
        self.no_heatmaps = ""

    def begin(self, anew: bool) -> None:
        """Begin to pick probes, if they are not known yet; `anew` for probes of this evaluation alone."""
        self.is_audit_new = False
        self.probes.begin(anew)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives, as far as they fit into 10 MB, so that it loads with `weights_only`."""
        room = _MAX_BYTES_IN_CHECKPOINT
        probes = self.probes.state_dict(room)
        room -= 0 if probes["images"] is None else self.probes.nbytes
        history = self.history.state_dict(room)
        room -= sum(look["layer_maps"].nbytes for look in history["looks"])
        audit = None
        if self.audit_images is not None:
            verdict = None if self.previous_verdict is None else self.previous_verdict.state_dict()
            audit = {"images": self.audit_images.state_dict(room), "verdict": verdict}
        return {"layer": self.layer, "probes": probes, "history": history, "audit": audit}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the layer, the images, the maps and the verdict of an earlier run."""
        if self._settings.target_layer is None:
            self.layer = state["layer"]
        self.probes.load_state_dict(state["probes"])
        self.history.load_state_dict(state["history"])
        if self.audit_images is not None and state["audit"] is not None:
            self.audit_images.load_state_dict(state["audit"]["images"])
            verdict = state["audit"]["verdict"]
            self.previous_verdict = None if verdict is None else Verdict.from_state_dict(verdict)
