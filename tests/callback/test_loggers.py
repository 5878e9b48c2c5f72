"""Pictures and texts to whichever loggers are there."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import lightning.pytorch.loggers
import numpy as np
import pytest
import pytorch_lightning.loggers
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cam_callbacks import tags
from cam_callbacks.callback import loggers as senders
from cam_callbacks.callback.loggers import MediaLogger
from cam_callbacks.callback.retries import Retries

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def log(loggers: list[Any], folder: str | Path, steps: tuple[int, ...] = (3,)) -> list[str]:
    """Log the picture; the warnings that were given."""
    image_log = MediaLogger(Retries())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in steps:
            assert image_log.log(loggers, folder, {"cam/heatmaps": PICTURE}, step) == []
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("package", [lightning.pytorch.loggers, pytorch_lightning.loggers])
def test_tensorboard_gets_the_very_pixels(tmp_path: Path, package: Any) -> None:
    logger = package.TensorBoardLogger(tmp_path, name="", version="run")
    assert log([logger], tmp_path / "files") == []
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    (event,) = events.Images("cam/heatmaps")
    (tmp_path / "read.png").write_bytes(event.encoded_image_string)
    assert event.step == 3
    assert np.array_equal(np.asarray(Image.open(tmp_path / "read.png")), PICTURE)
    assert not (tmp_path / "files").exists()


class WithLogImage:
    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []

    def log_image(self, **arguments: Any) -> None:
        self.got.append(arguments)


def test_a_logger_with_log_image_gets_key_images_and_step(tmp_path: Path) -> None:
    logger = WithLogImage()
    assert log([logger], tmp_path) == []
    assert logger.got == [{"key": "cam/heatmaps", "images": [PICTURE], "step": 3}]


def test_without_a_logger_a_png_file_is_written_and_said_once(tmp_path: Path) -> None:
    said = log([], tmp_path, steps=(3, 12))
    assert len(said) == 1
    assert "the trainer has no logger" in said[0]
    assert str(tmp_path / "cam") in said[0]
    names = ["heatmaps_step=000003.png", "heatmaps_step=000012.png"]
    assert sorted(path.name for path in (tmp_path / "cam").iterdir()) == names
    assert np.array_equal(np.asarray(Image.open(tmp_path / "cam" / names[0])), PICTURE)


def test_a_logger_without_images_gets_a_file_beside_the_others_pictures(tmp_path: Path) -> None:
    tracker = WithLogImage()
    table = lightning.pytorch.loggers.CSVLogger(tmp_path)
    said = log([table, tracker], tmp_path, steps=(1, 2))
    assert len(said) == 1
    assert "CSVLogger takes no images" in said[0]
    assert len(tracker.got) == len(list(tmp_path.rglob("*.png"))) == 2


def test_two_loggers_without_images_share_one_file_and_are_both_named(tmp_path: Path) -> None:
    class Other:
        experiment = None

    table = lightning.pytorch.loggers.CSVLogger(tmp_path)
    said = log([Other(), table], tmp_path / "files")
    assert len(said) == 2
    assert [path.parent for path in tmp_path.rglob("*.png")] == [Path(table.log_dir) / "cam"]


@pytest.mark.parametrize("with_logger", [True, False])
def test_what_goes_to_a_url_is_written_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_logger: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    bucket = f"memory://{tmp_path.name}"
    loggers = [lightning.pytorch.loggers.CSVLogger(f"{bucket}/csv")] if with_logger else []
    media = {"cam/heatmaps": PICTURE, "cam/verdict": "No alarm, 95% ±3"}
    with pytest.warns(UserWarning, match=f"Markdown, to {bucket}/.*/cam$"):
        assert MediaLogger(Retries()).log(loggers, f"{bucket}/root/x", media, 3) == []
    place = f"{loggers[0].log_dir if loggers else f'{bucket}/root/x'}/cam"
    with fsspec.open(f"{place}/heatmaps_step=000003.png") as file:
        assert np.array_equal(np.asarray(Image.open(file)), PICTURE)
    with fsspec.open(f"{place}/verdict_step=000003.md") as file:
        assert file.read().decode() == "No alarm, 95% ±3"
    assert list(tmp_path.iterdir()) == []


def test_a_url_of_this_machine_is_a_folder(tmp_path: Path) -> None:
    log([], tmp_path)
    (said,) = log([], f"file://{tmp_path}/url")
    assert str(tmp_path / "url" / "cam") in said
    written, expected = (folder / "cam" / "heatmaps_step=000003.png" for folder in (tmp_path / "url", tmp_path))
    assert written.read_bytes() == expected.read_bytes()


def test_a_url_of_no_known_kind_is_an_error_of_the_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = WithLogImage()
    (failed,) = MediaLogger(Retries()).log([tracker], "nowhere://x", {"cam/heatmaps": PICTURE, "cam/verdict": "x"}, 3)
    assert failed.what == "writing files"
    assert "nowhere" in str(failed.error)
    assert len(tracker.got) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_text_goes_to_a_file_if_a_logger_takes_images_only(tmp_path: Path) -> None:
    tracker = WithLogImage()
    with pytest.warns(
        UserWarning,
        match="takes no texts: heatmaps are written as PNG files, and verdicts as Markdown, to",
    ):
        MediaLogger(Retries()).log([tracker], tmp_path, {"cam/heatmaps": PICTURE, "cam/verdict": "No alarm, 95% ±3"}, 3)
    assert len(tracker.got) == 1
    assert (tmp_path / "cam" / "verdict_step=000003.md").read_text(encoding="utf-8") == "No alarm, 95% ±3"


@pytest.mark.parametrize("package", [lightning.pytorch.loggers, pytorch_lightning.loggers])
def test_the_stand_in_of_fast_dev_run_takes_everything(tmp_path: Path, package: Any) -> None:
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        MediaLogger(Retries()).log(
            [package.logger.DummyLogger()], tmp_path, {"cam/heatmaps": PICTURE, "cam/verdict": "x"}, 3
        )
    assert not given
    assert list(tmp_path.iterdir()) == []


class Kept:
    """A logger that nothing is known of."""

    def __init__(self) -> None:
        self.kept: list[Any] = []


def keep(logger: Kept, tag: str, record: Any, step: int) -> None:
    logger.kept.append((tag, record, step))


@pytest.mark.parametrize("by_name", [False, True])
def test_a_registered_logger_and_its_subclasses_get_pictures_and_texts(tmp_path: Path, by_name: bool) -> None:
    class Own(Kept): ...

    Own.__name__ = f"Own{by_name}"

    class Special(Own): ...

    senders.register_logger(Own.__name__ if by_name else Own, picture=keep, text=keep)
    for logger in (Own(), Special()):
        MediaLogger(Retries()).log([logger], tmp_path, {"cam/heatmaps": PICTURE, "cam/verdict": "x"}, 3)
        assert logger.kept == [("cam/heatmaps", PICTURE, 3), ("cam/verdict", "x", 3)]
    assert list(tmp_path.iterdir()) == []


def test_what_is_registered_goes_before_what_is_built_in(tmp_path: Path) -> None:
    class OwnBoard(lightning.pytorch.loggers.TensorBoardLogger):
        kept: list[Any] = []  # noqa: RUF012

    class OwnTracker(WithLogImage, Kept):
        kept: list[Any] = []  # noqa: RUF012

    for kind in (OwnBoard, OwnTracker):
        senders.register_logger(kind, picture=keep)
    board, tracker = OwnBoard(tmp_path / "board"), OwnTracker()
    assert log([board, tracker], tmp_path) == []
    assert board.kept == tracker.kept == [("cam/heatmaps", PICTURE, 3)]
    assert tracker.got == []
    assert not (tmp_path / "board").exists()


def test_what_is_left_out_of_a_registration_goes_to_files(tmp_path: Path) -> None:
    class TextsOnly(Kept): ...

    senders.register_logger(TextsOnly, text=keep)
    logger = TextsOnly()
    with pytest.warns(UserWarning, match="TextsOnly takes no images"):
        MediaLogger(Retries()).log([logger], tmp_path, {"cam/heatmaps": PICTURE, "cam/verdict": "x"}, 3)
    assert logger.kept == [("cam/verdict", "x", 3)]
    assert [path.name for path in tmp_path.rglob("*.*")] == ["heatmaps_step=000003.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Kept(),), "give the class of the logger"),
        ((Kept, "print"), "picture='print' cannot be called"),
        ((Kept, None, 3), "text=3 cannot be called"),
    ],
)
def test_a_registration_that_makes_no_sense_is_an_error(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        senders.register_logger(*arguments)


class Fails:
    """Its first call fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.calls = 0

    def log_image(self, **arguments: Any) -> None:
        self.calls += 1
        raise self.error

    def log_text(self, **arguments: Any) -> None:
        self.calls += 1


