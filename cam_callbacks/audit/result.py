"""AuditResult: the numbers of one look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cam_callbacks.audit.interventions import Donors
from cam_callbacks.audit.statistics import Measure
from cam_callbacks.data.class_names import ClassNames
from cam_callbacks.data.datasets import ALL
from cam_callbacks.data.probes import MaskSource


@dataclass(frozen=True, eq=False)
class AuditResult:
    """The numbers of one look.

    Attributes:
        measures: By name; `docs/audit.md` defines each. Those that could not be computed are not there.
        mask_source: Where the foregrounds come from: `"given"` with the images, `"estimated"` by GrabCut, or `"none"`.
        labels: (N,) int64, the classes of the images.
        class_names: Their names; empty if they are not known. Any list of names is accepted, or None.
        swaps: (N, 3) probability of the true class: of the image, on a same-class and on an other-class background
            (without masks: ring); NaN where there is no donor.
        donors: Of each image the indices of those that gave these backgrounds.
        heat_method: The name of the method that made the heat, or None where none applies.
        heat_chance_distribution: By class, (200,) means of `heat_on_object` that arise by chance.
        notes: What was left out, and why.
        passes: Forward samples spent, without the heatmaps.
    """

    measures: Mapping[str, Measure]
    mask_source: MaskSource
    labels: Tensor
    class_names: ClassNames
    swaps: Tensor
    donors: Donors
    heat_method: str | None = None
    heat_chance_distribution: Mapping[int, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    passes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", ClassNames(self.class_names))

    def class_name(self, index: int) -> str:
        """The name of a class, its number if it has none; of `ALL`, in words, that it is all of them."""
        return "all classes together" if index == ALL else self.class_names.name(index)

    @property
    def gap_name(self) -> str:
        """The name of the gap that the verdict stands on."""
        return "ring_gap" if self.mask_source == "none" else "bg_gap"

    def rows(self) -> dict[str, list[Any]]:
        """Columns of a table with one row for each measure and class, e.g. for `pandas.DataFrame`."""
        rows = []
        for name, each in self.measures.items():
            classes = [(self.class_name(index), estimate) for index, estimate in each.per_class.items()]
            for label, estimate in [("all", each.overall), *classes]:
                rows.append({"measure": name, "class": label, **vars(estimate)})
        return {column: [row[column] for row in rows] for column in rows[0]} if rows else {}
