"""What CAMMonitor does not understand ends no run, and is said once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning_runs import (
    ChangedSquares,
    Squares,
    TinyModule,
    but_what_looks_cost,
    fit,
    infos,
    loader,
    looks,
    own_warnings,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from cam_callbacks import Audit, CAMMonitor, GradCAM, ProbeSet, ReciproCAM, ScoreCAM


class TakesAnyBatch(TinyModule):
    """It is trained as usual, and validated on whatever comes."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", 0.0, batch_size=1)


class Dense(TakesAnyBatch):
    """No layer with positions."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


class NeedsMore(TakesAnyBatch):
    def forward(self, images: Tensor, temperature: float) -> Tensor:
        return self.head(self.features(images).mean(dim=(2, 3))) / temperature

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self(batch[0], 1.0), batch[1])


class ReturnsText(TakesAnyBatch):
    def forward(self, images: Tensor) -> Any:
        return {"answer": self.head(self.features(images).mean(dim=(2, 3)))}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self(batch[0])["answer"], batch[1])


class Fails(TakesAnyBatch):
    """Runs on the batches of the training only."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            raise RuntimeError("shape mismatch")
        return super().forward(images)


def trained(folder: Path, monitor: CAMMonitor | None, module: type[LightningModule], val: Any, **options: Any) -> Any:
    trainer = fit(folder, monitor, module(), val=loader(ChangedSquares(val)), max_epochs=2, **options)
    return trainer.lightning_module.state_dict()


@pytest.mark.parametrize("sanity_steps", [0, 2])
@pytest.mark.parametrize(
    ("module", "item", "says"),
    [
        (TakesAnyBatch, lambda image, label: {"picture": "cat.png", "kind": label}, "shows nothing: .*batch_fn"),
        (TakesAnyBatch, lambda image, label: image[0, 0], "shows nothing: .*batch_fn"),
        (TakesAnyBatch, lambda image, label: (image * torch.nan, label), "shows nothing: no batch had a finite image"),
        (NeedsMore, lambda image, label: (image, label), "shows nothing: .*needs more than the images.*forward_fn"),
        (ReturnsText, lambda image, label: (image, label), "shows nothing: .*keys.*answer.*forward_fn"),
        (Fails, lambda image, label: (image, label), "shows nothing: .*cannot be run.*shape mismatch"),
        (Dense, lambda image, label: (image, label), "shows no heatmaps: no layer of Dense"),
    ],
    ids=["other keys", "vectors", "not finite", "more inputs", "answers in a dictionary", "fails", "dense"],
)
def test_what_is_not_understood_is_said_once_and_ends_no_run(
    tmp_path: Path, module: type[LightningModule], item: Any, says: str, sanity_steps: int
) -> None:
    options = {"num_sanity_val_steps": sanity_steps}
    with own_warnings() as texts:
        weights = trained(tmp_path / "with", CAMMonitor(), module, item, **options)
    without = trained(tmp_path / "without", None, module, item, **options)
    assert all(torch.equal(value, without[name]) for name, value in weights.items())
    said = [text for text in texts if "CAMMonitor shows" in text]
    assert len(said) == 1
    assert re.search(says, said[0], re.DOTALL)
    assert not any("Traceback" in text for text in texts)


def test_without_a_layer_there_is_still_an_audit(tmp_path: Path) -> None:
    monitor = CAMMonitor()
    fit(tmp_path, monitor, Dense(), val=loader(Squares(24)))
    assert monitor.explanation is None
    assert monitor.audit_result is not None
    assert monitor.audit_result["accuracy"].overall.count == 24
    assert monitor.verdict is not None


def first_two(batch: Any) -> Any:
    return batch[0], batch[1]


@pytest.mark.parametrize(("place", "batch_fn"), [(0, None), (1, None), (2, None), (2, first_two)])
def test_an_odd_batch_costs_only_itself(tmp_path: Path, place: int, batch_fn: Any) -> None:
    good = [(Squares(12).images[start : start + 4], Squares(12).labels[start : start + 4]) for start in (0, 4, 8)]
    odd: Any = {"note": "nothing in it"}
    batches = [*good[:place], odd, *good[place:]]
    monitor = CAMMonitor(num_probes=12, batch_fn=batch_fn, audit=None)
    val = DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)
    with own_warnings() as said:
        fit(tmp_path, monitor, TakesAnyBatch(), val=val, max_epochs=2)
    assert monitor.explanation is not None
    assert len(monitor.explanation) == 12
    assert len([text for text in said if "left out batches, 1 of this validation" in text]) == 1


