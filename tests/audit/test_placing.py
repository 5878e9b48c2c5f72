"""Objects moved, resized and mirrored: computed by hand on small images, in one to three dimensions."""

import pytest
import torch

from cam_callbacks.audit import placing
from cam_callbacks.audit.detail import with_detail_of


def scene(top, left, height, width, side=16):
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[:, top : top + height, left : left + width] = True
    image = torch.where(mask, torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0)) + 1, 0.25)
    return image, mask


def test_an_object_moves_by_whole_positions_and_its_place_is_inpainted():
    image, mask = scene(2, 3, 4, 4)
    _, donor = scene(9, 10, 4, 4)
    found = placing.moved(image, mask, image, donor)
    expected = torch.full_like(image, 0.25)
    expected[..., 9:13, 10:14] = image[..., 2:6, 3:7]
    torch.testing.assert_close(found, expected)


def test_an_object_stays_whole_at_the_edge():
    image, mask = scene(4, 4, 8, 8)
    _, donor = scene(14, 0, 2, 2)
    found = placing.moved(image, mask, image, donor)
    torch.testing.assert_close(found[..., 8:16, 0:8], image[..., 4:12, 4:12])


def test_an_object_is_resized_to_the_area_of_the_other():
    image, mask = scene(5, 5, 6, 6)
    _, donor = scene(2, 2, 9, 9)
    found = placing.resized_as(image, mask, image, donor) > 0.6
    assert found.sum() == pytest.approx(81, abs=20)
    smaller = placing.resized_as(*scene(2, 2, 9, 9), image, mask) > 0.6
    assert smaller.sum() == pytest.approx(36, abs=14)


def test_an_object_becomes_no_larger_than_the_image_and_twice_its_size():
    image, mask = scene(6, 6, 3, 3)
    found = placing.resized_as(image, mask, image, torch.ones_like(mask)) > 0.6
    assert found.sum() <= 49
    image, mask = scene(0, 0, 6, 6)
    torch.testing.assert_close(placing.resized_as(image, mask, image, torch.ones_like(mask)), image)


@pytest.mark.parametrize("act", [placing.with_trace_of_move, placing.with_trace_of_size])
def test_placebos_leave_the_object_as_it_is(act):
    image, mask = scene(2, 3, 4, 4)
    image = torch.where(mask, image, torch.rand_like(image))
    _, donor = scene(7, 7, 8, 8)
    found = act(image, mask, image, donor)
    torch.testing.assert_close(found[:, :, mask[0]], image[:, :, mask[0]])
    assert not torch.equal(found, image)


def wedge(to_right, side=16, channels=1):
    """Return an image, and the mask of a triangle that is drawn out to one side."""
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    masks = torch.zeros(1, side, side, dtype=torch.bool)
    masks[0, 4:10, 3:9] = mask if to_right else mask.flip(1)
    noise = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0)) + 1
    return torch.where(masks.unsqueeze(1), noise, 0.25), masks


