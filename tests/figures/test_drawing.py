"""Pictures of tensors, heat over them, and grids of pictures."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch

from cam_callbacks.figures.colors import ALERT, BACKGROUND
from cam_callbacks.figures.drawing import montage, overlay, to_pictures
from cam_callbacks.figures.grid import Cell, Line, grid
from cam_callbacks.figures.settings import OverlayStyle

STYLES = get_args(OverlayStyle)

GRAY = np.full((8, 8, 3), 128, dtype=np.uint8)
NORMALIZATION = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def colored(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Where a picture has a color, but for the lowest bits."""
    return np.abs(picture.astype(int) - np.array(color)).max(axis=2) < 4


def heat(value: float = 0.0) -> torch.Tensor:
    return torch.full((8, 8), value)


def normalized(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in NORMALIZATION)
    return (images - mean) / std


def test_images_are_shown_as_they_were_before_normalizing() -> None:
    images = torch.rand(2, 3, 6, 7)
    (first, second) = to_pictures(normalized(images), NORMALIZATION)
    assert first.shape == (6, 7, 3)
    assert first.dtype == np.uint8
    assert np.abs(first.transpose(2, 0, 1) - images[0].numpy() * 255).max() <= 0.51
    assert np.array_equal(second, to_pictures(images, None)[1])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_images_of_any_number_of_channels_are_shown(channels: int) -> None:
    images = torch.rand(1, channels, 4, 4)
    (picture,) = to_pictures(images, None)
    assert picture.shape == (4, 4, 3)
    if channels < 3:
        assert np.array_equal(picture[..., 0], picture[..., 2])
    else:
        assert np.array_equal(picture[..., 2], (images[0, 2] * 255).round().to(torch.uint8).numpy())


@pytest.mark.parametrize("bands", [(3, 2, 1), (6,), [0, 0, 5]])
def test_the_bands_that_are_wanted_are_shown(bands: Any) -> None:
    images = torch.rand(1, 7, 4, 4)
    (picture,) = to_pictures(images, ([0.0] * 7, [1.0] * 7), bands)
    expected = (images[0, list(bands)] * 255).round().to(torch.uint8).expand(3, 4, 4)
    assert np.array_equal(picture.transpose(2, 0, 1), expected.numpy())


