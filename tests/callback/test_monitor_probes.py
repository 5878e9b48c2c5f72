"""Where CAMMonitor's probes come from: a ProbeSet, a folder, a data set, batches of many kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_runs import CLASSES, Squares, TinyModule, fit, loader, looks, own_warnings, quiet
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision import datasets, transforms

from cam_callbacks import Audit, CAMMonitor, GradCAM, ProbeSet


def write_photos(folder: Path, names: tuple[str, ...] = CLASSES, each: int = 3) -> Path:
    """Photos of 20 x 30 pixels, the k-th of a class gray at 40 k + 20 times its class."""
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for k in range(each):
            Image.new("RGB", (30, 20), (40 * k + 20 * index,) * 3).save(folder / name / f"{k}.png")
    return folder


def picked(monitor: CAMMonitor) -> ProbeSet:
    assert monitor.probes is not None
    return monitor.probes


def test_a_probe_set_is_explained_as_it_is(tmp_path: Path) -> None:
    data = Squares(5, seed=4)
    probes = ProbeSet(data.images, data.labels, class_names=("x", "y", "z"))
    monitor = CAMMonitor(probes=probes, num_probes=2, audit=None)
    fit(tmp_path, monitor)
    assert picked(monitor).fingerprint == probes.fingerprint
    assert picked(monitor).class_names == ("x", "y", "z")
    assert monitor.explanation is not None
    assert monitor.explanation.targets.tolist() == data.labels.tolist()


class Trimaps(Squares):
    """With a third part: 1 on the object, 2 around it, 3 between them."""

    def __getitem__(self, index: int) -> Any:
        trimap = torch.full(self.images.shape[2:], 2)
        trimap[4:10, 4:10], trimap[5:9, 5:9] = 3, 1
        return (*super().__getitem__(index), trimap)


def test_masks_of_a_data_set_are_read_by_the_values_of_the_batches(tmp_path: Path) -> None:
    monitor = CAMMonitor(probes=Trimaps(12), num_probes=3, audit=Audit(foreground_values=(1, 3)))
    fit(tmp_path, monitor)
    probes = picked(monitor)
    assert probes.masks is not None
    assert probes.masks.flatten(1).sum(dim=1).tolist() == [36, 36, 36]


def test_a_probe_set_is_also_explained_in_test(tmp_path: Path) -> None:
    data = Squares(5, seed=4)
    monitor = CAMMonitor(probes=ProbeSet(data.images, data.labels), audit=None)
    Trainer(callbacks=[monitor], **quiet(tmp_path)).test(TinyModule(), loader(Squares(12)), verbose=False)
    assert monitor.explanation is not None
    assert len(monitor.explanation) == 5


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_of_photos_is_read_at_the_size_of_the_batches(tmp_path: Path, kind: Any) -> None:
    folder = write_photos(tmp_path / "photos")
    monitor = CAMMonitor(probes=kind(folder), num_probes=6, audit=None)
    with own_warnings() as said:
        fit(tmp_path / "logs", monitor, max_epochs=2)
    assert said == []
    probes = picked(monitor)
    assert probes.images.shape == (6, 3, 16, 16)
    assert probes.labels is not None
    assert probes.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert probes.class_names == CLASSES
    assert torch.allclose(probes.images[5], torch.full((3, 16, 16), 80 / 255), atol=1e-3)
    assert looks(tmp_path / "logs") == 2


def test_the_subfolders_are_matched_with_the_class_names_of_the_data(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", names=("owl", "cat"))
    monitor = CAMMonitor(probes=folder, audit=None)
    fit(tmp_path / "logs", monitor)
    assert picked(monitor).labels is not None
    assert picked(monitor).labels.tolist() == [0, 0, 0, 2, 2, 2]  # type: ignore[union-attr]


def test_photos_without_subfolders_are_explained_for_the_prediction(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(
            folder / f"{k}.png"
        )
    monitor = CAMMonitor(probes=folder, explain="prediction", audit=None)
    fit(tmp_path / "logs", monitor)
    assert picked(monitor).labels is None
    assert looks(tmp_path / "logs") == 1


def test_photos_are_normalized_as_the_data_is(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos")
    steps = [transforms.Resize((16, 16)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.2] * 3)]
    data = datasets.ImageFolder(folder, transforms.Compose(steps))
    monitor = CAMMonitor(probes=folder, num_probes=9, audit=None)
    with own_warnings() as said:
        fit(tmp_path / "logs", monitor, train=loader(data), val=loader(data))
    assert said == []
    expected = torch.stack([image for image, _ in data])
    assert torch.allclose(picked(monitor).images, expected, atol=1e-2)
    assert picked(monitor).normalization == ((0.5,) * 3, (0.2,) * 3)


def test_the_first_images_of_each_class_are_taken_from_a_data_set(tmp_path: Path) -> None:
    data = Squares(30, seed=6)
    monitor = CAMMonitor(probes=data, num_probes=6, audit=None)
    fit(tmp_path, monitor)
    assert torch.equal(picked(monitor).images, data.images[[0, 3, 1, 4, 2, 5]])
    assert picked(monitor).class_names == CLASSES


def test_a_data_set_with_random_transforms_leaves_the_training_as_it_was(tmp_path: Path) -> None:
    class Noisy(Squares):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            image, target = super().__getitem__(index)
            return image + 0.01 * torch.rand(3, 1, 1), target

    def weights(folder: Path, monitor: CAMMonitor | None) -> list[Tensor]:
        torch.manual_seed(0)
        module = TinyModule()
        fit(folder, monitor, module, loader(Squares(12), shuffle=True), max_epochs=2)
        return list(module.state_dict().values())

    watched = weights(tmp_path / "a", CAMMonitor(probes=Noisy(12), num_probes=3, audit=None))
    plain = weights(tmp_path / "b", None)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(watched, plain, strict=True))


class DictModule(TinyModule):
    def _loss_of(self, batch: Any) -> Tensor:
        return self.loss(self(batch["pixel_values"]), batch["labels"])


class Dicts(Squares):
    def __getitem__(self, index: int) -> Any:
        return {"labels": self.labels[index], "pixel_values": self.images[index]}


def test_batches_that_are_dictionaries_are_understood(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=6, audit=None)
    fit(tmp_path, monitor, DictModule(), loader(Dicts(12)), loader(Dicts(12)))
    assert picked(monitor).labels is not None
    assert picked(monitor).labels.tolist() == [0, 0, 1, 1, 2, 2]  # type: ignore[union-attr]


def test_batch_fn_reads_other_batches_and_masks_with_them(tmp_path: Path) -> None:
    def batch_fn(batch: Any) -> Any:
        return batch["pixel_values"], batch["labels"], batch["pixel_values"].mean(dim=1) > 0.3

    monitor = CAMMonitor(num_probes=6, batch_fn=batch_fn, audit=None)
    fit(tmp_path, monitor, DictModule(), loader(Dicts(12)), loader(Dicts(12)))
    masks = picked(monitor).masks
    assert masks is not None
    assert masks.shape == (6, 16, 16)
    assert masks.dtype == torch.bool


def test_class_names_are_found_in_the_datamodule(tmp_path: Path) -> None:
    class Nameless(Squares):
        classes = None  # type: ignore[assignment]

    class Data(LightningDataModule):
        class_names = ("x", "y", "z")

        def train_dataloader(self) -> Any:
            return loader(Nameless(12))

        val_dataloader = train_dataloader

    monitor = CAMMonitor(num_probes=6, audit=None)
    Trainer(callbacks=[monitor], **quiet(tmp_path)).fit(TinyModule(), datamodule=Data())
    assert picked(monitor).class_names == ("x", "y", "z")


@pytest.mark.parametrize(
    "loaders",
    [
        lambda: {"first": loader(Squares(12)), "second": loader(Squares(12))},
        lambda: CombinedLoader({"first": loader(Squares(12)), "second": loader(Squares(12))}, "sequential"),
        lambda: CombinedLoader([loader(Squares(12)), loader(Squares(12))], "max_size"),
        lambda: {"pairs": CombinedLoader([loader(Squares(12)), loader(Squares(12))], "max_size")},
    ],
    ids=["mapping", "combined in turn", "combined side by side", "combined in a mapping"],
)
def test_class_names_are_found_however_loaders_are_put_together(tmp_path: Path, loaders: Any) -> None:
    def first(batch: Any) -> Any:
        """The images and labels in the batches of loaders that stand side by side, which are nested."""
        while not isinstance(batch[0], Tensor):
            batch = batch[0]
        return batch

    class Reads(TinyModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(first(batch), batch_idx, dataloader_idx)

    monitor = CAMMonitor(num_probes=6, audit=None, batch_fn=first)
    fit(tmp_path, monitor, Reads(), val=loaders())
    assert picked(monitor).class_names == CLASSES


def test_images_of_other_sizes_are_left_out_with_one_warning(tmp_path: Path) -> None:
    class Mixed(Squares):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            image, target = super().__getitem__(index)
            return (image if index < 8 else image[:, :12, :12]), target

    monitor = CAMMonitor(num_probes=12, audit=None)
    with own_warnings() as said:
        fit(tmp_path, monitor, val=loader(Mixed(12)), max_epochs=2)
    assert len(said) == 1
    assert "left out 4 images" in said[0]
    assert len(picked(monitor)) == 8


def test_fewer_images_than_asked_for_are_all_explained(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=100, audit=None)
    fit(tmp_path, monitor)
    assert len(picked(monitor)) == 12


def test_images_of_one_channel_are_explained_and_drawn(tmp_path: Path) -> None:
    class Gray(Squares):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            image, target = super().__getitem__(index)
            return image.mean(dim=0, keepdim=True), target

    class Module(TinyModule):
        def forward(self, images: Tensor) -> Any:
            return super().forward(images.expand(-1, 3, -1, -1))

    fit(tmp_path, CAMMonitor(num_probes=4, audit=None), Module(), loader(Gray(12)), loader(Gray(12)))
    assert looks(tmp_path) == 1


def test_class_names_come_from_the_data_set_unless_they_are_given(tmp_path: Path) -> None:
    found, given = (
        CAMMonitor(num_probes=3, name="found", audit=None),
        CAMMonitor(num_probes=3, class_names=list("xyz"), name="given", audit=None),
    )
    fit(tmp_path, [found, given])
    assert found.probes is not None
    assert given.probes is not None
    assert found.probes.class_names == CLASSES
    assert given.probes.class_names == ("x", "y", "z")


def test_class_names_of_another_number_are_left_out_with_one_warning(tmp_path: Path) -> None:
    with own_warnings() as said:
        fit(tmp_path, CAMMonitor(num_probes=3, class_names=["a", "b"], audit=None), max_epochs=2)
    assert len(said) == 1
    assert "there are 2 class names, found or given, but the model has 3 classes" in said[0]
    assert looks(tmp_path) == 2


def test_photos_are_refused_if_their_normalization_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (16, 16), (200, 10, 10)).save(tmp_path / "photos" / "a.png")

    class Normalized(Squares):
        def __getitem__(self, index: int) -> Any:
            image, target = super().__getitem__(index)
            return (image - 0.5) / 0.2, target

    monitor = CAMMonitor(probes=str(tmp_path / "photos"), explain="prediction", audit=None)
    with pytest.raises(Exception, match="how to normalize these photos"):
        fit(tmp_path, monitor, val=loader(Normalized(12)))


def test_a_folder_of_unknown_classes_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "photos" / "dog").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(tmp_path / "photos" / "dog" / "rex.png")
    data = Squares(12)
    nameless = loader(TensorDataset(data.images, data.labels))
    with pytest.raises(MisconfigurationException, match="which classes its subfolders are; give class_names"):
        fit(tmp_path, CAMMonitor(probes=tmp_path / "photos", audit=None), train=nameless, val=nameless)
    monitor = CAMMonitor(probes=tmp_path / "photos", class_names=["cat", "dog", "owl"], audit=None)
    fit(tmp_path, monitor, train=nameless, val=nameless)
    assert monitor.probes is not None
    assert monitor.probes.labels is not None
    assert monitor.probes.labels.tolist() == [1]


def test_a_given_normalization_of_other_channels_is_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="is for 2 channels, and the images have 3. They are shown as they are"):
        fit(tmp_path, CAMMonitor(num_probes=3, audit=None, normalization=([0.5] * 2, [0.5] * 2)))


class NormalizesOnTransfer(TinyModule):
    """Its batches are normalized on their way to the device, and it holds modules that say how, or how others are."""

    def __init__(self, **held: nn.Module) -> None:
        super().__init__()
        self.held = nn.ModuleDict(held)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return (batch[0] - 0.5) / 0.25, batch[1]


class HoldsNormalize(Squares):
    """Data that normalizes by a module under a name of its own."""

    def __init__(self) -> None:
        super().__init__(12)
        self.rescale = transforms.Normalize([0.5] * 3, [0.25] * 3)

    def __getitem__(self, index: int) -> Any:
        image, target = super().__getitem__(index)
        return self.rescale(image), target


class NamesTransform(Squares):
    """Data with a transform that, as it is undone again, says nothing about the images."""

    transform = transforms.Normalize([0.5] * 3, [0.25] * 3)


_OWN = transforms.Normalize([0.5] * 3, [0.25] * 3)
_OTHER = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # brings these images into [0, 1], too
_LOUD = transforms.Normalize([0.0] * 3, [9.0] * 3)


@pytest.mark.parametrize(
    ("module", "data", "is_found", "is_said"),
    [
        (NormalizesOnTransfer(own=_OWN), Squares(12), True, False),
        (NormalizesOnTransfer(other=_LOUD, own=_OWN), Squares(12), True, False),
        (NormalizesOnTransfer(other=_OTHER, own=_OWN), Squares(12), False, True),
        (NormalizesOnTransfer(other=_LOUD), Squares(12), False, True),
        (TinyModule(), HoldsNormalize(), True, False),
        (TinyModule(), NamesTransform(12), False, False),
    ],
    ids=["one", "one fits", "two fit", "none fits", "of the data", "undone"],
)
def test_a_normalization_is_found_if_the_images_prove_it(
    tmp_path: Path, module: Any, data: Squares, is_found: bool, is_said: bool
) -> None:
    monitor = CAMMonitor(method=GradCAM(), num_probes=3, audit=None)
    with own_warnings() as said:
        fit(tmp_path, monitor, module, train=loader(data), val=loader(data), limit_train_batches=1)
    assert picked(monitor).normalization == (((0.5,) * 3, (0.25,) * 3) if is_found else None)
    assert ["It is not known how the images were normalized" in text for text in said] == [True] * is_said
