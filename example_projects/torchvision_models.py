"""Torchvision's classification models for the examples: the options to choose one, and what goes with it."""

import argparse
import difflib
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.v2.functional import center_crop

from cam_callbacks import overlay
from cam_callbacks.data.normalization import Normalization
from cam_callbacks.explain.explanation import upsample
from cam_callbacks.figures.drawing import Picture


@dataclass(frozen=True)
class Classifier:
    """A model, the names of its classes, and the transform from photos to its images.

    Attributes:
        model: The model, in eval mode.
        class_names: The names of the classes, in the order of the logits.
        preset: Torchvision's transform from a photo to an image: resize, crop the center, normalize.
        device: The device that the model is on.
    """

    model: nn.Module
    class_names: list[str]
    preset: Any
    device: torch.device

    @property
    def normalization(self) -> Normalization:
        """The mean and standard deviation that images are normalized with."""
        return tuple(self.preset.mean), tuple(self.preset.std)

    def images(self, photo: Image.Image) -> Tensor:
        """Return what the model is given for a photo, (1, 3, H, W)."""
        batch: Tensor = self.preset(photo).unsqueeze(0).to(self.device)
        return batch

    def seen(self, photo: Image.Image, side: int) -> Picture:
        """Return the part of a photo that the model is given, `side` pixels high and wide."""
        part = round(min(photo.size) * self.preset.crop_size[0] / self.preset.resize_size[0])
        return np.asarray(center_crop(photo, [part]).resize((side, side), Image.Resampling.BICUBIC))

    def top(self, probabilities: Tensor, count: int = 3) -> list[tuple[int, str]]:
        """Return the most probable classes, given probabilities (classes,): their indices and labels to show."""
        shares, indices = (part.tolist() for part in probabilities.topk(min(count, len(probabilities))))
        return [(i, f"{share:.2f} {self.class_names[i]}") for share, i in zip(shares, indices, strict=True)]


def overlays(picture: Picture, heatmaps: Tensor) -> list[Picture]:
    """Lay each of the heatmaps (M, H, W) over a picture of any size."""
    return [overlay(picture, heat) for heat in upsample(heatmaps.cpu(), picture.shape[:2])]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `load` needs."""
    parser.add_argument("--model", type=_model_name, default="squeezenet1_1", help="its name in torchvision.models")
    parser.add_argument(
        "--weights", default="DEFAULT", help="file of a state_dict; DEFAULT: torchvision's, downloaded once"
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=_device, default=device, help=f"torch device (default: {device})")


def load(name: str, weights: str, device: torch.device) -> Classifier:
    """Build a model and load its weights.

    Args:
        name: Its name in `torchvision.models`.
        weights: The file of a state_dict, in single or half precision; `"DEFAULT"` for torchvision's best.
        device: The device to put it on.

    Raises:
        OSError: The weights cannot be read or downloaded.
        ValueError: The file does not hold weights of this model.
    """
    best = models.get_model_weights(name).DEFAULT
    try:
        if weights == "DEFAULT":
            model = models.get_model(name, weights=best)
        else:
            model = models.get_model(name, weights=None)
            model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
            if hasattr(model, "transform_input"):
                model.transform_input = True  # torchvision sets it only where it loads the weights itself
    except OSError as error:
        raise OSError(f"cannot get the weights of {name}: {error}; --weights FILE reads a state_dict") from error
    except (EOFError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{weights} does not hold the state_dict of {name}") from error
    return Classifier(model.to(device).eval(), best.meta["categories"], best.transforms(), device)


def _model_name(text: str) -> str:
    known = models.list_models(module=models)
    if text.lower() not in known:
        near = difflib.get_close_matches(text.lower(), known) or ["squeezenet1_1", "resnet50", "vit_b_16"]
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a classification model of torchvision; try {', '.join(near)}"
        )
    return text.lower()


def _device(text: str) -> torch.device:
    try:
        torch.zeros(1, device=text)
    except (AssertionError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used: {str(error).splitlines()[0]}") from None
    return torch.device(text)
