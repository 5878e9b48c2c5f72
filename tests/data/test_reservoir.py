"""Which images are drawn from a whole pass."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cam_callbacks.data.balancing import Candidate, balanced
from cam_callbacks.data.batches import Samples
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.data.reservoir import Form, Reservoir, digest_of

PASSES = {
    "in turn": [index % 3 for index in range(120)],
    "sorted": [index // 40 for index in range(120)],
    "a rare class, late": [0] * 60 + [1] * 56 + [2] * 4,
    "many classes": [index % 40 for index in range(120)],
    "by chance": np.random.default_rng(0).integers(0, 5, 120).tolist(),
}


def image(index: int) -> Tensor:
    return torch.full((1, 2, 2), float(index))


def draw(labels: Sequence[int], count: int, stream: str = "a", batch: int = 8, first: int = 0, **options: Any) -> Any:
    """A reservoir that was offered images that hold their index, from `first` on."""
    reservoir = Reservoir(count, stream, **options)
    for start in range(0, len(labels), batch):
        some = labels[start : start + batch]
        if reservoir.wants_next(0):
            images = torch.stack([image(first + start + place) for place in range(len(some))])
            reservoir.offer(Samples(images, torch.tensor(some), None))
    return reservoir


def candidates(reservoir: Reservoir) -> list[Candidate]:
    return [each for found in reservoir.found().values() for each in found.candidates]


def indices(reservoir: Reservoir) -> list[int]:
    (form,) = reservoir.found()
    return sorted(int(each.images[0, 0, 0, 0]) for each in reservoir.held(form).values())


class TestWhatIsDrawn:
    @pytest.mark.parametrize("labels", PASSES.values(), ids=PASSES)
    def test_it_is_the_best_choice_from_the_whole_pass(self, labels: list[int]) -> None:
        everything = candidates(draw(labels, len(labels)))
        assert len(everything) == len(labels)
        for count, classes in product((1, 10, 31), (None, max(labels) + 1)):
            for taken in ({}, {0: 3, 2: 5}):
                found = draw(labels, count, classes=classes, taken=taken)
                assert candidates(found) == balanced(everything, count, taken)
                some: dict[str, Any] = {"followed": {0: 3, 3: 2}, "giving": {1: 4}}
                found = draw(labels, count, classes=classes, taken=taken, **some)
                assert candidates(found) == balanced(everything, count, taken, **some)

    def test_the_best_of_all_are_among_the_best_of_each_part(self) -> None:
        labels = PASSES["by chance"]
        parts = [draw(labels[rank::2], 20, rank=rank, first=1000 * rank) for rank in range(2)]
        wholes = [draw(labels[rank::2], 60, rank=rank, first=1000 * rank) for rank in range(2)]
        best, of_all = ([each for part in of for each in candidates(part)] for of in (parts, wholes))
        assert balanced(best, 20, {}) == balanced(of_all, 20, {})
        assert {each.rank for each in balanced(best, 20, {})} == {0, 1}

    def test_classes_have_equal_shares_as_far_as_they_go(self) -> None:
        shares = {name: Counter(each.label for each in candidates(draw(PASSES[name], 30))) for name in PASSES}
        assert shares["sorted"] == {0: 10, 1: 10, 2: 10}
        assert shares["a rare class, late"] == {0: 13, 1: 13, 2: 4}
        assert set(shares["many classes"].values()) == {2}

    def test_of_many_classes_some_take_part_others_at_another_look(self) -> None:
        labels = [index % 100 for index in range(1000)]
        shares = [Counter(each.label for each in candidates(draw(labels, 64, stream))) for stream in "ab"]
        for share in shares:
            assert set(share.values()) == {2}
            assert len(share) == 32
        assert len(shares[0].keys() & shares[1].keys()) < 20
        taken = dict.fromkeys(shares[0], 2)
        assert not shares[0].keys() & {each.label for each in candidates(draw(labels, 64, "b", taken=taken))}

    def test_classes_that_are_followed_come_first(self) -> None:
        labels = [index % 100 for index in range(1000)]
        followed = {3: 8, 50: 5}
        share = Counter(each.label for each in candidates(draw(labels, 64, followed=followed)))
        assert [share[label] for label in followed] == [8, 5]
        assert len(share) == 2 + (64 - 13 + 1) // 2

    def test_images_that_only_give_come_on_top_of_the_turn_of_their_class(self) -> None:
        labels = [index % 20 for index in range(1000)]
        share = Counter(each.label for each in candidates(draw(labels, 48, followed={3: 2}, giving={7: 6})))
        assert share.pop(7) == 8
        assert set(share.values()) == {2, 3}
        assert share.total() == 40

    def test_of_the_others_those_come_first_of_which_the_fewest_were_seen(self) -> None:
        labels = [index % 100 for index in range(1000)]
        seen = {label: label % 5 for label in range(100)}
        share = Counter(each.label for each in candidates(draw(labels, 40, taken=seen)))
        assert {label % 5 for label in share} == {0}

    def test_batches_of_classes_that_do_not_take_part_need_not_be_read(self) -> None:
        labels = [index % 100 for index in range(6000)]
        read = []
        for classes in (None, 100):
            reservoir = Reservoir(32, "a", classes=classes)
            wanted = 0
            for start in range(0, 6000, 10):
                if reservoir.wants_next(0):
                    wanted += 1
                    images = torch.stack([image(start + place) for place in range(10)])
                    reservoir.offer(Samples(images, torch.tensor(labels[start : start + 10]), None))
            read.append(wanted)
        assert read[1] < 560
        assert read[0] == 600

    def test_of_several_loaders_all_classes_take_part_as_of_one(self) -> None:
        for sources in (1, 2, 4):
            reservoir = Reservoir(64, "a")
            for index in range(800):
                one = Samples(image(index).unsqueeze(0), torch.tensor([index % 10]), None)
                reservoir.offer(one, index % 40 // 10 % sources)
            shares = Counter(each.label for each in candidates(reservoir))
            assert len(shares) == 10
            assert min(shares.values()) >= 4

    def test_it_is_spread_over_the_whole_pass(self) -> None:
        found = indices(draw(PASSES["in turn"], 60))
        assert all(12 <= sum(start <= index < start + 40 for index in found) <= 28 for start in (0, 40, 80))

    def test_each_source_has_its_share(self) -> None:
        reservoir = Reservoir(8, "a")
        for source, size in ((0, 40), (1, 6)):
            images = torch.stack([image(100 * source + index) for index in range(size)])
            reservoir.offer(Samples(images, torch.arange(size) % 2, None), source)
        assert [sum(index // 100 == source for index in indices(reservoir)) for source in (0, 1)] == [4, 4]

    def test_it_is_the_same_for_the_same_stream_and_rank_only(self) -> None:
        labels = PASSES["in turn"]
        found = indices(draw(labels, 30))
        assert indices(draw(labels, 30)) == found
        for other in ({"stream": "b"}, {"rank": 1}):
            assert len(set(indices(draw(labels, 30, **other))) & set(found)) < 18

    def test_what_is_known_of_the_classes_does_not_change_it(self) -> None:
        labels = [index % 3 for index in range(115)]
        for batch in (7, 64):
            assert indices(draw(labels, 30, batch=batch, classes=3)) == indices(draw(labels, 30, batch=batch))

    def test_the_generators_of_the_user_are_left_alone(self) -> None:
        before = random.getstate(), torch.get_rng_state().tolist()
        draw(PASSES["in turn"], 30)
        assert (random.getstate(), torch.get_rng_state().tolist()) == before


class TestWhatIsLeftOut:
    def test_images_without_a_class_are_passed_over(self) -> None:
        reservoir = draw([-100, 0, -1, 1, 7], 9, classes=2)
        assert indices(reservoir) == [1, 3]
        assert reservoir.unknown_labels == {7}

    def test_images_that_are_not_finite_are_counted(self) -> None:
        images = torch.stack([image(index) for index in range(6)])
        images[2, 0, 0, 0], images[4, 0, 1, 1] = torch.nan, torch.inf
        reservoir = Reservoir(4, "a")
        reservoir.offer(Samples(images, torch.arange(6) % 2, None))
        assert indices(reservoir) == [0, 1, 3, 5]
        assert reservoir.left_out == {"not finite": 2}

    def test_images_of_the_same_content_count_once(self) -> None:
        reservoir = Reservoir(6, "a")
        for _ in range(3):
            reservoir.offer(Samples(torch.stack([image(0), image(1)]), torch.tensor([0, 1]), None))
        assert indices(reservoir) == [0, 1]

    def test_images_that_are_excluded_are_not_drawn(self) -> None:
        labels = [index % 2 for index in range(12)]
        excluded = {digest_of(image(index).unsqueeze(0), index % 2) for index in range(5)}
        assert indices(draw(labels, 9, excluded=excluded)) == [5, 6, 7, 8, 9, 10, 11]

    @pytest.mark.parametrize(
        ("other", "reason"),
        [
            ({"images": torch.rand(4, 1, 3, 3)}, "of another size"),
            ({"images": torch.rand(4, 1, 2, 2).half()}, "of another type"),
            ({"masks": torch.ones(4, 2, 2).bool()}, "with masks"),
            ({"groups": torch.arange(4)}, "with groups"),
        ],
    )
    def test_where_a_form_is_wanted_others_are_left_out(self, other: dict[str, Any], reason: str) -> None:
        wanted = ProbeSet(torch.rand(2, 1, 2, 2), masks=torch.ones(2, 2, 2).bool(), masks_estimated=True)
        reservoir = Reservoir(9, "a", form=Form.of(wanted))
        reservoir.offer(
            Samples(**({"images": torch.rand(4, 1, 2, 2), "labels": torch.arange(4), "masks": None} | other))
        )
        assert not reservoir.found()
        assert reservoir.left_out == {reason: 4}


class Counted(Tensor):
    """Labels that count how often they are read."""

    reads = 0

    def tolist(self) -> Any:
        Counted.reads += 1
        return super().tolist()


def test_late_in_a_long_pass_few_labels_are_read() -> None:
    reservoir, reads = Reservoir(20, "a", classes=4), []
    for batch in range(200):
        Counted.reads = 0
        labels = (torch.arange(10) + batch) % 4
        reservoir.offer(Samples(torch.rand(10, 1, 2, 2), labels.as_subclass(Counted), None))
        reads.append(Counted.reads)
    assert sum(reads[:10]) == 10
    assert sum(reads[-50:]) < 15


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.float64])
def test_a_digest_tells_content_and_class_apart(dtype: torch.dtype) -> None:
    images = torch.arange(24).view(2, 3, 2, 2).to(dtype)
    laid_out = images.to(memory_format=torch.channels_last)
    assert digest_of(images[0], 1) == digest_of(laid_out[0], 1) == digest_of(images[:1], 1)
    assert len({digest_of(images[0], 1), digest_of(images[1], 1), digest_of(images[0], 2)}) == 3
