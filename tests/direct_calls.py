"""What CAMMonitor showed in a run, compared with direct calls of its method on the weights that were validated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_runs import TinyModule, image_steps, scalars
from torch import Tensor, nn

from cam_callbacks import Explanation, Method, ScoreCAM


@dataclass(frozen=True)
class Call:
    """One call of a method: what it was given, and its answer."""

    images: Tensor
    target_layer: Any
    targets: Any
    explanation: Explanation


def recording(kind: type[Method] = ScoreCAM, **settings: Any) -> Any:
    """A method of this kind that keeps its calls in `calls`."""

    @dataclass(frozen=True)
    class Recording(kind):  # type: ignore[valid-type, misc]
        calls: list[Call] = field(default_factory=list, compare=False)

        def __call__(self, model: Any, images: Tensor, target_layer: Any, targets: Any, **options: Any) -> Explanation:
            explanation: Explanation = super().__call__(model, images, target_layer, targets, **options)
            self.calls.append(Call(images, target_layer, targets, explanation))
            return explanation

    return Recording(**settings)


def assert_explained(
    calls: Sequence[Call],
    weights: Sequence[Mapping[str, Tensor]],
    build: Callable[[], nn.Module] = TinyModule,
    method: Method = ScoreCAM(),  # noqa: B008 - a frozen value
) -> None:
    """Each call gave what a direct one gives for a fresh model with the weights of that validation."""
    assert len(calls) == len(weights) > 0
    for call, state in zip(calls, weights, strict=True):
        model = build()
        model.load_state_dict(state)
        direct = method(model, call.images, call.target_layer, call.targets)
        shown = call.explanation
        torch.testing.assert_close(shown.heatmaps, direct.heatmaps, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(shown.logits, direct.logits, atol=1e-5, rtol=1e-5)
        assert torch.equal(shown.passes, direct.passes)
        assert not shown.blank.all()


def assert_logged(folder: Path, steps: list[int], calls: Sequence[Call], name: str = "cam") -> None:
    """At these steps, and at no other, stand the heatmaps and the passes that the calls took."""
    passes = [float(call.explanation.passes.sum()) for call in calls]
    assert scalars(folder)[f"{name}/passes"] == list(zip(steps, passes, strict=True))
    assert image_steps(folder)[f"{name}/heatmaps"] == steps
