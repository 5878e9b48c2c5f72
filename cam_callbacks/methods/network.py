"""The model as a method uses it: images in, class scores out, one chunk at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cam_callbacks import layers
from cam_callbacks.explanation import min_max, upsample
from cam_callbacks.targets import ClassScores, ForwardFn, class_scores, forward, resolve, returns_probabilities

Progress = Callable[[int, int], None]
"""Called as `progress(done, total)` with counts of forward samples."""


@dataclass(frozen=True, eq=False)
class Look:
    """What one pass over the unmasked images gives.

    Attributes:
        layer: Dotted name of the target layer.
        activations: (N, K, *spatial of the layer) float32.
        scores: Of the N images.
        targets: (N,) int64, the classes to explain.
    """

    layer: str
    activations: Tensor
    scores: ClassScores
    targets: Tensor


class Network:
    """A model and the images to explain. Lives for one call, inside `undisturbed`.

    Images are held with the channels last in memory, which convolutions on a CPU and on tensor cores run faster on. A
    model that cannot read such input (it calls `.view` on an activation) is given contiguous images instead.
    """

    def __init__(self, model: nn.Module, images: Tensor, forward_fn: ForwardFn | None, batch_size: int) -> None:
        check_images(images)
        device, dtype = layers.device_and_dtype(model, images)
        self.model = model
        self.forward_fn = forward_fn
        self.batch_size = batch_size
        self.dtype = dtype
        self.channels_last = True
        self.returns_probabilities = False
        # A copy, (N, C, *spatial) -> (N, *spatial, C) in memory; `images` is the view of it in the usual order.
        self._stored = images.detach().to(device, dtype).movedim(1, -1).clone(memory_format=torch.contiguous_format)
        self.images = self._stored.movedim(-1, 1)

    def run(self, images: Tensor) -> object:
        """What the model returns for images (B, C, *spatial)."""
        return forward(self.model, images if self.channels_last else images.contiguous(), self.forward_fn)

    def _try(self, images: Tensor) -> object:
        """`run` on a copy of the images, which settles the memory layout, with an error that names the images."""
        try:
            return self.run(images.clone())
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self.channels_last and "view size is not compatible" in str(error):
                self.channels_last = False
                return self._try(images)
            raise ValueError(
                f"{type(self.model).__name__} cannot be run on images of shape {tuple(images.shape)}, "
                f"{self.dtype}: {error}"
            ) from error

    def look(self, target_layer: str | nn.Module | None, targets: int | Sequence[int] | Tensor | None) -> Look:
        """Pass over the unmasked images once; the layer is chosen where none is named, the predicted class likewise.

        Raises:
            TypeError: A model that cannot be called with images alone, or an output that is not understood.
            ValueError: Images that do not fit the model, a layer that is unknown, not called or without spatial output,
                targets out of range.
        """
        if target_layer is None:
            layer = layers.choose(self.model, self.images, self._try)
        else:
            layer = layers.name_of(self.model, target_layer)
        module = layers.find(self.model, layer)
        activations, outputs = [], []
        for images in torch.split(self.images, self.batch_size):
            with layers.recorded(module) as recorded:
                outputs.append(self._try(images))
            activations.append(layers.spatial_output(recorded, layer, images).float())
        if all(returns_probabilities(output) for output in outputs):
            self.returns_probabilities = True
            warnings.warn(
                "the model returns probabilities (no entry is negative, rows sum to 1): they are used as they "
                "are, their "
                "logarithm as logits",
                stacklevel=3,
            )
        parts = [class_scores(output, self.returns_probabilities) for output in outputs]
        scores = ClassScores(*(torch.cat(part) for part in zip(*parts, strict=True)))
        return Look(layer, torch.cat(activations), scores, resolve(targets, scores))

    def masked_scores(
        self, activations: Tensor, image: Tensor, channel: Tensor, targets: Tensor, progress: Progress | None
    ) -> ClassScores:
        """Scores of the target class, each (pairs,), of images masked by channels.

        Args:
            activations: (N, K, *spatial of the layer).
            image: (pairs,) which image each pair masks.
            channel: (pairs,) by which channel.
            targets: (N,) the class whose score is read.
            progress: Told after each chunk.
        """
        logits, probabilities = (torch.empty(len(image), device=self.images.device) for _ in range(2))
        for start in range(0, len(image), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            masks = min_max(upsample(activations[image[chunk], channel[chunk]], self.images.shape[2:]))
            masked = self._stored[image[chunk]].mul_(masks.unsqueeze(-1).to(self.dtype)).movedim(-1, 1)
            scores = class_scores(self.run(masked), self.returns_probabilities)
            target = targets[image[chunk]].unsqueeze(1)
            logits[chunk] = scores.logits.gather(1, target).squeeze(1)
            probabilities[chunk] = scores.probabilities.gather(1, target).squeeze(1)
            if progress is not None:
                progress(min(chunk.stop, len(image)), len(image))
        return ClassScores(logits, probabilities)

    def empty_probabilities(self) -> Tensor:
        """(classes,) probabilities of the image that is 0 everywhere."""
        output = self.run(torch.zeros_like(self.images[:1]))
        return class_scores(output, self.returns_probabilities).probabilities[0]


def check_images(images: Tensor) -> None:
    """Raise the error that names what is wrong with a batch of images, if anything is."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a floating point tensor, as the model is fed (normalised); got {got}")
    if not 3 <= images.ndim <= 5 or 0 in images.shape:
        raise ValueError(
            f"images has shape {tuple(images.shape)}; (N, C, *spatial) with one to three spatial dimensions, "
            "none of them "
            "empty, is needed"
        )
    bad = ~torch.isfinite(images).flatten(1).all(dim=1)
    if bad.any():
        raise ValueError(
            f"images contains NaN or infinity, in {int(bad.sum())} of {len(images)} images: "
            f"{bad.nonzero()[:8, 0].tolist()}"
        )
