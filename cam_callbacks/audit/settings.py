"""Settings of the audit in a training, as one value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

from cam_callbacks._checks import (
    check_bool,
    check_callable,
    check_choice,
    check_fraction,
    check_list,
    check_positive,
    errors_of,
)
from cam_callbacks.audit.mask_fn import MaskFn
from cam_callbacks.audit.question import AuditTask
from cam_callbacks.audit.questions import TASKS
from cam_callbacks.audit.registry import Intervention, chosen
from cam_callbacks.audit.verdict import Verdict

OnAlarm = Literal["warn", "stop"] | Callable[[Verdict], Any]


@dataclass(frozen=True)
class Audit:
    """How `CAMMonitor` audits the model.

    At each look the audit measures, on labeled validation images, how far the answers depend on the background, and
    gives a verdict. It logs scalars such as `cam/bg_gap`, the pictures `cam/swaps` and `cam/heat_over_chance`, and the
    text `cam/verdict`. If `CAMMonitor(explain=...)` is a callable, nothing is audited.

    Args:
        num_images: How many images the audit uses, drawn from the whole validation and balanced over the classes; allow
            at least 30 per class. Half of them, or of many classes a quarter, are the same at all looks.
        threshold: The value that a gap has to exceed, with confidence, to be suspect, at least 0 and below 1, as in
            `cam_callbacks.judge`.
        on_alarm: What to do in case of an alarm. `"warn"`: warn when the verdict changes. `"stop"`: stop the training
            after this validation. A callable: call it with the `Verdict`, on every rank, at each look in alarm.
        foreground_values: The values in the batches' masks that mean object, e.g. of a trimap. None expects masks of
            two values, and takes the larger one for the object.
        randomization: At the end of `fit`, compare the heatmaps with those of a copy of the model with random weights
            (Adebayo et al. 2018), and report their rank correlation: near 0 means that the maps depend on what was
            learned.
        masks: Called as `masks(images)`, once for a set of images, where no masks come with the batches, in place of
            GrabCut. It is given images (N, C, H, W) as the model is fed them, on the CPU, and returns (N, H, W): bool,
            True on the object, or numbers in [0, 1], above 0.5 on the object. Never let it use the audited model: its
            heat would be judged by itself.
        interventions: What is exchanged besides the background, each for two to four passes an image: `"position"` and
            `"size"` of the object, and the way it faces (`"mirror"`), which need masks; the `"detail"` of the
            background (sharpness, blur, noise); the `"compression"` of the image, as of JPEG files; or an
            `Intervention` of your own. All of them together are judged at half of the level, the background at the
            other half.
        task: What the model is trained to answer, if that is not recognized: `"embedding"`, whose features are
            compared, or `"detection"`, whose batches have an object's box as a mask, or as `boxes` (N, 4). Neither has
            heatmaps. None for the task that is recognized.

    Raises:
        ValueError: `num_images` or `threshold` is out of range, or `on_alarm`, `task` or an intervention is unknown, or
            two of these have the same name.
        TypeError: `on_alarm` does not take a verdict, `foreground_values` is not a list of whole numbers,
            `randomization` is not a bool, `masks` does not take images, or `interventions` is not a list of them.

    Example::

        from cam_callbacks import Audit, CAMMonitor

        CAMMonitor(audit=Audit(num_images=240, on_alarm="stop"))
    """

    num_images: int = 128
    threshold: float = 0.05
    on_alarm: OnAlarm = "warn"
    foreground_values: Sequence[int] | None = None
    randomization: bool = False
    masks: MaskFn | None = None
    interventions: Sequence[str | Intervention] = ()
    task: AuditTask | None = None

    def __post_init__(self) -> None:
        values: Any = self.foreground_values
        if hasattr(values, "tolist"):  # of an array or a tensor
            values = values.tolist()
        with errors_of("Audit(...)"):
            self._check(values)
        if values is not None:
            object.__setattr__(self, "foreground_values", tuple(int(value) for value in values))
        object.__setattr__(self, "interventions", tuple(self.interventions))

    def _check(self, values: Any) -> None:
        check_positive("num_images", self.num_images)
        check_fraction("threshold", self.threshold, "a number of at least 0 and below 1")
        if not callable(self.on_alarm):
            check_choice("on_alarm", self.on_alarm, ("warn", "stop"), "or a callable")
        else:
            check_callable("on_alarm", self.on_alarm, "'warn', 'stop', or a callable: verdict -> anything", takes=1)
        check_list("foreground_values", values, Integral, "a list of whole numbers")
        if values is not None and (not values or any(isinstance(value, bool) for value in values)):
            raise TypeError(f"foreground_values={values!r} must be a list of whole numbers, at least one, or None")
        check_bool("randomization", self.randomization)
        if isinstance(self.masks, type):
            raise TypeError(f"masks={self.masks.__name__} is a class; give {self.masks.__name__}(...), with brackets")
        check_callable("masks", self.masks, "a callable: images (N, C, H, W) -> masks (N, H, W)", takes=1)
        chosen(self.interventions)
        if self.task is not None:
            check_choice("task", self.task, TASKS[1:], "or None")
