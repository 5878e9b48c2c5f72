"""One line, `CAMMonitor()`, in strangers' trainings: they go on as they were, and what is shown is right."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from lightning_runs import but_what_looks_cost, infos, quiet
from pytorch_lightning import Trainer
from strangers import PROJECTS, Project
from torch import Tensor

import cam_callbacks
from cam_callbacks import CAMMonitor


def trained(folder: Path, project: Project, callbacks: list[CAMMonitor]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    module = project.module()
    trainer = Trainer(callbacks=callbacks, **quiet(folder, max_epochs=2))
    trainer.fit(module, project.loader(), project.loader() if project.has_validation else None)
    return module.state_dict()


PACKAGE = Path(cam_callbacks.__file__).parent


def shows_our_source(warning: warnings.WarningMessage) -> bool:
    return PACKAGE in Path(warning.filename).parents


def is_own(warning: warnings.WarningMessage) -> bool:
    return "CAMMonitor" in str(warning.message) or shows_our_source(warning)


def squares(monitor: CAMMonitor, project: Project) -> Tensor:
    """Where what was explained lies: (N, *spatial) bool."""
    assert monitor.probes is not None
    assert monitor.explanation is not None
    found = []
    explained = monitor.explanation.targets
    for row, image in enumerate(monitor.probes.images):
        bands = image[1:4] if len(image) == 13 else image
        as_floats = bands / 255 if bands.dtype == torch.uint8 else bands
        nearest = min(project.data.scenes, key=lambda each: float((each.image - as_floats).abs().max()))
        if project.class_of_red is None or explained is None:
            found.append(nearest.pixels > 0)
        else:
            found.append(nearest.pixels == int(explained[row]) - project.class_of_red + 1)
    return torch.stack(found)


@pytest.mark.parametrize("name", PROJECTS)
def test_a_stranger(tmp_path: Path, name: str) -> None:
    project = PROJECTS[name]
    monitor = CAMMonitor()
    with infos() as said, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        weights = trained(tmp_path / "with", project, [monitor])
    without = trained(tmp_path / "without", project, [])
    assert all(torch.equal(weights[key], without[key]) for key in without)

    lines = but_what_looks_cost(said)
    lines += [str(warning.message) for warning in warned if is_own(warning)]
    assert len(lines) <= 3, lines
    about_itself = [line for line in lines if not line.startswith("CAMMonitor, epoch ")]  # which are verdicts
    assert len(about_itself) == len(project.says), lines
    assert all(any(re.search(pattern, line) for line in about_itself) for pattern in project.says), lines
    assert not any("cam_callbacks" in line or "Traceback" in line for line in lines)
    assert not any(map(shows_our_source, warned))

    assert (monitor.verdict is not None) == project.audited
    if project.evidence:
        explanation = monitor.explanation
        assert explanation is not None
        assert not (explanation.blank | explanation.skipped).any()
        hottest = explanation.heatmaps.flatten(1).argmax(dim=1, keepdim=True)
        assert squares(monitor, project).flatten(1).gather(1, hottest).all()
