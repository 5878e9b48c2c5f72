"""What the benchmarks share: models, photos, options, processes, tables, JSON."""

import argparse
import json
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as transforms

from cam_callbacks.data.normalization import IMAGENET

RESULTS = Path(__file__).parent / "results"
Line = dict[str, Any]
"""What is known of one run, of which a file holds many."""


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--data", type=Path, help="folder of photos, searched with its subfolders; without it, noise")
    options.add_argument(
        "--weights", help="file of the first model's weights, or DEFAULT for torchvision's; without it, random"
    )
    options.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    options.add_argument("--short", action="store_true", help="few images, few rounds")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return options


def model(name: str, weights: str | None = None, device: str = "cpu") -> nn.Module:
    """A torchvision model in eval mode; with random weights if none are named."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights="DEFAULT" if weights == "DEFAULT" else None)
    if weights not in (None, "DEFAULT"):
        state = torch.load(weights, weights_only=True)
        network.load_state_dict({key: value.float() for key, value in state.items()})
    return network.eval().to(device)


def photos(folder: Path | None, count: int, size: int) -> Tensor:
    """(count, 3, size, size) normalized as for ImageNet: photos at equal distances in the sorted folder, or noise."""
    if folder is None:
        return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise SystemExit(f"--data {folder} holds no photos")
    chosen = [files[round(at)] for at in torch.linspace(0, len(files) - 1, min(count, len(files))).tolist()]
    return torch.stack([_photo(path, size) for path in chosen])


def _photo(path: Path, size: int) -> Tensor:
    photo = decode_image(str(path), mode=ImageReadMode.RGB)
    photo = transforms.center_crop(transforms.resize(photo, [round(size * 256 / 224)], antialias=True), [size])
    return transforms.normalize(transforms.to_dtype(photo, torch.float32, scale=True), *map(list, IMAGENET))


def workers(count: int) -> ProcessPoolExecutor:
    """Processes of one thread each."""
    return ProcessPoolExecutor(count, get_context("spawn"), torch.set_num_threads, (1,))


def run_each(
    work: Callable[..., Line], wanted: Sequence[tuple[Any, ...]], processes: int, path: Path
) -> Iterator[Line]:
    """Call `work` with each of the wanted arguments; yield each result once it is a line of the file."""
    with workers(processes) as pool:
        for done in as_completed(pool.submit(work, *each) for each in wanted):
            add_line(path, done.result())
            yield done.result()


def run_missing(
    work: Callable[..., Line], wanted: Sequence[tuple[Any, ...]], keys: Sequence[str], args: argparse.Namespace
) -> None:
    """Call `work` with those arguments of which the file has no line, and say which is done.

    Args:
        work: Trains and audits one network.
        wanted: The arguments of each.
        keys: What they are called in a line.
        args: With `out`, the file, and `processes`, how many are trained at the same time.
    """
    done = {tuple(run[key] for key in keys) for run in lines_of(args.out)}
    missing = [each for each in wanted if each not in done]
    for number, run in enumerate(run_each(work, missing, args.processes, args.out), 1):
        what = ", ".join(f"{run[key]:g}" if isinstance(run[key], float) else str(run[key]) for key in keys)
        print(f"{number} of {len(missing)}: {what}; {run['seconds']:.0f} s", flush=True)


def lines_of(path: Path) -> list[Line]:
    """The lines of a file of JSON; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add_line(path: Path, line: Line) -> None:
    """Write a line of JSON to the end of a file, which is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def save(name: str, results: object) -> None:
    """Write results, and what they were measured on, to `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine, "results": results}, indent=1))
    print(f"\nwritten to {path}")


class Counted(TorchDispatchMode):
    """Counts the calls of operators, which do not depend on how busy the machine is."""

    count = 0

    def __torch_dispatch__(self, operator: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return operator(*args, **(kwargs or {}))


@contextmanager
def synchronizations(wanted: bool = True) -> Iterator[list[Any]]:
    """Collect a warning for each time that a GPU is waited for."""
    if not wanted or not torch.cuda.is_available():
        yield []
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
