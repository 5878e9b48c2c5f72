"""Is a heatmap to be trusted? Each method's maps of the predicted class, measured beside two controls.

The measures are those of `cam_callbacks.explain.faithfulness.measure_faithfulness`, beside them:

- passes: forward samples for each photo, short ones of Recipro-CAM included;
- time: of each method's maps, in multiples of the time of one forward pass of the same photos (median over groups; not
  of those whose answers are shared with another row);
- other class: Pearson correlation with the map of the sixth most probable class (lower tells classes apart; 1: the map
  says nothing of the class);
- blank: share of maps without contrast, which count in no mean.

"ins - del" is insertion minus deletion. Methods are compared on the same photos: mean difference to Grad-CAM, with the
95 % interval of a bootstrap over photos. Photos at equal distances in the sorted folder are measured four at a time, in
random order, so that what a stopped run has measured is a fair part; called again, it goes on.
"""

import random
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from peers import Explain, peers
from setting import RESULTS, Line, lines_of, model, parser, photos, run_each, table
from torch import Tensor, nn

from cam_callbacks import CAM, GradCAM, HiResCAM, LayerCAM, ReciproCAM, ScoreCAM
from cam_callbacks._version import __version__
from cam_callbacks.explain.faithfulness import Faithfulness, measure_faithfulness
from cam_callbacks.explain.method import Method
from cam_callbacks.explain.trust import correlation

AT_ONCE = 4
STEPS = 10
MEASURES = (
    "transplant",
    "transplant_cold",
    "transplant_other",
    "insertion",
    "deletion",
    "average_drop",
    "average_gain",
)
WEIGHTINGS = {
    "probability": ScoreCAM("probability", tolerance=0.05),
    "logit-softmax": ScoreCAM("logit-softmax"),
    "increase": ScoreCAM("increase"),
    "contrast, one side": ScoreCAM("contrast", tolerance=0.05, complement=False),
    "contrast": ScoreCAM("contrast", tolerance=0.05),
}
CHEAP: dict[str, Method] = {
    "Recipro-CAM, evidence": ReciproCAM("evidence"),
    "Recipro-CAM, evidence, gaussian": ReciproCAM("evidence", "gaussian"),
    "Grad-CAM": GradCAM(),
    "HiResCAM": HiResCAM(),
    "LayerCAM": LayerCAM(),
    "Recipro-CAM": ReciproCAM(),
    "Recipro-CAM, gaussian": ReciproCAM(neighborhood="gaussian"),
    "CAM": CAM(),
}
FEW = 64
BASE = "Grad-CAM"
FIRST = "Score-CAM, exact, probability"


