"""The model as a method uses it: images in, class scores out, one chunk at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cam_callbacks import layers
from cam_callbacks.explanation import min_max, upsample
from cam_callbacks.methods.compiled import Compiled
from cam_callbacks.targets import (
    ClassScores,
    ForwardFn,
    class_scores,
    ends_in_sigmoid,
    forward,
    may_be_probabilities_of_one_class,
    resolve,
    returns_probabilities,
)

_CPU_BATCH_SIZE = 32
_LARGEST_GPU_BATCH_SIZE = 512

Progress = Callable[[int, int], None]
"""Called as `progress(done, total)` with counts of forward samples; the work may end before `total` is reached."""


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

    Args:
        model: The model.
        images: (N, C, *spatial), copied to the model's device and type.
        forward_fn: As in `Method.__call__`.
        batch_size: Images forwarded at once; None for 32 on a CPU, and as free memory allows on a GPU. It is halved
            whenever memory runs out.
        compiled: Runs the masked images, if given.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        forward_fn: ForwardFn | None = None,
        batch_size: int | None = None,
        compiled: Compiled | None = None,
    ) -> None:
        check_images(images)
        device, dtype = layers.device_and_dtype(model, images)
        self.model = model
        self.forward_fn = forward_fn
        self.dtype = dtype
        self.channels_last = True
        self.returns_probabilities = False
        # A copy, (N, C, *spatial) -> (N, *spatial, C) in memory; `images` is the view of it in the usual order.
        self._stored = images.detach().to(device, dtype).movedim(1, -1).clone(memory_format=torch.contiguous_format)
        self.images = self._stored.movedim(-1, 1)
        self._batch_size = batch_size
        self._compiled = compiled

    @property
    def batch_size(self) -> int:
        """Images forwarded at once, settled when first asked for."""
        if self._batch_size is None:
            self._batch_size = self._fitting_batch_size() if self.images.is_cuda else _CPU_BATCH_SIZE
        return self._batch_size

    def _fitting_batch_size(self) -> int:
        """How many images surely fit: half of the free memory for all that the model puts out for each."""
        free, _ = torch.cuda.mem_get_info(self.images.device)
        cached = torch.cuda.memory_reserved(self.images.device) - torch.cuda.memory_allocated(self.images.device)
        each = layers.bytes_put_out(self.model, self.images, self._try) + 8 * self.images[0].nbytes
        return max(1, min(_LARGEST_GPU_BATCH_SIZE, (free + cached) // 2 // each))

    def run(self, images: Tensor) -> object:
        """What the model returns for images (B, C, *spatial)."""
        return forward(self.model, images if self.channels_last else images.contiguous(), self.forward_fn)

    def _scores_of_masked(self, images: Tensor) -> ClassScores:
        """Class scores of masked images (B, C, *spatial), which may be overwritten."""
        if self._compiled is None:
            return class_scores(self.run(images), self.returns_probabilities)
        size = self._chunk_size(len(images))
        full = images if len(images) == size else images[torch.arange(size, device=images.device) % len(images)]
        output = self._compiled(self.model, full if self.channels_last else full.contiguous(), self.forward_fn)
        logits, probabilities = class_scores(output, self.returns_probabilities)
        return ClassScores(logits[: len(images)], probabilities[: len(images)])

    def _chunk_size(self, left: int) -> int:
        """The batch size; a compiled model has a quarter of it for the rest, so that it knows but two sizes."""
        small = max(1, self.batch_size // 4)
        return self.batch_size if self._compiled is None or left >= self.batch_size else small

    def _in_chunks(self, count: int, act: Callable[[slice], None]) -> None:
        """Call `act` with one slice after the other of `count` images; with smaller ones where memory runs out."""
        start = 0
        while start < count:
            chunk = slice(start, min(start + self._chunk_size(count - start), count))
            try:
                act(chunk)
            except torch.OutOfMemoryError:
                if chunk.stop - start == 1:
                    raise
                self._batch_size = (chunk.stop - start) // 2
                warnings.warn(
                    f"out of memory with {chunk.stop - start} images at once: going on with {self._batch_size}, "
                    f"which changes no result; give batch_size={self._batch_size} to begin with that",
                    stacklevel=5,
                )
            else:
                start = chunk.stop

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
                f"{type(self.model).__name__} cannot be run on images of shape {tuple(images.shape)}, {self.dtype}: "
                f"{error}"
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
        activations: list[Tensor] = []
        outputs: list[object] = []

        def record(chunk: slice) -> None:
            images = self.images[chunk]
            with layers.recorded(module) as recorded:
                output = self._try(images)
            activations.append(layers.spatial_output(recorded, layer, images).float())
            outputs.append(output)

        self._in_chunks(len(self.images), record)
        self.returns_probabilities = all(map(returns_probabilities, outputs)) or (
            all(map(may_be_probabilities_of_one_class, outputs)) and ends_in_sigmoid(lambda: self._try(self.images[:1]))
        )
        if self.returns_probabilities:
            warnings.warn(
                "the model returns probabilities: they are used as they are, their logarithm as logits", stacklevel=3
            )
        parts = [class_scores(output, self.returns_probabilities) for output in outputs]
        scores = ClassScores(*(torch.cat(part) for part in zip(*parts, strict=True)))
        return Look(layer, torch.cat(activations), scores, resolve(targets, scores))

    def masked_scores(
        self, activations: Tensor, image: Tensor, channel: Tensor, targets: Tensor, advance: Callable[[int], None]
    ) -> ClassScores:
        """Scores of the target class, each (pairs,) float32, of images masked by channels.

        Args:
            activations: (N, K, *spatial of the layer).
            image: (pairs,) which image each pair masks.
            channel: (pairs,) by which channel.
            targets: (N,) the class whose score is read.
            advance: Told after each chunk how many pairs it had.
        """
        shape = (len(image),)
        logits, probabilities = (torch.empty(shape, dtype=torch.float32, device=image.device) for _ in range(2))

        def score(chunk: slice) -> None:
            pairs = image[chunk]
            masks = min_max(upsample(activations[pairs, channel[chunk]], self.images.shape[2:]))
            masked = self._stored[pairs].mul_(masks.unsqueeze(-1).to(self.dtype)).movedim(-1, 1)
            scores = self._scores_of_masked(masked)
            target = targets[pairs].unsqueeze(1)
            logits[chunk] = scores.logits.gather(1, target).squeeze(1)
            probabilities[chunk] = scores.probabilities.gather(1, target).squeeze(1)
            advance(len(pairs))

        self._in_chunks(len(image), score)
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
            f"images has shape {tuple(images.shape)}; (N, C, *spatial) is needed, with one to three spatial "
            "dimensions and none of them empty"
        )
    bad = ~torch.isfinite(images).flatten(1).all(dim=1)
    if bad.any():
        raise ValueError(
            f"images contains NaN or infinity, in {int(bad.sum())} of {len(images)} images: "
            f"{bad.nonzero()[:8, 0].tolist()}"
        )
