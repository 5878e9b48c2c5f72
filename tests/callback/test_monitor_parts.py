"""A training whose model has scripted, traced or checkpointed parts: maps, or one warning that names the cause."""

import re
from pathlib import Path

import pytest
import torch
from lightning_runs import TinyModule, fit, looks, own_warnings
from states import as_bytes
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cam_callbacks import CAMMonitor, GradCAM, ScoreCAM

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]


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
