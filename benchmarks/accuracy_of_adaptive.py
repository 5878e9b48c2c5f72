"""How near the adaptive Score-CAM comes to the exact one, against passes; and whether its estimated error is honest.

Every channel of every photo is forwarded once; then each way of choosing channels is replayed on these scores.
Pearson and Spearman correlation with the exact map are taken at the resolution of the layer. Beside ours, with the
same number of passes: the channels of most energy, those of most variance (the others weigh nothing), and k-means
groups of masks, one of each forwarded.

Photos are taken in random order, each of them a line of a file: called again, it goes on where it was stopped.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from setting import RESULTS, Line, lines_of, model, parser, photos, run_each, table
from torch import Tensor

from cam_callbacks.explain.adaptive import AdaptiveSearch
from cam_callbacks.explain.explanation import has_contrast
from cam_callbacks.explain.isolation import isolated
from cam_callbacks.explain.model_outputs import class_scores, log_odds_of
from cam_callbacks.explain.network import Network
from cam_callbacks.explain.score_readers import ScoreReader
from cam_callbacks.explain.surrogate import Scale, difference_of_sides, scales_of_sides
from cam_callbacks.explain.trust import correlation, rank_correlation

PASSES = (32, 64, 128)
TOLERANCES = (0.05, 0.02, 0.01, 0.005)
WEIGHTINGS = ("probability", "logit-softmax", "contrast", "contrast, one side")


def main() -> None:
    """Replay all ways of choosing, print the tables, write JSON."""
    options = parser(__doc__ or "")
    options.add_argument("--model", default="squeezenet1_1")
    options.add_argument("--layer", default="features")
    options.add_argument("--images", type=int, default=40)
    options.add_argument("--weightings", nargs="+", choices=WEIGHTINGS, default=WEIGHTINGS)
    options.add_argument("--out", type=Path, help="file of results; results/adaptive_MODEL.jsonl if not given")
    args = options.parse_args()
    if args.short:
        args.images, args.size = min(args.images, 3), 96
    path = args.out or RESULTS / f"adaptive_{args.model}{'_short' if args.short else ''}.jsonl"
    known = {line["photo"] for line in lines_of(path)}
    setting = (args.model, args.weights, args.layer, args.data, args.images, args.size, args.device)
    order = random.Random(0).sample(range(args.images), args.images)
    wanted = [(photo, setting, args.weightings) for photo in order if photo not in known]
    for number, _ in enumerate(run_each(photo_of, wanted, 1, path), 1):
        print(f"\r{number} of {len(wanted)}", end="", flush=True)
    print_tables(args.model, lines_of(path))


def print_tables(name: str, lines: list[Line]) -> None:
    """Print a table for each weighting."""
    channels, live = (sum(line[key] for line in lines) / len(lines) for key in ("channels", "live"))
    header = ("", "passes", "most", "Pearson", "5th percentile", "worst", "Spearman", "worst", "estimate holds")
    for weighting, ways in lines[0]["outcomes"].items():
        rows = [row_of(way, [line["outcomes"][weighting][way] for line in lines]) for way in ways]
        print(f"\n{name}, `{weighting}`, {len(lines)} photos, {live:.0f} live channels of {channels:.0f}\n")
        print(table(header, rows), flush=True)


def photo_of(photo: int, setting: tuple, weightings: list[str]) -> Line:  # type: ignore[type-arg]
    """Try all ways on one photo: a line of the file."""
    name, weights, layer, folder, count, size, device = setting
    images = photos(folder, count, size)[photo : photo + 1].to(device)
    maps, kept, deleted, channels = all_scores(model(name, weights, device), layer, images, "contrast" in weightings)
    outcomes = {weighting: dict(ways(Case(maps, kept, deleted, weighting))) for weighting in weightings}
    return {"photo": photo, "live": len(maps), "channels": channels, "outcomes": outcomes}


def ways(case: "Case") -> Iterator[tuple[str, tuple[int, float, float, float]]]:
    """All ways to choose channels, and what comes of them."""
    for tolerance in TOLERANCES:
        yield f"tolerance {tolerance}", case.ours(tolerance, None)
    for passes in PASSES:
        yield f"ours, {passes} passes", case.ours(0.0, passes)
    for name in ("most energy", "most variance", "k-means groups"):
        for passes in PASSES:
            yield f"{name}, {passes}", case.baseline(name, passes)


def all_scores(
    network: torch.nn.Module, layer: str, image: Tensor, complement: bool
) -> tuple[Tensor, Tensor, Tensor, int]:
    """The live maps (n, *spatial) of an image, their scores kept and deleted (n, 3), and the number of channels."""
    with isolated(network):
        explained = Network(network, image)
        forward_pass = explained.forward_pass(layer, None)
        activations = forward_pass.activations[0]
        live = has_contrast(activations)
        owner, channel = live.nonzero(as_tuple=True)
        reader = AllScores(forward_pass.reader.classes)
        with explained.simplified():
            kept = deleted = explained.masked_scores(activations, owner, channel, reader)
            if complement:
                turned = torch.ones_like(owner, dtype=torch.bool)
                deleted = explained.masked_scores(activations, owner, channel, reader, turned)
    return activations[0][live[0]], kept, deleted, live.shape[1]


class AllScores(ScoreReader):
    """Logit, probability and log-odds of a class at once.

    Args:
        classes: (N, 1) int64.
    """

    score, count = "all", 3

    def __init__(self, classes: Tensor | None) -> None:
        assert classes is not None
        self.classes = classes

    def read(self, output: object, image: Tensor, shared: bool = False) -> Tensor:
        """(B, 3)."""
        scores = class_scores(output)
        each = (*scores, log_odds_of(scores.logits))
        return torch.cat([values.gather(1, self.classes[image]) for values in each], dim=1)


class Case:
    """One photo under one weighting, with everything known."""

    def __init__(self, maps: Tensor, kept: Tensor, deleted: Tensor, weighting: str) -> None:
        self.maps = maps
        logits, probabilities, log_odds = kept.T
        if weighting.startswith("contrast"):
            self.scale: Scale = "contrast"
            self.scores = [log_odds] if weighting.endswith("one side") else [log_odds, deleted[:, 2]]
            self.weights = self.scores[0].double()
            if len(self.scores) == 2:  # each in units of its own deviation
                kept, gone = (each.double() / each.double().std(correction=0) for each in self.scores)
                self.weights = kept - gone
            self.weights -= self.weights.mean()
        else:
            self.scale = "logit" if weighting == "logit-softmax" else "probability"
            self.scores = [logits if self.scale == "logit" else probabilities]
            self.weights = probabilities.double()
            if self.scale == "logit":
                self.weights = (logits.double() - logits.max()).exp()
        self.cost = len(self.scores)
        self.exact = self.map_of(self.weights)

    def map_of(self, weights: Tensor) -> Tensor:
        """The map (1, *spatial) of weights (n,)."""
        if self.scale == "contrast":
            weights = weights - weights.mean()
        return torch.tensordot(weights.double(), self.maps.double(), dims=1).relu().unsqueeze(0)

    def ours(self, tolerance: float, most: int | None) -> tuple[int, float, float, float]:
        """Passes, Pearson, Spearman, estimated error of the adaptive search."""
        passes = 0

        def score(_image: Tensor, channel: Tensor, turned: Tensor | None) -> Tensor:
            nonlocal passes
            passes += len(channel)
            side = torch.zeros_like(channel) if turned is None else turned.long()
            return torch.stack(self.scores)[side, channel].unsqueeze(1)

        search = AdaptiveSearch(score, self.scale, self.cost, tolerance, most)
        live = torch.ones(1, len(self.maps), dtype=torch.bool, device=self.maps.device)
        found = search.weights(self.maps.unsqueeze(0), live, torch.zeros(1, 1, device=self.maps.device))
        weights = difference_of_sides(list(found.weights[0, 0]), scales_of_sides(list(found.spread[0, 0])))
        return (passes, *self.compare(weights), float(found.error))

    def baseline(self, name: str, passes: int) -> tuple[int, float, float, float]:
        """Passes, Pearson, Spearman of another way to choose; it knows no error."""
        flat = self.maps.flatten(1)
        passes = min(passes // self.cost, len(flat))
        if name == "k-means groups":
            group, nearest = groups(flat, passes)
            return (passes * self.cost, *self.compare(self.weights[nearest][group]), torch.nan)
        rank = flat.square().sum(dim=1) if name == "most energy" else flat.var(dim=1)
        kept = torch.zeros_like(self.weights)
        chosen = rank.topk(passes).indices
        kept[chosen] = self.weights[chosen]
        return (passes * self.cost, *self.compare(kept), torch.nan)

    def compare(self, weights: Tensor) -> tuple[float, float]:
        """Pearson and Spearman correlation of the map of these weights with the exact one."""
        other = self.map_of(weights)
        return float(correlation(other, self.exact)), float(rank_correlation(other, self.exact))


def groups(flat: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """K-means on masks (n, d): the group of each (n,), and of each group the member nearest to its center (count,)."""
    low, high = torch.aminmax(flat, dim=1, keepdim=True)
    masks = (flat - low) / (high - low)
    centers = masks[torch.linspace(0, len(masks) - 1, count).round().long()]
    for _ in range(20):
        group = torch.cdist(masks, centers).argmin(dim=1)
        sums = torch.zeros_like(centers).index_add_(0, group, masks)
        sizes = torch.bincount(group, minlength=count).unsqueeze(1)
        centers = torch.where(sizes > 0, sums / sizes.clamp_min(1), centers)
    distances = torch.cdist(masks, centers)
    return distances.argmin(dim=1), distances.argmin(dim=0)


def row_of(name: str, outcomes: list[tuple[int, float, float, float]]) -> tuple[str, ...]:
    """A line of the table."""
    passes, pearsons, spearmans, errors = (
        torch.tensor(part, dtype=torch.float64) for part in zip(*outcomes, strict=True)
    )
    honest = "" if errors.isnan().all() else f"{(1 - pearsons <= errors + 1e-9).double().mean():.0%}"
    return (
        name,
        f"{passes.mean():.0f}",
        f"{passes.max():.0f}",
        f"{pearsons.mean():.4f}",
        f"{pearsons.quantile(0.05):.4f}",
        f"{pearsons.min():.4f}",
        f"{spearmans.mean():.4f}",
        f"{spearmans.min():.4f}",
        honest,
    )


if __name__ == "__main__":
    main()