class LosesItsExperiment:
    @property
    def experiment(self) -> Any:
        raise ConnectionError("second")


def test_a_logger_that_fails_keeps_nothing_from_the_others(tmp_path: Path) -> None:
    first, tracker = Fails(ConnectionError("first")), WithLogImage()
    records = {"cam/heatmaps": PICTURE, "cam/history": PICTURE, "cam/verdict": "x"}
    with pytest.warns(UserWarning, match="WithLogImage takes no texts"):
        failed = MediaLogger(Retries()).log([first, LosesItsExperiment(), tracker], tmp_path, records, 3)
    assert [(each.what, str(each.error)) for each in failed] == [
        ("Fails (logger 0)", "first"),
        ("LosesItsExperiment (logger 1)", "second"),
    ]
    assert [got["key"] for got in tracker.got] == ["cam/heatmaps", "cam/history"]
    assert (tmp_path / "cam" / "verdict_step=000003.md").exists()
    assert first.calls == 1  # it is waited for once, not at every picture


def test_a_logger_is_given_up_after_three_failures_in_a_row(tmp_path: Path) -> None:
    out, logger, tracker = MediaLogger(Retries()), Fails(OSError("gone")), WithLogImage()
    failed = [len(out.log([logger, tracker], tmp_path, {"cam/heatmaps": PICTURE}, 3)) for _ in range(5)]
    assert failed == [1, 1, 1, 0, 0]
    assert logger.calls == 3
    assert len(tracker.got) == 5


