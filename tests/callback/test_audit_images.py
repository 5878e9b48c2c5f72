"""Which images the audits of a training have: one half stays, the other is drawn anew at each look."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning_runs import Squares, TinyModule, fit, loader, own_warnings, quiet
from processes import run_script
from torch import Tensor

from cam_callbacks import Audit, CAMMonitor, GradCAM, ProbeSet
from cam_callbacks.callback.audit_images import AuditImages, AuditSet
from cam_callbacks.callback.audit_offers import Draw
from cam_callbacks.data.batches import Samples

COUNT = 10


@dataclass
class Look:
    images: Tensor
    labels: list[int]
    is_fixed: Tensor

    def shared_with(self, other: Look) -> Tensor:
        """Whether each image is one of another look, too."""
        return (self.images.unsqueeze(1) == other.images).flatten(2).all(dim=2).any(dim=1)


@dataclass
class Ran:
    """What the looks of a run audited, how many batches were read before each, and what was left behind."""

    looks: list[Look] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    random_state: Tensor | None = None


def sorted_squares(count: int = 60) -> Squares:
    """An unshuffled folder: one class after the other."""
    data = Squares(count, size=8)
    order = data.labels.argsort(stable=True)
    data.images, data.labels = data.images[order], data.labels[order]
    return data


def run(folder: Path, epochs: int, data: Squares | None = None, watched: bool = True, **options: Any) -> Ran:
    ran, read = Ran(), [0]

    def counted(batch: Any) -> Any:
        read[0] += 1
        return tuple(batch)

    class Keeps(CAMMonitor):
        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            super().on_validation_end(trainer, pl_module)
            found = self._memory.audit
            if not trainer.sanity_checking and found is not None:
                assert found.images.labels is not None
                ran.looks.append(Look(found.images.images, found.images.labels.tolist(), found.is_fixed))
                ran.read.append(read[0])
                read[0] = 0

    monitor = Keeps(
        "features", GradCAM(), num_probes=2, audit=Audit(num_images=COUNT), batch_fn=counted, on_error="raise"
    )
    module = TinyModule()
    val = loader(sorted_squares() if data is None else data)
    trainer = fit(folder, monitor if watched else None, module, val=val, max_epochs=epochs, logger=False, **options)
    trainer.save_checkpoint(folder / "last.ckpt")
    ran.weights = [parameter.detach().clone() for parameter in module.parameters()]
    ran.random_state = torch.get_rng_state()
    return ran


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Ran:
    """A run of three looks; it is only read."""
    return run(folder, 3)


def assert_same(some: list[Look], others: list[Look]) -> None:
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.is_fixed, other.is_fixed)


def test_half_of_the_images_stays_and_the_others_are_drawn_anew(whole: Ran) -> None:
    first, second, third = whole.looks
    for look in whole.looks:
        assert len(look.images) == COUNT
        assert int(look.is_fixed.sum()) == COUNT // 2
        assert torch.equal(look.images[look.is_fixed], first.images[first.is_fixed])
        assert int(look.shared_with(look).sum()) == COUNT
    for one, other in ((first, second), (second, third), (first, third)):
        assert int(one.shared_with(other)[~one.is_fixed].sum()) < COUNT // 2
        assert not one.shared_with(Look(other.images[other.is_fixed], [], other.is_fixed))[~one.is_fixed].any()


def test_each_look_has_all_classes_though_they_come_sorted(whole: Ran) -> None:
    for look in whole.looks:
        assert look.labels == sorted(look.labels)
        assert sorted(torch.tensor(look.labels).bincount().tolist()) == [3, 3, 4]


def test_batches_that_cannot_matter_are_not_read(whole: Ran) -> None:
    batches = 15
    assert whole.read[1] < batches
    assert whole.read[2] < batches


def test_the_same_run_has_the_same_images_and_harms_no_training(tmp_path: Path, whole: Ran) -> None:
    again, alone = run(tmp_path / "again", 3), run(tmp_path / "alone", 3, watched=False)
    assert_same(again.looks, whole.looks)
    assert again.random_state is not None
    assert alone.random_state is not None
    assert torch.equal(again.random_state, alone.random_state)
    for mine, theirs in zip(again.weights, alone.weights, strict=True):
        assert torch.equal(mine, theirs)


def test_a_resumed_run_has_the_images_of_one_that_went_on(tmp_path: Path, whole: Ran) -> None:
    run(tmp_path / "first", 1)
    with own_warnings() as said:
        resumed = run(tmp_path / "second", 3, ckpt_path=str(tmp_path / "first" / "last.ckpt"))
    assert not [text for text in said if "suspicions reset" in text]
    assert_same(resumed.looks, whole.looks[1:])


def test_a_half_that_is_not_in_the_checkpoint_is_drawn_again(
    tmp_path: Path, whole: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cam_callbacks.callback.memory._MAX_BYTES_IN_CHECKPOINT", 2000)
    run(tmp_path / "first", 1)
    with own_warnings() as said:
        resumed = run(tmp_path / "second", 3, ckpt_path=str(tmp_path / "first" / "last.ckpt"))
    assert not [text for text in said if "suspicions reset" in text]
    for look, expected in zip(resumed.looks, whole.looks[1:], strict=True):
        assert torch.equal(look.images[look.is_fixed], expected.images[expected.is_fixed])


@pytest.mark.parametrize("count", [6, COUNT])
def test_of_a_set_without_more_images_all_are_used_at_each_look(tmp_path: Path, count: int) -> None:
    with own_warnings() as said:
        ran = run(tmp_path, 2, sorted_squares(count))
    assert len(ran.looks) == 2
    for look in ran.looks:
        assert torch.equal(look.images, ran.looks[0].images)
        assert len(look.images) == count
        assert look.is_fixed.all()
    assert ran.read[1] == 0
    assert not [text for text in said if "audit" in text]


def test_images_that_are_not_finite_are_not_audited(tmp_path: Path) -> None:
    data = sorted_squares(24)
    data.images[::4] = torch.nan
    with own_warnings() as said:
        ran = run(tmp_path, 2, data)
    for look in ran.looks:
        assert torch.isfinite(look.images).all()
        assert len(look.images) == COUNT
    assert len([text for text in said if "not finite" in text]) == 1


def test_a_test_draws_its_own_images_and_keeps_none(tmp_path: Path) -> None:
    monitor = CAMMonitor("features", GradCAM(), num_probes=2, audit=Audit(num_images=COUNT))
    trainer = Trainer(callbacks=[monitor], **quiet(tmp_path, logger=False))
    found = []
    for _ in range(2):
        trainer.test(TinyModule(), loader(sorted_squares()), verbose=False)
        assert monitor.audit_images is not None
        found.append(monitor.audit_images.fingerprint)
    assert found[0] == found[1]
    assert monitor.state_dict()["audit"]["images"]["images"] is None


RANKS = """
import sys
from pathlib import Path
import torch
from lightning.pytorch import Trainer
from lightning_runs import Squares, TinyModule, loader, quiet
from cam_callbacks import Audit, CAMMonitor, GradCAM