@pytest.mark.parametrize(
    "item",
    [
        lambda image, label: (label, image),
        lambda image, label: ((image * 255).byte(), label),
        lambda image, label: {"sample": {"img": image}, "target": {"label": label}},
        lambda image, label: ([image, image], label),
    ],
    ids=["labels first", "bytes", "nested", "views"],
)
def test_batches_in_other_forms_are_shown_and_audited(tmp_path: Path, item: Any) -> None:
    class ReadsBytes(TakesAnyBatch):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.float() / (255 if images.dtype == torch.uint8 else 1))

    monitor = CAMMonitor(num_probes=6)
    fit(tmp_path, monitor, ReadsBytes(), val=loader(ChangedSquares(item)))
    assert monitor.probes is not None
    assert monitor.probes.labels is not None
    assert monitor.probes.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert monitor.explanation is not None
    assert not monitor.explanation.skipped.any()
    assert monitor.audit_result is not None
    assert monitor.audit_result["accuracy"].overall.count == 12


@pytest.mark.parametrize("on_error", ["warn", "raise"])
@pytest.mark.parametrize("explain", ["label", "both"])
@pytest.mark.parametrize(
    "item",
    [lambda image, label: image, lambda image, label: (image, (image[0] > 0.5).long() + label)],
    ids=["no labels", "labels of pixels"],
)
def test_without_labels_that_fit_the_prediction_is_explained(
    tmp_path: Path, item: Any, explain: Any, on_error: Any
) -> None:
    # An untrained network may speak against its own answer everywhere, and its maps by contrast be blank.
    monitor = CAMMonitor(None, ScoreCAM("probability"), num_probes=4, explain=explain, on_error=on_error)
    with infos() as told, own_warnings() as warned:
        fit(tmp_path, monitor, TakesAnyBatch(), val=loader(ChangedSquares(item)), max_epochs=2)
    assert monitor.explanation is not None
    assert monitor.explanation.targets is not None
    assert torch.equal(monitor.explanation.targets, monitor.explanation.predicted)
    (line,) = but_what_looks_cost(told)
    assert (
        "no labels that are understood (batch_fn gives them), 3 classes; explains the predicted class of each image at"
        in line
    )
    assert line.endswith(". No audit, which needs labels")
    assert monitor.verdict is None
    assert not warned


def test_of_probabilities_the_largest_is_the_class(tmp_path: Path) -> None:
    def soft(image: Tensor, label: Tensor) -> Any:
        return image, torch.full((3,), 0.1).index_fill(0, label.view(1), 0.8)

    monitor = CAMMonitor(num_probes=6)
    fit(tmp_path, monitor, TakesAnyBatch(), val=loader(ChangedSquares(soft)))
    assert monitor.explanation is not None
    assert monitor.explanation.targets is not None
    assert monitor.explanation.targets.tolist() == [0, 0, 1, 1, 2, 2]


class SaysMore(Sampler):
    """Announces five batches, and gives three."""

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]])


@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_a_loader_that_ends_early_gets_its_looks(tmp_path: Path, sanity_steps: int) -> None:
    val = DataLoader(Squares(12), batch_sampler=SaysMore())
    fit(tmp_path, CAMMonitor(audit=None), val=val, max_epochs=2, num_sanity_val_steps=sanity_steps)
    assert looks(tmp_path) == 2


@pytest.mark.parametrize("is_first", [True, False])
def test_no_look_at_weights_that_were_exchanged_before_the_end(tmp_path: Path, is_first: bool) -> None:
    monitor, average = CAMMonitor(audit=None), EMAWeightAveraging()
    callbacks = [monitor, average] if is_first else [average, monitor]
    with own_warnings() as texts:
        fit(tmp_path, callbacks, val=DataLoader(Squares(12), batch_sampler=SaysMore()))
    assert looks(tmp_path) == int(is_first)
    assert any("has changed the weights: no look" in text for text in texts) is not is_first


