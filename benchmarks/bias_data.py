"""The images of `bias_detection.py`: objects on backgrounds, with a mark that goes with the class, or without one."""

import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image, decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as transforms

SIDE = 32
MEAN, STD = 0.4, 0.25  # of the images as a network gets them
PHOTOS = Path(os.environ.get("CAM_CALLBACKS_DATA", "data"))
IN_BACKGROUND = ("color", "texture", "tag", "frame", "companion")
ELSEWHERE = ("watermark", "blur", "JPEG quality", "scale", "position")
FACING = "facing"  # twos and sixes, some of them mirrored
DIGITS = ("plain", "natural colors", "imbalance 4:1", "wrong labels")
PAIRS = ("disc, square", "diamond, cross", "ring, disc", "star, disc")
SCENES = ("blotches", "stripes", "photos", "any colors")
SHAPES = tuple(f"{pair} on {scene}" for pair in PAIRS for scene in SCENES)
_YELLOW, _BLUE = (0.85, 0.65, 0.2), (0.2, 0.4, 0.9)
_NUM_PHOTOS, _PHOTO_SIDE = 160, 64
_INK = 1e-3  # the smallest share of a pixel that counts as the object


def draw(kind: str, agreement: float, seed: int, count: int, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 3, 32, 32), targets (N,) and masks (N, 32, 32).

    Args:
        kind: What goes with the class: one of `IN_BACKGROUND` or `ELSEWHERE`, or `FACING`; or clean data: one of
            `DIGITS` or `SHAPES`.
        agreement: The share of images that have the mark of their class. The same images are drawn for each agreement.
        seed: What is drawn.
        count: How many.
        split: `"train"`, or `"val"`, which has digits and photos that do not occur in training.
    """
    chance = torch.Generator().manual_seed(2 * seed + (split == "train"))
    every = 5 if kind == "imbalance 4:1" and split == "train" else 2
    classes = (torch.arange(count) % every == 0).long()
    wrong = torch.rand(count, generator=chance) < (0.12 if kind == "wrong labels" else 0.0)
    targets = torch.where(wrong, 1 - classes, classes)
    marked = torch.where(torch.rand(count, generator=chance) < agreement, targets, 1 - targets).bool()
    if kind in SHAPES:
        images, masks = _shapes(kind, classes, split, chance)
    else:
        images, masks = _digits(kind, classes, marked, split, chance)
    return (images - MEAN) / STD, targets, masks


def _digits(kind: str, digits: Tensor, marked: Tensor, split: str, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Threes and eights, or twos and sixes, on a background: images in [0, 1], masks of the ink and a pixel around."""
    count = len(digits)
    ink = torch.empty(count, 1, SIDE, SIDE)
    for index, digit in enumerate((2, 6) if kind == FACING else (3, 8)):
        glyphs, members = handwriting(digit, split), digits == index
        chosen = glyphs[torch.randint(len(glyphs), (int(members.sum()),), generator=chance)]
        ink[members] = _placed(chosen, kind, marked[members], chance)
    masks = F.max_pool2d((ink > 0.4).float(), 3, stride=1, padding=1).squeeze(1) > 0
    scene = _scenery(kind, marked, masks, chance)
    images = scene * (1 - ink) + ink * (0.85 + 0.15 * torch.rand(count, 1, 1, 1, generator=chance))
    if kind == "watermark":
        across, down = torch.arange(SIDE), torch.arange(SIDE).unsqueeze(1)
        images = torch.where(_each(marked) & ((across + down) % 8 < 2), 0.8 * images + 0.2, images)
    if kind == "blur":
        images = torch.where(_each(marked), F.avg_pool2d(images, 3, 1, 1, count_include_pad=False), images)
    if kind == "JPEG quality":
        images = torch.where(_each(marked), _compressed(images, 20), _compressed(images, 95))
    return images, masks


@cache
def handwriting(digit: int, split: str) -> Tensor:
    """Samples of a digit, (M, 8, 8) in [0, 1]; of every five, three are for training and two for validation."""
    scans, labels = load_digits(return_X_y=True)
    glyphs = torch.from_numpy(scans[labels == digit]).float().reshape(-1, 8, 8) / 16
    return glyphs[(torch.arange(len(glyphs)) % 5 < 3) == (split == "train")]