folder, looks = Path(sys.argv[1]), []


class Keeps(CAMMonitor):
    def on_validation_end(self, trainer, module):
        super().on_validation_end(trainer, module)
        found = self._memory.audit
        if self._memory.is_audit_new:
            looks.append({"images": found.images.images, "is_fixed": found.is_fixed, "verdict": found.verdict.text})


def fails_on_the_second_rank(batch):
    trainer = monitor.trainer
    if trainer.global_rank == 1 and trainer.current_epoch == 2:
        raise OSError("rank 1 cannot read")
    return tuple(batch)


class Knows(Keeps):
    def setup(self, trainer, module, stage):
        self.trainer = trainer
        super().setup(trainer, module, stage)


if __name__ == "__main__":
    monitor = Knows("features", GradCAM(), num_probes=2, audit=Audit(num_images=10), batch_fn=fails_on_the_second_rank)
    options = quiet(folder, max_epochs=3, strategy="ddp", devices=2, num_sanity_val_steps=0, logger=False)
    trainer = Trainer(callbacks=[monitor], **options)
    trainer.fit(TinyModule(), loader(Squares(8, size=8)), loader(Squares(40, size=8)))
    torch.save(looks, folder / f"rank{trainer.global_rank}.pt")
    torch.distributed.destroy_process_group()
