"""The registry of measures has exactly the measures that come out, and what is said of each is there."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from planted import Reader, scenes

from cam_callbacks import ScoreCAM, audit_model
from cam_callbacks.audit.measures import MEASURES
from cam_callbacks.explain.trust import measure_trust

TRUST = {"average_drop", "increase_in_confidence", "mean_activation_correlation"}
GROUPS = {"worst_group_accuracy"}
AGREEMENT = {"mask_agreement"}
MARGINS = {"bg_gap_larger_masks", "bg_gap_smaller_masks"}
EXCHANGES = ("position", "size", "detail", "compression", "mirror")
ASKED_FOR = {name for name, spec in MEASURES.items() if spec.intervention}
OF_A_TASK = {name for name, spec in MEASURES.items() if spec.task}
UNUSUAL = TRUST | AGREEMENT | MARGINS | ASKED_FOR | OF_A_TASK
WITH_MASKS = {name for name, spec in MEASURES.items() if spec.masks != "excluded"} - UNUSUAL
WITHOUT_MASKS = {name for name, spec in MEASURES.items() if not spec.needs_masks} - UNUSUAL


@pytest.fixture
def no_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)


@pytest.mark.parametrize("estimated", [False, True])
def test_with_masks_they_are_those_that_do_not_exclude_them(estimated):
    probes = replace(scenes(), masks_estimated=estimated)
    margins = MARGINS if estimated else set()
    assert set(audit_model(Reader(1), probes).measures) == WITH_MASKS - GROUPS | margins
    grouped = replace(probes, groups=torch.arange(60) // 6)
    assert set(audit_model(Reader(1), grouped).measures) == WITH_MASKS | margins


def test_those_of_other_exchanges_are_there_if_they_are_asked_for():
    result = audit_model(Reader(1), scenes(), interventions=EXCHANGES)
    assert set(result.measures) == WITH_MASKS - GROUPS | ASKED_FOR
    assert len(ASKED_FOR) == 16


def test_without_masks_they_are_those_that_do_not_need_them(no_opencv):
    assert set(audit_model(Reader(1), scenes(masks=False)).measures) == WITHOUT_MASKS - GROUPS


def test_where_masks_are_estimated_their_agreement_is_one_of_them():
    pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    result = audit_model(Reader(1), scenes(12, masks=False))
    expected = WITHOUT_MASKS if result.mask_source == "none" else WITH_MASKS | MARGINS
    assert set(result.measures) == expected - GROUPS | AGREEMENT
    assert set(result["mask_agreement"].values.tolist()) <= {0, 1}


def test_those_of_the_heatmaps_are_those_of_trust():
    probes, model = scenes(8), Reader(1)
    assert set(measure_trust(model, probes.images, ScoreCAM()(model, probes.images))) == TRUST


@pytest.mark.parametrize("name", MEASURES)
def test_each_says_what_it_is(name):
    spec = MEASURES[name]
    assert spec.name == name
    assert spec.title
    assert spec.definition.endswith(".")


def test_it_can_be_read_without_torch():
    script = (
        "import json, sys; from cam_callbacks.audit.measures import MEASURES;"
        "print(json.dumps([list(MEASURES), 'torch' in sys.modules]))"
    )
    names, torch_too = json.loads(subprocess.check_output([sys.executable, "-c", script]))
    assert names == list(MEASURES)
    assert not torch_too
