"""The audit in a training: which images, when, what of it is logged. Knows the trainer's data, not its hook methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cam_callbacks.audit.foreground import with_estimated_masks
from cam_callbacks.audit.measuring import measures_of
from cam_callbacks.audit.observations import Observations
from cam_callbacks.audit.result import Verdict
from cam_callbacks.audit.statistics import measure
from cam_callbacks.audit.verdict import judge
from cam_callbacks.data.batches import Samples
from cam_callbacks.data.picking import ImagePicker
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain import faithfulness
from cam_callbacks.explain.explanation import Explanation
from cam_callbacks.explain.method import Method
from cam_callbacks.explain.model_outputs import ForwardFn
from cam_callbacks.explain.network import TargetLayer
from cam_callbacks.snapshot import AuditShare, AuditSnapshot

_PASSES_OF_TRUST = 2  # an image


class Auditor:
    """Picks a fixed set of labeled validation images, audits the model on it at each look, remembers suspicions.

    Args:
        num_images: How many images it picks, balanced over the classes.
        threshold: As in `judge`.
    """

    def __init__(self, num_images: int, threshold: float = 0.05) -> None:
        self.num_images = num_images
        self.threshold = threshold
        self.images: ProbeSet | None = None
        self.previous: Verdict | None = None  # at the look before, of this fit or of the one that it resumes
        self.is_disabled = False
        """Whether the batches are not understood, so that it picks no images."""
        self._fingerprint: str | None = None  # of the images that the suspicions are from
        self._collector: ImagePicker | None = None

    @property
    def collects(self) -> bool:
        """Whether it is picking images now."""
        return self._collector is not None

    def begin(self, testing: bool) -> None:
        """Begin to pick images, if there are none yet; test images are picked anew for each test."""
        wanted = not self.is_disabled and (self.images is None or testing)
        self._collector = ImagePicker(self.num_images) if wanted else None

    def give_up(self) -> None:
        """Pick no images any more."""
        self.is_disabled, self._collector = True, None

    def offer(self, samples: Samples) -> None:
        """Look at the samples of a batch."""
        if self._collector is not None and samples.labels is not None:
            self._collector.offer(samples)

    def pick(self, describe: Callable[[ProbeSet], ProbeSet]) -> ProbeSet | None:
        """The images to audit on; None where there are no labels, or one class only.

        Args:
            describe: Adds class names and normalization.
        """
        if self._collector is None:
            return self.images
        if self._collector.is_empty:
            return None
        picked = describe(ProbeSet.of(self._collector.picked()))
        if picked.labels is None or len(set(picked.labels.tolist())) < 2:
            return None
        return with_estimated_masks(picked)

    def keep(self, images: ProbeSet | None) -> bool:
        """Keep the images for the looks to come; False if they are others than before, whose suspicions are dropped."""
        if images is None:
            return True
        self.images = images
        fingerprint = images.fingerprint
        same = self._fingerprint in (None, fingerprint)
        if not same:
            self.previous = None
        self._fingerprint = fingerprint
        return same

    def observe(
        self,
        model: nn.Module,
        images: ProbeSet,
        layer: TargetLayer,
        forward_fn: ForwardFn,
        method: Method,
        probes: Tensor,
        explanation: Explanation,
        share: Callable[[int], Tensor],
    ) -> AuditShare:
        """Run the model on this process' share of the images.

        Args:
            model: The model.
            images: To audit on, all of them.
            layer: Of the heatmaps.
            forward_fn: As in `Method.__call__`.
            method: Of the heatmaps; its `multi_label` and `batch_size` hold here too.
            probes: (N, C, *spatial), the images whose heatmaps are shown.
            explanation: Of these.
            share: From a count of images to the numbers of those that this process sees to.
        """
        rows, probe_rows = share(len(images)), share(len(probes))
        audited, trust = None, {}
        if len(rows):
            audited = Observations(images).observe(
                model, rows, layer, forward_fn, method.multi_label, method.batch_size
            )
        if len(probe_rows):
            part = explanation[probe_rows]
            trust = faithfulness.trust(
                model, probes[probe_rows], part, forward_fn, method.multi_label, method.batch_size
            )
        return AuditShare(audited, probe_rows, trust)

    def conclude(
        self, images: ProbeSet, parts: Sequence[AuditShare], explanation: Explanation, remember: bool
    ) -> AuditSnapshot:
        """Judge, from what all processes have seen.

        Args:
            images: To audit on, all of them.
            parts: Of the processes.
            explanation: Of the probes.
            remember: Whether what is suspect now counts at the next look.
        """
        result = measures_of(Observations(images), [part.audited for part in parts if part.audited is not None])
        # Outside of a fit the weights are those of the last look: finding the same again would tell nothing.
        verdict = judge(result, self.previous if remember else None, self.threshold)
        if remember:
            self.previous = verdict
        assert explanation.targets is not None
        order = torch.cat([part.probe_rows for part in parts]).argsort()
        shared = [part.trust for part in parts if part.trust]
        trust = {
            name: measure(torch.cat([part[name] for part in shared])[order], explanation.targets) for name in shared[0]
        }
        return AuditSnapshot(images, result, verdict, trust, result.passes + _PASSES_OF_TRUST * len(order))

    def state_dict(self, room: int) -> dict[str, Any]:
        """Tensors and primitives only; with the images if they go into `room` bytes, else they are picked again."""
        fits = self.images is not None and self.images.nbytes <= room
        return {
            "verdict": None if self.previous is None else self.previous.state_dict(),
            "fingerprint": self._fingerprint,
            "num_images": self.num_images,
            "images": self.images.state_dict() if self.images is not None and fits else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the suspicions of an earlier run, and with its images if it was to pick as many."""
        self.previous = None if state["verdict"] is None else Verdict.from_state_dict(state["verdict"])
        self._fingerprint = state["fingerprint"]
        if state["images"] is not None and state["num_images"] == self.num_images:
            self.images = ProbeSet.from_state_dict(state["images"])
