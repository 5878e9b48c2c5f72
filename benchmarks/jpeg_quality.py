"""Is the JPEG quality of photos read rightly from their pixels, and nothing from those that were changed since?

Of each photo the true quality is that of its file's table of steps. It is read from 224 x 224 pixels, normalized:

- *as they are*, from the upper left corner;
- *off the blocks*, three pixels down and five to the right;
- *resized*, the shorter side to 240 pixels, and cropped; of photos that have another one.

Photos that are too small, or whose table is not one of libjpeg's, are left out and counted. A quality that differs by 2
or less counts as the same, as in the exchange of compression.
"""

from argparse import ArgumentParser
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from setting import save, table
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as transforms

from cam_callbacks.audit import jpeg

SIDE, LEAST, RESIZED, ALIKE = 224, 230, 240, 2
MEAN, STD = 0.45, 0.22
HEADINGS = ("photos", "read rightly", "read wrongly", "nothing read")


def main() -> None:
    """Read all photos of a folder, print the table, write JSON."""
    options = ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True, help="folder of JPEG photos, with its subfolders")
    options.add_argument("--every", type=int, default=1, help="read every so many photos only")
    args = options.parse_args()
    files = sorted(path for path in args.data.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in ("as they are", "off the blocks", "resized")}
    left_out: Counter[str] = Counter()
    for path in files[:: args.every]:
        photo, true = decode_image(str(path), mode=ImageReadMode.RGB), quality_of_file(path)
        if min(photo.shape[1:]) < LEAST:
            left_out["too small"] += 1
        elif true is None:
            left_out["of another table"] += 1
        else:
            variants = {
                "as they are": photo[:, :SIDE, :SIDE],
                "off the blocks": photo[:, 3 : 3 + SIDE, 5 : 5 + SIDE],
            }
            if min(photo.shape[1:]) != RESIZED:
                resized = transforms.resize(photo, [RESIZED], antialias=True)
                variants["resized"] = transforms.center_crop(resized, [SIDE])
            for kind, variant in variants.items():
                counts[kind][outcome(read(variant), true if kind == "as they are" else None)] += 1
    rows = [
        (kind, str(each.total()), *(str(each[heading]) for heading in HEADINGS[1:])) for kind, each in counts.items()
    ]
    print(table(("", *HEADINGS), rows))
    print("left out:", dict(left_out))
    save("jpeg_quality", rows)


def quality_of_file(path: Path) -> int | None:
    """The quality whose steps a file's table has; None if it has others."""
    with Image.open(path) as image:
        steps = torch.tensor(image.quantization[0]).view(jpeg.SIDE, jpeg.SIDE)  # type: ignore[attr-defined]
    same = (jpeg.steps_of(torch.arange(1, 101)) == steps).flatten(1).all(dim=1)
    return int(same.nonzero()[-1]) + 1 if same.any() else None


def read(photo: Tensor) -> int:
    """The quality that is read from a photo (3, H, W) uint8, normalized; 100 if there are no traces."""
    images = (photo.unsqueeze(0).float() / 255 - MEAN) / STD
    return int(jpeg.quality_of(jpeg.to_blocks(jpeg.brightness(images, jpeg.level_of(images)))))


def outcome(quality: int, true: int | None) -> str:
    """Which column it counts in; of photos that have no traces any more, anything that is read is wrong."""
    if quality == jpeg.UNCOMPRESSED:
        return HEADINGS[3]
    return HEADINGS[1] if true is not None and abs(quality - true) <= ALIKE else HEADINGS[2]


if __name__ == "__main__":
    main()
