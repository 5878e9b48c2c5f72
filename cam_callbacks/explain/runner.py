"""Running a model on images: memory layout, batch size, and what to do when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cam_callbacks._checks import check_positive
from cam_callbacks._warnings import warn_user
from cam_callbacks.explain import neighbors
from cam_callbacks.explain.compilation import CompiledModel
from cam_callbacks.explain.forwarding import ForwardFn, forward, takes_rows
from cam_callbacks.explain.hooks import hooked
from cam_callbacks.explain.image_types import in_type
from cam_callbacks.explain.layouts import ReshapeTransform
from cam_callbacks.explain.model_outputs import OutputReader, Outputs
from cam_callbacks.explain.neighbors import Influence, influence
from cam_callbacks.explain.output_evidence import decide
from cam_callbacks.explain.output_form import find_form
from cam_callbacks.explain.sharding import Ranks

_CPU_BATCH_SIZE = 32
_MAX_GPU_BATCH_SIZE = 512
_COPIES_OF_AN_IMAGE = 8  # that we hold beside the model's activations, generously


@dataclass(frozen=True)
class Options:
    """How a model is run and read: the settings of a `Method` that matter to its `Network`.

    Attributes:
        batch_size: Images forwarded at once; None for 32 on a CPU, and as free memory allows on a GPU. It is halved
            whenever memory runs out.
        multi_label: As in `Method`.
        reshape_transform: As in `Method`.
        compile: Run masked images through a compiled copy of the model.
        outputs: As in `Method`.
        mixes_images: Whether images that are forwarded together influence each other; None to find it out.
    """

    batch_size: int | None = None
    multi_label: bool = False
    reshape_transform: ReshapeTransform | None = None
    compile: bool = False
    outputs: Outputs = "auto"
    mixes_images: bool | None = None

    def __post_init__(self) -> None:
        check_positive("batch_size", self.batch_size, or_none=True)


class Runner:
    """A model and the images that it is run on. It lives for one call, inside `isolated`.

    Images are held with the channels last in memory, because convolutions on CPUs and tensor cores run faster on that.
    A model that cannot read such input (it calls `.view` on an activation) is given contiguous images instead.

    The model may change its input in place: each pass is given a copy of its own. A model whose images influence each
    other is run on one image at a time.

    A model whose weights are sharded across ranks (`fully_shard`) is run by all of them on the same images. No chunk is
    halved where memory runs out.

    Args:
        model: The model.
        images: (N, C, *spatial), copied to the model's device. They enter in the type of its parameters; if these
            have several, in the first that the model takes: that in which they are given, then those of parameters.
            Whole numbers keep their type.
        forward_fn: As in `Method.__call__`.
        options: How the model is run and read.
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
        self.model = model
        self.forward_fn = forward_fn
        self.ranks = Ranks(model)
        device, _ = device_and_dtype(model, images)
        self.dtype = dtype = self._entering_type(images.detach()[:1].to(device))
        self.channels_last = True
        self.reshape_transform = options.reshape_transform
        # A copy, (N, C, *spatial) -> (N, *spatial, C) in memory; `images` is the view of it in the usual order.
        self.stored = images.detach().to(device, dtype).movedim(1, -1).clone(memory_format=torch.contiguous_format)
        self.images = self.stored.movedim(-1, 1)
        self.rows = torch.arange(len(images), device=device)
        self.outputs = OutputReader(
            options.outputs,
            options.multi_label,
            lambda seen: decide(self, options.multi_label, seen),
            lambda: find_form(lambda two: self.try_run(two, self.rows[:1].repeat(2)), self.images),
        )
        self.compiled = (compiled or CompiledModel()) if options.compile else None
        self._batch_size = options.batch_size
        self._mixes_images = options.mixes_images

    @property
    def batch_size(self) -> int:
        """Images forwarded at once, decided when first asked for."""
        if self._batch_size is None:
            self._batch_size = self._fitting_batch_size() if self.images.is_cuda else _CPU_BATCH_SIZE
        return self._batch_size

    def _fitting_batch_size(self) -> int:
        """Return how many images are sure to fit: half of the free memory for all activations of each."""
        free, _ = torch.cuda.mem_get_info(self.images.device)
        cached = torch.cuda.memory_reserved(self.images.device) - torch.cuda.memory_allocated(self.images.device)
        activations = activation_bytes(self.model, lambda: self.try_run(self.images[:1]))
        each = activations + _COPIES_OF_AN_IMAGE * self.images[0].nbytes
        fitting = max(1, min(_MAX_GPU_BATCH_SIZE, (free + cached) // 2 // each))
        return self.ranks.smallest(fitting, self.images.device)

    def chunk_size(self, left: int) -> int:
        """Return how many of the images that are left go into the next chunk.

        That is the batch size, or 1 if images of a chunk would influence each other; a compiled model takes the last
        images in quarters of it, so that it is compiled for two sizes only.
        """
        if (left == 1 and self.compiled is None) or self.mixes_images:
            return 1
        if self.compiled is None or left >= self.batch_size:
            return self.batch_size
        return max(1, self.batch_size // 4)

    def in_chunks(self, count: int, act: Callable[[slice], None]) -> None:
        """Call `act` with one slice of `count` images after the other; with smaller ones when memory runs out."""
        start = 0
        while start < count:
            chunk = slice(start, min(start + self.chunk_size(count - start), count))
            try:
                act(chunk)
            except torch.OutOfMemoryError:
                size = chunk.stop - start
                if size == 1 or self.ranks.are_several:
                    raise
                self._batch_size = size // 2
                warn_user(
                    f"out of memory with {size} images at once; continuing with {self._batch_size}, which changes no "
                    f"result. Give the method batch_size={self._batch_size} to begin with that"
                )
            except (RuntimeError, AssertionError) as error:
                if not self._gives_up_channels_last(error):
                    raise
            else:
                start = chunk.stop

    @property
    def mixes_images(self) -> bool:
        """Whether images that are forwarded together influence each other; decided when first asked for."""
        if self._mixes_images is None:
            self._mixes_images = self._finds_mixing()
        return self._mixes_images

    def _finds_mixing(self) -> bool:
        def find() -> Influence:
            own = influence(lambda images: self.try_run(images, self.rows[:1].repeat(len(images))), self.images)
            return Influence(-self.ranks.smallest(-own, self.images.device))  # the largest of all ranks

        found = find() if self.forward_fn else neighbors.remembered(self.model, self.images, find)
        neighbors.say_once(self.model, found)
        return found is Influence.NEIGHBORS

    def forward_alone(self) -> None:
        """Forward each image alone from now on, because others have been found to influence it, and say so."""
        self._mixes_images = True
        neighbors.say_once(self.model, Influence.NEIGHBORS)

    def run(self, images: Tensor, rows: Tensor | None = None) -> object:
        """Return what the model returns for images, which it may change.

        Args:
            images: (B, C, *spatial).
            rows: (B,) int64, which of the images that are explained these are; None for the first ones.
        """
        if rows is None:
            rows = torch.arange(len(images), device=images.device)
        return forward(self.model, self.laid_out(images), rows, self.forward_fn)

    def masked(self, image: Tensor, masks: Tensor) -> Tensor:
        """Return the images at `image` (B,), times masks (B, *spatial, 1), as they are stored and in their type."""
        if self.dtype.is_floating_point:
            return self.stored[image].mul_(masks.to(self.dtype))
        return in_type(self.stored[image] * masks, self.dtype)

    def laid_out(self, images: Tensor) -> Tensor:
        """Return the images in the memory layout that the model can read."""
        if self.channels_last or images.stride() == torch.empty(images.shape, device="meta").stride():
            return images
        # Not by contiguous(): with one channel, it takes the strides of either layout for contiguous.
        return images.clone(memory_format=torch.contiguous_format)

    def first_run(self, images: Tensor, rows: Tensor | None = None) -> object:
        """Return what `answer` returns for a copy of the images."""
        return self.answer(images.clone(), rows)

    def answer(self, images: Tensor, rows: Tensor | None = None) -> object:
        """Return what `run` returns; an error names the model and the images.

        Raises:
            RuntimeError: The model cannot read the memory layout; `in_chunks` then tries again with another one.
            ValueError: The model fails on these images.
        """
        try:
            return self.run(images, rows)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError) as error:
            if self._refuses_channels_last(error):
                raise
            name = type(self.model).__name__
            if "Inference tensors cannot be saved" in str(error):
                raise ValueError(
                    f"{name} keeps a tensor that it made in inference mode, through which no gradient can be taken; "
                    "use ScoreCAM, which needs no gradients, or Trainer(inference_mode=False)"
                ) from error
            raise ValueError(
                f"{name} cannot be run on images of shape {tuple(images.shape)}, {self.dtype}: {error}"
                f"{self._hint(images)}"
            ) from error
        except ValueError as error:
            if "Expected more than 1 value per channel" not in str(error):
                raise
            raise neighbors.NeedsOthersError(
                f"{type(self.model).__name__} cannot answer one image alone: it has a batch norm without running "
                "statistics, which takes those of the batch. No heatmap of one image follows from such a model; let "
                "the batch norm track running statistics, or use another normalization"
            ) from error

    def _hint(self, images: Tensor) -> str:
        count = self._count_that_works(images)
        if count is not None:
            remedy = "give the method batch_size=1" if count == 1 else "let forward_fn fill each batch up to that"
            return (
                f". It answers {count} at once, but not {len(images)}, as what is traced or exported for one size of "
                f"the batch: export it with a dynamic one (dynamic_shapes), or {remedy}"
            )
        if self.forward_fn is None or takes_rows(self.forward_fn):
            return ""
        return (
            ". Give forward_fn, a callable (model, images) -> logits that calls what takes images; or (model, images, "
            "rows), if a second input for each image is needed: rows count the images that are explained, not those "
            "of a data set"
        )

    def _count_that_works(self, images: Tensor) -> int | None:
        """Return how many images at once the model answers, 1 or N, if it does not answer these for their number."""
        if self.ranks.are_several or self._runs([images]):
            return None
        for count in {1, len(self.images)} - {len(images)}:
            batches = (
                [image.unsqueeze(0) for image in images] if count == 1 else [images[torch.arange(count) % len(images)]]
            )
            if self._runs(batches):
                return count
        return None

    def _runs(self, batches: list[Tensor]) -> bool:
        try:
            for batch in batches:
                self.run(batch.clone())
        except Exception:
            return False
        return True

    def _entering_type(self, image: Tensor) -> torch.dtype:
        """Return the type in which images enter the model; whole numbers keep theirs.

        It is that of the model's parameters. If they are of several types, it is the first one in which the model
        answers one image (1, C, *spatial): that of the images as they were given, then those of the parameters.
        """
        _, first = device_and_dtype(self.model, image)
        types = dict.fromkeys(each.dtype for each in self.model.parameters() if each.is_floating_point())
        if len(types) < 2 or self.ranks.are_several or not image.is_floating_point():
            return first
        row = torch.zeros(1, dtype=torch.int64, device=image.device)
        for dtype in dict.fromkeys([image.dtype, *types]):
            try:
                forward(self.model, image.to(dtype, copy=True), row, self.forward_fn)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # the next type; if none fits, the first pass raises the error
                continue
            return dtype
        return first

    def try_run(self, images: Tensor, rows: Tensor | None = None) -> object:
        """Return what `first_run` returns, in whichever memory layout the model can read."""
        try:
            return self.first_run(images, rows)
        except (RuntimeError, AssertionError) as error:
            if not self._gives_up_channels_last(error):
                raise
        return self.first_run(images, rows)

    def _refuses_channels_last(self, error: Exception) -> bool:
        words = str(error).lower()
        names_layout = any(word in words for word in ("view size is not compatible", "contiguous", "stride"))
        return self.channels_last and (names_layout or isinstance(error, AssertionError))

    def _gives_up_channels_last(self, error: Exception) -> bool:
        """Whether the model, or a callable, fails on channels-last input; contiguous images are used from then on."""
        gives_up = self._refuses_channels_last(error)
        self.channels_last = self.channels_last and not gives_up
        return gives_up


def check_images(images: Tensor) -> None:
    """Raise the error that names what is wrong with a batch of images, if anything is."""
    if not isinstance(images, Tensor) or images.is_complex() or images.is_quantized:
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a tensor of real numbers, as the model is fed (normalized); got {got}")
    if not 3 <= images.ndim <= 5 or 0 in images.shape:
        raise ValueError(
            f"images has shape {tuple(images.shape)}; give (N, C, *spatial), with one to three spatial dimensions and "
            "none of them empty"
        )
    if not images.is_floating_point():
        return
    extremes = torch.stack(torch.aminmax(images.flatten(1), dim=1))  # NaN if there is one
    bad = ~torch.isfinite(extremes).all(dim=0)
    if bad.any():
        raise ValueError(
            f"images contains NaN or infinity, in {int(bad.sum())} of {len(images)} images: "
            f"{bad.nonzero()[:8, 0].tolist()}"
        )


def device_and_dtype(model: nn.Module, images: Tensor) -> tuple[torch.device, torch.dtype]:
    """Return the device and floating type of the model's first floating parameter, else those of the images.

    Images of whole numbers keep their type: the model itself makes floating point of them.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype if images.is_floating_point() else images.dtype
    return images.device, images.dtype


def activation_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    """Return the bytes of all outputs of innermost modules while `run` runs: more than a forward holds at once."""
    total = 0

    def count(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal total
        total += output.nbytes if isinstance(output, Tensor) else 0

    with hooked([module for module in model.modules() if next(module.children(), None) is None], count):
        run()
    return total
