"""Score-CAM: each channel weighted by the score of the image seen through it (Wang et al. 2020, arXiv 1910.01279)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from cam_callbacks.explanation import Explanation, has_contrast, min_max, upsample
from cam_callbacks.methods.compiled import Compiled
from cam_callbacks.methods.method import Method
from cam_callbacks.methods.network import Look, Network, Progress
from cam_callbacks.methods.surrogate import Surrogate
from cam_callbacks.targets import ClassScores, ForwardFn
from cam_callbacks.undisturbed import undisturbed

_LANDMARKS = 16
_CHANNELS_A_ROUND = 8

Weighting = Literal["probability", "logit-softmax", "increase", "matlab"]


@dataclass(frozen=True)
class ScoreCAM(Method):
    r"""Score-CAM, with as few forward passes as the tolerance allows; exact with `tolerance=0`.

    For an image x, a class c and activations A_k, with U the upsampling to the size of x:

        H_k  = (U(A_k) - min) / (max - min)
        heat = ReLU(sum_k w_k A_k),   w_k from the scores of x * H_k

    then upsampled and scaled to [0, 1] for each image. A constant A_k masks nothing: it is *dead*, costs no pass and
    weighs 0. Masked images are forwarded in chunks that are filled across images, so that memory depends on
    `batch_size`.

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

    *Adaptive.* Most channels need not be forwarded: from the scores of a few a Gaussian process predicts the weights of
    the others, and how wrong the heatmap may be (`cam_callbacks.methods.surrogate`). Each image is done when that error
    is below `tolerance`. The error is 1 - r, with r the Pearson correlation with the exact map at the resolution of the
    layer; the estimate is an upper bound that holds for at least 9 of 10 images
    (`benchmarks/accuracy_of_adaptive.py`). `"matlab"` is always exact.

    Attributes:
        weighting: How the weight of a channel follows from the score of its masked image.
        tolerance: The estimated error of the heatmap at which an image is done, 0 (every channel is forwarded) to 1.
        max_passes: At most so many masked images are forwarded for each image, whatever the tolerance; the error that
            is then reported may be above it. None for no limit.
        batch_size: Masked images forwarded at once; None for 32 on a CPU, and as free memory allows on a GPU. It is
            halved whenever memory runs out.
        compile: Forward the masked images through a compiled copy of the model, kept for the next call. The first call
            takes a minute or so longer.

    Raises:
        ValueError: An unknown weighting, or a number out of range.

    Example::

        from torchvision.models import resnet18
        from cam_callbacks import ScoreCAM

        images = torch.rand(2, 3, 224, 224)
        explanation = ScoreCAM()(resnet18(), images, target_layer="layer4", targets=[3, 7])
        explanation.heatmaps.shape  # (2, 224, 224)
    """

    weighting: Weighting = "probability"
    tolerance: float = 0.02
    max_passes: int | None = None
    batch_size: int | None = None
    compile: bool = False
    name: ClassVar[str] = "Score-CAM"
    _compiled: Compiled = field(default_factory=Compiled, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.weighting not in get_args(Weighting):
            choices = ", ".join(map(repr, get_args(Weighting)))
            raise ValueError(f"weighting={self.weighting!r} is unknown; choose one of {choices}")
        if not isinstance(self.tolerance, (int, float)) or not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance={self.tolerance!r} must be a number of at least 0 (exact) and below 1")
        for argument in ("max_passes", "batch_size"):
            value = getattr(self, argument)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{argument}={value!r} must be a whole number of at least 1, or None")
        if self.weighting == "matlab" and self.max_passes is not None:
            raise ValueError(
                f'max_passes={self.max_passes} cannot be kept with weighting="matlab", which is always exact'
            )

    def release(self) -> None:
        """Let go of the compiled model."""
        self._compiled.release()

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
            network = Network(model, images, forward_fn, self.batch_size, self._compiled if self.compile else None)
            return self._explain(network, network.look(target_layer, targets), progress)

    def _explain(self, network: Network, look: Look, progress: Progress | None) -> Explanation:
        activations, scores, targets = look.activations, look.scores, look.targets
        finite = torch.isfinite(activations).flatten(1).all(dim=1) & torch.isfinite(scores.probabilities).all(dim=1)
        live = has_contrast(activations) & finite.unsqueeze(1)
        empty = torch.zeros(len(targets), device=targets.device)
        if self.weighting == "increase":
            empty = network.empty_probabilities()[targets]
        ask = _Asked(network, look, progress, total=int(live.sum()))
        exact = self.weighting == "matlab" or (self.tolerance == 0 and self.max_passes is None)
        weigh = self._exact_weights if exact else self._adaptive_weights
        weights, error = weigh(ask, look, live, empty)

        maps = activations
        if self.weighting == "matlab":
            maps = min_max(activations.flatten(0, 1)).view_as(activations)
        skipped = ~(finite & torch.isfinite(weights).all(dim=1))
        raw = torch.stack([_weighted_sum(*pair) for pair in zip(weights, maps, strict=True)]).relu()
        heatmaps = min_max(upsample(raw, network.images.shape[2:]))
        raw[skipped], heatmaps[skipped], error[skipped] = torch.nan, torch.nan, torch.nan
        return Explanation(
            heatmaps=heatmaps,
            raw=raw,
            targets=targets,
            scores=scores.logits,
            probabilities=scores.probabilities,
            target_layer=look.layer,
            passes=1 + ask.passes + (self.weighting == "increase"),
            error=error,
            skipped=skipped,
        )

    def _exact_weights(self, ask: _Asked, look: Look, live: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (N, K) from the score of every live channel, and the error (N,), which is 0."""
        image, channel = live.nonzero(as_tuple=True)
        masked = ask(image, channel)
        # (pairs,) -> (N, K)
        logits, probabilities = (torch.zeros_like(live, dtype=torch.float32) for _ in range(2))
        logits[image, channel], probabilities[image, channel] = masked.logits, masked.probabilities
        if self.weighting == "logit-softmax":
            weights = _softmax_over(live, logits)
        elif self.weighting == "matlab":
            unmasked = look.scores.probabilities.gather(1, look.targets.unsqueeze(1))
            weights = _softmax_over(live, probabilities - unmasked)
        else:
            weights = torch.where(live, probabilities - empty.unsqueeze(1), 0)
        return weights, torch.zeros_like(empty)

    def _adaptive_weights(self, ask: _Asked, look: Look, live: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (N, K) with most of them predicted, and the estimated error (N,) of each heatmap.

        All images that are not done ask for a few channels, which are forwarded together so that chunks stay full.
        """
        searches = {
            index: _Search(look.activations[index], channels.nonzero().flatten(), float(empty[index]), self)
            for index, channels in enumerate(live)
            if channels.any()
        }
        active = dict(searches)
        while active:
            image = torch.cat([torch.full_like(search.wanted, index) for index, search in active.items()])
            channel = torch.cat([search.wanted for search in active.values()])
            masked = ask(image, channel)
            for index, search in list(active.items()):
                search.learn(ClassScores(masked.logits[image == index], masked.probabilities[image == index]))
                if search.done:
                    del active[index]
        weights = torch.zeros_like(live, dtype=torch.float32)
        error = torch.zeros_like(empty)
        for index, search in searches.items():
            weights[index, search.channels] = search.weights()
            error[index] = search.error
        return weights, error


class _Asked:
    """Answers with the scores of masked images; counts them for each image, and tells the progress."""

    def __init__(self, network: Network, look: Look, progress: Progress | None, total: int) -> None:
        self._network, self._look = network, look
        self._progress, self._total, self._done = progress, total, 0
        self.passes = torch.zeros_like(look.targets)

    def __call__(self, image: Tensor, channel: Tensor) -> ClassScores:
        self.passes += torch.bincount(image, minlength=len(self.passes))
        return self._network.masked_scores(self._look.activations, image, channel, self._look.targets, self._advance)

    def _advance(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


class _Search:
    """The search for the weights of one image: what to forward next, and when it is done.

    Attributes:
        channels: (n,) the live channels.
        wanted: The channels to forward next.
        done: Whether none are wanted any more.
        error: The estimated error of the heatmap.
    """

    def __init__(self, activations: Tensor, channels: Tensor, empty: float, settings: ScoreCAM) -> None:
        self.channels = channels
        self.error = 1.0
        self.done = False
        self._tolerance = settings.tolerance
        self._left = len(channels) if settings.max_passes is None else min(settings.max_passes, len(channels))
        self._softmax = settings.weighting == "logit-softmax"
        # The surrogate wants double precision, which MPS has not; and none of the trainer's autocast.
        self._place = "cpu" if channels.device.type == "mps" else channels.device
        with torch.autocast(channels.device.type, enabled=False):
            maps = activations[channels].to(self._place)
            self._surrogate = Surrogate(maps, offset=empty, ceiling=None if self._softmax else 0.0)
            few = self._left <= _LANDMARKS + _CHANNELS_A_ROUND
            self._asked = self._surrogate.landmarks(self._left if few else _LANDMARKS)

    @property
    def wanted(self) -> Tensor:
        return self.channels[self._asked.to(self.channels.device)]

    def learn(self, scores: ClassScores) -> None:
        """Take in the scores of the wanted channels, and settle what is wanted next."""
        self._left -= len(self._asked)
        values = (scores.logits if self._softmax else scores.probabilities.clamp_min(1e-30).log()).to(self._place)
        if not torch.isfinite(values).all():
            self.error, self.done = torch.nan, True
            return
        with torch.autocast(values.device.type, enabled=False):
            self._surrogate.observe(self._asked, values)
            self.error, self._asked = self._surrogate.plan(min(_CHANNELS_A_ROUND, self._left))
        self.done = self.error <= self._tolerance or len(self._asked) == 0

    def weights(self) -> Tensor:
        """(n,) float32, NaN where a score was not finite."""
        if self.error != self.error:
            return torch.full(self.channels.shape, torch.nan, device=self.channels.device)
        weights = self._surrogate.weights
        if self._softmax:
            weights = weights / weights.sum()
        return weights.float().to(self.channels.device)


def _weighted_sum(weights: Tensor, maps: Tensor) -> Tensor:
    """Sum of maps (K, *spatial) by weights (K,), in double precision where the device has it: no autocast, no TF32."""
    exact = torch.float32 if maps.device.type == "mps" else torch.float64
    with torch.autocast(maps.device.type, enabled=False):
        total: Tensor = torch.tensordot(weights.to(exact), maps.to(exact), dims=1)
        return total.float()


def _softmax_over(live: Tensor, values: Tensor) -> Tensor:
    """Softmax of (N, K) values over the live channels of each image; dead ones weigh 0, also where none is live."""
    weights = values.masked_fill(~live, -torch.inf).softmax(dim=1)
    return torch.where(live, weights, 0)
