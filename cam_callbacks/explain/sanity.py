"""Sanity checks: whether a method's maps tell classes apart, and whether they reflect what the network has learned."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cam_callbacks._checks import check_type
from cam_callbacks.explain import neighbors
from cam_callbacks.explain.explanation import Explanation, most_probable_other
from cam_callbacks.explain.forwarding import ForwardFn
from cam_callbacks.explain.isolation import isolated
from cam_callbacks.explain.method import Method
from cam_callbacks.explain.network import Network, TargetLayer
from cam_callbacks.explain.resampling import mean_and_interval
from cam_callbacks.explain.runner import Options
from cam_callbacks.explain.score_readers import TargetRequest
from cam_callbacks.explain.targets import Targets
from cam_callbacks.explain.trust import correlation, rank_correlation

_BINS = 100
_CHECKS = ("other_class", "random_weights", "complexity_rise")


@dataclass(frozen=True, eq=False)
class SanityChecks:
    """What the sanity checks of a method found for N images, each (N,) float32; NaN where a map is blank or skipped.

    Attributes:
        other_class: Pearson correlation, in [-1, 1], of the map with that of the rival, the most probable other class.
            Lower tells classes apart; near 1 the map says nothing about the class. Not known where nothing speaks for
            the rival, so that it has a blank map: the images on which classes are told apart best.
        random_weights: Spearman correlation, in [-1, 1], with the map of the same network with random weights. Near 0
            the map reflects what was learned; near 1 it would be the same whatever that is.
        complexity_rise: (xi(random) - xi(own)) / xi(own), at least -1, with the `complexity` xi of the two maps.
            Positive: the map of the trained network is simpler than that of a random one.
    """

    other_class: Tensor
    random_weights: Tensor
    complexity_rise: Tensor

    def mean(self, check: str) -> tuple[float, float, float]:
        """Return the mean of a check, and lower and upper end of its 95 % interval, over the images with an answer.

        The interval is that of the percentile bootstrap over images; NaN for fewer than two images.
        """
        values: Tensor = getattr(self, check)
        return mean_and_interval(values)

    def rows(self) -> list[dict[str, Any]]:
        """Return a dict for each check: `check`, `mean`, `low`, `high`, and `images`, how many have an answer."""
        found = []
        for check in _CHECKS:
            mean, low, high = self.mean(check)
            known = int(getattr(self, check).isfinite().sum())
            found.append({"check": check, "mean": mean, "low": low, "high": high, "images": known})
        return found


def sanity_checks(
    method: Method,
    model: nn.Module,
    images: Tensor,
    target_layer: TargetLayer = None,
    targets: Targets = None,
    *,
    forward_fn: ForwardFn | None = None,
    seed: int = 0,
) -> SanityChecks:
    """Check a method on a classifier: do its maps differ between classes, and do they need the trained weights?

    It takes one pass over the images, one call of the method for two classes, and one on a copy of the model with
    random weights. Maps are compared at the resolution of the layer.

    - `other_class` compares the map with that of another class.
    - `random_weights` is the model parameter randomization test of Adebayo et al. 2018, "Sanity checks for saliency
      maps" (arXiv 1810.03292), for all layers at once.
    - `complexity_rise` is the efficient form of that test of Hedström et al. 2024, "Sanity Checks Revisited" (arXiv
      2401.06465, as in Quantus): it asks whether maps become more complex, not whether they change. A map that is as
      complex in other places counts as unchanged. It is weak where maps have few positions and are cut off at 0, as
      most maps of layers are: what is not 0 has bins of its own, so it is mostly about how many positions are 0. Random
      weights may leave few that are not, and the rise is negative without a fault. Read it beside `random_weights`.

    Passing is necessary, not sufficient: a map that depends on class and weights can still be wrong. For that there is
    `cam_callbacks.explain.faithfulness.measure_faithfulness`.

    Args:
        method: The method, with its settings.
        model: Any classifier that can be copied; it is left as it was.
        images: (N, C, *spatial), as in `Method.__call__`.
        target_layer: As in `Method.__call__`.
        targets: One class for all images, or one for each (N,); None for the predicted ones.
        forward_fn: As in `Method.__call__`; it has to call the model that it is given.
        seed: Draws the random weights.

    Raises:
        TypeError: `method` is not a method, or as in `Method.__call__`; a model that cannot be copied, or that has no
            weights that can be random.
        ValueError: `targets` are not one class for each image, or as in `Method.__call__`.

    Example::

        from torchvision.models import resnet18
        from cam_callbacks import GradCAM
        from cam_callbacks.explain.sanity import sanity_checks

        found = sanity_checks(GradCAM(), resnet18(), torch.rand(4, 3, 64, 64))
        found.rows()  # a list of dicts, for pandas
    """
    check_type("method", method, Method, "a method with its settings, such as GradCAM()")
    own, rival = _own_and_rival(method, model, images, targets, forward_fn)
    both = method(model, images, target_layer, torch.stack([own, rival], dim=1), forward_fn=forward_fn)
    random = method(_with_random_weights(model, seed), images, both.target_layer, own, forward_fn=forward_fn)
    unknown, unknown_of_rival = (both.blank | both.skipped).unbind(dim=1)
    maps, maps_of_rival = both.layer_maps.unbind(dim=1)
    unknown_of_random = random.blank | random.skipped
    own_complexity = complexity(maps)
    rise = (complexity(random.layer_maps) - own_complexity) / own_complexity

    def known(values: Tensor, unknown_of_other: Tensor) -> Tensor:
        return torch.where(unknown | unknown_of_other, torch.nan, values).cpu()

    return SanityChecks(
        other_class=known(correlation(maps, maps_of_rival), unknown_of_rival),
        random_weights=known(rank_correlation(maps, random.layer_maps), unknown_of_random),
        complexity_rise=known(rise, unknown_of_random),
    )


def randomization(
    model: nn.Module,
    images: Tensor,
    explanation: Explanation,
    method: Method,
    target_layer: TargetLayer = None,
    targets: Targets = None,
    forward_fn: ForwardFn | None = None,
) -> Tensor:
    """Correlate the maps with those of the same network with random weights; near 0 the maps reflect the network.

    This is the model parameter randomization test of Adebayo et al. 2018 (arXiv 1810.03292), for all layers at once, on
    a copy of the model.

    Args:
        model: The model; it is copied.
        images: (N, C, *spatial).
        explanation: The explanation of these images by the model, one target for each.
        method: The method that made it.
        target_layer: The layer that was explained; None for that of the explanation.
        targets: What was explained; None for the classes of the explanation. Callables have to be given again.
        forward_fn: As in `Method.__call__`.

    Returns:
        (N,) Spearman correlation, NaN if one of the maps is blank or was skipped.

    Raises:
        ValueError: `targets` is missing for an explanation of a callable.
    """
    if explanation.logits is None and targets is None:
        raise ValueError(f"targets is missing; give the callable that was explained, {explanation.score_kind}")
    other = _with_random_weights(model)
    targets = explanation.targets if targets is None else targets
    random = method(other, images, target_layer or explanation.target_layer, targets, forward_fn=forward_fn)
    alike = rank_correlation(explanation.layer_maps, random.layer_maps.to(explanation.layer_maps.device))
    unknown = explanation.blank | explanation.skipped | (random.blank | random.skipped).to(explanation.blank.device)
    return torch.where(unknown, torch.nan, alike)


def complexity(maps: Tensor) -> Tensor:
    """Return (N,) float32, the entropy in nats of how the values of each map (N, *spatial) are distributed.

    It is the discrete entropy xi of Hedström et al. 2024 (arXiv 2401.06465), as in Quantus: that of a histogram with
    100 bins of equal width between the map's smallest and largest value. The scale of a map makes no difference. 0 for
    a constant map; at most the logarithm of 100 or, of fewer positions, of their number. NaN if a value is not finite.
    """
    flat = maps.flatten(1).double()
    low, high = torch.aminmax(flat, dim=1, keepdim=True)
    span = torch.where(high > low, high - low, 1)
    place = ((flat - low) / span * _BINS).nan_to_num().long().clamp(0, _BINS - 1)  # the last bin holds its upper end
    counts = flat.new_zeros(len(flat), _BINS).scatter_add(1, place, torch.ones_like(flat))
    entropy = torch.special.entr(counts / flat.shape[1]).sum(dim=1)
    return torch.where(flat.isfinite().all(dim=1), entropy, torch.nan).float()


def _own_and_rival(
    method: Method, model: nn.Module, images: Tensor, targets: Targets, forward_fn: ForwardFn | None
) -> tuple[Tensor, Tensor]:
    """Return (N,) int64 twice: the class of each image that is explained, and the most probable other one."""
    request = TargetRequest(targets, len(images))
    if not request.explains_classes or request.several:
        raise ValueError(
            f"targets={targets!r} must be one class for each of the {len(images)} images, so that there is another "
            "class to compare with; leave targets out for the predicted ones"
        )
    with isolated(model):
        options = Options(method.batch_size, method.multi_label, outputs=method.outputs)
        network = Network(model, images, forward_fn, options)
        scores = network.scores()
        own = request.resolve(slice(None), None, scores, network.outputs)
    assert isinstance(own, Tensor)
    return own.squeeze(1), most_probable_other(scores.logits, own)


def _with_random_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy whose parameters of two or more dimensions are drawn anew, normal with their own deviation.

    Raises:
        TypeError: The model cannot be copied, or has no such parameters.
    """
    try:
        other = copy.deepcopy(model)
    except Exception as error:
        raise TypeError(
            f"{type(model).__name__} cannot be copied, so that no weights can be random: {error}"
        ) from error
    neighbors.known_of_copy(model, other)
    generator = torch.Generator().manual_seed(seed)
    is_random = False
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.ndim < 2 or not parameter.is_floating_point() or parameter.numel() == 0:
                continue
            if not (parameter != parameter.flatten()[0]).any():
                continue  # the same number everywhere: what is drawn would be 0
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.copy_(noise * parameter.std(correction=0))
            is_random = True
    if not is_random:
        raise TypeError(
            f"{type(model).__name__} has no parameters that can be random: floating point ones of two dimensions or "
            "more, as quantized models and those that keep their weights in buffers have none"
        )
    return other
