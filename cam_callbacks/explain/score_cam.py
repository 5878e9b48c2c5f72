"""Score-CAM: each channel weighted by the score of the image seen through it (Wang et al. 2020, arXiv 1910.01279)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from cam_callbacks._checks import check_bool, check_choice, check_fraction, check_positive
from cam_callbacks.explain import progress
from cam_callbacks.explain.adaptive import AdaptiveSearch
from cam_callbacks.explain.explanation import has_contrast, min_max
from cam_callbacks.explain.forward_pass import ForwardPass
from cam_callbacks.explain.method import LayerMap, Method
from cam_callbacks.explain.network import Network, TargetLayer
from cam_callbacks.explain.runner import Options
from cam_callbacks.explain.score_readers import Score, ScoreReader
from cam_callbacks.explain.surrogate import TINY, Scale, difference_of_sides, scales_of_sides, unless_rounding
from cam_callbacks.explain.targets import Targets

_SCORES: dict[str, Score] = {"logit-softmax": "logit", "contrast": "log-odds"}
"""Which score of a class a weighting reads; the others read the probability."""

Weighting = Literal["probability", "logit-softmax", "increase", "matlab", "contrast"]


@dataclass(frozen=True)
class ScoreCAM(Method):
    r"""Score-CAM, with as few forward passes as the tolerance allows; exact with `tolerance=0`.

    For an image x, a class c and activations A_k, with U the upsampling to the size of x:

        H_k  = (U(A_k) - min) / (max - min)
        heat = ReLU(sum_k w_k A_k),   w_k from the scores of x * H_k

    then upsampled and scaled to [0, 1] for each image. A constant A_k masks nothing: it is *dead*, costs no pass and
    weighs 0. Masked images are forwarded in chunks that are filled across images, so that memory depends on
    `batch_size` only; several targets of one image share all passes.

    The paper can be read in several ways. With p_c the probability and z_c the logit of c:

    - `"probability"`, the default: w_k = p_c(x * H_k). The authors' code and the paper's section 3.2.
    - `"logit-softmax"`: w_k = softmax over the live k of z_c(x * H_k). The paper's Algorithm 1.
    - `"increase"`: w_k = p_c(x * H_k) - p_c(0). The paper's Definitions 4 and 5. The map can come out blank: when no
      mask raises the probability above that of the empty image.
    - `"matlab"`: w_k = softmax over the live k of p_c(x * H_k) - p_c(x), on maps A_k that are each scaled to [0, 1]
      before they are summed; as in a widely read MATLAB script. A softmax over differences of probabilities is almost
      flat: the map is close to the plain mean of the activations and says little about the class. It is meant for
      comparison.
    - `"contrast"`: w_k = c(L(x * H_k)) - c(L(x * (1 - H_k))), with the log-odds L = log(p_c / (1 - p_c)), and c(v) = v
      minus its mean over the live k; both terms are scaled to the mean of their standard deviations. Ours: what any
      mask does to the score cancels, and with it the plain mean of the channels, so that classes have different maps,
      those of a two-class head opposite weights. Evidence that all channels share cancels, too. It takes two passes a
      channel, or one with `complement=False`, which leaves out the second term. Where only one channel is live, or all
      score alike, nothing is subtracted; with one side such a map is blank.

    On two-class heads `"probability"` and `"logit-softmax"` give both classes nearly the same map; use `"contrast"`, or
    `GradCAM`, to compare two classes there. The score s of a callable is not a probability, and its zero means nothing:
    `"probability"` is then s(x * H_k) - s(0), like `"increase"`, and the others use s in place of z_c, p_c and L.

    *Adaptive.* Most channels need not be forwarded: from the scores of a few, a Gaussian process predicts the weights
    of the others and how wrong the heatmap may be (`cam_callbacks.explain.surrogate`). An image is done when that error
    is at most `tolerance`. The error is 1 - r, with r the Pearson correlation with the exact map at the resolution of
    the layer; the estimate is an upper bound that holds for at least 9 of 10 images
    (`benchmarks/accuracy_of_adaptive.py`). `"matlab"` is always exact.

    Attributes:
        weighting: How the weight of a channel follows from the score of its masked image.
        tolerance: The estimated error of the heatmap at which an image is done, 0 (every channel is forwarded) to 1.
        max_passes: The most masked images that are forwarded for each image and layer, whatever the tolerance; the
            error that is reported may then be above it. None for no limit.
        complement: Whether `"contrast"` asks for both sides of each mask; None for yes.
        compile: Forward the masked images through a compiled copy of the model. The first call takes a minute or so
            longer; give all calls the same `compiled` for the others to reuse it.
        upsampling: See `Method`; masks are always upsampled linearly.
        multi_label: See `Method`.
        outputs: See `Method`.
        reshape_transform: See `Method`.
        batch_size: See `Method`.

    Raises:
        ValueError: An unknown weighting, a number out of range, or `complement` with another weighting.

    Example::

        from torchvision.models import resnet18
        from cam_callbacks import ScoreCAM

        images = torch.rand(2, 3, 224, 224)
        explanation = ScoreCAM()(resnet18(), images, target_layer="layer4", targets=[3, 7])
        explanation.heatmaps.shape  # (2, 224, 224)
    """

    weighting: Weighting = "probability"
    _: KW_ONLY
    tolerance: float = 0.02
    max_passes: int | None = None
    complement: bool | None = None
    compile: bool = False
    name: ClassVar[str] = "Score-CAM"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("weighting", self.weighting, get_args(Weighting))
        check_fraction("tolerance", self.tolerance, "a number of at least 0 (exact) and below 1")
        check_positive("max_passes", self.max_passes, or_none=True)
        if self.complement is not None:
            check_bool("complement", self.complement)
        check_bool("compile", self.compile)
        if self.complement and self.weighting != "contrast":
            raise ValueError(f'complement=True needs weighting="contrast", not {self.weighting!r}')
        fewest = 2 * self._sides
        if self.weighting == "contrast" and self.max_passes is not None and self.max_passes < fewest:
            sides = " from both sides" if self._uses_complement else ""
            raise ValueError(
                f"max_passes={self.max_passes} is too few: by contrast channels are compared{sides}, which takes "
                f"{fewest} at least"
            )
        if self.weighting == "matlab" and self.max_passes is not None:
            raise ValueError(
                f'max_passes={self.max_passes} cannot be kept with weighting="matlab", which is always exact'
            )

    @property
    def _sides(self) -> int:
        return 2 if self._uses_complement else 1

    @property
    def _uses_complement(self) -> bool:
        return self.weighting == "contrast" if self.complement is None else self.complement

    def _options(self) -> Options:
        return replace(super()._options(), compile=self.compile)

    def forward_pass(self, network: Network, target_layer: TargetLayer, targets: Targets) -> ForwardPass:  # noqa: D102
        score = _SCORES.get(self.weighting, "probability")
        forward_pass = network.forward_pass(target_layer, targets, score)
        needs_empty = self.weighting == "increase" or (self.weighting == "probability" and forward_pass.scores is None)
        if not needs_empty:
            return forward_pass
        empty_scores = network.empty_scores(forward_pass.reader)
        if not torch.isfinite(empty_scores).any():
            others = "probability" if forward_pass.scores is not None else "logit-softmax"
            raise ValueError(
                f"weighting={self.weighting!r} compares with the score of the image that is 0 everywhere, which is "
                "not finite: the model divides by what is 0 there, such as the standard deviation of an image. Use "
                f"ScoreCAM(weighting={others!r}), which does without that image, or let the model add a small number "
                "to what it divides by"
            )
        return replace(forward_pass, empty_scores=empty_scores)

    def layer_map(self, network: Network, forward_pass: ForwardPass, layer: int) -> LayerMap:  # noqa: D102
        activations = forward_pass.activations[layer]
        masks = forward_pass.covering(activations, layer, repeats_edges=True)
        # Not the activations: a channel may live only where the model pads the image.
        live = has_contrast(masks) & forward_pass.finite.unsqueeze(1)
        progress.expect(int(live.sum()) * self._sides)
        scorer = _MaskedScorer(network, masks, forward_pass.reader)
        offset = torch.zeros_like(forward_pass.target_scores)
        if forward_pass.empty_scores is not None:
            offset = forward_pass.empty_scores
            scorer.passes += int(layer == 0)
        exact = self.weighting == "matlab" or (self.tolerance == 0 and self.max_passes is None)
        with network.simplified():
            if exact:
                weights = self._exact_weights(scorer, live, offset, forward_pass.target_scores)
                error = torch.zeros_like(offset)
            else:
                weights, error = self._adaptive_weights(scorer, live, offset, self._scale(forward_pass))
        maps = activations
        if self.weighting == "matlab":
            maps = min_max(activations.flatten(0, 1)).view_as(activations)
        return LayerMap.weighted(maps, weights, scorer.passes, error)

    def _scale(self, forward_pass: ForwardPass) -> Scale:
        if self.weighting == "logit-softmax":
            return "logit"
        if self.weighting == "contrast":
            return "contrast"
        return "score" if forward_pass.scores is None else "probability"

    def _exact_weights(self, scorer: _MaskedScorer, live: Tensor, offset: Tensor, own_scores: Tensor) -> Tensor:
        """Return weights (N, T, K) from the scores of all live channels.

        Args:
            scorer: Scores masked images.
            live: (N, K) bool.
            offset: (N, T), subtracted from all scores.
            own_scores: (N, T), the scores of the unmasked images.
        """
        image, channel = live.nonzero(as_tuple=True)
        sides = []
        for turned in (None, torch.ones_like(image, dtype=torch.bool))[: self._sides]:
            # (pairs, T) -> (N, K, T) -> (N, T, K)
            of_side = torch.zeros(*live.shape, offset.shape[1], device=live.device)
            of_side[image, channel] = scorer(image, channel, turned)
            sides.append(of_side.movedim(2, 1))
        scores, alive = sides[0], live.unsqueeze(1)
        if self.weighting == "logit-softmax":
            return _softmax_over(alive, scores)
        if self.weighting == "matlab":
            return _softmax_over(alive, scores - own_scores.unsqueeze(2))
        if self.weighting == "contrast":
            return _contrasts(alive, sides, [_spread(alive, each) for each in sides])
        return torch.where(alive, scores - offset.unsqueeze(2), 0)

    def _adaptive_weights(
        self, scorer: _MaskedScorer, live: Tensor, offset: Tensor, scale: Scale
    ) -> tuple[Tensor, Tensor]:
        """Return weights (N, T, K), most of them predicted, and the estimated error (N, T) of each heatmap.

        Args:
            scorer: Scores masked images.
            live: (N, K) bool.
            offset: (N, T), subtracted from all scores.
            scale: The kind of scores.
        """
        search = AdaptiveSearch(scorer, scale, self._sides, self.tolerance, self.max_passes, scorer.smallest)
        found = search.weights(scorer.activations, live, offset)
        sides, spreads = found.weights.unbind(dim=2), found.spread.unsqueeze(3).unbind(dim=2)
        weights = sides[0]
        if scale == "logit":
            weights = weights / weights.sum(dim=2, keepdim=True).clamp_min(TINY)  # 0 where no channel is live
        if scale == "contrast":
            weights = _contrasts(live.unsqueeze(1).to(weights.device), sides, spreads)
        return weights.float().to(live.device), found.error.to(offset)


class _MaskedScorer:
    """Scores images masked by channels, and counts the passes of each image.

    Attributes:
        activations: (N, K, *spatial of the layer), positions that cover the image.
        passes: (N,) int64.
    """

    def __init__(self, network: Network, activations: Tensor, reader: ScoreReader) -> None:
        self._network, self._reader = network, reader
        self.activations = activations
        self.passes = torch.zeros(len(activations), dtype=torch.int64, device=activations.device)

    def smallest(self, number: int) -> int:
        """Return the smallest number of all ranks that run the model together."""
        return self._network.ranks.smallest(number, self.activations.device)

    def __call__(self, image: Tensor, channel: Tensor, turned: Tensor | None = None) -> Tensor:
        """Return scores (pairs, T) of images (pairs,) masked by channels (pairs,), or by one minus them."""
        self.passes.index_add_(0, image, torch.ones_like(image))
        return self._network.masked_scores(self.activations, image, channel, self._reader, turned)


def _contrasts(live: Tensor, sides: Sequence[Tensor], spreads: Sequence[Tensor]) -> Tensor:
    """Return the weights (..., K) by contrast.

    If no score moves, as that of a single channel cannot, channels cannot be compared. Then the weight is the
    difference of the two sides itself, or 0 for one side.

    Args:
        live: (..., K) bool.
        sides: Of each side of the masks, the scores (..., K).
        spreads: Of each side, (..., 1), the standard deviation of its scores over the live channels.
    """
    centered = [scores - torch.where(live, scores, torch.nan).nanmean(dim=-1, keepdim=True) for scores in sides]
    weights = difference_of_sides(centered, scales_of_sides(spreads))
    alone = sides[0] - sides[1] if len(sides) == 2 else 0
    moves = torch.stack(list(spreads)).amax(dim=0) > 0
    return torch.where(live, torch.where(moves, weights, alone), 0)


def _spread(live: Tensor, scores: Tensor) -> Tensor:
    """Return (..., 1), the standard deviation of scores (..., K) over the live channels; 0 for what is rounding."""
    known = torch.where(live, scores, torch.nan)
    deviation = (known - known.nanmean(dim=-1, keepdim=True)).square().nanmean(dim=-1, keepdim=True).sqrt()
    largest = torch.where(live, scores.abs(), 0).amax(dim=-1, keepdim=True)
    return unless_rounding(deviation, largest)


def _softmax_over(live: Tensor, values: Tensor) -> Tensor:
    """Return the softmax of (N, T, K) values over the live channels of each image; dead ones weigh 0."""
    weights = values.masked_fill(~live, -torch.inf).softmax(dim=2)
    return torch.where(live, weights, 0)
