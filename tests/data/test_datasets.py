"""Class names and normalization, as data sets and their transforms tell them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, Subset
from torchvision import datasets as vision
from torchvision import transforms as v1
from torchvision.transforms import v2

from cam_callbacks.data.datasets import class_names, class_names_of_model, normalization, normalizations_within

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("owl", "cat"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    return tmp_path


def test_names_are_found_in_torchvision_data_sets_and_in_what_wraps_them(photos: Path) -> None:
    data = vision.ImageFolder(photos)
    for wrapped in (data, Subset(data, [0]), ConcatDataset([data, data]), Subset(ConcatDataset([data]), [1])):
        assert class_names(wrapped) == ("cat", "owl")


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        (SimpleNamespace(class_names=["a", "b"]), ("a", "b")),
        (SimpleNamespace(classes=(1, 2)), ("1", "2")),
        (SimpleNamespace(features={"label": SimpleNamespace(names=["a", "b"])}), ("a", "b")),
        (SimpleNamespace(features={"image": 0, "labels": SimpleNamespace(names=["a"])}), ("a",)),
        (SimpleNamespace(classes=[], dataset=SimpleNamespace(classes=["x"])), ("x",)),
        (SimpleNamespace(classes="ab"), None),
        (SimpleNamespace(classes=3), None),
        (SimpleNamespace(features={"label": 3}), None),
        (SimpleNamespace(features=["label"]), None),
        (SimpleNamespace(datasets=[]), None),
        (None, None),
        ([1, 2], None),
    ],
)
def test_names_are_found_where_data_sets_keep_them(dataset: Any, names: tuple[str, ...] | None) -> None:
    assert class_names(dataset) == names


def test_a_data_set_that_wraps_itself_is_not_a_trap() -> None:
    loop = SimpleNamespace()
    loop.dataset = loop
    assert class_names(loop) is None
    assert normalization(loop) is None


@pytest.mark.parametrize(
    "transform",
    [
        v1.Normalize(MEAN, STD),
        v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD)]),
        v1.Compose([v1.ToTensor(), v1.Compose([v1.Normalize(list(MEAN), list(STD))])]),
        v2.Compose([v2.ToImage(), v2.Normalize(MEAN, STD), v2.ToPureTensor()]),
        nn.Sequential(v2.Normalize([0.1], [0.2]), v2.Normalize(MEAN, STD)),
        v1.RandomApply([v1.Normalize(MEAN, STD)]),
    ],
    ids=["alone", "v1", "nested", "v2", "the last of two", "random"],
)
def test_the_normalization_is_found_in_transforms(photos: Path, transform: Any) -> None:
    data = vision.ImageFolder(photos, transform)
    for wrapped in (data, Subset(data, [0]), ConcatDataset([data])):
        found = normalization(wrapped)
        assert found is not None
        assert found[0] == pytest.approx(MEAN)
        assert found[1] == pytest.approx(STD)


def approximately(found: Any) -> Any:
    return tuple(map(pytest.approx, found))


@pytest.mark.parametrize(
    ("owner", "found"),
    [
        (nn.Sequential(v2.Normalize(MEAN, STD), nn.Conv2d(3, 3, 1)), [(MEAN, STD)]),
        (nn.ModuleDict({"augment": nn.Sequential(nn.Identity(), v1.Normalize(MEAN, STD))}), [(MEAN, STD)]),
        (nn.Sequential(v2.Normalize([0.1], [0.2]), v2.Normalize(MEAN, STD)), [((0.1,), (0.2,)), (MEAN, STD)]),
        (nn.Sequential(v2.Normalize(MEAN, STD), v1.Normalize(MEAN, STD)), [(MEAN, STD)]),
        (SimpleNamespace(size=16, scale=v1.Compose([]), norm=nn.Sequential(v2.Normalize(MEAN, STD))), [(MEAN, STD)]),
        (nn.Sequential(nn.BatchNorm2d(3)), []),
        (nn.Sequential(type("Normalize", (nn.Module,), {"mean": 1.0, "std": 2.0})()), []),
        (None, []),
    ],
    ids=["v2", "v1, in parts", "two", "twice", "a data module", "none", "the user's own", "no model"],
)
def test_all_normalizations_are_found_that_a_model_or_an_object_holds(owner: Any, found: list[Any]) -> None:
    assert normalizations_within(owner) == list(map(approximately, found))


def test_those_of_kornia_are_found_in_transforms_and_in_a_model() -> None:
    pytest.importorskip("kornia", reason="needs Kornia: pip install kornia")
    from kornia import augmentation, enhance

    mean, std, flip = torch.tensor(MEAN), torch.tensor(STD), augmentation.RandomHorizontalFlip()
    for step in (
        augmentation.Normalize(MEAN, STD),
        augmentation.Normalize(mean[None], std[None]),
        enhance.Normalize(mean, std),
        augmentation.ImageSequential(flip, augmentation.Normalize(mean, std)),
        augmentation.AugmentationSequential(flip, augmentation.Normalize(MEAN, STD), data_keys=["input"]),
        augmentation.AugmentationSequential(
            augmentation.Normalize(MEAN, STD), augmentation.RandomGaussianNoise(mean=0.1, std=0.2)
        ),
    ):
        assert normalization(SimpleNamespace(transform=step)) == approximately((MEAN, STD))
        assert normalizations_within(nn.ModuleDict({"augment": step})) == [approximately((MEAN, STD))]
    for one in (enhance.Normalize(0.5, 0.2), augmentation.Normalize(0.5, 0.2)):
        assert normalizations_within(one) == [approximately(((0.5,), (0.2,)))]
    for other in (augmentation.Denormalize(mean, std), augmentation.RandomGaussianNoise(mean=0.1, std=0.2)):
        assert normalizations_within(other) == []


@pytest.mark.parametrize("transform", [None, v1.ToTensor(), v2.Compose([v2.ToImage()]), lambda image: image])
def test_no_normalization_is_found_where_there_is_none(photos: Path, transform: Any) -> None:
    assert normalization(vision.ImageFolder(photos, transform)) is None


def test_a_mean_of_an_augmentation_is_not_taken_for_it(photos: Path) -> None:
    steps = [v2.ToImage(), v2.GaussianNoise(0.1, 0.2), v2.Normalize(MEAN, STD), v2.GaussianNoise()]
    found = normalization(vision.ImageFolder(photos, v2.Compose(steps)))
    assert found is not None
    assert found[0] == pytest.approx(MEAN)


class Raises:
    """Whatever it is asked for fails."""

    classes = property(lambda self: 1 / 0)
    transform = property(lambda self: 1 / 0)
    dataset = property(lambda self: 1 / 0)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"classes": np.unique(["owl", "cat", "dog"])}, ("cat", "dog", "owl")),
        ({"classes": ("cat", "dog")}, ("cat", "dog")),
        ({"classes": {1: "dog", 0: "cat"}}, ("cat", "dog")),
        ({"class_to_idx": {"dog": 1, "cat": 0}}, ("cat", "dog")),
        ({"classes": [("tench", "Tinca tinca"), ("goldfish", "Carassius auratus")]}, ("tench", "goldfish")),
        ({"classes": [b"cat", b"dog"]}, ("cat", "dog")),
        ({"classes": 3}, None),
        ({"classes": []}, None),
        ({"classes": lambda: ["cat"]}, None),
    ],
    ids=["array", "tuple", "by index", "by name", "synonyms", "bytes", "number", "empty", "function"],
)
def test_names_are_read_from_whatever_holds_them(given: dict[str, Any], names: tuple[str, ...] | None) -> None:
    assert class_names(SimpleNamespace(**given)) == names


@pytest.mark.parametrize("ask", [class_names, normalization])
@pytest.mark.parametrize("dataset", [Raises(), SimpleNamespace(dataset=Raises()), None, 3])
def test_a_data_set_that_fails_when_it_is_asked_does_not_know(ask: Any, dataset: Any) -> None:
    assert ask(dataset) is None


@pytest.mark.parametrize(
    ("mean", "std", "found"),
    [
        (torch.zeros(3, 1, 1), torch.ones(3, 1, 1), ((0.0,) * 3, (1.0,) * 3)),
        (np.zeros(3), np.ones(3), ((0.0,) * 3, (1.0,) * 3)),
        (torch.rand(24, 24, 3), torch.ones(24, 24, 3), None),
        (0.5, 0.5, None),
        ("mean", "std", None),
    ],
    ids=["(3, 1, 1)", "arrays", "image", "numbers", "words"],
)
def test_a_normalization_has_one_number_for_each_channel(mean: Any, std: Any, found: Any) -> None:
    step = SimpleNamespace(mean=mean, std=std)
    assert normalization(SimpleNamespace(transform=step)) == found


def test_a_model_of_hugging_face_knows_its_classes() -> None:
    model, inner = nn.Module(), nn.Linear(1, 1)
    model.net = inner
    inner.config = SimpleNamespace(id2label={0: "cat", 1: "dog"})
    assert class_names_of_model(model) == ("cat", "dog")
    inner.config = SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"})
    assert class_names_of_model(model) is None
