"""What is said of a batch whose labels have a name that is not known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from cam_callbacks.data.batches import read_batch

IMAGES, AGES = torch.rand(3, 3, 8, 8), torch.tensor([30, 41, 7])


def test_the_names_are_said_and_the_lambda_that_reads_them() -> None:
    batch = {"image": IMAGES, "file": ["a", "b", "c"], "index": torch.arange(3), "age": AGES}
    note = read_batch(batch).missing_labels
    assert note is not None
    assert note.startswith("No labels were found in the batch (keys: image, file, index, age). If 'age' holds them: ")
    reads = eval(note.partition("batch_fn=")[2].removesuffix(")"))
    labels = read_batch(batch, reads).labels
    assert labels is not None
    assert torch.equal(labels, AGES)


@dataclass
class Patients:
    image: Tensor
    age: Tensor


def test_parts_of_a_dataclass_are_read_by_name() -> None:
    note = read_batch(Patients(IMAGES, AGES)).missing_labels
    assert note is not None
    assert note.endswith("CAMMonitor(batch_fn=lambda batch: (batch.image, batch.age))")


@pytest.mark.parametrize("batch", [{"image": IMAGES, "about": {"age": AGES}}, {"image": IMAGES, "depth": IMAGES}])
def test_without_a_candidate_the_form_is_said(batch: dict[str, Any]) -> None:
    note = read_batch(batch).missing_labels
    assert note is not None
    assert note.endswith("a callable that takes the batch and returns (images, labels)")


@pytest.mark.parametrize(
    "batch",
    [
        IMAGES,
        [IMAGES],
        {"image": IMAGES},
        {"image": IMAGES, "label": AGES, "age": AGES},
        {"image": IMAGES, "label": "?", "age": AGES},
        {"image": IMAGES, "mask": torch.randint(3, (3, 8, 8)), "age": AGES},
    ],
)
def test_nothing_is_said_where_nothing_is_missing_or_known(batch: Any) -> None:
    assert read_batch(batch).missing_labels is None
