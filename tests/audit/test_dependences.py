"""The background and what else was exchanged, one beside the other, with what came of each."""

import pytest
import torch
from cues import Reads, cued_scenes
from made_up import classes_of, gap_of, result

from cam_callbacks import Intervention, audit_model, judge
from cam_callbacks.audit.dependences import dependences


def nothing(images, masks, donors, donor_masks):
    return torch.zeros_like(images)


def told(found, verdict):
    return {each.gap: (each.state, each.about) for each in dependences(found, verdict)}


def test_each_has_its_own_state_and_says_where_or_why():
    asked = ["position", "compression", Intervention("nothing", nothing)]
    found = audit_model(Reads("position"), cued_scenes(), num_donors=1, interventions=asked)
    first = judge(found)
    said = told(found, judge(found, first))
    assert list(said) == ["bg_gap", "position_gap", "compression_gap", "nothing_gap"]
    assert said["position_gap"][0] == "warning"
    assert said["position_gap"][1].startswith("all classes together")
    assert said["bg_gap"] == said["compression_gap"] == ("none", "")
    assert said["nothing_gap"] == ("not judged", "the exchange itself costs too much")


@pytest.mark.parametrize(
    ("size", "accuracy", "why"), [(5, 1.0, "too few images"), (40, 0.5, "not learned")], ids=["few", "not learned"]
)
def test_what_is_not_judged_says_why(size, accuracy, why):
    found = result(gap_of(0.5, size), classes_of(size), accuracy=accuracy)
    assert told(found, judge(found)) == {"bg_gap": ("not judged", why)}


def test_without_masks_it_is_the_edge_that_is_exchanged():
    found = result(gap_of(0.9, 40), classes_of(40), masks="none")
    (edge,) = dependences(found, judge(found))
    assert (edge.title, edge.gap, edge.placebo, edge.state) == ("what lies at the edge", "ring_gap", None, "suspicion")
