"""The scalars of an audit: their names, and which have bounds, a chance level and values per class."""

import math
from dataclasses import replace

import torch

from cam_callbacks import AuditResult, judge
from cam_callbacks.audit.donors import Donors
from cam_callbacks.audit.statistics import measure
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.snapshot import AuditSnapshot

LABELS = torch.arange(40) % 2
VALUES = torch.arange(40) // 2 % 2 * 1.0


def scalars(mask_source: str, **measures: float | None) -> dict[str, float]:
    """Scalars of an audit with these measures and their chance levels."""
    made = {name: measure(VALUES, LABELS, chance) for name, chance in {"accuracy": 0.5, **measures}.items()}
    swaps, nobody = torch.zeros(40, 3), torch.full((40, 1), -1)
    result = AuditResult(made, mask_source, LABELS, ("cat", "dog"), swaps, Donors(nobody, nobody), torch.arange(40))
    verdict = judge(replace(result, measures={**made, result.gap_name: measure(VALUES, LABELS, 0.0)}))
    return AuditSnapshot(
        ProbeSet(torch.rand(40, 3, 8, 8), LABELS), result, verdict, {}, 440, torch.ones(40).bool()
    ).scalars()


def test_gaps_have_bounds_and_values_per_class():
    found = scalars("given", bg_gap=0.0)
    assert {name for name in found if name.startswith("bg_gap")} == {
        f"bg_gap{of}{bound}" for of in ("", "_by_class/cat", "_by_class/dog") for bound in ("", "_low", "_high")
    }


def test_others_have_the_chance_level_instead_of_bounds():
    found = scalars("given", pointing=0.3)
    assert {name for name in found if name.startswith("pointing")} == {"pointing", "pointing_chance"}
    assert found["accuracy_chance"] == 0.5


def test_names_say_if_a_measure_stands_on_estimated_masks():
    measures = dict.fromkeys(("bg_gap", "bg_gap_probability", "heat_on_object", "data_color_auc", "border_share"), 0.4)
    given, estimated = scalars("given", **measures), scalars("estimated", **measures)
    for tag in (
        "bg_gap{}",
        "bg_gap{}_by_class/cat_low",
        "bg_gap_probability{}",
        "bg_gap_probability{}_high",
        "heat_on_object{}_by_class/dog_chance",
        "data_color_auc{}_chance",
    ):
        assert math.isfinite(given[tag.format("")])
        assert tag.format("") not in estimated
        assert estimated[tag.format("_estimated")] == given[tag.format("")]
    assert {
        "accuracy",
        "border_share",
        "border_share_chance",
        "alarm",
        "audit_passes",
    } < given.keys() & estimated.keys()
