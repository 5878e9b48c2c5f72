"""Real loggers, all at once in one training, in a process of its own: what each of them keeps."""

from __future__ import annotations

import json
import re
import zipfile
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import run_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

for package in ("wandb", "mlflow", "comet_ml"):
    if find_spec(package) is None:  # to import them takes seconds; only the process that trains does so
        pytest.skip(f"needs {package}", allow_module_level=True)

PICTURES = {"class_mean", "heat_over_chance", "heatmaps", "history", "swaps"}
STEP = 2
"""Of the last of three training steps."""

TRAINING = """
import sys
from pathlib import Path

sys.modules["wandb.sdk.launch.inputs.internal"] = None  # for jobs of its servers; it goes without, but takes seconds

import lightning.pytorch.loggers as ours
import pytorch_lightning.loggers as theirs
import wandb
from lightning_runs import fit

from cam_callbacks import CAMMonitor

comet = ours.CometLogger(
    api_key="x" * 25, offline_directory="comet", log_code=False, log_env_details=False, auto_output_logging=False
)
loggers = [
    ours.WandbLogger(save_dir="wandb", offline=True, settings=wandb.Settings(console="off")),
    ours.TensorBoardLogger("board", name="", version="ours"),
    theirs.TensorBoardLogger("board", name="", version="theirs"),
    theirs.MLFlowLogger(tracking_uri="file:mlruns", artifact_location="mlflow"),
    comet,
    ours.CSVLogger("table", name="", version="one"),
    theirs.CSVLogger("table", name="", version="two"),
]
fit(Path.cwd(), CAMMonitor(num_probes=4, on_error="raise"), logger=loggers)
comet.experiment.end()
wandb.finish()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which a training with all loggers has run, and what it said."""
    folder = tmp_path_factory.mktemp("loggers")
    settings = {
        "COMET_START_ONLINE": "false",
        "COMET_DISABLE_AUTO_LOGGING": "1",  # else it copies what TensorBoard is given
        "MLFLOW_ALLOW_FILE_STORE": "true",  # a database is made by dozens of migrations; artifacts are files with both
        "WANDB_SILENT": "true",
        "HOME": str(folder),
    }
    ended = run_script(folder, TRAINING, settings=settings)
    assert ended.well, ended.printed
    return folder, ended.printed


def pixels(png: Path | bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png) if isinstance(png, bytes) else png))


@pytest.fixture(scope="module")
def expected(run: tuple[Path, str]) -> dict[str, np.ndarray]:
    """The pictures as files have them, by record."""
    folder = run[0] / "table" / "one" / "cam"
    return {path.name.split("_step=")[0]: pixels(path) for path in folder.glob(f"*_step={STEP:06d}.png")}


@pytest.fixture(scope="module")
def verdict(run: tuple[Path, str]) -> str:
    return (run[0] / "table" / "one" / "cam" / f"verdict_step={STEP:06d}.md").read_text(encoding="utf-8")


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


def test_csv_has_the_pictures_as_files_beside_its_table(
    run: tuple[Path, str], expected: dict[str, np.ndarray], verdict: str
) -> None:
    assert set(expected) == PICTURES
    assert all(picture.ndim == 3 and picture.std() > 1 for picture in expected.values())
    assert "Not tested" in verdict
    assert (run[0] / "table" / "one" / "metrics.csv").exists()


def test_two_csv_loggers_share_the_files_and_one_warning(run: tuple[Path, str]) -> None:
    folder, said = run
    assert said.count("CSVLogger takes no images") == 1
    assert "takes no texts" not in said
    outside = ("wandb", "mlflow")
    files = {path.relative_to(folder) for path in folder.rglob("*.png")}
    assert {path.parent for path in files if path.parts[0] not in outside} == {Path("table/one/cam")}


@pytest.mark.parametrize("version", ["ours", "theirs"])
def test_tensorboard_has_the_very_pixels_and_the_text(
    run: tuple[Path, str], expected: dict[str, np.ndarray], verdict: str, version: str
) -> None:
    events = EventAccumulator(str(run[0] / "board" / version)).Reload()
    found = {tag: events.Images(tag) for tag in events.Tags()["images"]}
    assert {event.step for (event,) in found.values()} == {STEP}
    assert same({tag.split("/")[1]: pixels(event.encoded_image_string) for tag, (event,) in found.items()}, expected)
    (event,) = events.Tensors("cam/verdict/text_summary")
    assert (event.step, event.tensor_proto.string_val[0].decode()) == (STEP, verdict)


def test_weights_and_biases_has_the_very_pixels_and_the_text(
    run: tuple[Path, str], expected: dict[str, np.ndarray], verdict: str
) -> None:
    (media,) = run[0].glob("wandb/wandb/offline-run-*/files/media")
    found = {path.name.rsplit("_", 2)[0]: pixels(path) for path in (media / "images" / "cam").iterdir()}
    assert same(found, expected)
    (table,) = (media / "table" / "cam").glob("verdict_*.table.json")
    assert json.loads(table.read_text())["data"] == [[verdict]]


def test_mlflow_has_the_very_pixels_and_the_text(
    run: tuple[Path, str], expected: dict[str, np.ndarray], verdict: str
) -> None:
    (artifacts,) = run[0].glob("mlflow/*/artifacts")
    found = {}
    for path in (artifacts / "images").glob("*.png"):
        tag, _, step, *_ = re.split("[+%]", path.name)  # older versions have %, and # in place of ~
        assert step == str(STEP)
        found[re.split("[~#]", tag)[1]] = pixels(path)
    assert same(found, expected)
    assert (artifacts / "cam" / f"verdict_step={STEP:06d}.md").read_text(encoding="utf-8") == verdict


def test_comet_has_the_very_pixels_and_the_text(
    run: tuple[Path, str], expected: dict[str, np.ndarray], verdict: str
) -> None:
    (file,) = run[0].glob("comet/*.zip")
    with zipfile.ZipFile(file) as archive:
        messages = [json.loads(line) for line in archive.read("messages.json").splitlines()]
        uploads = [message["payload"] for message in messages if message["type"] == "file_upload"]
        pictures = {
            upload["additional_params"]["figName"].removeprefix("cam/"): pixels(archive.read(upload["file_path"]))
            for upload in uploads
            if upload["upload_type"] == "visualization"
        }
        (text,) = (upload for upload in uploads if upload["upload_type"] == "text-sample")
        assert same(pictures, expected)
        assert archive.read(text["file_path"]).decode() == verdict
    assert text["metadata"] == {"tag": "cam/verdict"}
    assert {upload["additional_params"]["step"] for upload in uploads} == {STEP}