def main() -> None:
    """Measure what is not in the file yet, print the tables."""
    options = parser(__doc__ or "")
    options.add_argument("--model", default="squeezenet1_1")
    options.add_argument("--layer", default="features")
    options.add_argument("--images", type=int, default=100)
    options.add_argument("--processes", type=int, default=1)
    options.add_argument("--peers", action="store_true", help="other libraries, too (see peers.py)")
    options.add_argument("--methods", default=".*", help="only those whose whole name this regular expression matches")
    options.add_argument("--road", action="store_true", help="ROAD, too, which takes as long as all others")
    options.add_argument("--out", type=Path, help="file of results; results/faithfulness_MODEL.jsonl if not given")
    options.add_argument("--tables", action="store_true", help="measure nothing, print the tables of the file")
    args = options.parse_args()
    if args.short:
        args.images, args.size = AT_ONCE, 96
    path = args.out or RESULTS / f"faithfulness_{args.model}{'_short' if args.short else ''}.jsonl"
    groups = -(-args.images // AT_ONCE)
    known = {line["group"] for line in lines_of(path)}
    order = random.Random(0).sample(range(groups), groups)
    setting = (args.model, args.weights, args.layer, args.data, args.images, args.size, args.device)
    wanted = [
        (group, setting, args.peers, args.methods, args.road)
        for group in order
        if group not in known and not args.tables
    ]
    for number, line in enumerate(run_each(group_of, wanted, args.processes, path), 1):
        print(f"{number} of {len(wanted)}: {line['seconds']:.0f} s", flush=True)
    print_tables(args.model, lines_of(path))


def group_of(group: int, setting: tuple, with_peers: bool, chosen: str, road: bool) -> Line:  # type: ignore[type-arg]
    """Measure all methods on the photos of one group: a line of the file."""
    start = time.perf_counter()
    name, weights, layer, folder, count, size, device = setting
    network = model(name, weights, device)
    images = photos(folder, count, size)[group * AT_ONCE : (group + 1) * AT_ONCE].to(device)
    with torch.no_grad():
        ranked = network(images).argsort(dim=1, descending=True)
    maps, others, passes, times = {}, {}, {}, {}
    forward = min(timed(lambda: network(images)) for _ in range(3))
    for method, explain in methods(network, layer, images, with_peers).items():
        if not re.fullmatch(chosen, method):
            continue
        start_of_method = time.perf_counter()
        maps[method], passes[method] = explain(ranked[:, 0])
        times[method] = (time.perf_counter() - start_of_method) / forward
        others[method], _ = explain(ranked[:, 5])
    measures = (*MEASURES, "road") if road else MEASURES
    found = measure_faithfulness(
        network, images, maps, ranked[:, 0], measures=measures, target_layer=layer, steps=STEPS
    )
    apart = {method: correlation(maps[method], others[method]).tolist() for method in maps}
    return {
        "group": group,
        "model": name,
        "seconds": round(time.perf_counter() - start, 1),
        "versions": {"cam_callbacks": __version__, "torch": torch.__version__},
        "passes": passes,
        "time": times,
        "other class": apart,
        "blank": {method: blank.tolist() for method, blank in found.blank.items()},
        "values": {
            method: {measure: values.tolist() for measure, values in measured.items()}
            for method, measured in found.values.items()
        },
    }


def methods(network: nn.Module, layer: str, images: Tensor, with_peers: bool) -> dict[str, Explain]:
    """Each gives the heatmaps (N, H, W) of classes (N,), and what each image cost."""
    replay = Replay()
    found = {name: ours(method, network, None if name == "CAM" else layer, images) for name, method in CHEAP.items()}
    for name, method in WEIGHTINGS.items():
        found[f"Score-CAM, exact, {name}"] = ours(replace(method, tolerance=0), network, layer, images, replay)
    for name in ("probability", "contrast, one side", "contrast"):
        method = WEIGHTINGS[name]
        found[f"Score-CAM, {name}"] = ours(method, network, layer, images, replay)
        few = replace(method, tolerance=0, max_passes=FEW)
        found[f"Score-CAM, {name}, {FEW} passes"] = ours(few, network, layer, images, replay)
    return found | (peers(network, layer, images) if with_peers else {})


@torch.no_grad()
def timed(run: Callable[[], Tensor]) -> float:
    """The seconds that it takes until the result is there."""
    start = time.perf_counter()
    run().sum().item()
    return time.perf_counter() - start


class Replay:
    """Answers images that it has seen from memory: the forms of Score-CAM ask for the same ones."""

    def __init__(self) -> None:
        self.known: dict[tuple[float, float], Tensor] = {}

    def __call__(self, network: nn.Module, images: Tensor) -> Tensor:
        """The network's answers; always computed while a layer is recorded."""
        if any(module._forward_hooks for module in network.modules()):
            return network(images)  # type: ignore[no-any-return]
        flat = images.double().flatten(1)
        keys = list(zip(flat.sum(dim=1).tolist(), flat.square().sum(dim=1).tolist(), strict=True))
        new = [row for row, key in enumerate(keys) if key not in self.known]
        if new:
            self.known |= zip([keys[row] for row in new], network(images[new]), strict=True)
        return torch.stack([self.known[key] for key in keys])


def ours(
    method: Method, network: nn.Module, layer: str | None, images: Tensor, replay: Replay | None = None
) -> Explain:
    """One of our methods."""

    def explain(classes: Tensor) -> tuple[Tensor, list[int]]:
        explanation = method(network, images, layer, classes, forward_fn=replay)
        return explanation.heatmaps.cpu(), explanation.passes.tolist()

    return explain


def print_tables(name: str, lines: list[Line]) -> None:
    """Print the means, and the differences to Grad-CAM."""
    if not lines:
        return
    names = list(lines[0]["values"])
    measures = list(lines[0]["values"][names[0]])
    values = {
        each: {key: torch.cat([torch.tensor(line["values"][each][key]) for line in lines]) for key in measures}
        for each in names
    }
    for each in values.values():
        each["ins - del"] = each["insertion"] - each["deletion"]
    blank = {each: torch.cat([torch.tensor(line["blank"][each]) for line in lines]) for each in names}
    found = Faithfulness(values, blank)
    shown = ["ins - del", *measures]
    rows, compared = [], []
    for each in names:
        passes = [count for line in lines for count in line["passes"].get(each, [])]
        times = [line["time"][each] for line in lines if each in line.get("time", {})]
        apart = torch.tensor([value for line in lines for value in line["other class"].get(each, [])])
        rows.append(
            (
                each,
                f"{sum(passes) / len(passes):.0f}" if passes else "",
                f"{torch.tensor(times).median():.0f}" if times and not is_shared(each) else "",
                *(f"{found.mean(each, key)[0]:.3f}" for key in shown),
                f"{float(apart.nanmean()):.2f}" if len(apart) else "",
                f"{float(blank[each].float().mean()):.0%}",
            )
        )
        if each != BASE and BASE in names:
            differences = (found.difference(each, BASE, key) for key in ("ins - del", "transplant", "average_drop"))
            compared.append((each, *(f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in differences)))
    header = ("", "passes", "time", *(each.replace("_", " ") for each in shown), "other class", "blank")
    print(f"\n{name}, {len(blank[names[0]])} photos\n\n" + table(header, rows))
    print(f"\nDifference to {BASE}\n\n" + table(("", "ins - del", "transplant", "average drop"), compared))


def is_shared(name: str) -> bool:
    """Whether a row's passes are answered from memory: all of our Score-CAM's, but the first."""
    return name.startswith("Score-CAM, ") and name != FIRST


if __name__ == "__main__":
    main()
