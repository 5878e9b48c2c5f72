"""What the benchmarks share: models, photos, options, tables, JSON."""

import argparse
import json
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as transforms

from cam_callbacks.data.normalization import IMAGENET

RESULTS = Path(__file__).parent / "results"


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
