"""A function of the user's makes masks where none come; it changes nothing, and its errors are said to be its own."""

import numpy as np
import pytest
import torch
from planted import Reader, scenes

from cam_callbacks import audit_model
from cam_callbacks.audit.foreground import with_estimated_masks
from cam_callbacks.audit.mask_fn import masks_by
from cam_callbacks.data.probes import ProbeSet

IMAGES = torch.rand(5, 3, 6, 8, generator=torch.Generator().manual_seed(0))
BRIGHT = IMAGES[:, 0] > 0.5


@pytest.mark.parametrize(
    ("mask_fn", "images"),
    {
        "bool": (lambda images: images[:, 0] > 0.5, IMAGES),
        "numbers": (lambda images: images[:, 0], IMAGES),
        "double, one channel": (lambda images: images[:, :1].double(), IMAGES),
        "bytes": (lambda images: (images[:, 0] > 0.5).byte(), IMAGES),
        "array": (lambda images: images[:, 0].numpy() > 0.5, IMAGES),
        "lists": (lambda images: (images[:, 0] > 0.5).tolist(), IMAGES),
        "with a gradient": (lambda images: images[:, 0].requires_grad_(), IMAGES),
    }.values(),
)
def test_masks_of_several_kinds_are_read(mask_fn, images):
    found = masks_by(mask_fn, images)
    assert torch.equal(found, BRIGHT)
    assert not found.requires_grad


@pytest.mark.parametrize("shape", [(4, 3, 9), (4, 3, 5, 7), (4, 1, 5, 1, 6), (1, 2, 3, 1)], ids=str)
def test_images_of_any_dimensions_have_masks(shape):
    images = torch.rand(shape)
    probes = with_estimated_masks(ProbeSet(images), lambda images: images[:, 0])
    assert torch.equal(probes.masks, images[:, 0] > 0.5)
    assert (probes.mask_source, probes.mask_agreement) == ("estimated", None)


@pytest.mark.parametrize(
    ("mask_fn", "message"),
    [
        (lambda images: images[:, 0, 0], r"returns shape \(5, 8\); images \(5, 3, 6, 8\) need \(5, 6, 8\)"),
        (lambda images: images[0, 0], "returns shape"),
        (lambda images: images[:, 0].mT, "returns shape"),
        (lambda images: 255 * images[:, 0], r"must return bool, or numbers in \[0, 1\]; of logits take the sigmoid"),
        (lambda images: images[:, 0] - 0.5, "must return bool, or numbers"),
        (lambda images: images[:, 0] / 0 * 0, "must return bool, or numbers"),
        (lambda images: images[:, 0] + 0j, "must return bool, or numbers"),
        (lambda images: None, r"fails on images \(5, 3, 6, 8\): "),
        (lambda images: 1 / 0, r"fails on images \(5, 3, 6, 8\): ZeroDivisionError"),
        (lambda images: {}["masks"], "fails on .*: KeyError: 'masks'"),
    ],
)
def test_what_is_not_masks_is_refused(mask_fn, message):
    with pytest.raises(ValueError, match=rf"Audit\(masks=...\) {message}"):
        masks_by(mask_fn, IMAGES)


def test_images_and_random_numbers_are_left_as_they_were():
    def meddles(images):
        torch.rand(1), np.random.rand()  # noqa: NPY002
        assert not torch.is_grad_enabled()
        return images.zero_()[:, 0]

    before, states = IMAGES.clone(), (torch.get_rng_state(), np.random.get_state()[1].copy())  # noqa: NPY002
    assert not masks_by(meddles, IMAGES).any()
    assert torch.equal(IMAGES, before)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002


def test_it_takes_the_place_of_grabcut_but_not_of_given_masks():
    probes = scenes()
    without = scenes(masks=False)
    made = with_estimated_masks(without, lambda images: probes.masks)
    assert torch.equal(made.masks, probes.masks)
    assert with_estimated_masks(probes, pytest.fail) is probes
    result = audit_model(Reader(1), made)
    assert (result.mask_source, result["bg_gap"].overall.value) == ("estimated", 1)
    assert "mask_agreement" not in result


def test_where_it_finds_nothing_the_ring_is_swapped_and_that_is_said():
    nothing = with_estimated_masks(scenes(masks=False), lambda images: torch.zeros_like(images[:, 0]))
    result = audit_model(Reader(1), nothing)
    assert result.gap_name == "ring_gap"
    assert "a foreground was found in none of 60 images" in result.notes[0]
