"""GrabCut finds an object that differs from its surroundings, and nothing where there is none."""

import sys

import numpy as np
import pytest
import torch

from cam_callbacks.audit.foreground import can_estimate, estimate_masks, with_estimated_masks
from cam_callbacks.audit.observations import Observations
from cam_callbacks.data.probes import ProbeSet

cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")


def blob(side: int, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright disc on a textured dark ground, and where it lies."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    disc = (rows - 0.45 * side) ** 2 + (columns - 0.55 * side) ** 2 < (0.25 * side) ** 2
    ground = 0.25 * torch.rand(channels, side, side, generator=torch.Generator().manual_seed(0))
    return torch.where(disc, 0.8 + 0.2 * ground, ground).unsqueeze(0), disc


@pytest.mark.parametrize(("side", "channels"), [(64, 3), (64, 1), (300, 3)])
def test_a_blob_on_a_textured_ground_is_found(side, channels):
    image, disc = blob(side, channels)
    found = estimate_masks(image)[0]
    assert found.shape == (side, side)
    assert (found & disc).sum() / (found | disc).sum() > 0.6


def touching_the_edge(side: int) -> torch.Tensor:
    """A bright square that a rectangle far from the edge cuts, on a plain dark ground."""
    image = torch.zeros(3, side, side)
    image[:, round(0.1 * side) : round(0.9 * side), round(0.1 * side) : round(0.9 * side)] = 1
    return image + 0.02 * torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))


def test_an_estimate_that_depends_on_the_start_does_not_count(monkeypatch):
    images = torch.stack([blob(64)[0][0], touching_the_edge(64)])
    probes = with_estimated_masks(ProbeSet(images))
    assert probes.mask_source == "estimated"
    assert probes.masks.flatten(1).any(dim=1).tolist() == probes.mask_agreement.tolist() == [True, False]
    monkeypatch.setattr("cam_callbacks.audit.foreground._MIN_AGREEMENT", -1.0)
    assert estimate_masks(images).flatten(1).any(dim=1).all()


def test_the_masks_do_not_depend_on_the_number_of_threads(monkeypatch):
    images = torch.rand(12, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    images[:, :, 12:28, 12:28] += torch.linspace(0, 1, 12).view(-1, 1, 1, 1)
    found = []
    for count in (1, 2, 7, None):
        monkeypatch.setattr("os.cpu_count", lambda count=count: count)
        found.append(estimate_masks(images))
    assert 0 < int(found[0].flatten(1).any(dim=1).sum()) < 12
    assert all(torch.equal(each, found[0]) for each in found)


def test_flat_images_have_empty_masks():
    assert not estimate_masks(torch.stack([torch.zeros(3, 32, 32), torch.full((3, 32, 32), 0.7)])).any()


def test_of_too_few_foregrounds_none_is_used():
    """Those of a few images would stand for their class."""
    found, _ = blob(32)
    images = torch.cat([found[:1], torch.rand(1, 3, 1, 1).expand(7, 3, 32, 32)])
    few = Observations(ProbeSet(images, torch.arange(8) % 2))
    assert few.masks is None
    assert [exchange.name for exchange in few.exchanges] == ["ring_gap"]
    assert "on which three estimates agree was found in only 1 of 8 images" in few.notes[0]
    enough = Observations(ProbeSet(torch.cat([found[:1], found[:1], images[2:]]), torch.arange(8) % 2))
    assert [exchange.name for exchange in enough.exchanges] == ["bg_gap", "outline_gap", "recolor_gap", "margin_gap"]
    assert enough.notes == (
        "A foreground on which three estimates agree was found in only 2 of 8 images, the others are left out; give "
        "masks, or Audit(masks=...)",
    )
    assert enough.probes.mask_agreement.tolist() == [True, True, *[False] * 6]


def test_foregrounds_of_one_class_alone_are_not_used():
    found, _ = blob(32)
    images, labels = torch.rand(8, 3, 1, 1).expand(8, 3, 32, 32).clone(), torch.arange(8) % 2
    images[labels == 0] = found[:1]
    only = Observations(ProbeSet(images, labels, class_names=("cat", "dog")))
    assert only.masks is None
    assert "in only 4 of 8 images, and of one class at most in a quarter of its images" in only.notes[0]


@pytest.mark.parametrize("goes_by_masks", [True, False])
def test_what_the_look_before_went_by_is_kept_to(goes_by_masks):
    found, _ = blob(32)
    count = 1 if goes_by_masks else 7
    images = torch.cat([found[:1].expand(count, -1, -1, -1), torch.rand(8 - count, 3, 1, 1).expand(-1, 3, 32, 32)])
    observations = Observations(ProbeSet(images, torch.arange(8) % 2), goes_by_masks=goes_by_masks)
    assert (observations.masks is not None) == goes_by_masks


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 5), (24, 2)], ids=str)
def test_images_of_less_than_three_pixels_have_no_inside_and_empty_masks(size):
    masks = estimate_masks(torch.rand(3, 3, *size))
    assert masks.shape == (3, *size)
    assert not masks.any()


def test_an_opencv_that_lacks_a_library_of_the_system_estimates_nothing(tmp_path, monkeypatch):
    assert can_estimate()
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cv2")
    assert not can_estimate()


def test_it_is_deterministic_and_touches_no_random_state():
    image, _ = blob(64)
    drawn = []
    for estimates in (0, 1):
        cv2.setRNGSeed(3)
        before = torch.get_rng_state()
        for _ in range(estimates):
            assert torch.equal(estimate_masks(image), estimate_masks(image))
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append(cv2.randn(np.zeros((1, 4)), 0, 1).tolist())
    assert drawn[0] == drawn[1]
