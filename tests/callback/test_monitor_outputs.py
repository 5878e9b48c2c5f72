"""Where CAMMonitor writes: loggers of each kind, files, the progress bar."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning_runs import (
    Squares,
    TinyModule,
    TinyModuleOfPytorchLightning,
    fit,
    image_steps,
    loader,
    looks,
    own_warnings,
    quiet,
    scalars,
)
from PIL import Image

from cam_callbacks import CAMMonitor, Figures, ScoreCAM


class Tracker(Logger):
    """A logger that takes images by `log_image`, as that of Weights & Biases does."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[str, int, tuple[int, ...], np.dtype]] = []
        self.metrics: list[tuple[int, dict[str, float]]] = []

    name = "tracker"
    version = 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.append((step or 0, metrics))

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.images += [(key, step or 0, image.shape, image.dtype) for image in images]


def pngs(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_without_a_logger_pictures_are_files_and_this_is_said_once(tmp_path: Path) -> None:
    with own_warnings() as said:
        fit(tmp_path, CAMMonitor(num_probes=4), logger=False, max_epochs=2)
    assert pngs(tmp_path) == [
        "cam/class_mean_step=000002.png",
        "cam/class_mean_step=000005.png",
        "cam/heat_over_chance_step=000002.png",
        "cam/heat_over_chance_step=000005.png",
        "cam/heatmaps_step=000002.png",
        "cam/heatmaps_step=000005.png",
        "cam/history_step=000002.png",
        "cam/history_step=000005.png",
        "cam/swaps_step=000002.png",
        "cam/swaps_step=000005.png",
    ]
    assert "Not tested" in (tmp_path / "cam/verdict_step=000005.md").read_text()
    assert len(said) == 1
    assert "the trainer has no logger" in said[0]
    assert str(tmp_path / "cam") in said[0]
    picture = Image.open(tmp_path / "cam/heatmaps_step=000005.png")
    assert picture.mode == "RGB"
    assert picture.width > 200


def test_a_logger_without_images_gets_its_files_in_its_own_folder(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="table", version="one")
    with own_warnings() as said:
        fit(tmp_path, CAMMonitor(num_probes=4), logger=logger, max_epochs=2)
    assert len(said) == 1
    assert "CSVLogger takes no images" in said[0]
    assert len(pngs(tmp_path / "table" / "one")) == len(pngs(tmp_path)) == 10
    table = (tmp_path / "table" / "one" / "metrics.csv").read_text()
    assert "cam/passes" in table.splitlines()[0]


def test_every_logger_of_the_trainer_gets_the_pictures(tmp_path: Path) -> None:
    tracker = Tracker()
    loggers = [CSVLogger(tmp_path, name="table"), TensorBoardLogger(tmp_path, name="", version="run"), tracker]
    with own_warnings() as said:
        fit(tmp_path, CAMMonitor(num_probes=4, audit=None), logger=loggers)
    assert len(said) == 1
    assert "CSVLogger" in said[0]
    assert image_steps(tmp_path)["cam/heatmaps"] == [2]
    assert {(key, step) for key, step, _, _ in tracker.images} == {
        (f"cam/{record}", 2) for record in ("heatmaps", "history", "class_mean")
    }
    assert all(shape[2] == 3 and dtype == np.uint8 for _, _, shape, dtype in tracker.images)
    assert any("cam/passes" in metrics for _, metrics in tracker.metrics)


def test_pictures_are_on_disk_when_the_validation_has_ended(tmp_path: Path) -> None:
    found = []

    class Reads(TinyModule):
        def on_validation_end(self) -> None:
            if not self.trainer.sanity_checking:
                found.append(image_steps(tmp_path).get("cam/heatmaps", []))

    fit(tmp_path, CAMMonitor(num_probes=4, audit=None), Reads(), max_epochs=2)
    assert found == [[2], [2, 5]]


@pytest.mark.parametrize("style", ["blend", "color", "jet", "heatmap"])
def test_each_style_is_drawn(tmp_path: Path, style: Any) -> None:
    fit(tmp_path, CAMMonitor(num_probes=4, figures=Figures(style), explain="both"))
    assert image_steps(tmp_path)["cam/heatmaps"] == [2]


def test_images_normalized_in_an_unknown_way_are_shown_with_a_warning(tmp_path: Path) -> None:
    data = Squares(12)
    data.images = (data.images - 0.5) / 0.25
    with own_warnings() as said:
        fit(tmp_path, CAMMonitor(num_probes=4, audit=None), train=loader(data), val=loader(data), max_epochs=2)
    assert len(said) == 1
    assert "It is not known how the images were normalized" in said[0]
    assert looks(tmp_path) == 2


def test_a_normalization_that_is_given_is_undone(tmp_path: Path) -> None:
    data = Squares(12)
    plain = data.images.clone()
    data.images = (data.images - 0.5) / 0.25
    monitor = CAMMonitor(num_probes=4, normalization=([0.5] * 3, [0.25] * 3), audit=None)
    with own_warnings() as said:
        fit(tmp_path, monitor, train=loader(data), val=loader(data))
    assert said == []
    assert monitor.probes is not None
    assert monitor.probes.normalization == ((0.5,) * 3, (0.25,) * 3)
    assert torch.allclose(monitor.probes.images[0] * 0.25 + 0.5, plain[0], atol=1e-6)


def test_a_normalization_that_does_not_fit_is_not_used_and_said(tmp_path: Path) -> None:
    data = Squares(12)
    data.images = data.images * 255
    with own_warnings() as said:
        fit(
            tmp_path,
            CAMMonitor(num_probes=4, normalization="imagenet", audit=None),
            train=loader(data),
            val=loader(data),
        )
    assert len(said) == 1
    assert "does not bring the images into [0, 1] again" in said[0]


def test_images_in_display_range_are_shown_as_they_are(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=4, normalization=([0.5] * 3, [1.0] * 3), audit=None)
    with own_warnings() as said:
        fit(tmp_path, monitor)
    assert said == []
    assert monitor.probes is not None
    assert monitor.probes.normalization is None


def with_bar(folder: Path, package: Any, bar: Any) -> None:
    trainer = package.Trainer(
        callbacks=[CAMMonitor(method=ScoreCAM(), num_probes=12, audit=None), bar],
        **quiet(folder, enable_progress_bar=True, logger=False),
    )
    module = TinyModule() if package is lightning.pytorch else TinyModuleOfPytorchLightning()
    trainer.fit(module, loader(Squares(12)), loader(Squares(12)))


@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning])
def test_the_tqdm_bar_tells_how_far_it_is(tmp_path: Path, package: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with_bar(tmp_path, package, package.callbacks.TQDMProgressBar())
    shown = "".join(capfd.readouterr())
    assert re.search(r"CAMMonitor 44 of \d+ passes", shown)
    assert "Validation DataLoader 0: 100%" in shown.split("CAMMonitor")[-1]  # the bar's own text is put back


def test_the_rich_bar_tells_how_far_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    with_bar(tmp_path, lightning.pytorch, RichProgressBar(console_kwargs={"force_terminal": True, "width": 200}))
    assert re.search(r"CAMMonitor 44 of \d+ passes", "".join(capfd.readouterr()))


class Counter(ProgressBar):
    """A bar of another kind: it has no more than Lightning asks of one, and so no `is_enabled`."""

    def disable(self) -> None:
        pass

    def on_validation_batch_end(self, *_: Any) -> None:
        print("validated", end=" ")


def test_a_bar_of_another_kind_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with own_warnings() as said:
        fit(tmp_path, [CAMMonitor(num_probes=12, audit=None), Counter()], enable_progress_bar=True)
    assert said == []
    assert looks(tmp_path) == 1
    shown = "".join(capfd.readouterr())
    assert shown.count("validated") == 5  # two batches of the sanity check, three of the validation
    assert "CAMMonitor 44 of" not in shown


class Breaks(TQDMProgressBar):
    """A bar whose terminal is gone as soon as a look is to be described."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def init_validation_tqdm(self) -> Any:
        bar = super().init_validation_tqdm()
        bar.set_description_str = self._break
        return bar

    def _break(self, text: str) -> None:
        self.texts.append(text)
        raise OSError("the terminal is gone")


def test_a_bar_that_raises_costs_neither_the_look_nor_the_run(tmp_path: Path) -> None:
    bar = Breaks()
    with own_warnings() as said:
        trainer = fit(tmp_path, [CAMMonitor(num_probes=12, audit=None), bar], enable_progress_bar=True, max_epochs=2)
    assert any(text.startswith("CAMMonitor") for text in bar.texts)
    assert trainer.current_epoch == 2
    assert looks(tmp_path) == 2
    assert not any("failed" in text for text in said)


@pytest.mark.parametrize("bar", [False, True])
def test_without_a_visible_bar_nothing_is_printed(tmp_path: Path, bar: bool, capfd: pytest.CaptureFixture[str]) -> None:
    callbacks = [CAMMonitor(num_probes=12, audit=None), *([TQDMProgressBar(refresh_rate=0)] if bar else [])]
    fit(tmp_path, callbacks, enable_progress_bar=bar)
    assert "CAMMonitor 44 of" not in "".join(capfd.readouterr())


def test_the_bar_is_put_back_where_the_look_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    calls = []

    def fails_late(module: Any, images: torch.Tensor) -> Any:
        if not module.trainer.sanity_checking:
            calls.append(len(images))
            if 32 in calls[:-1]:  # after the first full batch of masked images
                raise OSError("gone")
        return module(images)

    monitor = CAMMonitor(method=ScoreCAM(), num_probes=12, forward_fn=fails_late, audit=None)
    with own_warnings() as said:
        fit(tmp_path, [monitor, TQDMProgressBar()], enable_progress_bar=True)
    shown = "".join(capfd.readouterr())
    assert len(said) == 1
    assert re.search(r"CAMMonitor 44 of \d+ passes", shown)
    assert "Validation DataLoader 0: 100%" in shown.split("CAMMonitor 44 of ")[-1]


def test_in_test_the_bar_of_the_test_is_used(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trainer = lightning.pytorch.Trainer(
        callbacks=[CAMMonitor(num_probes=12, audit=None), TQDMProgressBar()],
        **quiet(tmp_path, enable_progress_bar=True),
    )
    trainer.test(TinyModule(), loader(Squares(12)), verbose=False)
    assert re.search(r"CAMMonitor \d+ of \d+ passes", "".join(capfd.readouterr()))
    assert scalars(tmp_path)["cam_test/skipped"][0][1] == 0