"""


def test_all_ranks_audit_the_same_images_drawn_from_all_of_their_batches(tmp_path: Path) -> None:
    ended = run_script(tmp_path, RANKS, str(tmp_path), ranks=2)
    assert ended.well, ended.printed[-4000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert len(first) == len(second) == 3
    images = Squares(40, size=8).images
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one["images"], other["images"])
        assert one["verdict"] == other["verdict"]
        assert len(one["images"]) == 10
        assert torch.equal(one["images"][one["is_fixed"]], first[0]["images"][first[0]["is_fixed"]])
    of_rank = [
        {int((images == image).flatten(1).all(dim=1).nonzero()) % 2 for image in look["images"]} for look in first
    ]
    assert of_rank[:2] == [{0, 1}, {0, 1}]
    anew = first[2]["images"][~first[2]["is_fixed"]]
    assert {int((images == image).flatten(1).all(dim=1).nonzero()) % 2 for image in anew} == {0}


def _of(labels: list[int]) -> ProbeSet:
    count = len(labels)
    return ProbeSet(torch.rand(count, 3, 4, 4), torch.tensor(labels))


def test_of_many_classes_single_images_have_partners_not_asked_about() -> None:
    fixed, fresh = _of([label for label in range(8) for _ in range(2)]), _of([20, 20, 30, 30, 30, 40, 40, 50, 50])
    found = AuditSet.of(fixed, fresh, 12, classes=40, draw=Draw(followed={30: 3}))
    assert found is not None
    labels = found.images.labels
    assert labels is not None
    asked, partners = labels[: found.num_asked].tolist(), labels[found.num_asked :].tolist()
    assert len(asked) == 12
    assert asked == sorted(asked)
    assert asked.count(30) == 3
    assert sum(label < 8 for label in asked) == 3  # a quarter stays
    assert sorted(partners) == sorted(label for label in asked if asked.count(label) == 1)
    assert found.drawn_for is not None
    assert [label for label, is_drawn in zip(asked, found.drawn_for.tolist(), strict=True) if is_drawn] == [30] * 3


def test_images_of_a_rival_give_their_background_and_are_not_asked_about() -> None:
    fixed = _of([label for label in range(8) for _ in range(2)])
    fresh = _of([20, 20, 30, 30, 30, *[40] * 4, *[50] * 5])
    draw = Draw(followed={30: 3}, rivals={30: [50, 40]})
    assert draw.giving == {40: 4, 50: 4}
    found = AuditSet.of(fixed, fresh, 8, classes=40, draw=draw)
    assert found is not None
    assert found.images.labels is not None
    asked, partners = found.images.labels[: found.num_asked].tolist(), found.images.labels[found.num_asked :].tolist()
    assert asked.count(30) == 3
    assert 40 not in asked
    assert partners.count(40) == partners.count(50) == 4
    assert found.rivals == {30: [50, 40]}


def test_a_rival_that_is_followed_itself_is_asked_about() -> None:
    draw = Draw(followed={30: 2, 40: 2}, rivals={30: [40, 50], 40: [30]})
    assert draw.giving == {50: 4}
    assert draw.room(20, 100) == 44
    assert Draw({}, {30: 80, 40: 20}, {30: [50], 40: [50, 60]}).giving == {50: 25, 60: 5}


@pytest.mark.parametrize("rivals", [{}, {0: [5, 6]}])
def test_a_rival_is_asked_about_as_often_as_any_other_class(rivals: dict[int, list[int]]) -> None:
    classes, count, asked, seen = 100, 128, Counter[int](), Counter[int]()
    data = Samples(torch.rand(4000, 1, 2, 2), torch.arange(4000) % classes, None)
    watched = AuditImages(count)
    for look in range(12):
        draw = Draw(dict(seen), {0: 81}, rivals) if look else Draw()
        watched.begin(f"look {look}", 0, classes, anew=False, draw=draw)
        for start in range(0, 4000, 200):
            if watched.wants_next(0):
                some = slice(start, start + 200)
                assert data.labels is not None
                watched.offer(Samples(data.images[some], data.labels[some], None), 0, "single-label")
        choice = watched.choose([watched.offered()], classes)
        held, stay = watched.drawn(choice, 0), {each.digest for each in choice.fixed}
        drawn = ProbeSet.joined([ProbeSet.of(held[each.digest]) for each in choice])
        is_fixed = torch.tensor([each.digest in stay for each in choice])
        if look == 0:
            watched.keep(drawn.subset(is_fixed))
            watched.is_first = False
        found = AuditSet.of(watched.images, drawn.subset(~is_fixed), count, choice.classes, draw)
        assert found is not None
        assert found.images.labels is not None
        anew = found.images.labels[: found.num_asked][~found.is_fixed[: found.num_asked]].tolist()
        seen.update(anew)
        if look:
            asked.update(set(anew))
            assert anew.count(0) > 35  # all that there are
            gives = found.images.labels[found.num_asked :].tolist()
            assert all(gives.count(rival) >= 20 for rival in rivals.get(0, []))
    others = sorted(asked[label] for label in range(1, classes) if label not in (5, 6))
    for rival in (5, 6):
        assert others[0] <= asked[rival] <= others[-1]
        assert asked[rival] > 0


def test_of_few_classes_all_images_are_asked_about() -> None:
    found = AuditSet.of(_of([0, 0, 1]), _of([0, 1, 1]), 6, classes=2)
    assert found is not None
    assert found.num_asked == len(found.images) == 6
    assert found.drawn_for is None


def test_which_classes_are_asked_about_first_hangs_on_the_images_alone() -> None:
    draws = []
    for _ in range(4):
        found = AuditSet.of(None, _of([label for label in range(60) for _ in range(2)]), 20, classes=60)
        assert found is not None
        assert found.images.labels is not None
        draws.append(set(found.images.labels[: found.num_asked].tolist()))
    assert len(set().union(*draws)) > 30  # not the first ones each time


def test_a_rank_that_has_no_state_counts_the_classes_as_the_first_does() -> None:
    first, other = AuditImages(8), AuditImages(8)
    first.keep(_of([0, 0, 1, 1]))
    first.classes = 40
    other.sync(first.images, first.are_all, first.classes)
    for rank, each in enumerate((first, other)):
        each.begin("a", rank, 40, anew=False)
    offers = [first.offered(), other.offered()]
    assert first.choose(offers, 40) == other.choose(offers, 40)
    assert other.classes == 40
