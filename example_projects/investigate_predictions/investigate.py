"""Show why a torchvision model labels a photo as it does: a heatmap for each of its top three labels."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cam_callbacks import CAM, Explanation, GradCAM, ScoreCAM
from cam_callbacks.figures.colors import BACKGROUND, MUTED
from cam_callbacks.figures.drawing import Picture
from cam_callbacks.figures.grid import Cell, Line, grid
from cam_callbacks.figures.notebook import strongest_channels

sys.path.append(str(Path(__file__).parents[1]))
from torchvision_models import Classifier, add_options, load, overlays

METHODS = {"score-cam": ScoreCAM(), "grad-cam": GradCAM(), "cam": CAM()}
SIDE = 294
CHANNELS = 12


def main(arguments: Sequence[str] | None = None) -> None:
    """Explain each photo, print its labels, and write its picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    parser.add_argument("--method", choices=METHODS, default="score-cam")
    parser.add_argument("--layer", help="dotted name of the layer to explain (default: chosen)")
    parser.add_argument("--output", type=Path, default=Path("heatmaps"), help="folder of the pictures")
    add_options(parser)
    args = parser.parse_args(arguments)
    if len({photo.stem for photo in args.photos}) < len(args.photos):
        parser.error("two photos have the same name, and so would their pictures")

    try:
        classifier = load(args.model, args.weights, args.device)
        args.output.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")
    failed = False
    for path in args.photos:
        try:
            photo = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
            images, explanation = explain(classifier, photo, args.method, args.layer)
        except (OSError, TypeError, ValueError) as error:
            print(f"{parser.prog}: {path}: {error}", file=sys.stderr)
            failed = True
            continue
        labels = [label for _, label in classifier.top(explanation.probabilities[0])]
        how = f"{METHODS[args.method].name} of {args.model} at layer {explanation.target_layer}"
        file = args.output / f"{path.stem}_{args.model}_{args.method}.png"
        Image.fromarray(draw(classifier, photo, images, explanation, [f"{path.name}: {how}", *labels])).save(file)
        print("\n    ".join([f"{path}: {how}", *labels, str(file)]), flush=True)
    sys.exit(int(failed))


def explain(classifier: Classifier, photo: Image.Image, method: str, layer: str | None) -> tuple[Tensor, Explanation]:
    """Return what the model is given for a photo, (1, 3, H, W), and the explanation of its top three classes."""
    images = classifier.images(photo)
    with torch.no_grad():
        probabilities = classifier.model(images).softmax(dim=1)
    classes = [index for index, _ in classifier.top(probabilities[0])]
    return images, METHODS[method](classifier.model, images, layer, targets=[classes])


def draw(
    classifier: Classifier, photo: Image.Image, images: Tensor, explanation: Explanation, texts: Sequence[str]
) -> Picture:
    """Draw the photo beside its three heatmaps, and under them what the first is made of.

    Args:
        classifier: The model that was explained.
        photo: The photo.
        images: What the model was given for it.
        explanation: The explanation of three classes.
        texts: The title, then the label of each class.
    """
    title, *labels = texts
    seen = classifier.seen(photo, SIDE)
    lines = [Line(title)]
    weights = explanation.channels.weight[0, 0]
    count = min(CHANNELS, int((weights > 0).sum()))
    if count:
        best = labels[0].split(maxsplit=1)[1]
        lines.append(Line(f"The channels that count most for {best}, and the photo seen through each:", MUTED))
    row = Cell([seen, *overlays(seen, explanation.heatmaps[0])], lines, ["photo", *labels])
    parts = [grid([row], size=SIDE)]
    if count:
        parts.append(strongest_channels(images[0], explanation, 0, classifier.normalization, count))
    return _stacked(parts)


def _stacked(pictures: Sequence[Picture]) -> Picture:
    """Stack pictures on top of each other."""
    width = max(picture.shape[1] for picture in pictures)
    canvas = Image.new("RGB", (width, sum(len(picture) for picture in pictures)), BACKGROUND)
    top = 0
    for picture in pictures:
        canvas.paste(Image.fromarray(picture), (0, top))
        top += len(picture)
    return np.asarray(canvas)


if __name__ == "__main__":
    main()
