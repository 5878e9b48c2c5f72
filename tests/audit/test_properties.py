"""What the data gives away: each property tells the classes apart where it differs, and only there."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cues import Reads, as_jpeg, compressed_scenes, cued_scenes

from cam_callbacks import audit_model, judge
from cam_callbacks.audit.image_properties import measured
from cam_callbacks.audit.properties import data_properties

LABELS = torch.arange(80) % 2


def noise(count=80, side=40, channels=3):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def telling(images, labels=LABELS, masks=None):
    return {(each.where, each.name) for each in data_properties(images, labels, masks) if each.gives_away}


def suspicious(found):
    return {(each.where, each.name) for each in found if each.gives_away and not each.shows_object}


def row(found, name, where="outer ring"):
    (found,) = (each for each in found if (each.name, each.where) == (name, where))
    return found


def of_class_1(change, images):
    return torch.where(LABELS.view(-1, 1, 1, 1) == 1, change(images), images)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("brightness", lambda images: images + 0.2),
        ("contrast", lambda images: 0.5 * (images - 0.5) + 0.5),
        ("sharpness", lambda images: F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)),
        ("saturation", lambda images: 0.5 * (images + images.mean(dim=1, keepdim=True))),
        ("edge density", lambda images: F.avg_pool2d(images, 5, 1, 2, count_include_pad=False)),
    ],
)
def test_a_property_that_differs_between_the_classes_is_found(name, change):
    found = data_properties(of_class_1(change, noise()), LABELS)
    for where in ["outer ring", "image"]:
        differing = row(found, name, where)
        assert differing.gives_away
        assert differing.auc > 0.95
        assert 0.5 < differing.chance < 0.6
    assert telling(noise()) == set()


def test_brightness_alone_is_found_where_only_it_differs():
    found = telling(of_class_1(lambda images: images + 0.2, noise()))
    assert found == {("outer ring", "brightness"), ("image", "brightness")}


def test_the_jpeg_quality_is_found_and_the_object_has_no_part_in_it():
    probes = compressed_scenes(80)
    found = row(data_properties(probes.images, probes.labels), "JPEG quality", "image")
    assert found.gives_away
    assert (found.is_larger, found.label, found.count) == (True, 0, 80)
    assert found.auc > 0.95
    assert not found.shows_object
    values = measured(probes.images)["JPEG quality", "image"]
    assert values.unique().tolist() == pytest.approx([15, 92], abs=1)


def test_no_quality_is_told_where_no_image_has_traces_or_none_can_be_read():
    drawn = torch.zeros(20, 3, 32, 32)
    drawn[:10, :, 8:24, 8:24] = 200
    drawn += torch.randint(40, drawn.shape, generator=torch.Generator().manual_seed(0))
    for images in (drawn, noise(20), noise(20, 16).mul(255).round()):
        assert ("JPEG quality", "image") not in measured(images)
    photos = compressed_scenes(20).images
    photos[3] += 0.01 * torch.rand(photos.shape[1:])
    (place,) = measured(photos)["JPEG quality", "image"].isnan().nonzero().flatten().tolist()
    assert place == 3


def test_of_a_large_image_its_middle_is_read():
    image = torch.zeros(1, 3, 200, 232)
    shade = F.interpolate(torch.rand(1, 3, 26, 30), (200, 232), mode="bilinear")
    image[0] = as_jpeg(40 + 180 * shade[0] + 8 * torch.randn(3, 200, 232), 60)
    assert measured(image)["JPEG quality", "image"].item() == pytest.approx(60, abs=1)


@pytest.mark.parametrize(("step", "expected"), [(0.3, 2 / 22), (0.0, None)])
def test_edges_are_steps_of_more_than_half_of_the_contrast(step, expected):
    images = torch.zeros(4, 1, 24, 24)
    images[..., 12:] = step
    values = measured(images)["edge density", "image"]
    assert torch.isnan(values).all() if expected is None else torch.allclose(values, torch.tensor(expected))


def test_the_aspect_ratio_is_that_of_the_box_around_the_mask():
    masks = torch.zeros(3, 12, 16, dtype=torch.bool)
    masks[0, 2:8, 3:5] = True
    masks[1, 4, 1] = masks[1, 5, 8] = True
    values = measured(torch.rand(3, 1, 12, 16), masks)["aspect ratio", "object"]
    assert values[:2].tolist() == [3, 0.25]
    assert torch.isnan(values[2])


def test_size_and_position_of_objects_are_found():
    masks = torch.zeros(80, 40, 40, dtype=torch.bool)
    for mask, label in zip(masks, LABELS.tolist(), strict=True):
        mask[10:20, 5 + 15 * label : 15 + 18 * label] = True
    found = telling(noise(), masks=masks)
    assert found == {("object", "size"), ("object", "horizontal position"), ("object", "aspect ratio")}
    masks[:] = False
    for mask, label in zip(masks, LABELS.tolist(), strict=True):
        mask[10:20, 5 + 15 * label : 15 + 15 * label] = True
    assert telling(noise(), masks=masks) == {("object", "horizontal position")}


def test_the_background_is_looked_at_without_the_object():
    masks = torch.zeros(80, 40, 40, dtype=torch.bool)
    masks[:, 10:30, 10:30] = True
    images = torch.where(masks.unsqueeze(1), of_class_1(lambda each: each + 0.4, noise()), noise())
    of_whole = {("image", "brightness"), ("image", "contrast"), ("image", "sharpness"), ("image", "edge density")}
    assert telling(images) == telling(images, masks=masks) == of_whole
    assert not suspicious(data_properties(images, LABELS, masks))
    everywhere = of_class_1(lambda each: each + 0.4, noise())
    assert telling(everywhere) == {("outer ring", "brightness"), ("image", "brightness")}
    assert telling(everywhere, masks=masks) == {("background", "brightness"), ("image", "brightness")}


def test_backgrounds_come_before_what_the_object_is_a_part_of():
    masks = torch.zeros(80, 40, 40, dtype=torch.bool)
    masks[:, 10:30, 10:30] = True
    found = data_properties(of_class_1(lambda images: images + 0.2, noise()), LABELS, masks)
    assert [each.shows_object for each in found] == sorted(each.shows_object for each in found)
    shown = {(each.where, each.name) for each in found if each.shows_object}
    assert found[0].is_larger is False  # of class 0
    names = {"brightness", "contrast", "saturation", "sharpness", "edge density"}
    assert shown == {*(("image", name) for name in names), ("object", "aspect ratio")}


def test_normalization_changes_nothing():
    images = of_class_1(lambda each: 0.5 * each, noise())
    plain, normalized = (data_properties(each, LABELS) for each in (images, (images - 0.4) / 0.2))
    assert {(each.name, round(each.auc, 6)) for each in plain} == {
        (each.name, round(each.auc, 6)) for each in normalized
    }


def test_without_a_difference_something_is_found_in_few_of_many_data_sets():
    draw = torch.Generator().manual_seed(1)
    images = noise(60, 24)
    false = sum(
        any(each.p_value <= 0.05 for each in data_properties(images, torch.randint(3, (60,), generator=draw)))
        for _ in range(60)
    )
    assert false <= 8  # 3 are expected, 8 or fewer in 99.5 % of the cases


def test_of_several_classes_the_one_that_differs_is_named():
    labels = torch.arange(80) % 4
    images = noise() + 0.2 * (labels == 2).view(-1, 1, 1, 1)
    found = row(data_properties(images, labels), "brightness")
    assert found.label == 2
    assert found.gives_away


def test_of_two_classes_the_first_is_named():
    images = of_class_1(lambda each: 0.5 * each, noise())
    assert {each.label for each in data_properties(images, LABELS + 3)} == {3}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_tiny_class_hides_nothing(count):
    images = noise(80 + count)
    images[:80] += (0.1 * LABELS).view(-1, 1, 1, 1)
    labels = torch.cat([LABELS, torch.full((count,), 2)])
    found = row(data_properties(images, labels), "brightness")
    assert found.gives_away
    assert found.label in (0, 1)


def test_a_background_of_nothing_has_no_properties():
    masks = torch.zeros(80, 40, 40, dtype=torch.bool)
    masks[:40, 10:30, 10:30] = True
    masks[40:, 1:39, 1:39] = True
    found = data_properties(noise(), LABELS.sort().values, masks)
    assert not [each for each in found if each.where == "background" and each.gives_away]


def vignettes(sizes):
    away = (torch.arange(32) - 15.5).square()
    away = (away + away.unsqueeze(1)).sqrt()
    masks = away < sizes.view(-1, 1, 1)
    images = (1 - away / 24).expand(80, 3, 32, 32) + 0.03 * torch.randn(80, 3, 32, 32)
    return torch.where(masks.unsqueeze(1), torch.rand(80, 3, 1, 1), images), masks


def test_what_only_follows_from_the_size_of_objects_is_a_note():
    images, masks = vignettes(6 + 5 * LABELS + torch.rand(80))
    found = data_properties(images, LABELS, masks)
    dark = row(found, "brightness", "background")
    assert dark.gives_away
    assert dark.follows_object
    assert dark.shows_object
    assert row(found, "size", "object").gives_away
    assert not row(found, "size", "object").shows_object
    images, masks = vignettes(8 + torch.rand(80))
    bright = row(
        data_properties(of_class_1(lambda each: each + 0.3, images), LABELS, masks), "brightness", "background"
    )
    assert bright.gives_away
    assert not bright.shows_object


def test_of_more_images_than_2048_so_many_are_looked_at():
    found = data_properties(torch.rand(2200, 1, 8, 8), torch.arange(2200) // 1100)
    assert {each.count for each in found} == {2048}


def test_a_background_of_one_color_tells_nothing_however_large_it_is():
    masks = torch.zeros(80, 40, 40, dtype=torch.bool)
    for mask, label in zip(masks, LABELS.tolist(), strict=True):
        mask[10 : 20 + 7 * label, 5:13] = True
    images = torch.where(masks.unsqueeze(1), noise(), torch.tensor([0.1, 0.7, 0.35]).view(1, 3, 1, 1))
    assert not {each for each in telling(images, masks=masks) if each[0] == "background"}


def test_of_many_images_few_permutations_are_held_at_once():
    labels = torch.arange(600) % 2
    images = torch.rand(600, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.1 * labels.view(-1, 1, 1, 1)
    assert ("outer ring", "brightness") in telling(images, labels)


@pytest.mark.parametrize("size", [(30,), (6, 7, 8), (9, 2), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_other_images_have_the_properties_that_are_defined(size, channels):
    images = torch.rand(20, channels, *size, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(20, *size, dtype=torch.bool)
    masks[:, 0] = True
    found = data_properties(images, LABELS[:20], masks)
    assert ("saturation" in {each.name for each in found}) == (channels == 3)
    assert ("edge density" in {each.name for each in found}) == (size != (1, 1))
    assert ("aspect ratio" in {each.name for each in found}) == (size == (9, 2))
    assert all(0.5 <= each.auc <= 1 and 0 < each.p_value <= 1 for each in found)


def test_constant_images_give_nothing_away():
    assert telling(torch.full((20, 3, 8, 8), 0.3), LABELS[:20]) == set()


def test_the_verdict_warns_of_the_data_and_says_how_to_test_the_model():
    probes = cued_scenes()
    result = audit_model(Reads("stripes"), probes, num_donors=1)
    assert ("object", "size") in {(each.where, each.name) for each in result.data if each.gives_away}
    text = judge(result).text
    assert "across can be told apart from the others by the smaller size of the object alone, AUC 1.00" in text
    assert (
        "`Audit(interventions=['position', 'size'])` tests whether the model uses horizontal position or size." in text
    )
    (note,) = (part for part in text.split("\n\n") if part.startswith("Data note"))
    assert "the mean color outside the object alone" in note  # which goes with the size
    assert "AuditResult.data has" in note
    tested = audit_model(Reads("stripes"), probes, num_donors=1, interventions=["position", "size", "detail"])
    assert "tests whether the model uses it" not in judge(tested).text
    used = audit_model(Reads("position"), probes, num_donors=1, interventions=["position"])
    warned = judge(used).text.split("Data warning")[1]
    assert warned.index("horizontal position") < warned.index("size of the object")
    estimated = audit_model(Reads("stripes"), replace(probes, masks_estimated=True), num_donors=1)
    assert {each.where for each in estimated.data} == {"background", "image"}
