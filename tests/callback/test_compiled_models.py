"""Models that are compiled: as a whole, in parts, before or by the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_runs import (
    CHANNELS,
    TinyModule,
    fit,
    hooks_left,
    own_warnings,
    scalars,
)
from torch._dynamo.utils import counters

from cam_callbacks import Audit, CAMMonitor, Explanation, ScoreCAM


class LogsOutsideTheGraph(TinyModule):
    """Lightning 2.6 has `log` compiled with the step that calls it, again for each value; later versions have not."""

    log = torch.compiler.disable(TinyModule.log)


class TestCompiledModels:
    @pytest.fixture(autouse=True)
    def _fresh_compiler(self) -> Any:
        torch.compiler.reset()
        yield
        torch.compiler.reset()

    @staticmethod
    def compiled(part: str, backend: str) -> tuple[TinyModule, Any]:
        """A module, and what of it is given to the trainer."""
        module = LogsOutsideTheGraph()
        if part == "whole module":
            return module, torch.compile(module, backend=backend)
        if part == "inner network":
            module.features = torch.compile(module.features, backend=backend)
        elif part == "module in place":
            module.compile(backend=backend)
        else:
            module.features.compile(backend=backend)
        return module, module

    @pytest.mark.parametrize(
        ("part", "backend"),
        [
            ("whole module", "eager"),
            ("inner network", "eager"),
            ("inner network", "aot_eager"),
            ("module in place", "eager"),
            ("inner network in place", "eager"),
        ],
    )
    def test_a_look_fires_hooks_and_compiles_nothing(self, tmp_path: Path, part: str, backend: str) -> None:
        during = []

        class Watches(ScoreCAM):
            def __call__(self, *args: Any, **options: Any) -> Explanation:
                before = compilations()
                # A compiled frame that would have to be compiled again raises here.
                with torch._dynamo.config.patch(error_on_recompile=True):
                    explanation: Explanation = super().__call__(*args, **options)
                during.append((before, compilations()))
                return explanation

        module, given = self.compiled(part, backend)
        audit = Audit(num_images=6) if part == "whole module" else None
        monitor = CAMMonitor(method=Watches(), num_probes=5, on_error="raise", audit=audit)
        with own_warnings() as said:
            fit(tmp_path, monitor, given, max_epochs=2)
        assert said == []
        assert len(during) == 2
        for before, after in during:
            assert before == after
            assert before["frames"] > 0  # else nothing was compiled before the look
        assert hooks_left(module) == 0
        assert monitor.explanation is not None
        assert monitor.probes is not None
        assert monitor.explanation.target_layer == "features"
        assert monitor.explanation.passes.max() > CHANNELS / 2
        weights = {key.replace("_orig_mod.", ""): value for key, value in module.validated[-1].items()}
        plain = TinyModule()
        plain.load_state_dict(weights)
        direct = ScoreCAM()(plain, monitor.probes.images, "features", monitor.probes.labels)
        torch.testing.assert_close(monitor.explanation.heatmaps, direct.heatmaps, atol=1e-4, rtol=1e-4)
        assert [step for step, _ in scalars(tmp_path)["cam/passes"]] == [2, 5]


def compilations() -> dict[str, int]:
    """How many graphs and frames have been compiled so far."""
    return {"graphs": counters["stats"]["unique_graphs"], "frames": counters["frames"]["ok"]}
