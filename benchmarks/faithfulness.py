"""Is a heatmap to be trusted? Average drop, increase, insertion, deletion, class discrimination, blank maps.

For the predicted class c of each photo x, with the map H in [0, 1] and p the probability of c:

- average drop: mean of max(0, p(x) - p(x')) / p(x), and increase: share of photos with p(x') > p(x), where x' keeps the
  half of the pixels that the map ranks highest (Chattopadhay et al. 2018; lower and higher are better);
- insertion, deletion: area under p while pixels are added to a blurred photo, or taken to the mean color, hottest
  first (Petsiuk et al. 2018; higher and lower are better);
- other class: Pearson correlation with the map of the sixth most probable class (lower tells classes apart; 1: the map
  says nothing of the class);
- blank: share of maps without contrast.

The plain mean of the activations stands beside them: a method that does not beat it explains nothing.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import torch
import torch.nn.functional as F
from setting import model, parser, photos, save, table
from speed import channels_of, gradcam, torchcam
from torch import Tensor, nn

from cam_callbacks import CAM, GradCAM, ScoreCAM
from cam_callbacks.explain.explanation import min_max, upsample
from cam_callbacks.explain.faithfulness import correlation
from cam_callbacks.explain.layers import recorded
from cam_callbacks.explain.method import Method
from cam_callbacks.explain.score_cam import Weighting

STEPS = 14
WEIGHTINGS: dict[str, ScoreCAM] = {name: ScoreCAM(name) for name in get_args(Weighting)}
WEIGHTINGS["contrast, both sides"] = ScoreCAM("contrast", complement=True)


def main() -> None:
    """Score each method, print the table, write JSON."""
    options = parser(__doc__ or "")
    options.add_argument("--model", default="squeezenet1_1")
    options.add_argument("--layer", default="features")
    options.add_argument("--images", type=int, default=40)
    options.add_argument("--peers", action="store_true", help="torchcam and grad-cam too, which take long")
    args = options.parse_args()
    if args.short:
        args.images, args.size = min(args.images, 2), 96
    images = photos(args.data, args.images, args.size).to(args.device)
    network = model(args.model, args.weights, args.device)
    with torch.no_grad():
        ranked = network(images).argsort(dim=1, descending=True)
    top, sixth = ranked[:, 0], ranked[:, 5]

    rows = []
    for name, explain in methods(network, args.layer, images, args.peers).items():
        heatmaps, passes = explain(top)
        others, _ = explain(sixth)
        scores = faithfulness(network, images, top, heatmaps)
        blank = float((heatmaps.flatten(1).amax(dim=1) == 0).float().mean())
        apart = correlation(heatmaps, others).nanmean()  # blank maps are counted beside
        rows.append((name, passes, *(f"{score:.3f}" for score in scores), f"{apart:.2f}", f"{blank:.0%}"))
        print(rows[-1], flush=True)
    header = ("", "passes", "average drop", "increase", "insertion", "deletion", "other class", "blank")
    print(f"\n{args.model}, {len(images)} photos\n\n" + table(header, rows))
    save("faithfulness", rows)


Explain = Callable[[Tensor], tuple[Tensor, str]]


def methods(network: nn.Module, layer: str, images: Tensor, peers: bool) -> dict[str, Explain]:
    """Each gives the heatmaps (N, H, W) of classes (N,), and what an image cost."""
    found: dict[str, Explain] = {"mean activation": lambda _: (mean_activation(network, layer, images), "1")}
    replay = Replay(network)
    for name, method in WEIGHTINGS.items():
        found[f"Score-CAM, exact, {name}"] = ours(replace(method, tolerance=0), replay, layer, images)
    for name, method in WEIGHTINGS.items():
        if name != "matlab":  # always exact
            found[f"Score-CAM, adaptive, {name}"] = ours(method, Replay(network), layer, images)
    found["Grad-CAM"] = ours(GradCAM(), Replay(network), layer, images)
    found["CAM"] = ours(CAM(), Replay(network), None, images)
    if peers:
        channels = str(channels_of(network, layer, images))
        found["torchcam's Score-CAM"] = lambda c: (full(torchcam(network, layer, images, c)()[0], images), channels)  # type: ignore[index]
        found["grad-cam's Score-CAM"] = lambda c: (
            torch.as_tensor(gradcam(network, layer, images, c)()).to(images),
            channels,
        )
    return found


class Replay:
    """Forwards images, and answers the same images from memory: the exact forms all ask for the same."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.known: dict[tuple[int, float], Tensor] = {}

    def __call__(self, network: nn.Module, images: Tensor) -> Tensor:
        """The network's answer; always computed while a layer is recorded."""
        if any(module._forward_hooks for module in network.modules()):
            return network(images)  # type: ignore[no-any-return]
        key = (len(images), float(images.double().square().sum()) + float(images.double().sum()))
        if key not in self.known:
            self.known[key] = network(images)
        return self.known[key]


def ours(method: Method, replay: Replay, layer: str | None, images: Tensor) -> Explain:
    """One of our methods."""

    def explain(classes: Tensor) -> tuple[Tensor, str]:
        explanation = method(replay.network, images, layer, classes, forward_fn=replay)
        return explanation.heatmaps.nan_to_num(), f"{explanation.passes.float().mean():.0f}"

    return explain


def mean_activation(network: nn.Module, layer: str, images: Tensor) -> Tensor:
    """The plain mean of the activations as heatmaps."""
    with torch.no_grad(), recorded([network.get_submodule(layer)]) as (outputs,):
        network(images)
    return full(outputs[0].mean(dim=1).relu(), images)


def full(maps: Tensor, images: Tensor) -> Tensor:
    """Maps (N, h, w) at the size of the images, scaled to [0, 1]."""
    return min_max(upsample(maps.to(images), images.shape[2:]))


def faithfulness(network: nn.Module, images: Tensor, classes: Tensor, heatmaps: Tensor) -> tuple[float, ...]:
    """Average drop, increase, insertion and deletion over all photos."""
    whole = probability(network, images, classes)
    half = probability(network, images * hottest(heatmaps, 0.5), classes)
    drop = ((whole - half).clamp_min(0) / whole).mean()
    increase = (half > whole).float().mean()
    blurred = F.avg_pool2d(images, 31, stride=1, padding=15, count_include_pad=False)
    inserted, deleted = [], []
    for step in range(STEPS + 1):
        mask = hottest(heatmaps, step / STEPS)
        inserted.append(probability(network, torch.where(mask, images, blurred), classes))
        deleted.append(probability(network, torch.where(mask, 0, images), classes))
    areas = [torch.trapezoid(torch.stack(curve), dx=1 / STEPS, dim=0).mean() for curve in (inserted, deleted)]
    return tuple(map(float, (drop, increase, *areas)))


def hottest(heatmaps: Tensor, share: float) -> Tensor:
    """(N, 1, H, W) bool: the given share of each map's pixels, the hottest ones."""
    order = heatmaps.flatten(1).argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros_like(order, dtype=torch.bool)
    kept.scatter_(1, order[:, : round(share * order.shape[1])], True)
    return kept.view_as(heatmaps).unsqueeze(1)


def probability(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """(N,) probability of the given class of each image."""
    with torch.no_grad():
        batches = [network(batch.contiguous(memory_format=torch.channels_last)) for batch in images.split(32)]
    return torch.cat(batches).softmax(dim=1).gather(1, classes.unsqueeze(1)).squeeze(1)


if __name__ == "__main__":
    main()
