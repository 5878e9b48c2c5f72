"""How far do pretrained networks depend on the background? The BG-Gap of ImageNet-9, beside the published one.

BG-Gap: the accuracy where objects are pasted on backgrounds of their own class (`mixed_same`) minus the accuracy where
they are pasted on backgrounds of random classes (`mixed_rand`), in points (Xiao et al. 2020, arXiv 2006.09994). The
data is that of the backgrounds challenge, https://github.com/MadryLab/backgrounds_challenge:

    FOLDER/original/val/00_dog/n02085620_10074.JPEG
    FOLDER/mixed_same/val/00_dog/fg_n02085620_10074_bg_n02111277_03321.JPEG
    FOLDER/mixed_rand/val/00_dog/...
    FOLDER/fg_mask/val/00_dog/n02085620_10074.npy

As published, the network is given the images as they are, only normalized, and an answer outside the nine classes is
wrong. Without `--weights`, the weights are the first that torchvision had, the published ones. The interval is paired
where each object is in both sets exactly once. It takes the images as independent, though some share a background.

With `fg_mask` there is a second table: `bg_gap` of our audit, which makes its own images from `original`.
"""

import argparse
import json
import math
import re
from pathlib import Path

import numpy as np
import torch
from setting import model, save, table
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import get_model, get_model_weights
from torchvision.transforms import v2

from cam_callbacks import ProbeSet, audit_model
from cam_callbacks.audit.statistics import Estimate, wilson

PUBLISHED = {"vgg16_bn": 10.2, "resnet50": 7.3, "resnet152": 5.8}
"""BG-Gaps in points, from the README of the challenge."""

SETS = ("original", "mixed_same", "mixed_rand")
WEIGHTS = "IMAGENET1K_V1"
CLASSES = 9
Z = 1.959964  # of a normal distribution, two-sided at 95%