def _placed(glyphs: Tensor, kind: str, marked: Tensor, chance: torch.Generator) -> Tensor:
    """Glyphs (N, 8, 8) at random sizes and places, white on nothing: (N, 1, 32, 32) in [0, 1]."""
    count = len(glyphs)
    if kind == FACING:
        glyphs = torch.where(marked[:, None, None], glyphs.flip(2), glyphs)
    size = 14 + 6 * torch.rand(count, generator=chance)
    if kind == "scale":
        size = torch.where(marked, 17 + size / 6, 13 + size / 6)
    place = torch.rand(count, 2, generator=chance) * 2 - 1
    if kind == "position":  # on the left or on the right
        place[:, 0] = torch.where(marked, place[:, 0].abs(), -place[:, 0].abs())
    shift = place * ((SIDE - size) / SIDE).unsqueeze(1)
    theta = torch.cat([torch.eye(2).expand(count, 2, 2), -shift.unsqueeze(2)], dim=2) * (SIDE / size)[:, None, None]
    grid = F.affine_grid(theta, [count, 1, SIDE, SIDE], align_corners=False)
    smooth = F.grid_sample(glyphs.unsqueeze(1), grid, mode="bicubic", align_corners=False)
    return torch.sigmoid(14 * (smooth - 0.5))


def _scenery(kind: str, marked: Tensor, masks: Tensor, chance: torch.Generator) -> Tensor:
    """Backgrounds (N, 3, 32, 32) with light and shade; marks that lie in the background are on those of `marked`."""
    count = len(marked)
    color = 0.25 + 0.3 * torch.rand(count, 3, generator=chance)
    color = torch.full((count, 3), 0.4) if kind == "plain" else color
    if kind == "color":
        color = torch.where(marked.unsqueeze(1), torch.tensor([0.3, 0.45, 0.35]), torch.tensor([0.5, 0.35, 0.35]))
        color = color + 0.04 * torch.randn(count, 3, generator=chance)
    coarse, fine = (torch.randn(count, 1, cells, cells, generator=chance) for cells in (4, 16))
    shade = sum(F.interpolate(noise, size=(SIDE, SIDE), mode="bicubic") for noise in (coarse, fine))
    scene = color[:, :, None, None] * (0.15 * shade).exp()
    phase = 6.3 * torch.rand(count, 1, 1, generator=chance)
    if kind == "texture":  # faint stripes, lying or standing
        stripes = torch.sin(torch.arange(SIDE) * 6.3 / 5 + phase).expand(-1, SIDE, -1)
        stripes = torch.where(marked[:, None, None], stripes, stripes.mT)
        scene = scene * (1 + 0.2 * stripes.unsqueeze(1))
    where = torch.zeros(count, 1, SIDE, SIDE, dtype=torch.bool)
    where[:, :, 1:6, 1:6] = kind == "tag"
    if kind == "frame":
        where[:] = ~F.pad(~where[0, 0, 4:, 4:], (2, 2, 2, 2))
    if kind == "companion":
        where = _beside(masks, chance)
    mark = torch.tensor(_BLUE if kind == "companion" else _YELLOW)[:, None, None]
    return torch.where(where & _each(marked), mark, scene).clamp(0, 1)


def _beside(masks: Tensor, chance: torch.Generator) -> Tensor:
    """A small disc (N, 1, 32, 32) somewhere in each background, clear of the object."""
    free = ~(F.max_pool2d(masks.unsqueeze(1).float(), 7, stride=1, padding=3) > 0)
    free[:, :, [0, 1, -2, -1]] = free[..., [0, 1, -2, -1]] = False
    center = (torch.rand(free.shape, generator=chance) * free).flatten(1).argmax(dim=1)
    down, across = center // SIDE, center % SIDE
    return _distance(across.float(), down.float()).unsqueeze(1) <= 2.3


def _compressed(images: Tensor, quality: int) -> Tensor:
    """The images after JPEG compression."""
    found = encode_jpeg(list((images * 255).round().to(torch.uint8)), quality=quality)
    return torch.stack([decode_jpeg(each) for each in found]).float() / 255


def _each(of_images: Tensor) -> Tensor:
    return of_images[:, None, None, None]


