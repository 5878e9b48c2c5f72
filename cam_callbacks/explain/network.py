"""The model as a method uses it: images in, class scores out, one chunk at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cam_callbacks._checks import check_positive, is_list
from cam_callbacks.explain import layers, progress
from cam_callbacks.explain.batch_norm_folding import Pair, foldable, folded
from cam_callbacks.explain.compilation import CompiledModel
from cam_callbacks.explain.explanation import min_max, upsample
from cam_callbacks.explain.layouts import ReshapeTransform, to_maps
from cam_callbacks.explain.model_outputs import (
    ClassScores,
    ForwardFn,
    class_scores,
    ends_in_sigmoid,
    forward,
    logits_of,
    looks_like_probabilities,
    returns_probabilities,
)
from cam_callbacks.explain.sharding import Processes
from cam_callbacks.explain.targets import (
    CallableScoreReader,
    ClassScoreReader,
    Score,
    ScoreReader,
    TargetFn,
    TargetRequest,
    Targets,
)

_CPU_BATCH_SIZE = 32
_LARGEST_GPU_BATCH_SIZE = 512
_ROUNDING = 1e-4

TargetLayer: TypeAlias = str | nn.Module | Sequence[str | nn.Module] | None
"""A layer by its dotted name, or the module itself; several of them; None for the one that is chosen."""


@dataclass(frozen=True)
class Options:
    """How a model is run and read: the settings of a `Method` that matter to its `Network`.

    Attributes:
        batch_size: Images forwarded at once; None for 32 on a CPU, and as free memory allows on a GPU. It is halved
            whenever memory runs out.
        multi_label: As in `Method`.
        reshape_transform: As in `Method`.
        compile: Run masked images through a compiled copy of the model.
    """

    batch_size: int | None = None
    multi_label: bool = False
    reshape_transform: ReshapeTransform | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        check_positive("batch_size", self.batch_size, or_none=True)


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """What one pass over the unmasked images gives.

    Attributes:
        layers: Dotted names of the L target layers.
        activations: Of each layer, (N, K, *spatial of the layer) float32.
        weights: Of each layer, (N, T, K) float32, what its channels weigh for each target, where that needs no more
            passes: with `gradients`, the mean over all positions of the gradient of the target's score.
        readout: Reads the explained scores.
        target_scores: (N, T) float32, the explained scores.
        scores: All class scores of the N images; None where callables are asked.
        several: Whether the user asked for T targets for each image.
    """

    layers: tuple[str, ...]
    activations: list[Tensor]
    weights: list[Tensor]
    readout: ScoreReader
    target_scores: Tensor
    scores: ClassScores | None
    several: bool

    @property
    def finite(self) -> Tensor:
        """(N,) bool, whether all activations and scores of an image are finite."""
        parts = [*self.activations, self.target_scores]
        if self.scores is not None:
            parts.append(self.scores.probabilities)
        return torch.stack([torch.isfinite(part).flatten(1).all(dim=1) for part in parts]).all(dim=0)


class Network:
    """A model and the images to explain. Lives for one call, inside `isolated`.

    Images are held with the channels last in memory, which convolutions on a CPU and on tensor cores run faster on. A
    model that cannot read such input (it calls `.view` on an activation) is given contiguous images instead.

    A model whose weights are spread over several processes (`fully_shard`) is run by all of them on the same images;
    they go by what the first one reads. Where memory runs out on one of them alone, no chunk can be halved.

    Args:
        model: The model.
        images: (N, C, *spatial), copied to the model's device and type.
        forward_fn: As in `Method.__call__`.
        options: How it is run and read.
        compiled: The caller's compiled copy of the model, used if `options.compile`; None makes one for this call.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        forward_fn: ForwardFn | None = None,
        options: Options = Options(),
        compiled: CompiledModel | None = None,
    ) -> None:
        check_images(images)
        device, dtype = layers.device_and_dtype(model, images)
        self.model = model
        self.forward_fn = forward_fn
        self.dtype = dtype
        self.channels_last = True
        self._returns_probabilities: bool | None = None
        self._multi_label = options.multi_label
        self._reshape_transform = options.reshape_transform
        # A copy, (N, C, *spatial) -> (N, *spatial, C) in memory; `images` is the view of it in the usual order.
        self._stored = images.detach().to(device, dtype).movedim(1, -1).clone(memory_format=torch.contiguous_format)
        self.images = self._stored.movedim(-1, 1)
        self._batch_size = options.batch_size
        self._compiled = (compiled or CompiledModel()) if options.compile else None
        self._processes = Processes(model)

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
        each = layers.activation_bytes(self.model, self.images, self._try) + 8 * self.images[0].nbytes
        fitting = max(1, min(_LARGEST_GPU_BATCH_SIZE, (free + cached) // 2 // each))
        return self._processes.smallest(fitting, self.images.device)

    def run(self, images: Tensor) -> object:
        """What the model returns for images (B, C, *spatial)."""
        return forward(self.model, images if self.channels_last else images.contiguous(), self.forward_fn)

    def class_scores(self, output: object) -> ClassScores:
        """The class scores in what the model returned."""
        return class_scores(output, bool(self._returns_probabilities), self._multi_label)

    def _read_masked(self, images: Tensor, image: Tensor, readout: ScoreReader) -> Tensor:
        """(B, T) explained scores of masked images (B, C, *spatial), which may be overwritten."""
        if self._compiled is None:
            return readout.read(self.run(images), image)
        size = self._chunk_size(len(images))
        if len(images) < size:
            again = torch.arange(size, device=images.device) % len(images)
            images, image = images[again], image[again]
        full = images if self.channels_last else images.contiguous()
        return readout.read(self._compiled(self.model, full, self.forward_fn), image)

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
                if chunk.stop - start == 1 or self._processes.are_several:
                    raise
                self._batch_size = (chunk.stop - start) // 2
                warnings.warn(
                    f"out of memory with {chunk.stop - start} images at once: going on with {self._batch_size}, "
                    f"which changes no result; the method's batch_size={self._batch_size} begins with that",
                    stacklevel=2,
                )
            except RuntimeError as error:
                if not self._gives_up_channels_last(error):
                    raise
            else:
                start = chunk.stop

    def _gives_up_channels_last(self, error: RuntimeError) -> bool:
        """Whether the model, or a callable, fails on channels-last input; contiguous images are used from then on."""
        gives_up = self.channels_last and "view size is not compatible" in str(error)
        self.channels_last = self.channels_last and not gives_up
        return gives_up

    def _try(self, images: Tensor) -> object:
        """`run` on a copy of the images, which settles the memory layout, with an error that names the images."""
        try:
            return self.run(images.clone())
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self._gives_up_channels_last(error):
                return self._try(images)
            if "Inference tensors cannot be saved" in str(error):
                raise ValueError(
                    f"{type(self.model).__name__} keeps a tensor that it made in inference mode, through which no "
                    "gradient can be taken; ScoreCAM needs none, and Trainer(inference_mode=False) makes none such"
                ) from error
            raise ValueError(
                f"{type(self.model).__name__} cannot be run on images of shape {tuple(images.shape)}, {self.dtype}: "
                f"{error}"
            ) from error

    def scores(self) -> ClassScores:
        """Class scores of the images."""
        parts: list[ClassScores] = []

        def read(chunk: slice) -> None:
            output = self._try(self.images[chunk])
            self._settle_probabilities(output)
            parts.append(ClassScores(*map(self._processes.agreed, self.class_scores(output))))

        self._in_chunks(len(self.images), read)
        return ClassScores(*map(torch.cat, zip(*parts, strict=True)))

    def choose_layer(self, class_map: bool = False) -> str:
        """The layer that is explained where none is named."""
        return layers.choose(self.model, self.images, self._try, class_map)

    def forward_pass(
        self, target_layer: TargetLayer, targets: Targets, score: Score = "probability", gradients: bool = False
    ) -> ForwardPass:
        """Pass over the unmasked images once; the layer is chosen where none is named, the predicted class likewise.

        Args:
            target_layer: As in `Method.__call__`.
            targets: As in `Method.__call__`.
            score: Which score of a class is explained.
            gradients: Whether its gradients are wanted.

        Raises:
            TypeError: A model that cannot be called with images alone, an output or targets that are not understood.
            ValueError: Images that do not fit the model, a layer that is unknown, not called or without positions,
                targets out of range, a callable that does not return one number for each image, a score without
                gradient.
        """
        wanted = TargetRequest(targets, len(self.images))
        names = self._layer_names(target_layer)
        modules = [layers.find(self.model, name) for name in names]
        parts: list[_Part] = []

        def record(chunk: slice) -> None:
            parts.append(self._pass_over(chunk, names, modules, wanted, score, gradients))

        self._in_chunks(len(self.images), record)
        if self._returns_probabilities:
            warnings.warn(
                "the model returns probabilities: they are used as they are, their logarithm as logits", stacklevel=4
            )
        scores = [part.scores for part in parts if part.scores is not None]
        return ForwardPass(
            layers=names,
            activations=[torch.cat(maps) for maps in zip(*(part.activations for part in parts), strict=True)],
            weights=[torch.cat(weights) for weights in zip(*(part.weights for part in parts), strict=True)],
            readout=self._readout([part.settled for part in parts], wanted, score),
            target_scores=torch.cat([part.target_scores for part in parts]),
            scores=ClassScores(*map(torch.cat, zip(*scores, strict=True))) if scores else None,
            several=wanted.several,
        )

    def _layer_names(self, target_layer: TargetLayer) -> tuple[str, ...]:
        if target_layer is None:
            return (self.choose_layer(),)
        if not is_list(target_layer):
            return (layers.name_of(self.model, target_layer),)
        if not target_layer:
            raise ValueError(f"target_layer={target_layer!r} names no layer; leave it out, and one is chosen")
        return tuple(layers.name_of(self.model, layer) for layer in target_layer)

    def _pass_over(
        self,
        chunk: slice,
        names: Sequence[str],
        modules: Sequence[nn.Module],
        wanted: TargetRequest,
        score: Score,
        gradients: bool,
    ) -> _Part:
        images = self.images[chunk]
        channels_last = self.channels_last
        with layers.recorded(modules, gradients) as recorded, torch.set_grad_enabled(gradients):
            output = self._try(images)
            if self.channels_last != channels_last:  # what was recorded is of two runs, the first of which failed
                return self._pass_over(chunk, names, modules, wanted, score, gradients)
            found = [
                layers.spatial_output(outputs, name, images, self._reshape_transform)
                for outputs, name in zip(recorded, names, strict=True)
            ]
            scores = None
            if wanted.score is None:
                self._settle_probabilities(output)
                scores = ClassScores(*(self._processes.agreed(each.detach()) for each in self.class_scores(output)))
            settled = wanted.resolve(chunk, output, scores)
            rows = torch.arange(len(images), device=images.device)
            target_scores = self._readout([settled], wanted, score).read(output, rows)
            weights = (
                [self._mean_over_positions(each) for each in _gradients(target_scores, found)] if gradients else []
            )
        activations = [self._processes.agreed(self._to_maps(each.detach()).float()) for each in found]
        weights = [self._processes.agreed(each) for each in weights]
        return _Part(activations, weights, settled, self._processes.agreed(target_scores.detach()), scores)

    def _to_maps(self, output: Tensor) -> Tensor:
        """A layer's output, or its gradient, as (N, K, *spatial)."""
        maps = to_maps(output, self.images.shape[2:], self._reshape_transform)
        assert maps is not None
        return maps

    def _mean_over_positions(self, gradients: Sequence[Tensor]) -> Tensor:
        """(n, T, K) of T gradients with respect to a layer's output."""
        return torch.stack([self._to_maps(each).float().flatten(2).mean(dim=2) for each in gradients], dim=1)

    def _readout(self, settled: Sequence[Tensor | list[TargetFn]], wanted: TargetRequest, score: Score) -> ScoreReader:
        """What reads the scores of all images, of whose chunks this was settled."""
        if wanted.score is None:
            return ClassScoreReader(
                torch.cat([part for part in settled if isinstance(part, Tensor)]), score, self.class_scores
            )
        return CallableScoreReader([target for part in settled for target in part], wanted.score)

    def _settle_probabilities(self, output: object) -> None:
        """Find out, from the first output with finite scores, whether the model returns probabilities."""
        if self._returns_probabilities is not None or not bool(torch.isfinite(logits_of(output)).any()):
            return
        self._returns_probabilities = not self._multi_label and returns_probabilities(output)
        if self._returns_probabilities or not looks_like_probabilities(output):
            return
        if ends_in_sigmoid(lambda: self._try(self.images[:1])):
            several = logits_of(output).ndim == 2 and logits_of(output).shape[1] > 1
            if several and not self._multi_label:
                warnings.warn(
                    "the model ends in a sigmoid for each of several classes, and is taken for one whose classes "
                    "exclude each other; give the method multi_label=True",
                    stacklevel=6,
                )
            else:
                self._returns_probabilities = True

    @contextmanager
    def simplified(self) -> Iterator[None]:
        """Inside, the model computes the same with fewer operations, where that can be: for many passes."""
        with folded(self._foldable()):
            yield

    def _foldable(self) -> list[Pair]:
        """The batch norms that can be folded without changing what the model returns; tried on the first image."""
        outputs: list[object] = []
        if self._processes.are_several:
            return []
        pairs = foldable(self.model, lambda: outputs.append(self._try(self.images[:1])))
        if not pairs:
            return []
        try:
            with folded(pairs):
                outputs.append(self.run(self.images[:1].clone()))
            before, after = (_floating_tensors(output) for output in outputs)
            same = len(before) == len(after) and all(map(_same, before, after))
        except (RuntimeError, TypeError):  # it fails when folded, or its output cannot be looked into
            return []
        return pairs if same else []

    def masked_scores(self, activations: Tensor, image: Tensor, channel: Tensor, readout: ScoreReader) -> Tensor:
        """The explained scores, (pairs, T) float32, of images masked by channels.

        Args:
            activations: (N, K, *spatial of the layer).
            image: (pairs,) which image each pair masks.
            channel: (pairs,) by which channel.
            readout: Reads them.
        """
        parts: list[Tensor] = []

        def score(chunk: slice) -> None:
            pairs = image[chunk]
            masks = min_max(upsample(activations[pairs, channel[chunk]], self.images.shape[2:]))
            masked = self._stored[pairs].mul_(masks.unsqueeze(-1).to(self.dtype)).movedim(-1, 1)
            parts.append(self._processes.agreed(self._read_masked(masked, pairs, readout)[: len(pairs)]))
            progress.advance(len(pairs))

        self._in_chunks(len(image), score)
        return torch.cat(parts) if parts else torch.zeros(0, readout.count, device=image.device)

    def empty_scores(self, readout: ScoreReader) -> Tensor:
        """(N, T) explained scores of the image that is 0 everywhere, for the targets of each image."""
        rows = torch.arange(len(self.images), device=self.images.device)
        return self._processes.agreed(readout.read(self.run(torch.zeros_like(self.images[:1])), rows, shared=True))


class _Part(NamedTuple):
    """A `ForwardPass` of a chunk of the images."""

    activations: list[Tensor]
    weights: list[Tensor]
    settled: Tensor | list[TargetFn]
    target_scores: Tensor
    scores: ClassScores | None


def _gradients(target_scores: Tensor, outputs: Sequence[Tensor]) -> list[list[Tensor]]:
    """Of each layer's output the gradients of the T scores (n, T) with respect to it."""
    remedy = "Grad-CAM needs the score to be differentiable; ScoreCAM does not"
    if not target_scores.requires_grad:
        raise ValueError(
            "the explained score has no gradient: the model, or the callable, cuts it (torch.no_grad, .detach(), "
            f"rounding), or the target layer comes after it. {remedy}"
        )
    columns = target_scores.unbind(dim=1)
    # Small gradients vanish in half precision, as they do in training; so they are scaled on the way.
    scale = 2.0**14 if any(output.dtype == torch.float16 for output in outputs) else 1.0
    by_target = [
        torch.autograd.grad(
            column.sum() * scale, list(outputs), retain_graph=place + 1 < len(columns), allow_unused=True
        )
        for place, column in enumerate(columns)
    ]
    if any(gradient is None for gradients in by_target for gradient in gradients):
        raise ValueError(f"the explained score does not depend on the target layer by any gradient. {remedy}")
    return [[gradient.float() / scale for gradient in gradients] for gradients in zip(*by_target, strict=True)]


def _floating_tensors(output: object) -> list[Tensor]:
    """All floating point tensors in what a model returned."""
    leaves = tree_leaves(output if isinstance(output, (Tensor, tuple, list, dict)) else vars(output))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal but for rounding."""
    if a.shape != b.shape:
        return False
    a, b = a.cpu().double(), b.cpu().double()  # MPS has no double precision
    return bool((a - b).norm() <= _ROUNDING * a.norm())


def check_images(images: Tensor) -> None:
    """Raise the error that names what is wrong with a batch of images, if anything is."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a floating point tensor, as the model is fed (normalized); got {got}")
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