class TestMirror:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_an_object_that_faces_the_other_way_is_mirrored_within_its_box(self, channels):
        image, mask = wedge(to_right=True, channels=channels)
        _, donor = wedge(to_right=False)
        found = placing.mirrored(image, mask, image, donor)
        expected = torch.full_like(image, 0.25)
        expected[..., 3:9] = image[..., 3:9].flip(-1)
        torch.testing.assert_close(found, expected)
        assert torch.equal(placing.mirrored(found, donor, found, donor), found)
        torch.testing.assert_close(placing.mirrored(found, donor, found, mask), image)

    @pytest.mark.parametrize(
        ("own", "other"),
        [
            ("right", "right"),
            ("left", "left"),
            ("even", "left"),
            ("right", "even"),
            ("right", "none"),
            ("none", "left"),
        ],
    )
    @pytest.mark.parametrize("act", [placing.mirrored, placing.with_trace_of_mirror])
    def test_others_stay_as_they_are(self, act, own, other):
        image, right = wedge(to_right=True)
        masks = {
            "right": right,
            "left": right.flip(2),
            "even": scene(2, 3, 4, 5)[1],
            "none": torch.zeros_like(right),
        }
        image = torch.rand_like(image)
        assert torch.equal(act(image, masks[own], image, masks[other]), image)

    def test_an_object_that_reaches_the_edge_stays_in_its_box(self):
        image, mask = wedge(to_right=True)
        image, mask = image[..., 3:], mask[..., 3:]
        found = placing.mirrored(image, mask, image, mask.flip(2))
        torch.testing.assert_close(found[..., :6], image[..., :6].flip(-1))
        torch.testing.assert_close(found[..., 6:], image[..., 6:])

    def test_the_placebo_inpaints_what_the_mirrored_one_would_cover(self):
        _, mask = wedge(to_right=True)
        image = torch.rand(1, 1, 16, 16)
        found = placing.with_trace_of_mirror(image, mask, image, mask.flip(2))
        assert torch.equal(found[:, :, mask[0]], image[:, :, mask[0]])
        changed = (found != image)[:, 0]
        assert changed[0, 4, 7]
        assert not changed[0, :2].any()
        assert not changed[..., 12:].any()

    @pytest.mark.parametrize("size", [(1,), (1, 1), (2, 3), (1, 9)])
    def test_tiny_images_stay_or_are_mirrored(self, size):
        images, masks = torch.rand(2, 2, *size), torch.ones(2, *size, dtype=torch.bool)
        assert torch.equal(placing.mirrored(images, masks, images, masks), images)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_signals_and_volumes_are_mirrored_along_their_last_axis(dimensions):
    size = [6] * (dimensions - 1) + [15]
    masks = torch.zeros(2, *size, dtype=torch.bool)
    masks[0, ..., [2, 3, 4, 8]] = True
    masks[1, ..., [6, 10, 11, 12]] = True
    images = torch.arange(15.0).expand(2, 2, *size).where(masks.unsqueeze(1), 0.0)
    found = placing.mirrored(images, masks, images.flip(0), masks.flip(0))
    assert found[0].amax(dim=tuple(range(dimensions)))[[2, 6, 7, 8]].tolist() == [8, 4, 3, 2]
    assert found[1].amax(dim=tuple(range(dimensions)))[[6, 7, 8, 12]].tolist() == [12, 11, 10, 6]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("act", [placing.moved, placing.resized_as])
def test_signals_and_volumes_are_changed_too(act, dimensions):
    size = [12] * dimensions
    masks = torch.zeros(2, *size, dtype=torch.bool)
    masks[(0, *[slice(1, 4)] * dimensions)] = True
    masks[(1, *[slice(5, 10)] * dimensions)] = True
    images = torch.where(masks.unsqueeze(1), 1.0, 0.0).expand(2, 2, *size).clone()
    found = act(images, masks, images.flip(0), masks.flip(0))
    assert found.shape == images.shape
    if act is placing.moved:
        assert found[0, 0].nonzero().float().mean(dim=0).tolist() == [7] * dimensions
    else:
        assert found[0].sum() > images[0].sum()
        assert found[1].sum() < images[1].sum()


class TestDetail:
    def test_an_image_gets_the_power_of_the_other_and_keeps_its_mean(self):
        draw = torch.Generator().manual_seed(0)
        images, donors = (
            0.1 * torch.randn(2, 3, 32, 32, generator=draw) + 0.5,
            torch.randn(2, 3, 32, 32, generator=draw),
        )
        found = with_detail_of(images, images, 0.3 * donors)
        torch.testing.assert_close(found.mean(dim=(2, 3)), images.mean(dim=(2, 3)))
        assert found.std() == pytest.approx(0.3, rel=0.05)

    def test_an_image_with_its_own_detail_stays_as_it_is(self):
        images = torch.rand(2, 3, 30, 21, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(with_detail_of(images, images, images), images)

    def test_a_sharp_image_becomes_as_blurred_as_the_other(self):
        images = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
        blurred = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
        found = with_detail_of(images, images, blurred)
        roughness = [float(each.diff(dim=3).square().mean()) for each in (images, blurred, found)]
        assert roughness[2] < 0.2 * roughness[0]

    @pytest.mark.parametrize("size", [(40,), (9, 8), (6, 7, 8)])
    def test_of_any_dimensions(self, size):
        images, donors = torch.rand(2, 2, 2, *size, generator=torch.Generator().manual_seed(0))
        assert with_detail_of(images, images, donors).shape == images.shape

    def test_an_image_without_any_detail_stays(self):
        images = torch.full((1, 1, 8, 8), 0.5)
        torch.testing.assert_close(with_detail_of(images, images, torch.rand(1, 1, 8, 8)), images)
