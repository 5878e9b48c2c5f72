"""Method: what all ways of computing heatmaps have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from cam_callbacks._checks import check_bool, check_callable, check_choice, check_positive
from cam_callbacks._warnings import warn_user
from cam_callbacks.explain.compilation import CompiledModel
from cam_callbacks.explain.explanation import Channels, Explanation, Upsampling, has_contrast, min_max, upsample
from cam_callbacks.explain.forward_pass import ForwardPass
from cam_callbacks.explain.forwarding import ForwardFn
from cam_callbacks.explain.isolation import isolated
from cam_callbacks.explain.layouts import ReshapeTransform
from cam_callbacks.explain.model_outputs import Outputs
from cam_callbacks.explain.network import Network, TargetLayer
from cam_callbacks.explain.runner import Options
from cam_callbacks.explain.targets import Targets

_CHANNELS_KEPT = 16


@dataclass(frozen=True)
class Method(ABC):
    """A way of computing heatmaps. It is a value: it holds settings only; the model comes with the call.

    Most methods make the map of a layer as the weighted sum of its channels, and differ in the weights. To add one,
    override `forward_pass`, and `layer_map` if it needs further passes or sums no channels.

    Attributes:
        upsampling: How heatmaps are brought to the size of the images: `"bilinear"` (linear for one, trilinear for
            three spatial dimensions), `"bicubic"`, `"nearest"`, or `"none"`, which leaves them at that of the layer.
        multi_label: Classes do not exclude each other: the probability of a class is the sigmoid of its logit.
        outputs: What the model returns: `"logits"`, or `"probabilities"`, which are used as they are. `"auto"` takes it
            for probabilities if classes sum to 1, or if no number leaves [0, 1], for any of the images and for a few
            extreme inputs; `Explanation.outputs` says what it took.
        reshape_transform: Called with the layer's output, returns it as (N, channels, *spatial); for layouts that are
            not understood. It may only rearrange and leave out.
        batch_size: Images forwarded at once; None for 32 on a CPU, and as free memory allows on a GPU. It is halved
            whenever memory runs out.

    Raises:
        TypeError: A `reshape_transform` that cannot be called, or a `multi_label` that is not a bool.
        ValueError: An unknown `upsampling` or `outputs`, or a `batch_size` below 1.
    """

    _: KW_ONLY
    upsampling: Upsampling = "bilinear"
    multi_label: bool = False
    outputs: Outputs = "auto"
    reshape_transform: ReshapeTransform | None = None
    batch_size: int | None = None
    name: ClassVar[str]
    """What people call the method; the name of the class, if a subclass gives none."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in vars(cls):
            cls.name = cls.__name__

    def __post_init__(self) -> None:
        model = next((value for value in self._positional() if isinstance(value, nn.Module)), None)
        if model is not None:
            name = type(self).__name__
            raise TypeError(
                f"{name}({type(model).__name__}(...)): a method takes its settings first, and the model with each "
                f"call; write {name}()(model, images)"
            )
        check_choice("upsampling", self.upsampling, get_args(Upsampling))
        check_choice("outputs", self.outputs, get_args(Outputs))
        check_callable(
            "reshape_transform", self.reshape_transform, "a callable from a layer's output to (N, channels, *spatial)"
        )
        check_bool("multi_label", self.multi_label)
        check_positive("batch_size", self.batch_size, or_none=True)

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        target_layer: TargetLayer = None,
        targets: Targets = None,
        *,
        forward_fn: ForwardFn | None = None,
        compiled: CompiledModel | None = None,
    ) -> Explanation:
        """Explain `targets` for `images`; leave model, gradients and random number generators as they were.

        Args:
            model: Any module, on any device, in any floating type.
            images: (N, C, *spatial) floating point, as the model is fed, one to three spatial dimensions. They are
                moved to the model's device and type.
            target_layer: Dotted name of a submodule, or the submodule itself; None chooses the last layer with at least
                6 x 6 positions (of signals 6, of volumes 6 x 6 x 6) that the answer is read from, or else the finest;
                for `CAM`, the last with any. `"name[0]"` is the first call of a module that is called several times in
                one forward; without it the last call is used. Of several layers, in a list, the heatmap is the mean of
                their maps, each scaled to [0, 1]; `LayerCAM` has a rule of its own.
            targets: What to explain. None: the predicted class of each image. A class: one for all images, one for
                each (N,), or T for each (N, T). Marked classes, (N, classes) bool: of those of an image the one with
                the highest score, the predicted class where none is marked. A callable, or one for each image: it is
                called with what the model returns for B images and returns one number for each, (B,);
                `cam_callbacks.explain.targets` has callables for regression and segmentation.
            forward_fn: Called as `forward_fn(model, images)` instead of `model(images)`; returns logits (N, classes),
                or whatever the callables in `targets` understand.
            compiled: Where `ScoreCAM(compile=True)` keeps the compiled model; give the same one to every call. Without
                it the model is compiled for this call only.

        Returns:
            The explanation, its tensors on the model's device.

        Raises:
            TypeError: Images that are not floating point; a model that cannot be called with images alone; an output
                that is not understood.
            ValueError: Images that are empty, not finite or of the wrong shape; a layer that is unknown, not called or
                without positions; targets out of range, or a callable that does not return one number for each image;
                `upsampling="bicubic"` for images with other than two spatial dimensions; a score without gradient,
                if the method needs one.
        """
        with isolated(model):
            network = Network(model, images, forward_fn, self._options(), compiled)
            self._check_upsampling(network.images)
            forward_pass = self.forward_pass(network, target_layer, targets)
            kind = network.outputs.kind
            if kind is not None and not kind.is_certain:
                warn_user(kind.note)
            maps = [self.layer_map(network, forward_pass, layer) for layer in range(len(forward_pass.layers))]
            return self._explanation(network, forward_pass, maps)

    def check(
        self,
        model: nn.Module,
        images: Tensor,
        target_layer: TargetLayer = None,
        targets: Targets = None,
        *,
        forward_fn: ForwardFn | None = None,
    ) -> str | tuple[str, ...]:
        """Raise what a call with the same arguments would raise, for the cost of one forward pass per image, and a few.

        Returns:
            The name of the layer that would be used; of several, all names.
        """
        return self.check_and_choose(model, images, target_layer, targets, forward_fn=forward_fn)[0]

    def check_and_choose(
        self,
        model: nn.Module,
        images: Tensor,
        target_layer: TargetLayer = None,
        targets: Targets = None,
        *,
        forward_fn: ForwardFn | None = None,
    ) -> tuple[str | tuple[str, ...], str | None]:
        """Do what `check` does, and also say why the layer was chosen; None if `target_layer` names it."""
        with isolated(model):
            network = Network(model, images, forward_fn, self._options())
            self._check_upsampling(network.images)
            used = _one_or_all(self.forward_pass(network, target_layer, targets).layers)
            return used, None if network.choice is None else network.choice.reason

    def _positional(self) -> Iterator[Any]:
        return (getattr(self, field.name) for field in fields(self) if not field.kw_only)

    def _options(self) -> Options:
        return Options(self.batch_size, self.multi_label, self.reshape_transform, outputs=self.outputs)

    @abstractmethod
    def forward_pass(self, network: Network, target_layer: TargetLayer, targets: Targets) -> ForwardPass:
        """Pass over the unmasked images, most often by `network.forward_pass`.

        Args:
            network: The model and the images.
            target_layer: As in `__call__`.
            targets: As in `__call__`.

        Raises:
            ValueError: The method cannot explain this model or these targets.
        """

    def layer_map(self, network: Network, forward_pass: ForwardPass, layer: int) -> LayerMap:
        """Return the map of one layer; by default its channels, summed by the weights that the forward pass found.

        Args:
            network: The model and the images, for further passes.
            forward_pass: What `forward_pass` returned.
            layer: The index of the layer among `forward_pass.layers`.
        """
        return LayerMap.weighted(forward_pass.activations[layer], forward_pass.weights[layer])

    def fused(self, maps: Sequence[Tensor]) -> Tensor:
        """Put the maps of several layers together, at the resolution of the finest: the mean of each scaled to [0, 1].

        Args:
            maps: Of each layer, (N, T, *spatial of the layer), at least 0.
        """
        size = finest(maps)
        scaled = [min_max(upsample(each.flatten(0, 1), size)) for each in maps]
        return torch.stack(scaled).mean(dim=0).view(*maps[0].shape[:2], *size)

    def _check_upsampling(self, images: Tensor) -> None:
        dimensions = images.ndim - 2
        if self.upsampling == "bicubic" and dimensions != 2:
            raise ValueError(
                f'upsampling="bicubic" needs images with two spatial dimensions, these have {dimensions}; use '
                '"bilinear", which is linear in any number of dimensions'
            )

    def _explanation(self, network: Network, forward_pass: ForwardPass, maps: Sequence[LayerMap]) -> Explanation:
        skipped = ~forward_pass.finite.unsqueeze(1)
        for each in maps:
            skipped = skipped | ~torch.isfinite(each.maps).flatten(2).all(dim=2)
        only = maps[0] if len(maps) == 1 else None
        covering = [forward_pass.covering(each.maps, layer) for layer, each in enumerate(maps)]
        layer_maps = covering[0] if only is not None else self.fused(covering)
        error = torch.stack([each.error.expand_as(skipped) for each in maps]).amax(dim=0)
        layer_maps, error = (
            torch.where(skipped.view(*skipped.shape, *[1] * (values.ndim - 2)), torch.nan, values)
            for values in (layer_maps, error)
        )

        def leading(values: Tensor) -> Tensor:
            return values if forward_pass.several else values.squeeze(1)

        channels = None
        if only is not None and only.channels is not None:
            index, weights, strongest = only.channels
            channels = Channels(*map(leading, (index, weights, forward_pass.covering(strongest, 0))))
        mean = None if only is None else forward_pass.covering(forward_pass.activations[0].mean(dim=1), 0)
        scores, reader, kind = forward_pass.scores, forward_pass.reader, network.outputs.kind
        return Explanation(
            layer_maps=leading(layer_maps),
            size=tuple(network.images.shape[2:]),
            upsampling=self.upsampling,
            targets=None if reader.classes is None else leading(reader.classes),
            score_kind=reader.score,
            target_scores=leading(forward_pass.target_scores),
            logits=None if scores is None else scores.logits,
            probabilities=None if scores is None else scores.probabilities,
            target_layer=_one_or_all(forward_pass.layers),
            passes=1 + torch.stack([each.passes for each in maps]).sum(dim=0),
            estimated_error=leading(error),
            skipped=leading(skipped),
            channels=channels,
            mean_activation=mean,
            outputs=None if kind is None else kind.outputs,
        )


