"""The example with photos of cats and dogs: its images, and short runs of it on generated photos and on real ones."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import loaded, printed
from PIL import Image
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from cam_callbacks import ProbeSet, audit_model

RED, GREEN = torch.tensor([0.82, 0.16, 0.14]), torch.tensor([0.10, 0.51, 0.15])
PER_BREED = {"trainval": 16, "test": 8}


def _draw(folder: Path, name: str, shade: int, draw: np.random.Generator) -> None:
    """A bright or dark square on noise, with a border of two pixels in its trimap."""
    pixels = draw.integers(60, 200, size=(72, 96, 3), dtype=np.uint8)
    top, left = draw.integers(6, 20), draw.integers(6, 40)
    pixels[top : top + 40, left : left + 40] = shade
    trimap = np.full((72, 96), 2, dtype=np.uint8)
    trimap[top : top + 40, left : left + 40] = 3
    trimap[top + 2 : top + 38, left + 2 : left + 38] = 1
    Image.fromarray(pixels).save(folder / "images" / f"{name}.jpg")
    Image.fromarray(trimap).save(folder / "annotations" / "trimaps" / f"{name}.png")


@pytest.fixture(scope="module")
def pets_folder(tmp_path_factory):
    """Generated photos in the layout of the data set: 24 of a breed of cats and of one of dogs each."""
    root = tmp_path_factory.mktemp("pets")
    folder = root / "oxford-iiit-pet"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations" / "trimaps").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for split, count in PER_BREED.items():
        lines = []
        for number in range(count):
            for breed, label, species in (("Abyssinian", 1, 1), ("american_bulldog", 2, 2)):
                name = f"{breed}_{split}{number}"
                _draw(folder, name, 20 if species == 1 else 235, draw)
                lines.append(f"{name} {label} {species} 1\n")
        (folder / "annotations" / f"{split}.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def data():
    return loaded("pets_background/data.py")


def gap(table: str, name: str = "bg_gap") -> tuple[float, ...]:
    """Value and bounds of a printed gap."""
    (figures,) = re.findall(rf"^ +{name} +(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]$", table, re.MULTILINE)
    return tuple(map(float, figures))


def shown(image: torch.Tensor) -> torch.Tensor:
    """The colors of a normalized image, in [0, 1]."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return image * std[:, None, None] + mean[:, None, None]


def test_a_biased_image_has_the_color_of_its_class_behind_the_object(data, pets_folder):
    natural, biased = (data.PetsOnBackgrounds(pets_folder, "val", kind) for kind in ("natural", "biased"))
    assert len(biased) == 24
    for index in range(len(biased)):
        image, label, mask = biased[index]
        assert 0.1 < mask.float().mean() < 0.4
        torch.testing.assert_close(image[:, mask], natural[index][0][:, mask])
        color = RED if biased.classes[label] == "cat" else GREEN
        torch.testing.assert_close(shown(image)[:, ~mask], color[:, None].expand(3, int((~mask).sum())))


def test_the_object_is_the_pet_and_the_border(data, pets_folder):
    pets = data.PetsOnBackgrounds(pets_folder, "val", "natural", photos=4)
    for index, number in enumerate(pets.photos):
        trimap = np.asarray(pets.pets[number][1][1])
        assert pets[index][2].float().mean() == pytest.approx((trimap != 2).mean(), abs=0.02)
        assert (trimap == 3).any()


def test_a_tinted_background_keeps_some_of_itself(data, pets_folder):
    kinds = ("natural", "biased", "tinted")
    natural, biased, tinted = (data.PetsOnBackgrounds(pets_folder, "val", kind)[0][0] for kind in kinds)
    torch.testing.assert_close(tinted, 0.45 * natural + 0.55 * biased)


@pytest.mark.parametrize(("kind", "agreeing"), [("random", 6), ("biased90", 11), ("tinted90", 11), ("biased", 12)])
def test_so_many_backgrounds_of_each_class_and_split_have_its_color(data, pets_folder, kind, agreeing):
    for split in ("train", "val"):
        pets = data.PetsOnBackgrounds(pets_folder, split, kind)
        reddish = [
            bool(shown(image)[0, 0, 0] > shown(image)[1, 0, 0]) for image, _, _ in (pets[index] for index in range(24))
        ]
        if not kind.startswith("tinted"):
            assert sum(reddish[:12]) == agreeing
            assert sum(reddish[12:]) == 12 - agreeing
        assert pets.colors[:12].count(0) == pets.colors[12:].count(1) == agreeing


def test_no_photo_is_in_both_splits(data, pets_folder):
    train, val = (data.PetsOnBackgrounds(pets_folder, split, "natural") for split in ("train", "val"))
    assert not set(train.photos) & set(val.photos)
    assert len(train) + len(val) == 48


def test_breeds_that_are_not_there_are_an_error(data, pets_folder):
    with pytest.raises(ValueError, match="no photos of a cat"):
        data.PetsOnBackgrounds(pets_folder, "val", "natural", breeds=("Sphynx",))


@pytest.mark.parametrize(("background", "masks"), [("biased90", "given"), ("tinted", "estimated")])
def test_a_run_prints_gaps_and_verdict_and_writes_the_pictures(pets_folder, tmp_path, background, masks):
    logs = tmp_path / "logs"
    options = ("--background", background, "--masks", masks, "--from-scratch", "--epochs", "1", "--size", "64")
    table = printed(tmp_path, "pets_background/train.py", "--logs", logs, "--data", pets_folder, *options, "--png")
    value, low, high = gap(table, "bg_gap")
    assert low <= value <= high
    assert "Next: " in table
    assert "TensorBoard:" in table
    (folder,) = [path for path in logs.iterdir() if path.name.startswith(background)]
    assert list(folder.glob("events.out.tfevents*"))
    for picture in ("heatmaps", "swaps", "heat_over_chance"):
        (written,) = (folder / "csv" / "cam").glob(f"{picture}_step=*.png")
        assert np.asarray(Image.open(written)).std() > 10


def test_on_real_photos_only_a_biased_run_has_a_clear_gap(data_folder, data, monkeypatch):
    weights = data_folder / "weights" / "squeezenet1_1_imagenet_fp16.pth"
    if not weights.is_file() or not (data_folder / "oxford-iiit-pet").is_dir():
        pytest.skip("needs oxford-iiit-pet and the weights of SqueezeNet in the data folder")
    monkeypatch.setitem(sys.modules, "data", data)
    train = loaded("pets_background/train.py")
    gaps = {}
    for kind in ("natural", "biased"):
        torch.manual_seed(0)
        model = train.PetClassifier(train.load_network(weights, from_scratch=False), learning_rate=3e-4)
        photos, held_out = (
            data.PetsOnBackgrounds(data_folder, split, kind, photos=40, size=64) for split in ("train", "val")
        )
        trainer = Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        read_once = [photos[index] for index in range(len(photos))]  # to read the files takes as long as to train
        trainer.fit(model, DataLoader(read_once, 8, shuffle=True))
        images, labels, masks = zip(*(held_out[index] for index in range(len(held_out))), strict=True)
        probes = ProbeSet(torch.stack(images), torch.tensor(labels), masks=torch.stack(masks))
        gaps[kind] = audit_model(model, probes)["bg_gap"].overall
    assert gaps["natural"].value < 0.15
    assert gaps["biased"].low > gaps["natural"].value + 0.1
    assert gaps["biased"].low > 0.2
