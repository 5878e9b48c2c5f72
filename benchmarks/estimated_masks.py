"""How good are estimated masks, and does it show whether they are?

The masks that the audit estimates are compared with true ones: those of one start of GrabCut at 128 pixels, as in most
uses of it, and those of the audit, which count only where three starts agree. Without a data set the images are drawn
digits before backgrounds of natural colors.

- empty: the share of images without a mask;
- IoU: intersection over union with the true mask, the mean over the images that have a mask;
- above 0.7: the share of these whose IoU is above 0.7;
- CPU: milliseconds an image, all threads together.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from bias_detection import draw
from setting import save, table
from torch import Tensor
from torchvision.datasets import OxfordIIITPet
from torchvision.transforms.v2 import functional as transforms

from cam_callbacks.audit.foreground import estimate_masks

SIZE, SIDE, MARGIN = 224, 128, 0.08
TRIMAP_BACKGROUND = 2


def main() -> None:
    """Estimate masks both ways, print the table, write JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, help="folder that holds oxford-iiit-pet; without it, drawn digits")
    options.add_argument("--images", type=int, default=240)
    options.add_argument("--short", action="store_true", help="40 images")
    args = options.parse_args()
    count = 40 if args.short else args.images
    images, masks = draw("natural colors", 0.5, 0, count, "val")[::2] if args.data is None else pets(args.data, count)
    once, once_ms = timed(one_start, images)
    agreed, agreed_ms = timed(estimate_masks, images)
    do_agree = agreed.flatten(1).any(dim=1)
    rows = [
        ("one start, 128 pixels", *scores(once, masks), f"{once_ms:.0f}"),
        ("three starts that agree, 96 pixels", *scores(agreed, masks), f"{agreed_ms:.0f}"),
        ("one start, where the three agree", *scores(once[do_agree], masks[do_agree]), ""),
        ("one start, where they do not", *scores(once[~do_agree], masks[~do_agree]), ""),
    ]
    header = ("masks", "images", "empty", "IoU", "above 0.7", "CPU, ms")
    print(table(header, rows))
    save("estimated_masks", [dict(zip(header, row, strict=True)) for row in rows])


def pets(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """Photos at equal distances in Oxford-IIIT Pet, (N, 3, 224, 224), and where the pets are, (N, 224, 224) bool."""
    parts = [OxfordIIITPet(folder, part, "segmentation") for part in ("trainval", "test")]
    places = [(part, index) for part in parts for index in range(len(part))]
    chosen = [places[round(at)] for at in torch.linspace(0, len(places) - 1, min(count, len(places))).tolist()]
    photos, trimaps = zip(*(part[index] for part, index in chosen), strict=True)
    size = [SIZE, SIZE]
    images = [transforms.resize(transforms.pil_to_tensor(photo), size, antialias=True) for photo in photos]
    marks = [transforms.resize(transforms.pil_to_tensor(each), size, interpolation=0)[0] for each in trimaps]
    return torch.stack(images).float() / 255, torch.stack(marks) != TRIMAP_BACKGROUND


def one_start(images: Tensor) -> Tensor:
    """Masks (N, H, W) by GrabCut from one rectangle, 8% from the edge; empty where it takes nearly nothing or all."""
    scale = min(1.0, SIDE / max(images.shape[2:]))
    size = [round(side * scale) for side in images.shape[2:]]
    small = F.interpolate(images, size, mode="bilinear", antialias=True)
    low, high = small.amin(dim=(1, 2, 3), keepdim=True), small.amax(dim=(1, 2, 3), keepdim=True)
    pictures = ((small - low) / (high - low).clamp_min(1e-12) * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    with ThreadPoolExecutor(max_workers=1) as thread:  # OpenCV's random numbers are those of the thread
        found = torch.from_numpy(np.stack(list(thread.map(_grab_cut, pictures)))).float().unsqueeze(1)
    return F.interpolate(found, images.shape[2:], mode="bilinear").squeeze(1) > 0.5


def _grab_cut(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    top, left = round(MARGIN * height), round(MARGIN * width)
    labels, models = np.zeros((height, width), dtype=np.uint8), (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.setRNGSeed(0)
    rectangle = (left, top, width - 2 * left, height - 2 * top)
    cv2.grabCut(picture, labels, rectangle, *models, 3, cv2.GC_INIT_WITH_RECT)
    found = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return found if 0.02 <= found.mean() <= 0.95 else np.zeros_like(found)


def timed(estimate: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, float]:
    """What it estimates, and the milliseconds of CPU that an image takes."""
    start = time.process_time()
    masks = estimate(images)
    return masks, 1000 * (time.process_time() - start) / len(images)


def scores(found: Tensor, masks: Tensor) -> tuple[str, str, str, str]:
    """The number of images, the share without a mask, the mean IoU of the others, and the share of these above 0.7."""
    has_mask = found.flatten(1).any(dim=1)
    pairs = [each[has_mask].flatten(1) for each in (found, masks)]
    overlap = (pairs[0] & pairs[1]).sum(dim=1) / (pairs[0] | pairs[1]).sum(dim=1)
    empty = 1 - float(has_mask.float().mean())
    return str(len(found)), f"{empty:.0%}", f"{overlap.mean():.2f}", f"{(overlap > 0.7).float().mean():.0%}"


if __name__ == "__main__":
    main()
