"""Show live what a torchvision model looks at, on a camera, a video file, or a folder of images."""

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cam_callbacks import CAM, Explanation, GradCAM, ScoreCAM
from cam_callbacks.figures.colors import MUTED, TEXT
from cam_callbacks.figures.drawing import Picture
from cam_callbacks.figures.grid import Cell, Line, grid

try:
    import cv2
except ImportError as error:
    sys.exit(f"live.py needs OpenCV: pip install opencv-python ({error})")
sys.path.append(str(Path(__file__).parents[1]))
from torchvision_models import Classifier, add_options, load, overlays

METHODS = {"cam": CAM(), "grad-cam": GradCAM(), "score-cam": ScoreCAM(max_passes=32)}
CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
OR_WRITE = "write a video with --output FILE.mp4"
TITLE = "m: next method, c: next class, q: quit"
ESCAPE, NO_KEY = 27, 0xFF
SIDE = 480
TOP = 3

Show = Callable[[Picture], str]
"""Shows or writes a picture; returns the key that was pressed, or an empty string."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Explain frame by frame until the source ends or the user quits."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=f"Keys in the window: {TITLE}.")
    parser.add_argument("source", nargs="?", default="0", help="number of a camera, video file, or folder of images")
    parser.add_argument("--method", choices=METHODS, default="cam", help="the method to start with")
    parser.add_argument("--layer", help="dotted name of the layer to explain (default: chosen)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write a video (.mp4 or .avi) instead of opening a window"
    )
    parser.add_argument("--frames", type=int, help="stop after this many frames")
    add_options(parser)
    args = parser.parse_args(arguments)
    if args.output and args.output.suffix not in CODECS:
        parser.error(f"--output {args.output}: the name must end in {' or '.join(CODECS)}")
    if args.output and args.output.resolve() == Path(args.source).resolve():
        parser.error(f"--output {args.output}: the source would be overwritten")
    if args.frames is not None and args.frames < 1:
        parser.error(f"--frames {args.frames}: at least 1 is needed")

    try:
        sink = video(args.output, rate(args.source)) if args.output else window()
        with sink as show, closing(frames(args.source)) as photos:
            classifier = load(args.model, args.weights, args.device)
            run(islice(photos, args.frames), classifier, args.method, args.layer, show)
    except KeyboardInterrupt:
        print("stopped")
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")


def run(photos: Iterator[Image.Image], classifier: Classifier, method: str, layer: str | None, show: Show) -> None:
    """Explain and show each photo, and act on the keys."""
    methods: deque[tuple[str, str]] = deque()
    times: deque[float] = deque(maxlen=16)
    rank = 0
    for photo in photos:
        if not methods:
            methods.extend(usable(classifier, photo, method, layer))
        if not times:
            times.append(time.perf_counter())
        name, at = methods[0]
        explanation = explain(classifier, photo, name, at, rank)
        times.append(time.perf_counter())
        speed = (len(times) - 1) / (times[-1] - times[0])
        key = show(draw(classifier, photo, explanation, f"{speed:.1f} frames/s, {METHODS[name].name} at {at}"))
        if key == "q":
            break
        if key == "m":
            methods.rotate(-1)
            times.clear()
        if key == "c":
            rank = (rank + 1) % TOP


def usable(classifier: Classifier, photo: Image.Image, first: str, layer: str | None) -> list[tuple[str, str]]:
    """Return the methods that can explain the model, `first` first, each with the layer that it explains."""
    images = classifier.images(photo)
    found = []
    for name in sorted(METHODS, key=lambda name: name != first):
        try:
            found.append((name, METHODS[name].check(classifier.model, images, layer)))
        except ValueError as error:
            print(f"{METHODS[name].name} is left out. {error}", file=sys.stderr)
    if not found:
        raise ValueError("no method is left")
    return found


def explain(classifier: Classifier, photo: Image.Image, method: str, layer: str, rank: int) -> Explanation:
    """Explain the most probable class of a photo (rank 0) or one of the next."""
    images = classifier.images(photo)
    targets = None
    if rank:
        with torch.no_grad():
            targets = classifier.model(images).topk(rank + 1).indices[:, rank]
    return METHODS[method](classifier.model, images, layer, targets)


def draw(classifier: Classifier, photo: Image.Image, explanation: Explanation, title: str) -> Picture:
    """Draw the heatmap over the photo, and under it the top labels, that of the heatmap in white, and the title."""
    seen = classifier.seen(photo, SIDE)
    explained = int(explanation.targets[0])
    labels = [
        Line(f"{label}   < shown", TEXT) if index == explained else Line(label, MUTED)
        for index, label in classifier.top(explanation.probabilities[0], TOP)
    ]
    return grid([Cell(overlays(seen, explanation.heatmaps), [*labels, Line(title, MUTED)])], size=SIDE)


def frames(source: str) -> Generator[Image.Image, None, None]:
    """Yield the frames of a camera, a video file, or a folder of images. Closing it releases the camera."""
    if Path(source).is_dir():
        files = [str(file) for file in sorted(Path(source).iterdir()) if cv2.haveImageReader(str(file))]
        if not files:
            raise OSError(f"there are no images in {source}")
        yield from (_photo(frame) for frame in map(cv2.imread, files) if frame is not None)
        return
    capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    try:
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # a slow method should see what the camera sees now
        found, frame = capture.read()
        if not found:
            raise OSError(f"no frame can be read from {f'camera {source}' if source.isdecimal() else source}")
        while found:
            yield _photo(frame)
            found, frame = capture.read()
    finally:
        capture.release()


def _photo(frame: Any) -> Image.Image:
    return Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


def rate(source: str) -> float:
    """Return the frames per second of a video file; 25 for other sources."""
    return (cv2.VideoCapture(source).get(cv2.CAP_PROP_FPS) if Path(source).is_file() else 0) or 25.0


@contextmanager
def window() -> Iterator[Show]:
    """Open a window, closed on exit. Escape and closing the window count as the key `"q"`."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise OSError(f"there is no display to open a window on; {OR_WRITE}")

    def show(picture: Picture) -> str:
        cv2.imshow(TITLE, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        key = cv2.waitKey(1) & 0xFF
        return "q" if key == ESCAPE or _is_closed() else "" if key == NO_KEY else chr(key)

    try:
        cv2.namedWindow(TITLE, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)
    except cv2.error as error:
        raise OSError(f"no window: install opencv-python in place of opencv-python-headless, or {OR_WRITE}") from error
    try:
        yield show
    finally:
        cv2.destroyAllWindows()


def _is_closed() -> bool:
    try:
        return bool(cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1)
    except cv2.error:  # Qt, once the window is gone
        return True


@contextmanager
def video(file: Path, frames_per_second: float) -> Iterator[Show]:
    """Write a video file, complete on exit."""
    writer: cv2.VideoWriter | None = None

    def write(picture: Picture) -> str:
        nonlocal writer
        if writer is None:
            file.parent.mkdir(parents=True, exist_ok=True)
            size = (picture.shape[1], picture.shape[0])
            writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*CODECS[file.suffix]), frames_per_second, size)
            if not writer.isOpened():
                raise OSError(f"{file} cannot be written")
        writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        return ""

    try:
        yield write
    finally:
        if writer is not None:
            writer.release()
            print(f"written: {file}")


if __name__ == "__main__":
    main()
