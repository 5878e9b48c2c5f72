"""What a function of the user that is called at an alarm may cost: nothing that was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from biased_runs import AUDITED, ReadsOneThing, run, samples
from lightning_runs import fit, image_steps, own_warnings, scalars
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cam_callbacks import Audit, CAMMonitor


def broken(*_: Any) -> Any:
    raise OSError("the pager is down")


def test_an_error_in_on_alarm_costs_nothing_that_was_found(tmp_path: Path) -> None:
    data, audit = samples(True), Audit(num_images=AUDITED, on_alarm=broken)
    with own_warnings() as said:
        fit(tmp_path, CAMMonitor("features", num_probes=4, audit=audit), ReadsOneThing(True), data, data, max_epochs=5)
    assert len(image_steps(tmp_path)["cam/swaps"]) == 5
    assert len(scalars(tmp_path)["cam/bg_gap"]) == 5
    verdicts = EventAccumulator(str(tmp_path / "run")).Reload().Tensors("cam/verdict/text_summary")
    assert len(verdicts) == 5
    failures = [text for text in said if text.startswith("CAMMonitor: on_alarm failed at the evaluation of epoch")]
    assert len(failures) == 3
    assert "disabled for this run. Everything else is logged" in failures[-1]
    assert "the pager is down" in failures[0]
    assert not [text for text in said if "failed to audit" in text]


def test_an_error_in_on_alarm_is_raised_if_asked_for_when_all_is_logged(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the pager is down"):
        run(tmp_path, True, samples(True), epochs=3, on_alarm=broken)
    assert len(image_steps(tmp_path)["cam/swaps"]) == 2
