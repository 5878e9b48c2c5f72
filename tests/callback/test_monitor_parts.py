"""Models with scripted, traced or checkpointed parts, and transformers read block by block: maps, or the reason."""

import re
from pathlib import Path

import pytest
import torch
from lightning_runs import Squares, TinyModule, fit, infos, loader, looks, own_warnings
from states import as_bytes
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torchvision.models import VisionTransformer

from cam_callbacks import Audit, CAMMonitor, GradCAM, LeGrad, ScoreCAM

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]


LAYERS = "features.encoder.layers.encoder_layer_"


class Scripted(TinyModule):
    def __init__(self) -> None:
        super().__init__()
        self.features = torch.jit.script(self.features)


class ScriptedToTheEnd(TinyModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = torch.jit.script(torch.nn.Sequential(self.features, torch.nn.Flatten(), torch.nn.Linear(384, 3)))
        del self.features, self.head

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


class Checkpointed(TinyModule):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(checkpoint(self.features, images, use_reentrant=True).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("module", "method", "shown", "says"),
    [
        (Scripted, ScoreCAM(), 1, ""),
        (Scripted, GradCAM(), 1, ""),
        (ScriptedToTheEnd, ScoreCAM(), 0, "no layer of ScriptedToTheEnd .* runs as one, .* keep the eager module"),
        (Checkpointed, ScoreCAM(), 1, ""),
    ],
)
def test_show_maps_or_say_why_not(tmp_path: Path, module: type, method: object, shown: int, says: str) -> None:
    weights = []
    for monitor in (None, CAMMonitor(method=method, audit=None)):
        trained = module()
        with own_warnings() as warned:
            fit(tmp_path / str(len(weights)), monitor, trained)
        weights.append({name: as_bytes(tensor) for name, tensor in trained.state_dict().items()})
    assert weights[0] == weights[1]
    assert looks(tmp_path / "1") == shown
    assert len(warned) == (not shown)
    assert all(re.search(says, text, re.DOTALL) for text in warned)


def test_a_method_that_cannot_work_is_refused_before_the_first_step(tmp_path: Path) -> None:
    module = Checkpointed()
    with pytest.raises(Exception, match=r"use_reentrant=False.*ScoreCAM does not"):
        fit(tmp_path, CAMMonitor(method=GradCAM(), audit=None), module)
    assert not module.validated


class Transformer(TinyModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = VisionTransformer(32, 4, 2, 2, 16, 16, num_classes=3)
        del self.head

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)


def test_blocks_are_read_by_le_grad_and_the_audit_chooses_its_own_layer(tmp_path: Path) -> None:
    results, data = [], loader(Squares(12, size=32))
    for method in (LeGrad(), GradCAM()):
        monitor = CAMMonitor(method=method, audit=Audit(num_images=12), on_error="raise")
        with infos() as said:
            fit(tmp_path / method.name, monitor, Transformer(), data, data, max_epochs=2)
        results.append(monitor.audit_result)
        assert looks(tmp_path / method.name) == 2
        if method == LeGrad():
            assert monitor.explanation.target_layer == (f"{LAYERS}0", f"{LAYERS}1")
            assert any(f"at layers '{LAYERS}0' to '{LAYERS}1' (target_layer overrides it)" in text for text in said)
    for name in ("border_share", "delete_hot"):
        by_le_grad, by_grad_cam = (result[name].values for result in results)
        assert torch.equal(by_le_grad.nan_to_num(-1), by_grad_cam.nan_to_num(-1)), name


def test_le_grad_refuses_a_convolutional_network_before_the_first_step(tmp_path: Path) -> None:
    module = TinyModule()
    with pytest.raises(Exception, match="LeGrad needs blocks that attend among all tokens"):
        fit(tmp_path, CAMMonitor(method=LeGrad(), audit=None), module)
    assert not module.validated
