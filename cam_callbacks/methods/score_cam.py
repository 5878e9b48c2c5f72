"""Score-CAM: each channel weighted by the score of the image seen through it (Wang et al. 2020, arXiv 1910.01279)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from cam_callbacks.explanation import Explanation, has_contrast, min_max, upsample
from cam_callbacks.methods.method import Method
from cam_callbacks.methods.network import Look, Network, Progress
from cam_callbacks.targets import ForwardFn
from cam_callbacks.undisturbed import undisturbed

Weighting = Literal["probability", "logit-softmax", "increase", "matlab"]


@dataclass(frozen=True)
class ScoreCAM(Method):
    r"""Score-CAM, exact: one forward pass for each live channel of the target layer.

    For an image x, a class c and activations A_k, with U the upsampling to the size of x:

        H_k  = (U(A_k) - min) / (max - min)
        heat = ReLU(sum_k w_k A_k),   w_k from the scores of x * H_k

    then upsampled and scaled to [0, 1] for each image. A constant A_k masks nothing: it is *dead*, costs no pass and
    weighs 0. The masked images are forwarded in chunks that are filled across images, so that memory depends on
    `batch_size` alone.

    The paper can be read in several ways. With p_c the probability and z_c the logit of c:

    - `"probability"`: w_k = p_c(x * H_k). The authors' code and the paper's section 3.2.
    - `"logit-softmax"`: w_k = softmax over the live k of z_c(x * H_k). The paper's Algorithm 1.
    - `"increase"`: w_k = p_c(x * H_k) - p_c(0). The paper's Definitions 4 and 5. Tells classes apart best, but the
      map can come out blank, when no mask raises the probability above that of the empty image.
    - `"matlab"`: w_k = softmax over the live k of p_c(x * H_k) - p_c(x), on maps A_k that are each scaled to [0, 1]
      before they are summed; as in the MATLAB example. A softmax over differences of probabilities is almost flat:
      the map is close to the plain mean of the activations and says little of the class. It is there for comparison.

    On two-class heads `"probability"` and `"logit-softmax"` give both classes nearly the same map; use `"increase"`
    to compare two classes there.

    Attributes:
        weighting: How the weight of a channel follows from the score of its masked image.
        batch_size: Masked images forwarded at once.

    Raises:
        ValueError: An unknown weighting, or a batch size below 1.

    Example::

        from torchvision.models import resnet18
        from cam_callbacks import ScoreCAM

        images = torch.rand(2, 3, 224, 224)
        explanation = ScoreCAM()(resnet18(), images, target_layer="layer4", targets=[3, 7])
        explanation.heatmaps.shape  # (2, 224, 224)
    """

    weighting: Weighting = "probability"
    batch_size: int = 32
    name: ClassVar[str] = "Score-CAM"

    def __post_init__(self) -> None:
        if self.weighting not in get_args(Weighting):
            raise ValueError(
                f"weighting={self.weighting!r} is unknown; choose one of {', '.join(map(repr, get_args(Weighting)))}"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")

    def __call__(  # noqa: D102 - documented in Method
        self,
        model: nn.Module,
        images: Tensor,
        target_layer: str | nn.Module | None = None,
        targets: int | Sequence[int] | Tensor | None = None,
        *,
        forward_fn: ForwardFn | None = None,
        progress: Progress | None = None,
    ) -> Explanation:
        with undisturbed(model):
            network = Network(model, images, forward_fn, self.batch_size)
            return self._explain(network, network.look(target_layer, targets), progress)

    def _explain(self, network: Network, look: Look, progress: Progress | None) -> Explanation:
        activations, scores, targets = look.activations, look.scores, look.targets
        finite = torch.isfinite(activations).flatten(1).all(dim=1) & torch.isfinite(scores.probabilities).all(dim=1)
        live = has_contrast(activations) & finite.unsqueeze(1)
        image, channel = live.nonzero(as_tuple=True)
        masked = network.masked_scores(activations, image, channel, targets, progress)

        # (pairs,) -> (N, K)
        logits, probabilities = (torch.zeros_like(live, dtype=torch.float32) for _ in range(2))
        logits[image, channel], probabilities[image, channel] = masked.logits, masked.probabilities
        maps = activations
        if self.weighting == "probability":
            weights = probabilities
        elif self.weighting == "logit-softmax":
            weights = _softmax_over(live, logits)
        elif self.weighting == "increase":
            weights = torch.where(live, probabilities - network.empty_probabilities()[targets].unsqueeze(1), 0)
        else:
            weights = _softmax_over(live, probabilities - scores.probabilities.gather(1, targets.unsqueeze(1)))
            maps = min_max(activations.flatten(0, 1)).view_as(activations)

        skipped = ~(finite & torch.isfinite(weights).all(dim=1))
        with torch.autocast(maps.device.type, enabled=False):
            raw = torch.einsum("nk,nk...->n...", weights, maps).relu()
        heatmaps = min_max(upsample(raw, network.images.shape[2:]))
        raw[skipped], heatmaps[skipped] = torch.nan, torch.nan
        return Explanation(
            heatmaps=heatmaps,
            raw=raw,
            targets=targets,
            scores=scores.logits,
            probabilities=scores.probabilities,
            target_layer=look.layer,
            passes=1 + live.sum(dim=1) + (self.weighting == "increase"),
            error=torch.zeros_like(targets, dtype=torch.float32),
            skipped=skipped,
        )


def _softmax_over(live: Tensor, values: Tensor) -> Tensor:
    """Softmax of (N, K) values over the live channels of each image; dead ones weigh 0, also where none is live."""
    weights = values.masked_fill(~live, -torch.inf).softmax(dim=1)
    return torch.where(live, weights, 0)
