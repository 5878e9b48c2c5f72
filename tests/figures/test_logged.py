"""The pictures of one look."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cam_callbacks import audit_model, judge, tags
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.explanation import Explanation
from cam_callbacks.figures.colors import ALERT
from cam_callbacks.figures.logged import (
    _rounded_up,
    audit_pictures,
    class_mean_picture,
    heatmaps_picture,
    history_picture,
)
from cam_callbacks.figures.scale import with_scale
from cam_callbacks.history import PastMaps
from cam_callbacks.snapshot import AuditSnapshot

SIZE = 12
CELL_HEIGHT = 180
"""Of a heading, a picture and two lines; under the cells there are the lines of the scale."""


def probes(**changes: Any) -> ProbeSet:
    images = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    parts = {"images": images, "labels": torch.tensor([0, 0, 1, 2]), "class_names": ("cat", "dog", "owl")}
    return ProbeSet(**(parts | changes))


def explanation(predicted: tuple[int, ...] = (0, 0, 1, 2), classes: int = 3, **changes: Any) -> Explanation:
    raw = torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(1))
    scores = torch.nn.functional.one_hot(torch.tensor(predicted), classes).float() * 3
    made = Explanation(
        layer_maps=raw,
        size=(SIZE, SIZE),
        upsampling="bilinear",
        targets=torch.tensor([0, 0, 1, 2]),
        score_kind="probability",
        target_scores=torch.tensor([0.5, 0.6, 0.7, 0.8]),
        logits=scores,
        probabilities=scores.softmax(dim=1),
        target_layer="features",
        passes=torch.full((4,), 9),
        estimated_error=torch.zeros(4),
        skipped=torch.zeros(4).bool(),
        channels=None,
    )
    return replace(made, **changes)


def mean_picture(made: Explanation, style: Any = "blend") -> np.ndarray:
    return class_mean_picture(probes(), made, made.heatmaps, style)


def alerts(picture: np.ndarray) -> int:
    return int((np.abs(picture.astype(int) - np.array(ALERT)).max(axis=2) < 4).sum())


def drawn(made: Explanation, of: ProbeSet | None = None, **options: Any) -> np.ndarray:
    return heatmaps_picture(of or probes(), made, made.heatmaps, "blend", **options)


def test_mistakes_are_framed_and_correct_answers_are_not() -> None:
    assert alerts(drawn(explanation())) == 0
    one, two = alerts(drawn(explanation((0, 1, 1, 2)))), alerts(drawn(explanation((1, 1, 1, 2))))
    assert 0 < one < two


def test_without_labels_there_are_no_mistakes() -> None:
    assert alerts(drawn(explanation((2, 2, 2, 0)), probes(labels=None))) == 0


def test_the_map_of_another_class_is_shown_beside_the_first() -> None:
    made = explanation((0, 1, 1, 2))
    narrow, wide = drawn(made), drawn(made, of_rivals=explanation((1, 2, 2, 0)))
    assert wide.shape[1] > narrow.shape[1]


def test_skipped_and_blank_maps_are_noted() -> None:
    skipped = torch.tensor([True, False, False, False])
    nan = explanation().layer_maps.clone()
    nan[0] = torch.nan
    assert alerts(drawn(explanation(layer_maps=nan, skipped=skipped))) > 0
    blank = explanation().layer_maps.clone()
    blank[1] = 0
    assert alerts(drawn(explanation(layer_maps=blank))) > 0


def test_coarse_maps_have_a_line_above_that_says_so() -> None:
    coarse = explanation(layer_maps=torch.rand(4, 3, 5, generator=torch.Generator().manual_seed(1)))
    for draw in (drawn, mean_picture):
        assert draw(coarse).shape[0] > draw(explanation()).shape[0]
        assert draw(coarse).shape[1] == draw(explanation()).shape[1]
    fine, rough = (
        history_picture(probes(), [PastMaps(0, 0, made.layer_maps)], "blend", None) for made in (explanation(), coarse)
    )
    assert rough.shape[0] > fine.shape[0]


def test_a_model_of_many_or_of_two_classes_is_drawn() -> None:
    many = explanation(classes=1000)
    assert drawn(many, probes(class_names=None)).shape == drawn(explanation()).shape
    two = explanation((0, 0, 1, 1), classes=2, targets=torch.tensor([0, 0, 1, 1]))
    of_two = drawn(two, probes(labels=torch.tensor([0, 0, 1, 1])))
    assert of_two.shape[1:] == drawn(explanation()).shape[1:]
    assert 0 < of_two.shape[0] < drawn(explanation()).shape[0]  # a line less under each


def test_the_history_has_a_column_a_look() -> None:
    looks = [PastMaps(step, step, torch.rand(4, 4, 4)) for step in range(4)]
    one, two, four = (history_picture(probes(), looks[:count], "blend", None) for count in (1, 2, 4))
    assert np.ptp([each.shape[0] for each in (one, two, four)]) < 64  # no row more; lines under them may break
    assert four.shape[1] - two.shape[1] == 2 * (two.shape[1] - one.shape[1]) > 0
    unlabeled = history_picture(probes(labels=None), looks, "jet", 2.0)
    assert unlabeled.shape[1] == four.shape[1]
    assert 0 < unlabeled.shape[0] < four.shape[0]  # a line less beside each


@pytest.mark.parametrize(("value", "limit"), [(0.01, 0.01), (0.071, 0.08), (0.42, 0.5), (0.96, 1.0)])
def test_a_histogram_is_as_wide_as_its_values_need(value: float, limit: float) -> None:
    assert _rounded_up(value) == pytest.approx(limit)


def test_the_class_mean_has_a_cell_a_class_that_occurs() -> None:
    three = mean_picture(explanation())
    one = mean_picture(explanation(targets=torch.zeros(4).long()))
    assert three.shape[1] == 2 * one.shape[1]
    assert [picture.shape[0] // CELL_HEIGHT for picture in (one, three)] == [1, 2]


def test_skipped_and_blank_maps_do_not_enter_the_class_mean() -> None:
    made = explanation(targets=torch.zeros(4).long())
    maps = made.layer_maps.clone()
    maps[0], maps[1] = torch.nan, 0
    left_out = replace(made, layer_maps=maps, skipped=torch.tensor([True, False, False, False]))
    two = mean_picture(left_out, "heatmap")
    same = maps.clone()
    same[:2] = maps[2:]
    picture = mean_picture(replace(made, layer_maps=same), "heatmap")
    height = 20 + 112  # the pictures themselves, without the lines under them, which tell the counts
    assert np.array_equal(two[:height], picture[:height])


def test_a_class_of_which_nothing_is_left_is_drawn_blank() -> None:
    nothing = explanation(layer_maps=torch.full((4, 4, 4), torch.nan), skipped=torch.ones(4).bool())
    assert (mean_picture(nothing, "heatmap")[40:110, 115:195] == mean_picture(nothing, "heatmap")[40, 115]).all()
    assert len(np.unique(mean_picture(explanation(), "heatmap")[40:110, 115:195])) > 2


def test_pictures_of_heat_have_a_bar_that_says_what_its_colors_mean() -> None:
    made, looks = explanation(), [PastMaps(0, 0, explanation().layer_maps)] * 4
    pictures = [
        heatmaps_picture(probes(), made, made.heatmaps, "heatmap"),
        history_picture(probes(), looks, "heatmap", None),
        mean_picture(made, "heatmap"),
    ]
    bar = with_scale(np.zeros((1, 420, 3), dtype=np.uint8), "heatmap", 2)[1:, :120]
    for picture in pictures:
        assert np.array_equal(picture[-len(bar) :, :120], bar)
    of_the_run = heatmaps_picture(probes(), made, made.heatmaps, "heatmap", brightest=2.5)
    assert np.array_equal(of_the_run[: -len(bar)], pictures[0][: -len(bar)])
    assert not np.array_equal(of_the_run, pictures[0])


RED, GREEN, BLUE = ((252, 0, 0), (0, 252, 0), (0, 0, 252))
"""As pictures show them, without their lowest bits."""


class MeanColor(nn.Module):
    """Tells red from green; without a layer that has positions, so that there is no heat."""

    def forward(self, images: Tensor) -> Tensor:
        return 10 * images.mean(dim=(2, 3))[:, :2]


def audited(masks: bool) -> AuditSnapshot:
    """Of images that are blue within a frame, red for the one class and green for the other."""
    targets = torch.arange(12) % 2
    inside = torch.zeros(12, 16, 16, dtype=torch.bool)
    inside[:, 2:-2, 2:-2] = True
    blue, frames = torch.eye(3)[2].view(1, 3, 1, 1), torch.eye(3)[targets].view(12, 3, 1, 1)
    images = ProbeSet(torch.where(inside.unsqueeze(1), blue, frames), targets, inside if masks else None)
    result = audit_model(MeanColor(), images)
    return AuditSnapshot(images, result, judge(result), {}, result.passes, torch.ones(len(images)).bool())


def colors_along(row: np.ndarray) -> list[tuple[int, ...]]:
    """The colors that a row of a picture goes through, without what lies between the images."""
    colors = [color for color, _ in groupby(map(tuple, row.tolist()))]
    return [color for color in colors if color in (RED, GREEN, BLUE)]


def test_without_masks_the_rings_are_shown_that_were_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    picture = audit_pictures(audited(masks=False))[tags.SWAPS]
    top = next(index for index, row in enumerate(picture) if colors_along(row))
    assert colors_along(picture[top]) == [RED, RED, GREEN]  # the image itself, own class, other class
    assert colors_along(picture[top + 80]) == [RED, BLUE, RED, RED, BLUE, RED, GREEN, BLUE, GREEN]


def test_where_no_heat_was_measured_there_is_no_picture_of_it() -> None:
    made = audited(masks=True)
    assert any("Heat is not measured" in note for note in made.result.notes)
    assert set(audit_pictures(made)) == {tags.SWAPS}
