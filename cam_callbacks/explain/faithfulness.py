"""Faithfulness: whether heatmaps, anybody's, show what the model uses, against controls that cannot know it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cam_callbacks._checks import check_positive
from cam_callbacks.explain.explanation import Explanation, has_contrast, upsample
from cam_callbacks.explain.forwarding import ForwardFn
from cam_callbacks.explain.image_types import in_type
from cam_callbacks.explain.isolation import isolated
from cam_callbacks.explain.model_outputs import Outputs
from cam_callbacks.explain.network import Network, TargetLayer
from cam_callbacks.explain.perturbations import PERTURBATIONS, Ranking, Scene, kept_half
from cam_callbacks.explain.resampling import mean_and_interval
from cam_callbacks.explain.runner import Options, check_images
from cam_callbacks.explain.trust import average_drop, average_gain, increase_in_confidence

Maps: TypeAlias = Tensor | NDArray[Any]
"""Heatmaps (N, *spatial)."""

RANDOM = "random map"
MEAN_ACTIVATION = "mean activation"

_COARSE = 7  # positions along an axis of the random maps
_HALF = {
    "average_drop": average_drop,
    "average_gain": average_gain,
    "increase_in_confidence": increase_in_confidence,
}

MEASURES = (*PERTURBATIONS, *_HALF)
"""The names of all measures, as in `measure_faithfulness`."""


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How faithful the heatmaps of N images are, for each of several ways to make them, controls among them.

    Attributes:
        values: For the name of each way, and each measure, (N,) float32. NaN where the map is blank or was skipped, and
            where the measure has no answer.
        blank: For the name of each way, (N,) bool, whether the map has no contrast.
    """

    values: dict[str, dict[str, Tensor]]
    blank: dict[str, Tensor]

    def mean(self, name: str, measure: str) -> tuple[float, float, float]:
        """Return mean, and lower and upper end of its 95 % interval, over the images for which it is known.

        The interval is that of the percentile bootstrap over images; NaN for fewer than two images.
        """
        return mean_and_interval(self.values[name][measure])

    def difference(self, name: str, other: str, measure: str) -> tuple[float, float, float]:
        """Return the mean difference of two ways on the same images, and its 95 % interval, as in `mean`."""
        return mean_and_interval(self.values[name][measure] - self.values[other][measure])

    def rows(self) -> list[dict[str, Any]]:
        """Return a dict for each way and measure: `heatmaps`, `measure`, `mean`, `low`, `high`, `images`, `blank`."""
        found = []
        for name, measures in self.values.items():
            for measure, values in measures.items():
                mean, low, high = self.mean(name, measure)
                known, blank = int(values.isfinite().sum()), int(self.blank[name].sum())
                found.append(
                    {
                        "heatmaps": name,
                        "measure": measure,
                        "mean": mean,
                        "low": low,
                        "high": high,
                        "images": known,
                        "blank": blank,
                    }
                )
        return found