def main() -> None:
    """Measure each network, print both tables, write JSON."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="holds original, mixed_same and mixed_rand")
    options.add_argument("--mapping", type=Path, required=True, help="in_to_in9.json of the challenge")
    options.add_argument("--models", nargs="+", default=list(PUBLISHED), help="names in torchvision")
    options.add_argument("--weights", type=Path, help="file of the state dict, if there is one model; else a download")
    options.add_argument(
        "--audited", type=int, default=50, help="images of each class in the second table; 0: no table"
    )
    options.add_argument("--batch", type=int, default=32, help="images at a time")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = options.parse_args()
    if args.weights is not None and len(args.models) > 1:
        options.error("--weights are those of one model: name it with --models")
    mapping, masks = read_mapping(args.mapping), args.folder / "fg_mask" / "val"
    rows, own_rows, results = [], [], []
    for name in args.models:
        network = NineClasses(load(name, args.weights), mapping).eval().to(args.device)
        photos = {each: read_photos(args.folder / each / "val", name) for each in SETS}
        right = {each: answers(network, photos[each], args.batch, args.device) for each in SETS}
        keys = [objects(photos[each]) for each in SETS[1:]]
        gap, is_paired = bg_gap(right["mixed_same"], right["mixed_rand"], *keys)
        shares = {each: float(right[each].double().mean()) for each in SETS}
        result = {"model": name, **shares, "gap": vars(gap), "paired": is_paired}
        kind = "paired" if is_paired else "not paired"
        cells = [f"{100 * share:.1f}%" for share in shares.values()]
        rows.append((name, *cells, points(gap), kind, PUBLISHED.get(name, "")))
        if args.audited > 0 and masks.is_dir():
            audit = audit_model(network, masked(photos["original"], masks, args.audited), batch_size=args.batch)
            own = audit["bg_gap"].overall
            own_rows.append((name, own.count, points(own)))
            result["bg_gap"] = vars(own)
        results.append(result)
        print(f"{name} is done", flush=True)
    print()
    print(table(("model", *SETS, "BG-Gap [95%]", "interval", "published"), rows))
    print()
    print(table(("model", "images audited", "our bg_gap [95%]"), own_rows) if own_rows else "No images were audited.")
    save("imagenet9", results)


class NineClasses(nn.Module):
    """A network of 1,000 classes that answers with one of nine, or with the tenth, which is none of them.

    The score of a class is the highest score of those that are mapped to it, so that the answer is that of the network.
    """

    def __init__(self, network: nn.Module, mapping: Tensor) -> None:
        super().__init__()
        self.network = network
        self.members = [(mapping == index).nonzero().flatten() for index in (*range(CLASSES), -1)]

    def forward(self, images: Tensor) -> Tensor:
        """(N, 10) scores."""
        scores = self.network(images)
        return torch.stack([scores[:, members.to(scores.device)].amax(dim=1) for members in self.members], dim=1)


def read_mapping(path: Path) -> Tensor:
    """(1000,) the class of the nine that each class of ImageNet belongs to, or -1."""
    found = {int(index): int(label) for index, label in json.loads(path.read_text()).items()}
    if set(found) != set(range(1000)) or set(found.values()) != set(range(-1, CLASSES)):
        raise SystemExit(f"--mapping {path} must map each of 0 to 999 to one of 0 to 8, or to -1")
    return torch.tensor([found[index] for index in range(1000)])


def load(name: str, weights: Path | None) -> nn.Module:
    """A network of torchvision with the weights of the file, or with its first weights for ImageNet."""
    return get_model(name, weights=WEIGHTS) if weights is None else model(name, str(weights))


def read_photos(folder: Path, name: str) -> ImageFolder:
    """The images of a set, normalized as the network was trained."""
    normal = get_model_weights(name)[WEIGHTS].transforms()
    steps = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(normal.mean, normal.std)]
    photos = ImageFolder(str(folder), v2.Compose(steps))
    if [each[:3] for each in photos.classes] != [f"{index:02d}_" for index in range(CLASSES)]:
        raise SystemExit(f"{folder} must hold the folders 00_dog to 08_fish; it holds {photos.classes}")
    return photos


def answers(network: nn.Module, photos: ImageFolder, batch: int, device: str) -> Tensor:
    """(N,) bool: whether each answer is right."""
    right = []
    with torch.no_grad():
        for images, labels in DataLoader(photos, batch):
            right.append(network(images.to(device)).argmax(dim=1).cpu() == labels)
    return torch.cat(right)


def objects(photos: ImageFolder) -> list[str]:
    """Which object each image shows: its photo in ImageNet, which the name of the file begins with; else the path."""
    found = [re.match(r"(?:fg_)?(n\d+_\d+)(?:_bg_|\.)", Path(path).name) for path, _ in photos.samples]
    return [path if match is None else match[1] for (path, _), match in zip(photos.samples, found, strict=True)]


def bg_gap(same: Tensor, rand: Tensor, same_keys: list[str], rand_keys: list[str]) -> tuple[Estimate, bool]:
    """The gap with its interval, and whether that is paired.

    Args:
        same: (N,) bool, the right answers on backgrounds of the own class.
        rand: (M,) bool, those on backgrounds of random classes.
        same_keys: N objects.
        rand_keys: M objects.
    """
    value = float(same.double().mean() - rand.double().mean())
    is_paired = sorted(same_keys) == sorted(rand_keys) and len(set(same_keys)) == len(same_keys)
    if is_paired:  # Agresti & Min 2005
        partner = dict(zip(rand_keys, rand.tolist(), strict=True))
        moved = [int(hit) - int(partner[key]) for key, hit in zip(same_keys, same.tolist(), strict=True)]
        lost, won, count = moved.count(1) + 0.5, moved.count(-1) + 0.5, len(moved) + 2
        center = (lost - won) / count
        half = Z * math.sqrt(lost + won - (lost - won) ** 2 / count) / count
        low, high = max(center - half, -1.0), min(center + half, 1.0)
    else:  # Newcombe 1998, method 10
        (low_s, high_s), (low_r, high_r) = (wilson(int(each.sum()), len(each)) for each in (same, rand))
        share_s, share_r = (float(each.double().mean()) for each in (same, rand))
        low = value - math.hypot(share_s - low_s, high_r - share_r)
        high = value + math.hypot(high_s - share_s, share_r - low_r)
    return Estimate(value, low, high, len(same)), is_paired


def masked(photos: ImageFolder, folder: Path, count: int) -> ProbeSet:
    """Up to `count` images of each class that have a mask, at equal distances in the sorted folder."""
    images, labels, masks = [], [], []
    for label, name in enumerate(photos.classes):
        files = {index: folder / name / f"{Path(path).stem}.npy" for index, (path, _) in enumerate(photos.samples)}
        has_mask = [index for index, file in files.items() if photos.targets[index] == label and file.is_file()]
        for at in torch.linspace(0, len(has_mask) - 1, min(count, len(has_mask))).tolist():
            index = has_mask[round(at)]
            images.append(photos[index][0])
            labels.append(label)
            masks.append(torch.from_numpy(np.load(files[index])) > 0)
    if not images:
        raise SystemExit(f"{folder} holds no mask of an image in original: --audited 0 goes without masks")
    return ProbeSet(torch.stack(images), torch.tensor(labels), torch.stack(masks), photos.classes)


def points(gap: Estimate) -> str:
    """The gap and its interval in points."""
    return f"{100 * gap.value:.1f} [{100 * gap.low:.1f}, {100 * gap.high:.1f}]"


if __name__ == "__main__":
    main()