def _one_or_all(names: tuple[str, ...]) -> str | tuple[str, ...]:
    return names[0] if len(names) == 1 else names


@dataclass(frozen=True, eq=False)
class LayerMap:
    """The map of one layer for each target, before it is enlarged and scaled.

    Attributes:
        maps: (N, T, *spatial of the layer) float32, at least 0; not finite where there is none.
        passes: (N,) int64, forward samples spent on masked images.
        error: (N, T) float32, the estimated relative error of the map; 0 if it is exact.
        channels: Index and weight (N, T, C) and activations (N, T, C, *spatial) of the heaviest channels, dead ones
            last; None if the map is not made of channels.
    """

    maps: Tensor
    passes: Tensor
    error: Tensor
    channels: tuple[Tensor, Tensor, Tensor] | None = None

    @classmethod
    def weighted(
        cls, maps: Tensor, weights: Tensor, passes: Tensor | None = None, error: Tensor | None = None
    ) -> LayerMap:
        """Return the ReLU of the weighted sum of channels.

        Args:
            maps: (N, K, *spatial), the channels as they are summed.
            weights: (N, T, K), the weight of each channel in the map of each target; or (N, T, K, *spatial), that of
                each of its positions.
            passes: As in `LayerMap`; None for no pass.
            error: As in `LayerMap`; None for exact maps.
        """
        total = torch.stack([_weighted_sum(*pair) for pair in zip(weights, maps, strict=True)])
        return cls(
            total.relu(),
            passes if passes is not None else torch.zeros(len(maps), dtype=torch.int64, device=maps.device),
            error if error is not None else torch.zeros(weights.shape[:2], device=maps.device),
            _heaviest(maps, weights),
        )


