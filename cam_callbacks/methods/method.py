"""Method: what every way of computing a heatmap has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from cam_callbacks.explanation import Explanation
from cam_callbacks.methods.network import Network, Progress
from cam_callbacks.targets import ForwardFn
from cam_callbacks.undisturbed import undisturbed


class Method(ABC):
    """A way of computing heatmaps. It is a value: it holds settings only, the model comes with the call."""

    name: ClassVar[str]
    """The field's name for it, for people to read."""

    @abstractmethod
    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        target_layer: str | nn.Module | None = None,
        targets: int | Sequence[int] | Tensor | None = None,
        *,
        forward_fn: ForwardFn | None = None,
        progress: Progress | None = None,
    ) -> Explanation:
        """Explain `targets` for `images`; leave model, gradients and random number generators as they were.

        Args:
            model: Any module that maps images to class scores, on any device, in any floating type.
            images: (N, C, *spatial) floating point, as the model is fed, one to three spatial dimensions. They are
                moved to the model's device and type.
            target_layer: Dotted name of a submodule, or the submodule itself; None chooses the last with spatial
                output.
            targets: The class to explain: one for all, one for each image, or None for the predicted class of each.
            forward_fn: Called as `forward_fn(model, images)` instead of `model(images)`, and returns what
                `cam_callbacks.targets.class_scores` understands, e.g. logits (N, classes).
            progress: Told how many forward samples are done.

        Returns:
            The explanation, its tensors on the model's device.

        Raises:
            TypeError: Images that are not floating point; a model that cannot be called with images alone; an output
                that is not understood.
            ValueError: Images that are empty, not finite or of the wrong shape; a layer that is unknown, not called or
                without spatial output; targets out of range.
        """

    def check(
        self,
        model: nn.Module,
        images: Tensor,
        target_layer: str | nn.Module | None = None,
        targets: int | Sequence[int] | Tensor | None = None,
        *,
        forward_fn: ForwardFn | None = None,
    ) -> str:
        """Raise what a call with the same arguments would raise, at the price of one forward pass an image.

        Returns:
            The name of the layer that would be used.
        """
        with undisturbed(model):
            return Network(model, images, forward_fn).look(target_layer, targets).layer

    def release(self) -> None:  # noqa: B027 - most methods keep nothing
        """Let go of what was kept between calls, if anything."""
