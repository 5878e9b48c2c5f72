"""The model as a method uses it: images in, explained scores out, of the images as they are and of masked ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from cam_callbacks._checks import is_list
from cam_callbacks.explain import forward_pass, layer_choice, layers, output_form, progress
from cam_callbacks.explain.batch_norm_folding import equivalent_pairs, folded
from cam_callbacks.explain.explanation import min_max, upsample
from cam_callbacks.explain.forward_pass import ForwardPass, Gradients
from cam_callbacks.explain.forwarding import ForwardFn, of_rows, takes_rows
from cam_callbacks.explain.isolation import isolated
from cam_callbacks.explain.layer_choice import Choice
from cam_callbacks.explain.model_outputs import ClassScores, OutputKind
from cam_callbacks.explain.output_evidence import MADE_EXTREME, decide
from cam_callbacks.explain.portions import in_portions
from cam_callbacks.explain.runner import Options, Runner
from cam_callbacks.explain.score_readers import Score, ScoreReader, TargetRequest
from cam_callbacks.explain.targets import Targets

TargetLayer: TypeAlias = str | nn.Module | Sequence[str | nn.Module] | None
"""A layer by its dotted name, or the module itself; several of them; None for the one that is chosen."""


class Network(Runner):
    """A model and the images to explain: the scores of these images, and of masked ones. See `Runner`.

    Attributes:
        choice: The layer that was chosen; None if the user has named one.
    """

    choice: Choice | None = None

    def scores(self) -> ClassScores:
        """Return the class scores of the images."""
        parts: list[ClassScores] = []

        def read(chunk: slice) -> None:
            parts.append(self.scores_of(self.images[chunk].clone(), self.rows[chunk]))

        self.in_chunks(len(self.images), read)
        return ClassScores(*map(torch.cat, zip(*parts, strict=True)))

    def scores_of(self, images: Tensor, rows: Tensor) -> ClassScores:
        """Return the class scores of any images (B, C, *spatial), which the model may change.

        Args:
            images: In the type and on the device of `images` of this class.
            rows: (B,), which of the images that are explained they are, or were made from.
        """
        scores = self.outputs.class_scores(self.answer(images, rows))
        return ClassScores(*map(self.ranks.agreed, scores))

    def choose_layer(self, class_map: bool = False, gradients: bool = False) -> str:
        """Return the name of the layer that is explained if the user names none.

        Args:
            class_map: Whether it belongs to the last linear layer, as in `cam_callbacks.explain.layer_choice.choose`.
            gradients: Whether the gradient at the layer is needed.
        """
        self.choice = layer_choice.choose(
            self.model, self.images, self.try_run, class_map, self.ranks.agreed, self.outputs.columns, gradients
        )
        return self.choice.name

    def forward_pass(
        self,
        target_layer: TargetLayer,
        targets: Targets,
        score: Score = "probability",
        gradients: Gradients | None = None,
    ) -> ForwardPass:
        """Pass over the unmasked images once; choose the layer and explain the predicted class if none is given.

        Args:
            target_layer: As in `Method.__call__`.
            targets: As in `Method.__call__`.
            score: Which score of a class is explained.
            gradients: Which gradients of the explained scores to take as weights: the mean over the positions of a
                channel, or that of each of its positions.

        Raises:
            TypeError: A model that cannot be called with images alone, or an output or targets that are not understood.
            ValueError: Images that do not fit the model; a layer that is unknown, not called or without positions;
                targets out of range; a callable that does not return one number for each image; a score without
                gradient.
        """
        request = TargetRequest(targets, len(self.images))
        names = self.layer_names(target_layer, gradients is not None)
        return forward_pass.record(self, names, request, score, gradients)

    def layer_names(self, target_layer: TargetLayer, gradients: bool = False) -> list[str]:
        """Return the names of the target layers; of the one that is chosen if none is given.

        Args:
            target_layer: As in `Method.__call__`.
            gradients: Whether the gradient at the layer is needed.
        """
        if target_layer is None:
            return [self.choose_layer(gradients=gradients)]
        if not is_list(target_layer):
            return [layers.layer_name(self.model, target_layer)]
        if not target_layer:
            raise ValueError(f"target_layer={target_layer!r} names no layer; leave it out, and one is chosen")
        return [layers.layer_name(self.model, layer) for layer in target_layer]

    @contextmanager
    def simplified(self) -> Iterator[None]:
        """Let the model compute the same with fewer operations inside, if it can: worth it for many passes."""
        images = self.images[:1]
        pairs = []
        if not self.ranks.are_several:
            pairs = equivalent_pairs(self.model, lambda: self.try_run(images), lambda: self.run(images.clone()))
        with folded(pairs):
            yield

    def masked_scores(
        self, activations: Tensor, image: Tensor, channel: Tensor, reader: ScoreReader, turned: Tensor | None = None
    ) -> Tensor:
        """Return the explained scores, (pairs, T) float32, of images masked by channels.

        Args:
            activations: (N, K, *spatial of the layer).
            image: (pairs,) the index of the image in each pair.
            channel: (pairs,) the index of the channel that masks it.
            reader: Reads the explained scores.
            turned: (pairs,) bool, whether a mask hides what it would show: 1 minus the mask. None for none.
        """
        parts: list[Tensor] = []

        def score(chunk: slice) -> None:
            pairs = image[chunk]
            masks = min_max(upsample(activations[pairs, channel[chunk]], self.images.shape[2:]))
            if turned is not None:
                masks = torch.where(turned[chunk].view(-1, *[1] * (masks.ndim - 1)), 1 - masks, masks)
            masked = self.masked(pairs, masks.unsqueeze(-1)).movedim(-1, 1)
            parts.append(self.ranks.agreed(self._read_masked(masked, pairs, reader)[: len(pairs)]))
            progress.advance(len(pairs))

        self.in_chunks(len(image), score)
        return torch.cat(parts) if parts else torch.zeros(0, reader.count, device=image.device)

    def _read_masked(self, images: Tensor, image: Tensor, reader: ScoreReader) -> Tensor:
        """Return the explained scores of masked images (B, C, *spatial), (B, T) or more, the first B of which count."""
        if self.compiled is None:
            return reader.read(self.answer(images, image), image)
        size = self.chunk_size(len(images))
        if len(images) < size:  # filled up, so that the compiled model sees no third size
            again = torch.arange(size, device=images.device) % len(images)
            images, image = images[again], image[again]
        return reader.read(self.compiled(self.model, self.laid_out(images), image, self.forward_fn), image)

    def empty_scores(self, reader: ScoreReader) -> Tensor:
        """Return (N, T) explained scores of the image that is 0 everywhere, for the targets of each image."""
        if not takes_rows(self.forward_fn):
            output = self.run(torch.zeros_like(self.images[:1]))
            return self.ranks.agreed(reader.read(output, self.rows, shared=True))
        parts: list[Tensor] = []

        def read(chunk: slice) -> None:  # whose second input it is given with makes a difference
            rows = self.rows[chunk]
            parts.append(self.ranks.agreed(reader.read(self.run(torch.zeros_like(self.images[chunk]), rows), rows)))

        self.in_chunks(len(self.images), read)
        return torch.cat(parts)


def first_columns(model: nn.Module, images: Tensor, forward_fn: ForwardFn | None, options: Options) -> Tensor:
    """Return the scores in what the model returns for images (N, C, *spatial), (N, classes, ...), without gradients.

    Raises:
        TypeError: The output is not understood.
        ValueError: The model fails on these images.
    """
    with isolated(model), torch.no_grad():
        network = Network(model, images, forward_fn, options)
        return network.outputs.columns(network.try_run(network.images, network.rows))


def score_entries(model: nn.Module, images: Tensor, forward_fn: ForwardFn | None) -> tuple[list[int], int | None]:
    """Return which entries of a tuple that the model returns may hold scores, and which of them was made from the rest.

    Args:
        model: The model.
        images: (N, C, *spatial), of which the first two are used.
        forward_fn: As in `Method.__call__`.
    """
    with isolated(model), torch.enable_grad():
        network = Network(model, images[:2], forward_fn)
        images = network.images
        if images.is_floating_point():  # so that parts that are frozen have gradients, too
            images = images.detach().clone().requires_grad_().clone()
        output: Any = network.try_run(images, network.rows)
        places = output_form.score_entries(output, len(network.images))
        last = output_form.made_from_the_others([output[place] for place in places])
    return places, None if last is None else places[last]


def output_kind(model: nn.Module, images: Tensor, forward_fn: ForwardFn | None, options: Options) -> OutputKind:
    """Return how what the model returns is read: as the user says, else decided by all of the images.

    It takes two passes for most logits, and one for each image and a few more where all numbers are in [0, 1].

    Raises:
        TypeError: As `Method.__call__`.
        ValueError: As `Method.__call__`.
    """
    if options.outputs != "auto":
        return OutputKind(options.outputs, options.multi_label)
    with isolated(model):
        portions = in_portions(torch.arange(len(images)), images)
        return decide(
            Network(model, images[:MADE_EXTREME], forward_fn, options),
            options.multi_label,
            of_all=(Network(model, images[rows], of_rows(forward_fn, rows), options) for rows in portions),
        )
