"""Images that a step changes in place: what the model was fed, though the batch holds something else afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cam_callbacks.callback.stage import MonitorParts, Stage
from cam_callbacks.data.batches import Samples
from cam_callbacks.data.given import GivenBatch
from cam_callbacks.explain.isolation import isolated
from cam_callbacks.explain.runner import Runner
from cam_callbacks.explain.sharding import device_mesh

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class InPlaceChanges(Stage):
    """Notices whether a step has changed the images of its batch, and who has changed them."""

    def __init__(self, parts: MonitorParts, trainer: Trainer, pl_module: LightningModule) -> None:
        super().__init__(parts, trainer, pl_module)
        self._given: GivenBatch | None = None  # the batch whose step runs
        self._forward_changes: bool | None = None  # whether the forward alone changes its images; None: not known yet

    def begin(self, batch: Any) -> None:
        """Keep the images of a batch as its step is given them."""
        self._given = None
        try:
            with torch.inference_mode(False), torch.no_grad():
                self._given = GivenBatch(batch)
        except Exception as error:  # such as a container of its own kind: then nobody can tell
            self.notices.inform_once(
                f"CAMMonitor cannot tell whether a step changes the images of its batch in place: {error}"
            )

    def as_the_model_saw_them(self, after: Samples) -> Samples:
        """Return the samples of the batch that was begun last, with the images that the model was fed.

        They differ from those `after` the step only if it has changed them in place. Where the model's forward makes
        that very change, they are the images of before; it will change each copy that it is shown. Else they are taken
        as the step has left them, which is said.
        """
        given, self._given = self._given, None
        if given is None or not given.was_changed:
            return after
        try:
            before = self.parts.data.samples(given.batch, self.trainer).images
        except (TypeError, ValueError):  # `batch_fn` does not read the copy
            before = None
        if before is not None and torch.equal(before, after.images):
            return after
        if self._forward_changes is None:
            self._forward_changes = before is not None and self._makes_of(before, after.images)
        if before is not None and self._forward_changes:
            return replace(after, images=before)
        self.notices.warn_once(
            "CAMMonitor: the step changes the images of its batch in place. They are explained as it leaves them; that "
            "is right if it changes them before it runs the model. If not, let it change a copy"
        )
        return after

    def _makes_of(self, before: Tensor, after: Tensor) -> bool:
        """Whether the model's forward changes these images (N, C, *spatial) to those, in place."""
        if device_mesh(self.pl_module) is not None or before.shape != after.shape:
            return False  # a sharded model is run by all ranks or by none, and they have other batches
        try:
            with isolated(self.pl_module):
                runner = Runner(self.pl_module, before, self.forward_fn)
                runner.try_run(runner.images)
                images = runner.laid_out(runner.images.clone())
                runner.run(images)
        except (RuntimeError, TypeError, ValueError):
            return False
        return bool(torch.isclose(images.double(), after.to(images).double(), rtol=1e-3, atol=1e-5).all())