@pytest.mark.parametrize(("bands", "says"), [((7,), "the channels 0 to 6"), ((0, 1), "one channel"), ((-1,), "bands")])
def test_bands_that_there_are_not_are_refused(bands: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        to_pictures(torch.rand(1, 7, 4, 4), None, bands)


def test_images_outside_of_display_range_are_scaled_each_to_its_own_range() -> None:
    images = torch.stack([torch.linspace(-3, 5, 48).view(3, 4, 4), torch.linspace(100, 200, 48).view(3, 4, 4)])
    for picture in to_pictures(images, None):
        assert picture.min() == 0
        assert picture.max() == 255


def test_a_constant_image_outside_of_display_range_is_shown() -> None:
    (picture,) = to_pictures(torch.full((1, 3, 4, 4), 7.0), None)
    assert picture.shape == (4, 4, 3)


def test_images_of_half_precision_are_shown() -> None:
    assert to_pictures(torch.rand(1, 3, 4, 4).bfloat16(), None)[0].dtype == np.uint8


def test_signals_are_curves_over_a_strip_that_shows_their_heat() -> None:
    signals = torch.sin(torch.linspace(0, 12, 100)).expand(2, 2, 100).clone()
    signals[:, 1] *= -1
    picture = to_pictures(signals)[0]
    along = torch.zeros(100)
    along[50:] = 1
    drawn = overlay(picture, along)
    strip = slice(-10, -4)
    assert drawn.shape == picture.shape
    assert np.array_equal(drawn[:60], picture[:60])
    left, right = drawn[strip, :80].mean(), drawn[strip, -80:].mean()
    assert left < 30
    assert right > 150
    assert not np.array_equal(overlay(picture, along, "jet")[strip], drawn[strip])
    assert not np.array_equal(overlay(picture, along * torch.nan), drawn)


def test_volumes_are_laid_out_as_slices_with_their_heat() -> None:
    volumes = torch.rand(1, 1, 12, 6, 8)
    picture = to_pictures(volumes)[0]
    assert picture.shape == (18, 24, 3)  # nine of twelve slices
    within = torch.zeros(12, 6, 8)
    within[-1] = 1
    drawn = overlay(picture, within, "heatmap")
    assert (drawn[12:, 16:] == drawn[-1, -1]).all()
    assert not (drawn[:12] == drawn[-1, -1]).all(axis=2).any()


def test_a_montage_leaves_what_is_missing_in_the_last_row_empty() -> None:
    slices = np.ones((5, 2, 3), dtype=np.float32)
    laid_out = montage(slices)
    assert laid_out.shape == (4, 9)
    assert laid_out[2:, 6:].sum() == 0
    assert laid_out.sum() == slices.sum()


@pytest.mark.parametrize("style", STYLES)
def test_hotter_is_brighter_and_the_image_is_left_as_it_was(style: Any) -> None:
    image = GRAY.copy()
    hot = heat()
    hot[2:4, 2:4] = 1
    picture = overlay(image, hot, style)
    assert picture.shape == image.shape
    assert picture.dtype == np.uint8
    assert picture[2, 2].astype(int).sum() > picture[6, 6].astype(int).sum()
    assert np.array_equal(image, GRAY)


@pytest.mark.parametrize("style", ["blend", "color", "heatmap"])
def test_brightness_rises_with_the_heat_all_the_way(style: Any) -> None:
    ramp = torch.linspace(0, 1, 8).expand(8, 8)
    brightness = overlay(GRAY, ramp, style)[0].astype(float) @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(brightness) > 0).all()