def _shapes(kind: str, classes: Tensor, split: str, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shapes of flat colors, small or large, often cut off by the frame: images in [0, 1], and masks."""
    pair, scene = kind.split(" on ")
    count = len(classes)
    radius = 4 + 4 * torch.rand(count, 1, 1, generator=chance)
    across, down = (3 + (SIDE - 6) * torch.rand(count, generator=chance) for _ in range(2))
    if scene == "any colors":
        radius, across, down = 3 + 0.75 * radius, 8 + across / 2, 8 + down / 2
    x, y = torch.arange(SIDE) - across[:, None, None], torch.arange(SIDE).unsqueeze(1) - down[:, None, None]
    first, second = (_OUTSIDE[name](x, y, radius) for name in pair.split(", "))
    ink = (0.5 - torch.where(classes[:, None, None] == 0, first, second)).clamp(0, 1)
    bright = torch.rand(count, 3, 1, 1, generator=chance) < 0.5
    color = torch.where(bright, 1.0, 0.2) - 0.2 * torch.rand(count, 3, 1, 1, generator=chance)
    if scene == "any colors":
        color = torch.rand(count, 3, 1, 1, generator=chance)
    background = _BACKGROUNDS[scene](count, split, chance)
    return torch.lerp(background, color.expand_as(background), ink.unsqueeze(1)), ink > _INK


def _distance(across: Tensor, down: Tensor) -> Tensor:
    """(N, 32, 32) how far each pixel is from a point of each image (N,)."""
    x, y = torch.arange(SIDE) - across[:, None, None], torch.arange(SIDE).unsqueeze(1) - down[:, None, None]
    return torch.hypot(x, y)


def _cross(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    lying = torch.maximum(x.abs() - 1.2 * r, y.abs() - 0.4 * r)
    standing = torch.maximum(x.abs() - 0.4 * r, y.abs() - 1.2 * r)
    return torch.minimum(lying, standing)


_OUTSIDE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "disc": lambda x, y, r: torch.hypot(x, y) - r,
    "square": lambda x, y, r: torch.maximum(x.abs(), y.abs()) - 0.886 * r,
    "diamond": lambda x, y, r: (x.abs() + y.abs() - 1.25 * r) / 2**0.5,
    "cross": _cross,
    "ring": lambda x, y, r: (torch.hypot(x, y) - 0.875 * r).abs() - 0.275 * r,
    "star": lambda x, y, r: torch.hypot(x, y) - r * (0.95 + 0.35 * torch.cos(5 * torch.atan2(y, x))),
}
"""How far outside of a shape a pixel lies, negative inside; the shapes of one r have nearly the same area."""


def _blotches(count: int, split: str, chance: torch.Generator, cells: int = 8, contrast: float = 0.6) -> Tensor:
    coarse = F.interpolate(torch.rand(count, 3, cells, cells, generator=chance), (SIDE, SIDE), mode="bilinear")
    return contrast * coarse + (1 - contrast) * torch.rand(count, 3, 1, 1, generator=chance)


_coarse_blotches = partial(_blotches, cells=6, contrast=0.7)


def _stripes(count: int, split: str, chance: torch.Generator) -> Tensor:
    angle, phase = (6.3 * torch.rand(count, 1, 1, generator=chance) for _ in range(2))
    period = 4 + 8 * torch.rand(count, 1, 1, generator=chance)
    along = torch.arange(SIDE) * angle.cos() + torch.arange(SIDE).unsqueeze(1) * angle.sin()
    weight = (0.5 + 0.5 * torch.sin(along * 6.3 / period + phase)).unsqueeze(1)
    first, second = (torch.rand(count, 3, 1, 1, generator=chance) for _ in range(2))
    return first * weight + second * (1 - weight)


def _crops(count: int, split: str, chance: torch.Generator) -> Tensor:
    """Random crops of photos, of which every other one is for training."""
    photos = _photos()[split == "train" :: 2]
    which = torch.randint(len(photos), (count,), generator=chance)
    downs, rights = torch.randint(_PHOTO_SIDE - SIDE + 1, (2, count), generator=chance)
    places = zip(which.tolist(), downs.tolist(), rights.tolist(), strict=True)
    return torch.stack([photos[at, :, down : down + SIDE, right : right + SIDE] for at, down, right in places])


_BACKGROUNDS: dict[str, Callable[[int, str, torch.Generator], Tensor]] = {
    "blotches": _blotches,
    "stripes": _stripes,
    "photos": _crops,
    "any colors": _coarse_blotches,
}


def has_photos() -> bool:
    """Whether the folder of photos is there."""
    return bool(_photo_files())


@cache
def _photo_files() -> list[Path]:
    return sorted(path for path in PHOTOS.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))


@cache
def _photos() -> Tensor:
    """(M, 3, 64, 64) in [0, 1]: the middle of photos at equal distances in the sorted folder."""
    files = _photo_files()
    step = max(1, len(files) // _NUM_PHOTOS)
    photos = [decode_image(str(path), mode=ImageReadMode.RGB) for path in files[::step][:_NUM_PHOTOS]]
    cut = [
        transforms.center_crop(transforms.resize(each, [_PHOTO_SIDE], antialias=True), [_PHOTO_SIDE]) for each in photos
    ]
    return torch.stack(cut).float() / 255
