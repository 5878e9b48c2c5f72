"""ProbeSet: what it checks, keeps and gives back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cam_callbacks.data.batches import Samples
from cam_callbacks.data.class_names import ClassNames
from cam_callbacks.data.normalization import IMAGENET
from cam_callbacks.data.probes import ProbeSet


def probe_set(**changes: Any) -> ProbeSet:
    parts: dict[str, Any] = {"images": torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    parts |= {"labels": torch.tensor([0, 1, 1, 2]), "masks": torch.eye(8).bool().expand(4, 8, 8)}
    return ProbeSet(**(parts | changes))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"images": [[0.5]]}, TypeError, "images must be a tensor of numbers, as the model is fed; got list"),
        (
            {"images": torch.zeros(4, 3, 8, 8, dtype=torch.complex64)},
            TypeError,
            "images must be a tensor of numbers.*complex64",
        ),
        ({"labels": [0, 1]}, TypeError, "labels must be a tensor of whole numbers, one for each image; got list"),
        ({"labels": torch.zeros(4)}, TypeError, "labels must be a tensor of whole numbers.*; got torch.float32"),
        ({"groups": torch.zeros(4)}, TypeError, "groups must be a tensor of whole numbers"),
        ({"masks": torch.full((4, 8, 8), 255)}, TypeError, "masks must be bool, True on the object; got torch.int64"),
        ({"class_names": "cat"}, TypeError, "class_names='cat' must be a list of names"),
        ({"images": torch.zeros(0, 3, 8, 8)}, ValueError, r"images.* \(0, 3, 8, 8\)"),
        ({"images": torch.zeros(4, 3)}, ValueError, r"images.* \(4, 3\)"),
        ({"labels": torch.tensor([0, 1])}, ValueError, r"labels has shape \(2,\); 4 images need \(4,\)"),
        ({"masks": torch.ones(4, 4, 4).bool()}, ValueError, r"masks.* need \(4, 8, 8\)"),
        ({"annotations": [[1]]}, TypeError, "annotations must be a tensor"),
        ({"annotations": torch.ones(3, 2).bool()}, ValueError, r"annotations has shape \(3, 2\)"),
        ({"annotations": torch.ones(4, 8).long()}, ValueError, "a whole number for each pixel"),
        ({"normalization": "imagnet"}, ValueError, "normalization='imagnet' must be 'imagenet', or a pair"),
    ],
)
def test_a_part_that_is_wrong_is_named(changes: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        probe_set(**changes)


def test_whole_numbers_of_any_kind_are_kept_as_int64() -> None:
    for dtype in (torch.uint8, torch.int16, torch.int32):
        probes = probe_set(
            groups=torch.tensor([3, 4, 5, 6], dtype=dtype), labels=torch.tensor([1, 0, 2, 0], dtype=dtype)
        )
        assert probes.labels is not None
        assert probes.groups is not None
        assert (probes.labels.dtype, probes.groups.dtype) == (torch.int64, torch.int64)
        assert (probes.labels.tolist(), probes.groups.tolist()) == ([1, 0, 2, 0], [3, 4, 5, 6])


def test_class_names_are_always_a_value() -> None:
    assert probe_set().class_names == probe_set(class_names=None).class_names == ClassNames()
    assert probe_set(class_names=["cat", "dog"]).class_names.name(1) == "dog"


def test_a_normalization_may_be_given_by_its_name() -> None:
    assert probe_set(normalization="imagenet").normalization == IMAGENET


def test_it_says_where_its_masks_come_from() -> None:
    found = [probe_set(masks=None), probe_set(), probe_set(masks_estimated=True)]
    assert [probes.mask_source for probes in found] == ["none", "given", "estimated"]


def test_samples_become_probes() -> None:
    samples = Samples(torch.rand(2, 3, 4, 4), torch.tensor([0, 1]), torch.ones(2, 4, 4).bool(), torch.tensor([2, 3]))
    probes = ProbeSet.of(samples)
    assert len(probes) == 2
    for name in ("images", "labels", "masks", "groups"):
        assert torch.equal(getattr(probes, name), getattr(samples, name))


@pytest.mark.parametrize(
    ("kind", "given", "kept"),
    [
        ("multi-label", torch.tensor([[1.0, torch.nan]] * 4), torch.tensor([[True, False]] * 4)),
        ("dense", torch.full((4, 8, 8), -100), torch.full((4, 8, 8), -100, dtype=torch.int16)),
        ("value", torch.full((4, 2), 0.5), torch.full((4, 2), 0.5)),
        ("class", torch.eye(4), None),
    ],
)
def test_annotations_of_samples_are_kept_where_labels_do_not_say_it(kind: Any, given: Any, kept: Any) -> None:
    probes = ProbeSet.of(Samples(torch.rand(4, 3, 8, 8), None, None, label_kind=kind, annotations=given))
    again = ProbeSet.from_state_dict(probes.state_dict())
    for each in (probes.annotations, again.annotations):
        assert (each is None and kept is None) or (each.dtype == kept.dtype and torch.equal(each, kept))
    assert again.fingerprint == probes.fingerprint


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        (torch.tensor([[[-1, 0], [2, 2]]]), "sky, dog"),
        (torch.tensor([[[-1, -1], [-1, -1]]]), "none"),
        (torch.tensor([[True, False, True]]), "sky, dog"),
        (torch.tensor([[0.25, 3.0]]), "0.25, 3"),
        (None, None),
    ],
    ids=["classes of pixels", "no pixel is known", "labels", "numbers", "nothing"],
)
def test_what_is_true_of_an_image_is_said_in_words(annotations: Any, words: str | None) -> None:
    probes = ProbeSet(torch.rand(1, 3, 2, 2), class_names=("sky", "cat", "dog"), annotations=annotations)
    assert probes.annotation_in_words(0, probes.class_names.name) == words


def test_a_subset_has_all_parts_of_its_images() -> None:
    agreement = torch.tensor([True, False, True, True])
    probes = probe_set(annotations=torch.eye(4).bool(), groups=torch.arange(4), mask_agreement=agreement)
    some = probes.subset(torch.tensor([3, 1]))
    assert torch.equal(some.images, probes.images[[3, 1]])
    assert (some.labels.tolist(), some.groups.tolist()) == ([2, 1], [3, 1])  # type: ignore[union-attr]
    assert torch.equal(some.annotations, torch.eye(4).bool()[[3, 1]])  # type: ignore[arg-type]
    for each in (some, ProbeSet.from_state_dict(some.state_dict())):
        assert each.mask_agreement.tolist() == [True, False]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"mask_agreement has shape \(3,\); it needs \(4,\)"):
        probe_set(mask_agreement=agreement[:3])


def test_the_fingerprint_tells_whether_two_sets_are_the_same() -> None:
    probes = probe_set()
    assert probes.fingerprint == probe_set().fingerprint == probe_set(class_names=("a",)).fingerprint
    others = [
        probe_set(images=probes.images + 1e-6),
        probe_set(images=probes.images.double()),
        probe_set(labels=torch.tensor([0, 1, 2, 2])),
        probe_set(labels=None),
        probe_set(masks=None),
    ]
    assert len({probes.fingerprint, *(other.fingerprint for other in others)}) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_fingerprint_does_not_depend_on_the_memory_format(dtype: torch.dtype) -> None:
    images = probe_set().images.to(dtype)
    last = images.to(memory_format=torch.channels_last)
    assert probe_set(images=images).fingerprint == probe_set(images=last).fingerprint


def test_the_state_gives_the_same_probes_back() -> None:
    probes = probe_set(class_names=("a", "b", "c"), normalization=((0.5,) * 3, (0.2,) * 3))
    for given in (probes, probe_set(labels=None, masks=None)):
        again = ProbeSet.from_state_dict(given.state_dict())
        assert again.fingerprint == given.fingerprint
        assert (again.class_names, again.normalization) == (given.class_names, given.normalization)
