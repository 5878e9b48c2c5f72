"""Of many classes some are followed: those that look worst, judged by images that did not make them suspect."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from made_up import result

from cam_callbacks import judge
from cam_callbacks.audit.evidence import Evidence
from cam_callbacks.audit.result import AuditResult, Confusion
from cam_callbacks.audit.verdict import Verdict

CLASSES, IMAGES, STAY = 100, 128, 32


class Network:
    """Answers that are made up: of some classes a share of the images depends on the background, of the others none.

    Noise of the exchange undoes one answer in ten before either background.
    """

    def __init__(self, biased: dict[int, float], seed: int) -> None:
        self.biased, self.draw = biased, torch.Generator().manual_seed(seed)
        self.verdict: Verdict | None = None
        self.fixed = torch.randperm(CLASSES, generator=self.draw)[:STAY]
        self.number = 0

    def look(self) -> Verdict:
        """One look: images that stay, some of the classes that are followed, and one of each of some others."""
        followed = list(self.verdict.followed) if self.verdict is not None else []
        fresh = IMAGES - STAY
        quota = int(0.85 * fresh) // max(len(followed), 1)
        labels = torch.tensor(followed, dtype=torch.long).repeat_interleave(quota)
        others = torch.randperm(CLASSES, generator=self.draw)[: fresh - len(labels)]
        labels = torch.cat([self.fixed, labels, others])
        depends = torch.tensor([self.biased.get(label, 0.0) for label in labels.tolist()])
        chances = torch.rand(2, len(labels), generator=self.draw)
        same = (chances[0] > 0.1).float()
        other = (chances[1] > 0.1).float() * (torch.rand(len(labels), generator=self.draw) > depends)
        found = replace(result(same - other, labels), rivals={0: [1, 2]} if self.number else {0: [9], 40: [3]})
        ids = 1000 * self.number + torch.arange(len(labels))
        ids[:STAY] = -1 - torch.arange(STAY)
        self.number += 1
        drawn_for = torch.isin(labels, torch.tensor(followed, dtype=torch.long)) & (torch.arange(len(labels)) >= STAY)
        self.verdict = judge(replace(found, drawn_for=drawn_for, image_ids=ids), self.verdict)
        return self.verdict


def test_the_classes_that_depend_on_their_background_are_named_soon():
    named = []
    for seed in range(3):
        network = Network(dict.fromkeys(range(0, 100, 20), 0.9), seed)
        named.append(set().union(*(network.look().classes for _ in range(5))))
    assert sum(len(each & set(range(0, 100, 20))) >= 4 for each in named) >= 2
    assert not any(each - set(range(0, 100, 20)) for each in named)


def test_of_clean_networks_few_have_a_class_that_is_named():
    wrong = sum(bool(set().union(*(network.look().classes for _ in range(5)))) for network in map(clean, range(30)))
    assert wrong <= 2


def clean(seed: int) -> Network:
    return Network({}, 1000 + seed)


def test_what_made_a_class_suspect_does_not_count_for_it():
    network = Network({3: 1.0}, 0)
    first = network.look()
    assert 3 in first.followed
    assert first.evidence.count("bg_gap", 3) == 0
    second = network.look()
    evidence = second.evidence
    drawn_since = {
        image
        for image, label, look in zip(
            evidence.images.tolist(), evidence.labels.tolist(), evidence.looks.tolist(), strict=True
        )
        if label == 3 and look == 2 and image >= 0
    }
    assert evidence.count("bg_gap", 3) == len(drawn_since)
    assert set(evidence.followed[3]) == set(first.evidence.images[first.evidence.labels == 3].tolist())


def test_all_together_are_judged_by_images_that_were_drawn_for_none():
    network = Network(dict.fromkeys(range(0, 100, 20), 1.0), 1)
    for _ in range(3):
        evidence = network.look().evidence
    others = ~evidence.drawn_for
    assert evidence.count("bg_gap") == len(set(evidence.images[others].tolist()))
    assert evidence.pooled("bg_gap").observed == pytest.approx(0.05, abs=0.06)


def test_nothing_is_followed_where_nothing_looks_bad():
    labels = torch.arange(128) % 64
    found = replace(result(torch.zeros(128), labels), drawn_for=torch.zeros(128, dtype=torch.bool))
    verdict = judge(found)
    assert verdict.followed == ()
    assert "as soon as single ones look bad, they are followed" in verdict.text


def test_a_checkpoint_holds_which_classes_are_followed():
    network = Network(dict.fromkeys(range(0, 100, 20), 1.0), 2)
    for _ in range(2):
        verdict = network.look()
    again = Verdict.from_state_dict(verdict.state_dict())
    assert again.followed == verdict.followed
    assert again.evidence.followed == verdict.evidence.followed
    assert torch.equal(again.evidence.drawn_for, verdict.evidence.drawn_for)
    assert again.evidence.rivals == verdict.evidence.rivals == {0: [1, 2], 40: [3]}
    old = verdict.evidence.state_dict()
    del old["drawn_for"], old["followed"], old["rivals"], old["task"]
    assert not Evidence.from_state_dict(old).drawn_for.any()


def test_evidence_of_another_kind_is_forgotten():
    labels = torch.arange(2).repeat_interleave(40)
    before = judge(result(torch.ones(80), labels))
    for other in ({"drawn_for": torch.zeros(80, dtype=torch.bool)}, {"task": "embedding"}):
        after = judge(replace(result(torch.ones(80), labels), **other), before)
        assert after.evidence.count("bg_gap") == 80
    assert judge(result(torch.ones(80), labels), before).evidence.count("bg_gap") == 160


def test_the_verdict_names_them_with_intervals_of_the_images_since():
    network = Network(dict.fromkeys(range(0, 100, 20), 1.0), 3)
    for _ in range(3):
        text = network.look().text
    (line,) = [line for line in text.split("\n") if line.startswith("- 20: ")]
    assert "images" in line
    assert "judged only by images that were drawn since" in text
    assert "have fewer than 10 such images" in network.look().text
    assert "Few images" not in text


def test_what_a_class_is_answered_as_is_said_if_it_is_clear():
    differences = torch.cat([torch.ones(40), torch.zeros(40)])
    labels = torch.arange(2).repeat_interleave(40)
    found: AuditResult = replace(result(differences, labels), confusions={0: Confusion(1, 1, 38, 40)})
    text = judge(found).text
    assert "38 of 40 changed answers become dog on a background of dog" in text
    unclear = replace(found, confusions={0: Confusion(1, 1, 20, 40)})
    assert "become dog" not in judge(unclear).text


def test_how_suspect_a_class_is_counts_how_much_was_seen_of_it():
    labels = torch.tensor([0, 1, 1, 1, 1, 2])
    evidence = Evidence.of(result(torch.tensor([1.0, 1, 1, 1, 1, 0]), labels))
    scores = evidence.scores("bg_gap")
    assert scores[1] > scores[0] > scores[2] == 0
    assert evidence.seen() == Counter({0: 1, 1: 4, 2: 1})