def _heaviest(maps: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `LayerMap.channels`; where positions have weights, that of a channel is their mean."""
    live = has_contrast(maps).unsqueeze(1)
    of_channels = weights if weights.ndim == 3 else weights.flatten(3).mean(dim=3)
    count = min(_CHANNELS_KEPT, weights.shape[2])
    index = of_channels.masked_fill(~live, -torch.inf).topk(count, dim=2).indices
    chosen = torch.stack([own[heaviest] for own, heaviest in zip(maps, index, strict=True)])
    return index, of_channels.gather(2, index), chosen


def finest(maps: Sequence[Tensor]) -> torch.Size:
    """Return the spatial size of the map (N, T, *spatial) with the most positions."""
    return max((each.shape[2:] for each in maps), key=lambda size: size.numel())


def _weighted_sum(weights: Tensor, maps: Tensor) -> Tensor:
    """Sum maps (K, *spatial) by weights (T, K), or (T, K, *spatial) of each position, in (T, *spatial).

    That is done in double precision where there is one: no autocast, no TF32.
    """
    exact = torch.float32 if maps.device.type == "mps" else torch.float64
    with torch.autocast(maps.device.type, enabled=False):
        weights, maps = weights.to(exact), maps.to(exact)
        if weights.ndim == 2:
            total: Tensor = torch.tensordot(weights, maps, dims=1)
        else:
            total = torch.stack([(each * maps).sum(dim=0) for each in weights])
        return total.float()
