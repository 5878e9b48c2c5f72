"""Make the picture of how_it_works.md: what Score-CAM shows to a network that has learned handwritten digits.

About a minute:

    .venv/bin/python docs/pictures_score_cam.py
"""

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from PIL import Image

from cam_callbacks import ScoreCAM
from cam_callbacks.data.datasets import normalization
from cam_callbacks.figures.notebook import strongest_channels

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "example_projects" / "color_bias"))

from data import ColorBiasData  # noqa: E402
from model import SmallCNN  # noqa: E402


def main() -> None:
    """Train, explain one image, draw the channels of largest weight."""
    pl.seed_everything(0)
    data = ColorBiasData("balanced", num_images=1024, seed=0)
    model = SmallCNN()
    pl.Trainer(max_epochs=8, accelerator="cpu", logger=False, enable_checkpointing=False).fit(model, data)
    images, targets = next(iter(data.val_dataloader()))[:2]
    explanation = ScoreCAM(tolerance=0)(model, images[:1], targets=targets[:1])
    picture = strongest_channels(images[0], explanation, 0, normalization(data.val_dataloader().dataset), count=6)
    Image.fromarray(picture).save(DOCS / "images" / "score_cam.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
