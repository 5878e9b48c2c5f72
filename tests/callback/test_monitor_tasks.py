"""In training, other methods, tasks and kinds of images are explained as images of a classifier are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning_runs import Squares, TinyModule, fit, image_steps, loader, own_warnings, quiet, scalars
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cam_callbacks import CAM, CAMMonitor, Figures, GradCAM, RegressionTarget, ScoreCAM, SegmentationTarget
from cam_callbacks.explain.method import Method


class Predicts(LightningModule):
    """Fits whatever its network returns to the targets."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def loss(self, batch: Any) -> Tensor:
        output = self(batch[0])
        if output.shape == batch[1].shape:
            return F.mse_loss(output, batch[1])
        return F.cross_entropy(output, batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def network(dimensions: int, outputs: int, pooled: bool = True) -> nn.Module:
    torch.manual_seed(0)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dimensions - 1]
    body = nn.Sequential(conv(2, 8, 3, padding=1), nn.ReLU(), conv(8, 8, 3, padding=1), nn.ReLU())
    if not pooled:
        return nn.Sequential(body, conv(8, outputs, 1))
    return nn.Sequential(body, pool(1), nn.Flatten(), nn.Linear(8, outputs))


def samples(*size: int, targets: Tensor) -> Any:
    images = torch.rand(len(targets), 2, *size, generator=torch.Generator().manual_seed(0))
    return loader(TensorDataset(images, targets))


def pictures(folder: Path) -> set[str]:
    return {tag for tag in image_steps(folder) if tag.startswith("cam/")}


def run(folder: Path, monitor: CAMMonitor, module: LightningModule, data: Any, **options: Any) -> None:
    with own_warnings() as said:
        fit(folder, monitor, module, data, data, **options)
    assert not [text for text in said if "CAMMonitor failed" in text]


@pytest.mark.parametrize("method", [ScoreCAM(), GradCAM(), CAM()], ids=lambda method: method.name)
def test_a_regression_is_explained_and_shows_its_number(tmp_path: Path, method: Method) -> None:
    monitor = CAMMonitor(method=method, explain=RegressionTarget(1), num_probes=4, figures=Figures(channels=True))
    run(tmp_path, monitor, Predicts(network(2, 3)), samples(16, 16, targets=torch.randn(8, 3)))
    assert pictures(tmp_path) == {"cam/heatmaps", "cam/history", "cam/channels"}
    assert monitor.explanation.score_kind == "RegressionTarget(index=1)"
    assert monitor.explanation.heatmaps.shape == (4, 16, 16)
    assert scalars(tmp_path)["cam/skipped"][0][1] == 0


@pytest.mark.parametrize("size", [(40,), (6, 12, 12)], ids=["sequences", "volumes"])
@pytest.mark.parametrize("method", [ScoreCAM(), GradCAM()], ids=lambda method: method.name)
def test_sequences_and_volumes_are_drawn(tmp_path: Path, method: Method, size: tuple[int, ...]) -> None:
    monitor = CAMMonitor(method=method, num_probes=4, figures=Figures(channels=True), audit=None)
    targets = torch.arange(8) % 3
    run(tmp_path, monitor, Predicts(network(len(size), 3)), samples(*size, targets=targets))
    assert pictures(tmp_path) == {"cam/heatmaps", "cam/history", "cam/class_mean", "cam/channels"}
    assert monitor.explanation.heatmaps.shape == (4, *size)


@pytest.mark.parametrize("method", [ScoreCAM(), GradCAM()], ids=lambda method: method.name)
def test_a_segmentation_is_explained(tmp_path: Path, method: Method) -> None:
    monitor = CAMMonitor(method=method, explain=SegmentationTarget(2, (3, 4)), num_probes=4)
    targets = torch.randint(0, 3, (8, 16, 16))
    run(tmp_path, monitor, Predicts(network(2, 3, pooled=False)), samples(16, 16, targets=targets))
    assert pictures(tmp_path) == {"cam/heatmaps", "cam/history", "cam/class_mean"}
    assert monitor.explanation.targets.tolist() == [2] * 4


@pytest.mark.parametrize("method", [GradCAM(), CAM()], ids=lambda method: method.name)
class TestMethodsThatReadGradientsOrWeights:
    def test_leave_the_weights_as_they_would_be_without(self, tmp_path: Path, method: Method) -> None:
        finished = []
        for monitor in (None, CAMMonitor(method=method, num_probes=6, explain="both", figures=Figures(channels=True))):
            module = TinyModule()
            fit(tmp_path / str(monitor is None), monitor, module, max_epochs=2)
            finished.append(module.state_dict())
        assert all(torch.equal(finished[0][key], finished[1][key]) for key in finished[0])

    def test_work_inside_inference_mode(self, tmp_path: Path, method: Method) -> None:
        monitor = CAMMonitor(method=method, num_probes=4, on_error="raise")
        trainer = Trainer(callbacks=[monitor], **quiet(tmp_path))
        trainer.validate(TinyModule(), loader(Squares(12)), verbose=False)
        assert monitor.explanation is not None
        assert not monitor.explanation.heatmaps.is_inference()

    @pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
    def test_work_in_other_precisions(self, tmp_path: Path, method: Method, precision: Any) -> None:
        monitor = CAMMonitor(method=method, num_probes=4, on_error="raise")
        fit(tmp_path, monitor, precision=precision)
        assert scalars(tmp_path)["cam/skipped"][0][1] == 0
        assert monitor.explanation.heatmaps.dtype == torch.float32

    def test_work_with_frozen_parameters(self, tmp_path: Path, method: Method) -> None:
        module = TinyModule()
        module.features.requires_grad_(False)
        monitor = CAMMonitor(method=method, num_probes=4, on_error="raise")
        fit(tmp_path, monitor, module)
        assert not monitor.explanation.blank.all()
        assert all(parameter.grad is None for parameter in module.features.parameters())


def test_a_method_that_does_not_apply_is_refused_before_training(tmp_path: Path) -> None:
    module = Predicts(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 8), nn.ReLU(), nn.Linear(8, 3)))
    data = samples(8, 8, targets=torch.arange(8) % 3)
    with pytest.raises(Exception, match=r"2 fully connected layers.*ScoreCAM and GradCAM explain this model"):
        fit(tmp_path, CAMMonitor(method=CAM(), num_probes=4), module, data, data)
    assert module.global_step == 0


def test_several_layers_are_fused_and_known_after_a_resume(tmp_path: Path) -> None:
    layers = ["features.2", "features.4"]
    monitor = CAMMonitor(layers, GradCAM(), num_probes=4)
    trainer = fit(tmp_path, monitor)
    assert monitor.explanation.target_layer == ("features.2", "features.4")
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = CAMMonitor(layers, GradCAM(), num_probes=4)
    fit(tmp_path / "again", again, ckpt_path=str(tmp_path / "last.ckpt"), max_epochs=2)
    assert len(again.history) == 2


@pytest.mark.parametrize("upsampling", ["bicubic", "nearest", "none"])
def test_pictures_follow_the_upsampling(tmp_path: Path, upsampling: Any) -> None:
    monitor = CAMMonitor(method=GradCAM(upsampling=upsampling), num_probes=4, on_error="raise")
    fit(tmp_path, monitor)
    assert "cam/heatmaps" in pictures(tmp_path)