class StepsOnly(LightningModule):
    """No forward of its own: the steps call its network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TinyModule()
        self.loss = nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class TwoNetworks(StepsOnly):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = TinyModule()


def test_without_a_forward_the_only_network_is_explained(tmp_path: Path) -> None:
    monitor, module = CAMMonitor(audit=Audit(num_images=12)), StepsOnly()
    with infos() as texts:
        fit(tmp_path, monitor, module)
    assert monitor.explanation is not None
    assert monitor.probes is not None
    expected = ReciproCAM("evidence")(module.net, monitor.probes.images, "features", monitor.probes.labels)
    assert monitor.explanation.target_layer == "net.features"
    assert torch.allclose(monitor.explanation.heatmaps, expected.heatmaps, atol=1e-5)
    assert monitor.audit_result is not None
    assert [text for text in texts if "its only part with weights, 'net', is explained" in text]


def test_of_two_networks_none_is_guessed(tmp_path: Path) -> None:
    monitor = CAMMonitor()
    with own_warnings() as texts:
        fit(tmp_path, monitor, TwoNetworks())
    assert monitor.explanation is None
    assert len([text for text in texts if "TwoNetworks has no forward method" in text]) == 1


class NeedsAge(TinyModule):
    """Takes a number with each image, which decides the answer."""

    def forward(self, images: Tensor, ages: Tensor) -> Tensor:
        return super().forward(images) * ages.view(-1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self(batch[0], batch[1].float()), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", 0.0, batch_size=1)


@pytest.mark.parametrize("explain", ["label", "both"])
def test_a_forward_fn_is_told_which_probes_it_gets(tmp_path: Path, explain: Any) -> None:
    """Also where chunks are smaller than the probes, and where only the mistakes are explained again."""
    squares = Squares(6, seed=1)
    ages = torch.tensor([-1.0, 0.5, 2.0, -3.0, 1.5, 4.0])

    def of_probe(module: Any, images: Tensor, rows: Tensor) -> Tensor:
        return module(images, ages.to(images)[rows])

    probes = ProbeSet(squares.images, squares.labels)
    module = NeedsAge()
    monitor = CAMMonitor(probes=probes, method=GradCAM(batch_size=4), forward_fn=of_probe, explain=explain, audit=None)
    fit(tmp_path, monitor, module)
    explanation = monitor.explanation
    assert explanation is not None
    assert explanation.logits is not None
    with torch.no_grad():
        expected = module.eval()(squares.images, ages)
    assert torch.allclose(explanation.logits, expected, atol=1e-5)


@pytest.mark.filterwarnings("error:CAMMonitor:UserWarning")
def test_a_run_whose_warnings_are_errors_is_not_ended_by_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = fit(tmp_path, CAMMonitor(audit=None), Dense(), max_epochs=2)
    assert trainer.current_epoch == 2
    assert len([text for text in caplog.messages if "CAMMonitor shows no heatmaps" in text]) == 1


class Frames(TakesAnyBatch):
    """Takes each frame of a video by itself, (N, T, C, H, W)."""

    def forward(self, frames: Tensor) -> Tensor:
        return super().forward(frames.flatten(0, 1)).view(*frames.shape[:2], -1).mean(dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self(batch[0].unsqueeze(1)), batch[1])


def test_no_ring_is_cut_out_of_what_may_be_no_positions(tmp_path: Path) -> None:
    monitor = CAMMonitor()
    data = loader(ChangedSquares(lambda image, label: (image.expand(8, *image.shape), label)))
    fit(tmp_path, monitor, Frames(), val=data)
    assert monitor.explanation is None
    assert monitor.verdict is None


def test_it_is_said_if_all_maps_are_empty(tmp_path: Path) -> None:
    def of_nothing(module: Any, images: Tensor) -> Tensor:
        return module(images) * 0 + images.mean(dim=(2, 3))

    with own_warnings() as said:
        fit(tmp_path, CAMMonitor(method=GradCAM(), num_probes=4, audit=None, forward_fn=of_nothing), max_epochs=2)
    assert len([text for text in said if "all 4 heatmaps are empty" in text]) == 1


class HasUnused(TakesAnyBatch):
    """A part of it has no weights yet, and is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.LazyLinear(3)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([*self.features.parameters(), *self.head.parameters()], 0.01)


def test_weights_that_are_not_made_yet_are_left_alone(tmp_path: Path) -> None:
    fit(tmp_path, CAMMonitor(audit=None), HasUnused())
    assert looks(tmp_path) == 1
