"""Score-CAM's speed: ours, torchcam's and grad-cam's, beside nothing but the forward passes.

All run the same images through the same model for the same layer and classes, in turns, several rounds. Given is the
median over the rounds of each time divided by that of the forward passes alone in the same round, with smallest and
largest; never a time alone, because machines are noisy. Beside it the calls of operators and, on a GPU, how often it is
waited for, which are the same on every machine.
"""

import copy
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from setting import Counted, model, parser, photos, save, synchronizations, table
from torch import Tensor, nn

from cam_callbacks import ScoreCAM
from cam_callbacks.explain.compilation import CompiledModel

LAYERS = {
    "squeezenet1_1": "features",
    "resnet18": "layer4",
    "mobilenet_v2": "features",
    "resnet50": "layer4",
    "vgg16": "features.29",
}
BATCH = 256 if torch.cuda.is_available() else 32
OPERATORS = 5


def main() -> None:
    """Time every model, print the table, write JSON."""
    options = parser(__doc__ or "")
    options.add_argument("--models", nargs="+", default=["squeezenet1_1", "mobilenet_v2", "resnet18"], choices=LAYERS)
    options.add_argument("--images", type=int, default=2)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--no-peers", action="store_true", help="do without torchcam and grad-cam")
    options.add_argument("--compile", action="store_true", help="time the compiled form too")
    options.add_argument(
        "--profile", action="store_true", help="show which operators the time goes to, and time nothing"
    )
    args = options.parse_args()
    if args.short:
        args.models, args.images, args.rounds, args.size = args.models[:1], 1, 2, 128
    images = photos(args.data, args.images, args.size).to(args.device)

    rows, results = [], {}
    for position, name in enumerate(args.models):
        network = model(name, args.weights if position == 0 or args.weights == "DEFAULT" else None, args.device)
        if args.profile:
            rows += profile(name, network, LAYERS[name], images)
            continue
        timed = time_model(network, LAYERS[name], images, args.rounds, args.compile, not args.no_peers)
        results[name] = timed
        limit, calls = timed.pop("passes"), timed.pop("calls")
        for contestant, times in timed.items():
            ratios = [t / base for t, base in zip(times, timed["forward passes"], strict=True)]
            shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            rate = len(images) / statistics.median(times)
            rows.append(
                (name, contestant, f"{limit[contestant]:.0f}", shown, f"{rate:.3f}", *calls.get(contestant, "  "))
            )
            print(rows[-1], flush=True)
    if args.profile:
        print("\n" + table(("model", "", *(f"{place}." for place in range(1, OPERATORS + 1))), rows))
        return
    header = ("model", "", "passes per image", "time / forward passes alone", "images per second", "operators", "waits")
    print("\n" + table(header, rows))
    save("speed", results)


def profile(name: str, network: nn.Module, layer: str, images: Tensor) -> list[tuple[str, ...]]:
    """Of the exact form and of the peers, the operators that take most of the time, with their shares."""
    with torch.no_grad():
        targets = network(images).argmax(dim=1)
    exact = ScoreCAM(weighting="logit-softmax", tolerance=0, batch_size=BATCH)
    contestants: dict[str, Callable[[], object]] = {
        "ours, exact": lambda: exact(network, images, layer, targets),
        "torchcam": torchcam(network, layer, images, targets),
        "grad-cam": gradcam(network, layer, images, targets),
    }
    rows = []
    for contestant, run in contestants.items():
        with torch.profiler.profile() as profiler:
            run()
        averages = sorted(profiler.key_averages(), key=lambda entry: entry.self_cpu_time_total, reverse=True)
        total = sum(entry.self_cpu_time_total for entry in averages)
        top = averages[:OPERATORS]
        shares = (f"{entry.key.removeprefix('aten::')} {entry.self_cpu_time_total / total:.0%}" for entry in top)
        rows.append((name, contestant, *shares))
        print(rows[-1], flush=True)
    return rows