def measure_faithfulness(
    model: nn.Module,
    images: Tensor,
    heatmaps: Maps | Explanation | Mapping[str, Maps | Explanation],
    targets: Sequence[int] | Tensor | None = None,
    *,
    measures: Sequence[str] | None = None,
    target_layer: TargetLayer = None,
    forward_fn: ForwardFn | None = None,
    multi_label: bool = False,
    outputs: Outputs = "auto",
    batch_size: int | None = None,
    steps: int = 14,
    seed: int = 0,
) -> Faithfulness:
    """Measure how faithful heatmaps of classes are; beside them those of a random map and of the mean activation.

    With p the probability of the class:

    - `"transplant"`: by how much p rises in another image of another class if the hottest fifth of this one is put
      there, in its place: real pixels against real ones. Higher is better. Its controls, both near 0 where the map
      says what speaks for the class: `"transplant_cold"`, the coldest fifth, and `"transplant_other"`, the hottest
      places filled from an image of a third class. They need images of two, and of three, classes;
    - `"insertion"`, `"deletion"`: the area under p while pixels come back to a blurred image, or are set to the
      image's mean color, hottest first (Petsiuk et al. 2018, arXiv 1806.07421). Higher, and lower, is better;
    - `"road"`: (p without the coldest pixels - p without the hottest) / 2, where what is missing is imputed, averaged
      over shares of .2, .4, .6 and .8 (Rong et al. 2022, arXiv 2202.00449, combined as in pytorch-grad-cam). Higher is
      better. Only for images with two spatial dimensions;
    - `"pixel_flipping"`: how far p falls on average while pixels are set to noise, hottest first (the area over the
      perturbation curve of Samek et al. 2017, arXiv 1509.06321, pixel by pixel). Higher is better;
    - `"average_drop"`, `"increase_in_confidence"` (Chattopadhay et al. 2018, arXiv 1710.11063) and `"average_gain"`
      (Zhang et al. 2023, arXiv 2301.07002): max(0, p - p') / p, whether p' > p, and max(0, p' - p) / (1 - p), where p'
      is for the hottest half of the pixels, the others being 0. Lower, higher and higher is better.

    All of them only need the order of the pixels. Maps that do not beat the mean of the layer's channels, which is the
    same for every class, show nothing here. Fine maps transplant a part of everything: read `"transplant"` minus
    `"transplant_cold"`. Where all of an image says the class, as a background of one color, no order is better.

    Args:
        model: Any classifier; it is left as it was.
        images: (N, C, *spatial), as the model is fed.
        heatmaps: (N, *spatial) of any resolution, an `Explanation` of one target for each image, or several of these by
            name.
        targets: (N,), the class that the maps explain; None for that of the explanations, else the predicted class.
        measures: Names from above; None for all that images of this shape allow.
        target_layer: Whose mean activation is the control, as in `Method.__call__`.
        forward_fn: As in `Method.__call__`.
        multi_label: As in `Method`.
        outputs: As in `Method`.
        batch_size: As in `Method`.
        steps: In how many steps all pixels are replaced.
        seed: Draws the random maps, the noise, and into which images others are transplanted.

    Raises:
        ValueError: Heatmaps that do not fit the images, an unknown measure, or a name that a control has.

    Example::

        from torchvision.models import resnet18
        from cam_callbacks import GradCAM
        from cam_callbacks.explain.faithfulness import measure_faithfulness

        model, images = resnet18(), torch.rand(4, 3, 64, 64)
        found = measure_faithfulness(model, images, GradCAM()(model, images), measures=["insertion", "deletion"])
        found.rows()  # a list of dicts, for pandas
    """
    check_positive("steps", steps)
    check_images(images)
    wanted = _checked_measures(measures, images.ndim - 2)
    given = heatmaps if isinstance(heatmaps, Mapping) else {"heatmaps": heatmaps}
    targets = _targets_of(given, targets)
    coarse = {name: _checked_maps(name, each, images) for name, each in given.items()}
    taken = {RANDOM, MEAN_ACTIVATION} & set(coarse)
    if taken:
        raise ValueError(f"heatmaps: {min(taken)!r} is the name of a control, which is measured anyway")
    generator = torch.Generator().manual_seed(seed)
    with isolated(model):
        network = Network(model, images, forward_fn, Options(batch_size, multi_label, outputs=outputs))
        seen = network.forward_pass(target_layer, targets)
        classes = seen.reader.classes
        if classes is None or classes.shape[1] != 1:
            raise ValueError(f"targets={targets!r} must be one class for each of the {len(images)} images")
        coarse[MEAN_ACTIVATION] = seen.covering(seen.activations[0].mean(dim=1), 0).cpu()
        coarse[RANDOM] = torch.rand(len(images), *[_COARSE] * (images.ndim - 2), generator=generator)
        maps = {name: upsample(each, images.shape[2:]) for name, each in coarse.items()}
        found: dict[str, list[dict[str, Tensor]]] = {name: [] for name in maps}
        # Images of whole numbers are mixed as real ones, and rounded on their way into the model.
        shown = network.images if network.images.is_floating_point() else network.images.float()
        recipients, others = _partners(shown, classes[:, 0], generator)

        def measure(rows: slice) -> None:
            index = network.rows[rows]

            def probability(variants: Tensor) -> Tensor:
                return seen.reader.read(network.answer(in_type(variants.clone(), network.dtype), index), index)[:, 0]

            noise = _noise(range(rows.start, rows.stop), shown.shape[1:], seed).to(shown)
            scene = Scene(shown[rows], recipients[rows], others[rows], probability, steps, noise)
            measured = {name: _measured(scene, each[rows], wanted) for name, each in maps.items()}
            for name, values in measured.items():
                found[name].append(values)

        network.in_chunks(len(images), measure)
    skipped = {name: ~each.isfinite().flatten(1).all(dim=1) for name, each in coarse.items()}
    blank = {name: ~has_contrast(each.unsqueeze(1)).squeeze(1) & ~skipped[name] for name, each in coarse.items()}
    unknown = {name: blank[name] | skipped[name] for name in coarse}
    joined = {name: {key: torch.cat([part[key] for part in parts]) for key in wanted} for name, parts in found.items()}
    values = {
        name: {key: torch.where(unknown[name], torch.nan, each) for key, each in measured.items()}
        for name, measured in joined.items()
    }
    return Faithfulness(values, blank)