def test_the_style_heatmap_shows_the_heat_alone() -> None:
    assert np.array_equal(overlay(GRAY, heat(0.3), "heatmap"), overlay(GRAY // 2, heat(0.3), "heatmap"))


@pytest.mark.parametrize("style", ["blend", "color"])
def test_the_image_can_be_seen_through_the_heat(style: Any) -> None:
    image = GRAY.copy()
    image[:4] = 250
    picture = overlay(image, heat(0.5), style).astype(int)
    assert (picture[0, 0] - picture[7, 7]).min() > 20


@pytest.mark.parametrize("color", [(220, 20, 20), (20, 200, 30), (255, 255, 255)])
@pytest.mark.parametrize("style", ["blend", "jet"])
def test_under_heat_no_photo_has_a_color(style: Any, color: tuple[int, int, int]) -> None:
    cold = overlay(np.full_like(GRAY, color), heat(0), style).astype(int)
    assert np.ptp(cold, axis=2).max() <= 3  # but for the black of inferno, which is a little blue


def test_where_there_is_no_heat_a_white_photo_is_darker_than_heat() -> None:
    white, black = np.full_like(GRAY, 255), np.zeros_like(GRAY)
    assert overlay(white, heat(0)).mean() < overlay(black, heat(0.7)).mean()


def test_in_the_style_color_the_photo_keeps_its_colors() -> None:
    red, green = (overlay(np.full_like(GRAY, color), heat(0.2), "color") for color in [(220, 0, 0), (0, 220, 0)])
    assert red[0, 0, 0] > red[0, 0, 1] + 50
    assert green[0, 0, 1] > green[0, 0, 0] + 20


def test_jet_cuts_heat_below_a_fifth() -> None:
    warm = heat()
    warm[0, 0], warm[1, 1] = 0.19, 1
    picture = overlay(GRAY, warm, "jet")
    assert np.array_equal(picture[0, 0], picture[7, 7])
    assert picture[1, 1, 0] > picture[1, 1, 2]  # red


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_map_that_is_not_finite_is_crossed_out(style: Any, value: float) -> None:
    picture = overlay(GRAY, heat(value), style)
    for corner in ((0, 0), (0, 7), (7, 0), (7, 7)):
        assert tuple(picture[corner]) == ALERT
    assert picture[0, 4].max() < 128


@pytest.mark.parametrize("style", STYLES)
def test_a_blank_map_and_one_beyond_the_range_are_drawn(style: Any) -> None:
    assert overlay(GRAY, heat(0.0), style).shape == GRAY.shape
    assert np.array_equal(overlay(GRAY, heat(1.5), "heatmap"), overlay(GRAY, heat(1.0), "heatmap"))


def test_an_unknown_style_and_a_map_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="style='rainbow' is unknown; choose one of"):
        overlay(GRAY, heat(), "rainbow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"heatmap has shape \(4, 4\), the image \(8, 8\)"):
        overlay(GRAY, torch.zeros(4, 4))
    for wrong in (1, GRAY[..., 0], GRAY / 255, torch.from_numpy(GRAY.copy())):
        with pytest.raises(TypeError, match=r"image must be an array \(H, W, 3\) uint8"):
            overlay(wrong, heat())  # type: ignore[arg-type]


def test_cells_are_laid_out_in_rows_as_high_as_their_highest_cell() -> None:
    large, small = Cell([GRAY, GRAY], [Line("a")], ["image", "cat"]), Cell([GRAY])
    picture = grid([large, small, small], columns=2, size=16)
    alone, low = grid([large], size=16), grid([small], size=16)
    assert picture.dtype == np.uint8
    assert picture.shape == (alone.shape[0] + low.shape[0], 2 * alone.shape[1], 3)
    assert np.array_equal(picture[: alone.shape[0], : alone.shape[1]], alone)
    assert colored(picture[-1:, -1:], BACKGROUND).all()


def test_small_pictures_are_enlarged_without_smoothing() -> None:
    board = np.zeros((2, 2, 3), dtype=np.uint8)
    board[0, 0] = board[1, 1] = 255
    shown = grid([Cell([board])], size=40)
    white = colored(shown, (255, 255, 255))
    assert white.sum() == 2 * 20 * 20
    assert (white | colored(shown, (0, 0, 0)) | colored(shown, BACKGROUND)).all()


@pytest.mark.parametrize("shape", [(80, 40), (500, 250), (2, 1)])
def test_pictures_of_any_size_are_drawn_at_one_size(shape: tuple[int, int]) -> None:
    white = colored(grid([Cell([np.full((*shape, 3), 255, dtype=np.uint8)])], size=40), (255, 255, 255))
    assert white.any(axis=1).sum() == 40
    assert white.any(axis=0).sum() == 20


def test_a_picture_narrower_than_a_pixel_is_drawn_one_pixel_wide() -> None:
    white = colored(grid([Cell([np.full((1, 500, 3), 255, dtype=np.uint8)])], size=40), (255, 255, 255))
    assert white.any(axis=1).sum() == 1


def test_a_mistake_is_framed() -> None:
    plain, framed = (grid([Cell([GRAY], alert=alert)], size=40) for alert in (False, True))
    assert plain.shape == framed.shape
    rows, columns = np.nonzero(colored(framed, ALERT))
    assert np.ptp(rows) > 0.8 * len(framed)
    assert np.ptp(columns) > 0.8 * framed.shape[1]
    assert not colored(plain, ALERT).any()


def test_long_odd_and_empty_texts_never_widen_a_cell() -> None:
    reference = grid([Cell([GRAY], [Line("a")], ["b"])], size=40).shape
    for text in ("x" * 500, "two\nlines\ttab", "", "Katze \u732b \U0001f408", "a" * 3):
        assert grid([Cell([GRAY], [Line(text)], [text])], size=40).shape == reference


def test_a_grid_without_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="cells is empty"):
        grid([])


def test_jet_is_not_stretched_to_the_range_of_each_picture() -> None:
    faint, warm = (overlay(GRAY, heat(value), "jet").max() for value in (0.3, 0.6))
    assert faint < warm < 255