def test_failures_with_a_success_between_them_do_not_add_up(tmp_path: Path) -> None:
    class Flickers(Fails):
        def log_image(self, **arguments: Any) -> None:
            self.calls += 1
            if self.calls % 3:
                raise self.error

    out, logger = MediaLogger(Retries()), Flickers(OSError("gone"))
    failed = [len(out.log([logger], tmp_path, {"cam/heatmaps": PICTURE}, 3)) for _ in range(6)]
    assert failed == [1, 1, 0, 1, 1, 0]


def test_a_full_disk_keeps_nothing_from_the_loggers(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full, a device on which no space is left")
    (tmp_path / "cam").mkdir()
    (tmp_path / "cam" / "heatmaps_step=000003.png").symlink_to(full)
    tracker = WithLogImage()

    class Other: ...

    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        (failed,) = MediaLogger(Retries()).log([Other(), tracker], tmp_path, {"cam/heatmaps": PICTURE}, 3)
    assert not given  # that files are written would not be true
    assert "No space left on device" in str(failed.error)
    assert failed.what == "writing files"
    assert len(tracker.got) == 1


def test_a_tracking_server_that_is_gone_keeps_nothing_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exceptions = pytest.importorskip("mlflow.exceptions")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # the logger sets it
    gone = lightning.pytorch.loggers.MLFlowLogger(tracking_uri="http://127.0.0.1:9")
    tracker = WithLogImage()
    (failed,) = MediaLogger(Retries()).log([gone, tracker], tmp_path, {"cam/heatmaps": PICTURE}, 3)
    assert isinstance(failed.error, exceptions.MlflowException)
    assert "Connection refused" in str(failed.error) or "Max retries" in str(failed.error)
    assert len(tracker.got) == 1


def test_mlflow_takes_both_into_a_store_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    logger = lightning.pytorch.loggers.MLFlowLogger(tracking_uri=f"file:{tmp_path}")
    MediaLogger(Retries()).log([logger], tmp_path / "files", {"cam/heatmaps": PICTURE, "cam/verdict": "x"}, 3)
    (png,) = tmp_path.rglob("cam?heatmaps?step?3?*.png")
    assert np.array_equal(np.asarray(Image.open(png)), PICTURE)
    (text,) = tmp_path.rglob("artifacts/cam/verdict_step=000003.md")
    assert text.read_text() == "x"
    assert not (tmp_path / "files").exists()


class LitServer:
    """In place of an experiment on Lightning's server, which cannot be had without an account: keeps what is uploaded.

    Series, images and texts are litlogger's own.
    """

    def __init__(self) -> None:
        self.series: dict[str, Any] = {}
        self.uploads: list[tuple[str, int, str, bytes]] = []

    def __getitem__(self, key: str) -> Any:
        from litlogger.series import Series

        return self.series.setdefault(key, Series(self, key))

    def _register_key_type(self, key: str, kind: str) -> None:
        pass

    def _log_file_series_value(self, key: str, value: Any, index: int, step: int) -> None:
        self.uploads.append((key, step, value._media_type.name, Path(value._get_upload_path()).read_bytes()))
        value._cleanup()


@pytest.mark.parametrize("package", [lightning.pytorch.loggers, pytorch_lightning.loggers])
def test_litlogger_gets_a_series_of_images_and_one_of_texts(tmp_path: Path, package: Any) -> None:
    pytest.importorskip("litlogger")
    logger = package.litlogger.LitLogger(tmp_path)
    server = logger._experiment = LitServer()
    out = MediaLogger(Retries())
    for step in (3, 6):
        out.log([logger], tmp_path, {"cam/heatmaps": PICTURE, "cam/verdict": "Alarm"}, step)
    pictures, texts = (
        [upload for upload in server.uploads if upload[0] == tag] for tag in ("cam/heatmaps", "cam/verdict")
    )
    assert [(step, kind) for _, step, kind, _ in pictures] == [(3, "IMAGE"), (6, "IMAGE")]
    assert np.array_equal(np.asarray(Image.open(BytesIO(pictures[1][3]))), PICTURE)
    assert [(step, kind, content) for _, step, kind, content in texts] == [(3, "TEXT", b"Alarm"), (6, "TEXT", b"Alarm")]
    assert list(tmp_path.iterdir()) == []


def test_tags_of_test_runs_stand_apart() -> None:
    assert tags.tag("cam", tags.HEATMAPS) == "cam/heatmaps"
    assert tags.tag("cam", tags.PASSES, testing=True) == "cam_test/passes"