def _measured(scene: Scene, heatmaps: Tensor, measures: Sequence[str]) -> dict[str, Tensor]:
    """Return the values (n,) of each measure of heatmaps (n, *spatial)."""
    ranking = Ranking(scene, heatmaps.nan_to_num().to(scene.images.device))
    found = {name: PERTURBATIONS[name](ranking) for name in measures if name in PERTURBATIONS}
    if not _HALF.keys().isdisjoint(measures):
        kept = kept_half(ranking)
        found |= {name: rule(scene.whole, kept) for name, rule in _HALF.items() if name in measures}
    return {name: each.float().cpu() for name, each in found.items()}


def _partners(images: Tensor, classes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw for each image one of another class, and one of a third class; NaN (N, C, *spatial) where there is none."""
    recipients, others = (torch.full_like(images, torch.nan) for _ in range(2))
    known = classes.tolist()
    for index, own in enumerate(known):
        order = torch.randperm(len(known), generator=generator).tolist()
        recipient = next((each for each in order if known[each] != own), None)
        if recipient is None:
            continue
        recipients[index] = images[recipient]
        other = next((each for each in order if known[each] not in (own, known[recipient])), None)
        if other is not None:
            others[index] = images[other]
    return recipients, others


def _checked_measures(measures: Sequence[str] | None, dimensions: int) -> list[str]:
    possible = [name for name in MEASURES if name != "road" or dimensions == 2]
    if measures is None:
        return possible
    measures = [measures] if isinstance(measures, str) else measures
    for name in measures:
        if name not in possible:
            raise ValueError(f"measures: {name!r} is none of {', '.join(map(repr, possible))}")
    return list(measures)


def _targets_of(heatmaps: Mapping[str, Any], targets: Any) -> Any:
    """Return the classes that the maps explain: those that are given, else those of the explanations."""
    of_maps = [(name, each.targets) for name, each in heatmaps.items() if isinstance(each, Explanation)]
    if targets is not None or not of_maps:
        return targets
    first, classes = of_maps[0]
    for name, own in of_maps:
        if own is None:
            raise ValueError(f"heatmaps: {name!r} explains a callable, not classes; give targets, the classes")
        if classes is None or not torch.equal(own.cpu(), classes.cpu()):
            raise ValueError(f"heatmaps: {first!r} and {name!r} explain different classes; give targets")
    return classes


def _checked_maps(name: str, heatmaps: Any, images: Tensor) -> Tensor:
    """Return maps (N, *spatial) float32 at the resolution that they have."""
    maps = heatmaps.heatmaps if isinstance(heatmaps, Explanation) else heatmaps
    if not isinstance(maps, Tensor):
        maps = torch.as_tensor(np.ascontiguousarray(maps))
    if maps.ndim != images.ndim - 1 or len(maps) != len(images) or 0 in maps.shape or maps.is_complex():
        raise ValueError(
            f"heatmaps: {name!r} has shape {tuple(maps.shape)}, {maps.dtype}; images of shape {tuple(images.shape)} "
            f"need one real map each, ({len(images)}, {', '.join(map(str, images.shape[2:]))}) or of another resolution"
        )
    return maps.detach().float().cpu()


def _noise(rows: range, shape: Sequence[int], seed: int) -> Tensor:
    """Return (n, 2, *shape): for each of n images, numbers drawn evenly in [0, 1], and normal ones."""
    drawn = []
    for index in rows:
        generator = torch.Generator().manual_seed(seed + index)
        drawn.append(torch.stack([torch.rand(*shape, generator=generator), torch.randn(*shape, generator=generator)]))
    return torch.stack(drawn)
