"""Figures of explanations for notebooks and scripts: uint8 pictures (height, width, 3).

`PIL.Image.fromarray(picture).save("figure.png")` writes one to a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from cam_callbacks.data.class_names import ClassNames
from cam_callbacks.data.normalization import Normalization, as_floats
from cam_callbacks.explain.explanation import Explanation, coarse_note, min_max, shown_positions, upsample
from cam_callbacks.figures.colors import MUTED
from cam_callbacks.figures.drawing import Picture, overlay, to_pictures
from cam_callbacks.figures.grid import Cell, Line, grid
from cam_callbacks.figures.scale import with_scale
from cam_callbacks.figures.settings import OverlayStyle
from cam_callbacks.figures.text import shown_name

_SIDE = 192


def strongest_channels(
    image: Tensor,
    explanation: Explanation,
    index: int = 0,
    normalization: Normalization | None = None,
    count: int = 12,
    columns: int = 3,
    bands: Sequence[int] | None = None,
) -> Picture:
    """Draw what a heatmap is made of: its heaviest channels, each as feature map and as the image seen through it.

    Args:
        image: (C, *spatial), the image that was explained, as the model was fed it.
        explanation: An explanation with one layer; of several targets, the first is shown.
        index: The index of the image in the explanation.
        normalization: Mean and standard deviation that the image was normalized with.
        count: The number of channels, at most 16; channels without a positive weight are left out.
        columns: How many channels make a row.
        bands: The channels of the image that are shown, as in `to_pictures`.

    Raises:
        ValueError: The explanation has several layers, or `image` is not one image.
    """
    cells = channel_cells(image, explanation, index, normalization, count, bands)
    return with_scale(grid(cells, columns, _SIDE, coarse_lines(explanation)), "heatmap", image.ndim - 1)


def coarse_lines(explanation: Explanation) -> list[Line]:
    """Return the line above a picture of coarse maps that says so; none if the maps are not coarse."""
    note = coarse_note(explanation.positions)
    return [Line(note, MUTED)] if note else []


def channel_cells(
    image: Tensor,
    explanation: Explanation,
    index: int,
    normalization: Normalization | None,
    count: int,
    bands: Sequence[int] | None = None,
) -> list[Cell]:
    """Return the cells of `strongest_channels`."""
    channels = explanation.channels
    if channels is None:
        raise ValueError("an explanation of several layers has no channels to show; explain one layer")
    if image.ndim != 1 + explanation.layer_maps.ndim - explanation.estimated_error.ndim:
        raise ValueError(f"image has shape {tuple(image.shape)}; one image (C, *spatial) is needed")
    parts = [part[index].cpu() for part in (channels.index, channels.weight, channels.activations)]
    if explanation.estimated_error.ndim == 2:
        parts = [part[0] for part in parts]
    count = max(1, min(count, int((parts[1] > 0).sum())))  # channels that weigh nothing show nothing
    numbers, weights, activations = (part[:count] for part in parts)
    masks = min_max(upsample(activations, image.shape[1:]))
    image = as_floats(image.detach().cpu()).float()
    plain = to_pictures(image.unsqueeze(0), normalization, bands)[0]
    masked = to_pictures(image * masks.unsqueeze(1), normalization, bands)
    return [
        Cell(
            [overlay(plain, mask, "heatmap"), seen],
            [Line(f"weight {weight:.3g}", MUTED)],
            [f"channel {number}", "seen through it"],
        )
        for mask, seen, weight, number in zip(masks, masked, weights.tolist(), numbers.tolist(), strict=True)
    ]


def classes_side_by_side(
    images: Tensor,
    explanation: Explanation,
    class_names: Sequence[str] | None = None,
    normalization: Normalization | None = None,
    style: OverlayStyle = "blend",
    size: int = _SIDE,
    bands: Sequence[int] | None = None,
) -> Picture:
    """Draw one row per image: the image, then the heatmap of each target, below its class and probability.

    Args:
        images: (N, C, *spatial), as the model was fed them.
        explanation: An explanation of the images with T targets each: `targets` of shape (N, T).
        class_names: The names of the classes; None shows their indices.
        normalization: Mean and standard deviation that the images were normalized with.
        style: The style of the overlays, as in `cam_callbacks.overlay`.
        size: Longer side of each picture, in pixels.
        bands: The channels that are shown, as in `to_pictures`.

    Raises:
        ValueError: The explanation is of other images, or does not have several classes for each.
    """
    if explanation.targets is None or explanation.targets.ndim != 2 or explanation.probabilities is None:
        raise ValueError("explanation has one target for each image; explain several, with targets of shape (N, T)")
    if len(images) != len(explanation):
        raise ValueError(
            f"explanation has {len(explanation)} images, images has {len(images)}; give the same images to both"
        )
    rows, heatmaps = [], explanation.scaled_to(None).cpu()
    for index, picture in enumerate(to_pictures(images, normalization, bands)):
        targets = explanation.targets[index].tolist()
        overlays = [overlay(picture, heat, style) for heat in heatmaps[index]]
        headings = [shown_name(ClassNames(class_names), target) for target in targets]
        probabilities = [f"{float(explanation.probabilities[index, target]):.2f}" for target in targets]
        named = [f"{share} {name}" for share, name in zip(probabilities, headings, strict=True)]
        rows.append(Cell([picture, *overlays], headings=["image", *named]))
    return with_scale(grid(rows, size=size, title=coarse_lines(explanation)), style, images.ndim - 2)


def methods_side_by_side(
    images: Tensor,
    explanations: Mapping[str, Explanation],
    normalization: Normalization | None = None,
    style: OverlayStyle = "blend",
    size: int = _SIDE,
    bands: Sequence[int] | None = None,
) -> Picture:
    """Draw one row per image: the image, then its heatmap by each method, below the method's name.

    Args:
        images: (N, C, *spatial), as the model was fed them.
        explanations: Explanations of the images with one target each, by the name to show.
        normalization: Mean and standard deviation that the images were normalized with.
        style: The style of the overlays, as in `cam_callbacks.overlay`.
        size: Longer side of each picture, in pixels.
        bands: The channels that are shown, as in `to_pictures`.

    Raises:
        ValueError: An explanation is of other images, or has several targets for each.
    """
    for name, explanation in explanations.items():
        if explanation.estimated_error.shape != (len(images),):
            raise ValueError(
                f"the explanation {name!r} has heatmaps {tuple(explanation.heatmaps.shape)}; one for each of the "
                f"{len(images)} images is needed"
            )
    rows, heatmaps = [], [each.scaled_to(None).cpu() for each in explanations.values()]
    for index, picture in enumerate(to_pictures(images, normalization, bands)):
        overlays = [overlay(picture, maps[index], style) for maps in heatmaps]
        rows.append(Cell([picture, *overlays], headings=["image", *explanations]))
    coarse = {name: each.positions for name, each in explanations.items() if each.is_coarse}
    title = [Line(f"{name} is coarse: {shown_positions(positions)}", MUTED) for name, positions in coarse.items()]
    return with_scale(grid(rows, size=size, title=title), style, images.ndim - 2)
