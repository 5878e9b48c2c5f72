"""The example that explains photos: from the command line to the picture, with random weights and with real ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from examples import loaded, started
from PIL import Image
from torch import nn
from torchvision import models

SCRIPT = "investigate_predictions/investigate.py"
WIDTH = 1206


@pytest.fixture(scope="module")
def investigate():
    return loaded(SCRIPT)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save({key: value.half() for key, value in models.squeezenet1_1().state_dict().items()}, file)
    return str(file)


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    file = tmp_path / "noise.png"
    Image.fromarray(pixels).resize((320, 240)).save(file)
    return str(file)


def ran(main, *arguments):
    """The exit code, or the message that goes with code 1."""
    with pytest.raises(SystemExit) as exit_:
        main(list(map(str, arguments)))
    return exit_.value.code


@pytest.mark.parametrize(
    ("method", "layer"), [("score-cam", "features"), ("grad-cam", "features"), ("cam", "classifier.2")]
)
def test_a_photo_gives_three_labels_the_layer_and_a_picture(
    investigate, weights, photo, tmp_path, capsys, method, layer
):
    assert ran(investigate.main, photo, "--weights", weights, "--method", method, "--output", tmp_path / "new") == 0
    title, *labels, file = capsys.readouterr().out.splitlines()
    assert title.endswith(f"of squeezenet1_1 at layer {layer}")
    names = models.get_model_weights("squeezenet1_1").DEFAULT.meta["categories"]
    assert len({label.split(maxsplit=1)[1] for label in labels} & set(names)) == 3
    picture = np.asarray(Image.open(file.strip()))
    assert picture.shape[1] == WIDTH
    assert Path(file.strip()).parent == tmp_path / "new"


def test_a_named_layer_is_explained(investigate, weights, photo, tmp_path, capsys):
    options = ["--weights", weights, "--method", "grad-cam", "--layer", "features.7", "--output", tmp_path]
    assert ran(investigate.main, photo, *options) == 0
    assert "at layer features.7" in capsys.readouterr().out


def test_real_photos_are_labeled_right_with_heat_on_the_animal(investigate, data_folder, tmp_path, capsys):
    photo = data_folder / "imagenet-sample" / "025_n01629819_European_fire_salamander.jpg"
    weights = data_folder / "weights" / "squeezenet1_1_imagenet_fp16.pth"
    assert ran(investigate.main, photo, "--weights", weights, "--output", tmp_path) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "European fire salamander" in printed[1]
    assert float(printed[1].split()[0]) > 0.9

    classifier = investigate.load("squeezenet1_1", str(weights), torch.device("cpu"))
    _, explanation = investigate.explain(classifier, Image.open(photo), "score-cam", None)
    assert explanation.heatmaps.shape == (1, 3, 224, 224)
    band, rest = explanation.heatmaps[0, 0, 70:155], explanation.heatmaps[0, 0, 175:]
    assert band.mean() > 5 * rest.mean()


def test_a_photo_taken_with_the_camera_turned_is_shown_upright(investigate, weights, tmp_path):
    lying = np.zeros((240, 240, 3), dtype=np.uint8)
    lying[:, :120] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # its left is the top
    Image.fromarray(lying).save(tmp_path / "turned.jpg", exif=exif)
    options = ["--weights", weights, "--method", "cam", "--output", tmp_path]
    assert ran(investigate.main, tmp_path / "turned.jpg", *options) == 0
    shown = np.asarray(Image.open(tmp_path / "turned_squeezenet1_1_cam.png"))[28:322, 6:300]
    assert shown[20:120].min() > 240
    assert shown[170:270].max() < 15


def test_one_bad_photo_does_not_keep_the_others_from_being_explained(investigate, weights, photo, tmp_path, capsys):
    bad = tmp_path / "bad.jpg"
    bad.write_text("not a photo")
    options = ["--weights", weights, "--method", "cam", "--output", tmp_path]
    assert ran(investigate.main, bad, tmp_path / "nowhere.jpg", photo, *options) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "cannot identify image file" in first
    assert "No such file" in second
    assert (tmp_path / "noise_squeezenet1_1_cam.png").exists()


def test_what_the_method_cannot_explain_is_said_in_one_line(investigate, photo, tmp_path, capsys, monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.Flatten(), nn.Linear(8 * 14 * 14, 16), nn.Linear(16, 1000))
    best = models.get_model_weights("vgg11").DEFAULT
    like_vgg = investigate.Classifier(model.eval(), best.meta["categories"], best.transforms(), torch.device("cpu"))
    monkeypatch.setattr(investigate, "load", lambda *_: like_vgg)
    assert ran(investigate.main, photo, "--model", "vgg11", "--method", "cam", "--output", tmp_path) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 fully connected layers" in line


def test_wrong_weights_are_named(investigate, weights, photo, tmp_path):
    (tmp_path / "text.pth").write_text("not weights")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    wrong = [(weights, "squeezenet1_0"), *((tmp_path / f"{kind}.pth", "squeezenet1_1") for kind in ("text", "tensor"))]
    for file, model in wrong:
        message = ran(investigate.main, photo, "--weights", file, "--model", model, "--output", tmp_path)
        assert message.endswith(f"{file} does not hold the state_dict of {model}")
    assert "No such file" in ran(investigate.main, photo, "--weights", tmp_path / "nowhere.pth", "--output", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jpg", "--model", "squeezenet"], "try squeezenet1_1, squeezenet1_0"),
        (["a.jpg", "--device", "toaster"], "'toaster' cannot be used"),
        (["a.jpg", "--method", "magic"], "invalid choice: 'magic'"),
        (["x/a.jpg", "y/a.jpg"], "two photos have the same name"),
    ],
)
def test_bad_options_end_with_code_2(investigate, capsys, arguments, message):
    assert ran(investigate.main, *arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_it_runs_as_a_script_from_any_folder(tmp_path):
    ended = started(tmp_path, SCRIPT)
    assert ended.codes == (2,)
    assert ended.printed.splitlines()[-1] == "investigate.py: error: the following arguments are required: PHOTO"