def time_model(
    network: nn.Module, layer: str, images: Tensor, rounds: int, compiled: bool, peers: bool
) -> dict[str, Any]:
    """Seconds of each contestant in each round, and the passes it needs for an image."""
    with torch.no_grad():
        targets = network(images).argmax(dim=1)
    exact = ScoreCAM(weighting="logit-softmax", tolerance=0, batch_size=BATCH)
    explanation = exact(network, images, layer, targets)
    passes = int(explanation.passes.sum())
    contestants: dict[str, Callable[[], object]] = {
        "forward passes": lambda: forward_only(network, images, passes),
        "ours, exact": lambda: exact(network, images, layer, targets),
        "ours, adaptive": lambda: adaptive(network, images, layer, targets),
    }
    if peers:
        contestants["torchcam"] = torchcam(network, layer, images, targets)
        contestants["grad-cam"] = gradcam(network, layer, images, targets)
    adaptive = ScoreCAM(weighting="logit-softmax", tolerance=0.02, batch_size=BATCH)
    if compiled:
        fast = ScoreCAM(weighting="logit-softmax", tolerance=0, batch_size=BATCH, compile=True)
        fast_adaptive = ScoreCAM(weighting="logit-softmax", tolerance=0.02, batch_size=BATCH, compile=True)
        kept = CompiledModel()
        contestants["ours, exact, compiled"] = lambda: fast(network, images, layer, targets, compiled=kept)
        contestants["ours, adaptive, compiled"] = lambda: fast_adaptive(network, images, layer, targets, compiled=kept)
        fast(network, images, layer, targets, compiled=kept)  # compiles
    channels = channels_of(network, layer, images)
    needed = {name: float(channels) for name in contestants}
    needed |= {name: passes / len(images) for name in contestants if "exact" in name or name == "forward passes"}
    spent = float(adaptive(network, images, layer, targets).passes.float().mean())
    needed |= {name: spent for name in contestants if "adaptive" in name}
    counted = {name: calls_of(run) for name, run in contestants.items() if "compiled" not in name}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            gc.collect()
            began = time.perf_counter()
            run()
            if images.is_cuda:
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - began)
    return {"passes": needed, "calls": counted, **times}


def calls_of(run: Callable[[], object]) -> tuple[int, int]:
    """How often operators are called, and how often the device is waited for."""
    with synchronizations() as waits, Counted() as counted:
        run()
    return counted.count, len(waits)


def channels_of(network: nn.Module, layer: str, images: Tensor) -> int:
    """How many channels the layer has."""
    shapes = []
    handle = network.get_submodule(layer).register_forward_hook(lambda _m, _i, output: shapes.append(output.shape))
    with torch.no_grad():
        network(images[:1])
    handle.remove()
    return int(shapes[0][1])


def forward_only(network: nn.Module, images: Tensor, passes: int) -> None:
    """So many images through the network in full batches with the channels last in memory, and nothing else."""
    batch = images[:1].expand(BATCH, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for start in range(0, passes, BATCH):
            network(batch[: min(BATCH, passes - start)])


def torchcam(network: nn.Module, layer: str, images: Tensor, targets: Tensor) -> Callable[[], object]:
    """The ScoreCAM of torchcam on a copy of the network, which it keeps hooks on."""
    from torchcam.methods import ScoreCAM as TheirScoreCAM

    theirs = copy.deepcopy(network)
    method = TheirScoreCAM(theirs, layer, batch_size=BATCH)

    def run() -> object:
        with torch.no_grad():
            scores = theirs(images)
        return method(targets.tolist(), scores)

    return run


def gradcam(network: nn.Module, layer: str, images: Tensor, targets: Tensor) -> Callable[[], object]:
    """The ScoreCAM of grad-cam on a copy of the network, which it keeps hooks on."""
    import tqdm
    from pytorch_grad_cam import ScoreCAM as TheirScoreCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    theirs = copy.deepcopy(network)
    method = TheirScoreCAM(theirs, [theirs.get_submodule(layer)])
    method.batch_size = BATCH
    classes = [ClassifierOutputTarget(target) for target in targets.tolist()]
    quiet = tqdm.tqdm.__init__

    def run() -> object:
        tqdm.tqdm.__init__ = lambda self, *args, **kwargs: quiet(self, *args, **{**kwargs, "disable": True})
        try:
            return method(images, classes)
        finally:
            tqdm.tqdm.__init__ = quiet

    return run


if __name__ == "__main__":
    main()
