"""What is understood as a normalization, how it is undone, and whether that gives images to look at."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cam_callbacks.data.normalization import IMAGENET, as_normalization, denormalized, is_displayable

NORMALIZATION = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def normalized(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in NORMALIZATION)
    return (images - mean) / std


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ("imagenet", IMAGENET),
        (NORMALIZATION, NORMALIZATION),
        (([1], [2]), ((1.0,), (2.0,))),
        (torch.tensor([[0.5], [0.25]]), ((0.5,), (0.25,))),
    ],
)
def test_pairs_names_and_nothing_are_understood(given: Any, expected: Any) -> None:
    assert as_normalization(given) == expected


@pytest.mark.parametrize(
    "given",
    ["imagnet", "12", 0.5, (0.5, 0.5), ([], []), ([0.5], [0.5, 0.5]), ([0.5], [0]), ([0.5], [float("nan")]), ([0.5],)],
)
def test_anything_else_is_refused_with_what_is_expected(given: Any) -> None:
    with pytest.raises(ValueError, match=r"normalization=.* must be 'imagenet', or a pair"):
        as_normalization(given)


def test_undoing_the_normalization_gives_the_images_back() -> None:
    images = torch.rand(2, 3, 6, 6)
    assert torch.allclose(denormalized(normalized(images), NORMALIZATION), images, atol=1e-6)
    assert torch.equal(denormalized(images.double(), None), images)


def test_it_is_known_which_normalization_brings_images_back_into_range() -> None:
    images = torch.rand(2, 3, 6, 6)
    images[0, :, 0, 0], images[0, :, 0, 1] = 0, 1
    images = normalized(images)
    assert is_displayable(images, NORMALIZATION)
    assert not is_displayable(images, None)
    assert not is_displayable(images, ((0.5, 0.5), (0.2, 0.2)))
    assert is_displayable(torch.rand(2, 1, 6, 6), None)
    assert is_displayable(torch.rand(2, 3, 6, 6) * 1.02, None)
    assert not is_displayable(torch.rand(2, 3, 6, 6) * 255, None)
    assert is_displayable(torch.rand(2, 3, 64) * 255, None)
