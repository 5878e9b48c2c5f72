"""End of fit: what a monitor does once, when training is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lightning_utilities.core.rank_zero import rank_zero_info

from cam_callbacks._warnings import warn_in_training
from cam_callbacks.callback.places import local_folder
from cam_callbacks.callback.stage import Stage, StepFailedError
from cam_callbacks.explain.resampling import bootstrap
from cam_callbacks.explain.sanity import randomization
from cam_callbacks.review.report import write_report
from cam_callbacks.snapshot import Snapshot

T = TypeVar("T")


class EndOfFit(Stage):
    """Compares heatmaps with those of random weights, and writes the report."""

    def compare_with_random_weights(self, snapshot: Snapshot) -> float | None:
        """Return the mean rank correlation of the heatmaps with those of random weights; None where it fails."""
        return self._once("check randomization", lambda: self._randomization(snapshot))

    def write_report(self) -> None:
        """Write the report of all looks beside TensorBoard's event files."""
        self._once("write the report", self._write_report)

    def _once(self, what: str, act: Callable[[], T]) -> T | None:
        """Act on all ranks; an error ends the run only if the user wants that."""
        try:
            return self.agreed(act)
        except StepFailedError as failed:
            own = failed.error
        if self.settings.on_error == "raise":
            raise own or RuntimeError(f"CAMMonitor could not {what} on another rank")
        if own is not None:
            warn_in_training(f"CAMMonitor could not {what}.", own)
        return None

    def _randomization(self, snapshot: Snapshot) -> float:
        similarity = randomization(
            self.pl_module,
            snapshot.probes.images,
            snapshot.explanation,
            self.memory.method,
            self.memory.layer,
            self.targets_of(snapshot.probes),
            self.forward_fn,
        )
        known = similarity[~similarity.isnan()]
        mean, (low, high) = float(known.mean()), bootstrap(known)
        found = (
            f"{mean:.2f} [{low:.2f}, {high:.2f}] over {len(known)} images; near 0 the maps depend on the model, "
            "near 1 they would be the same whatever it has learned"
        )
        unknown = "not defined: no image has a heatmap with contrast both before and after"
        rank_zero_info(
            "CAMMonitor: the rank correlation of the heatmaps with those of a copy with random weights is "
            f"{found if len(known) else unknown}"
        )
        return mean

    def _write_report(self) -> None:
        places = self.parts.outlet.flush(self.trainer.loggers) if self.trainer.is_global_zero else []
        folders = [folder for folder in map(local_folder, places) if folder is not None]
        if folders:
            path = folders[0] / "cam_report.html"
            write_report(folders, path)
            rank_zero_info(f"CAMMonitor: the report of all looks is {path}")
        elif places:
            warn_in_training(
                f"CAMMonitor writes no report: the event files are in {places[0]}, which is not on this machine. Copy "
                "that folder here, and run: cam-callbacks report FOLDER"
            )
