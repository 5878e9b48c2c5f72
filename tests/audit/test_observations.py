"""The images of an audit are dealt out to processes, and take a bounded number of passes."""

from dataclasses import replace

import pytest
import torch
from planted import Reader, scenes

from cam_callbacks import audit_model
from cam_callbacks.audit.measuring import measures_of
from cam_callbacks.audit.observations import Observations

NOTHING = torch.zeros(60, 24, 24, dtype=torch.bool)


@pytest.mark.parametrize(
    ("probes", "passes", "donors"),
    [
        pytest.param(scenes(), 15, 2, id="given"),
        pytest.param(replace(scenes(), masks_estimated=True), 15, 1, id="estimated"),
        pytest.param(replace(scenes(), masks=NOTHING, masks_estimated=True), 9, 2, id="none found"),
    ],
)
def test_a_look_of_a_training_takes_at_most_15_passes_an_image(probes, passes, donors):
    observations = Observations(probes)
    result = measures_of(observations, [observations.observe(Reader(1), torch.arange(len(probes)))])
    assert result.passes == passes * len(probes)
    assert result.donors.same.shape == result.donors.other.shape == (60, donors)


@pytest.mark.parametrize("masks", [True, False])
def test_the_numbers_are_the_same_however_the_images_are_dealt_out(masks):
    probes, model = scenes(masks=masks), Reader(1)
    observations = Observations(probes, num_donors=3)
    parts = [observations.observe(model, torch.arange(first, len(probes), 3)) for first in range(3)]
    alone, together = audit_model(model, probes), measures_of(Observations(probes, num_donors=3), parts)
    assert alone.passes == together.passes
    assert alone.measures.keys() == together.measures.keys()
    for name, measure in alone.measures.items():
        other = together.measures[name]
        assert torch.allclose(measure.values, other.values, atol=1e-5, equal_nan=True), name
    assert torch.equal(alone.donors.other, together.donors.other)


def test_heat_of_different_methods_is_not_mixed():
    probes, model = scenes(), Reader(1)
    observations = Observations(probes)
    first, second = (observations.observe(model, torch.arange(at, len(probes), 2)) for at in range(2))
    result = measures_of(observations, [first, replace(second, heat_method="CAM")])
    assert "heat_on_object" not in result.measures
    assert any("Heat is not measured" in note for note in result.notes)
