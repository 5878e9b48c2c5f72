"""The example that explains a camera's frames: sources, keys, the written video, the window, and how it ends."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from examples import EXAMPLES, loaded
from torch import nn
from torchvision import models

cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python")

SCRIPT = "live_camera/live.py"


@pytest.fixture(scope="module")
def live():
    return loaded(SCRIPT)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(models.squeezenet1_1().state_dict(), file)
    return str(file)


@pytest.fixture(scope="module")
def classifier(live, weights):
    return live.load("squeezenet1_1", weights, torch.device("cpu"))


def pictures(count):
    """Frames (120, 160, 3) of noise."""
    draw = np.random.default_rng(0)
    return [cv2.resize(draw.integers(0, 255, (6, 8, 3), dtype=np.uint8), (160, 120)) for _ in range(count)]


@pytest.fixture
def clip(tmp_path):
    """A video of 4 frames, 12 a second."""
    file = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 12.0, (160, 120))
    for picture in pictures(4):
        writer.write(picture)
    writer.release()
    return str(file)


class Camera:
    """Stands in for `cv2.VideoCapture`: gives frames for ever, or none."""

    works = True
    released = 0

    def __init__(self, number):
        assert number == 0

    def set(self, *_):
        return True

    def read(self):
        return self.works, pictures(1)[0] if self.works else None

    def release(self):
        Camera.released += 1


@pytest.fixture
def camera(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(Camera, "released", 0)
    return Camera


def written(file):
    """Frames a second and all frames of a video."""
    capture = cv2.VideoCapture(str(file))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return capture.get(cv2.CAP_PROP_FPS), frames


def message_of(main, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main(list(map(str, arguments)))
    return exit_.value.code


@pytest.mark.parametrize(("method", "suffix"), [("cam", ".mp4"), ("grad-cam", ".avi")])
def test_a_video_gives_a_video_of_as_many_frames_at_the_same_rate(live, weights, clip, tmp_path, method, suffix):
    output = tmp_path / "new" / f"out{suffix}"
    live.main([clip, "--weights", weights, "--method", method, "--output", str(output)])
    rate, frames = written(output)
    assert rate == pytest.approx(12)
    assert len(frames) == 4
    assert frames[0].shape[1] == 492
    assert np.std(frames[0]) > 20


def test_it_stops_after_so_many_frames(live, weights, clip, tmp_path):
    options = ["--weights", weights, "--method", "score-cam", "--frames", "1"]
    live.main([clip, *options, "--output", str(tmp_path / "out.avi")])
    assert len(written(tmp_path / "out.avi")[1]) == 1


def test_the_images_of_a_folder_come_in_the_order_of_their_names(live, tmp_path):
    for name, gray in (("b.png", 200), ("a.jpg", 100)):
        cv2.imwrite(str(tmp_path / name), np.full((30, 40, 3), gray, np.uint8))
    (tmp_path / "c.png").write_bytes((tmp_path / "b.png").read_bytes()[:20])
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "folder").mkdir()
    assert [photo.getpixel((5, 5))[0] for photo in live.frames(str(tmp_path))] == [100, 200]
    assert live.rate(str(tmp_path)) == 25


def test_colors_are_not_swapped(live, tmp_path):
    cv2.imwrite(str(tmp_path / "blue.png"), np.full((30, 40, 3), (255, 0, 0), np.uint8))
    (photo,) = live.frames(str(tmp_path))
    assert photo.getpixel((0, 0)) == (0, 0, 255)


def test_real_frames_are_labeled_right(live, data_folder):
    weights = data_folder / "weights" / "squeezenet1_1_imagenet_fp16.pth"
    classifier = live.load("squeezenet1_1", str(weights), torch.device("cpu"))
    photos = live.frames(str(data_folder / "imagenet-sample"))
    tench = live.explain(classifier, next(photos), "cam", "classifier.2", rank=0)
    salamander = live.explain(classifier, next(photos), "grad-cam", "features", rank=0)
    photos.close()
    assert [int(tench.predicted), int(salamander.predicted)] == [0, 25]


def test_keys_change_method_and_class_and_end_it(live, classifier, monkeypatch, clip):
    explained = []

    def explain(*arguments):
        explained.append(arguments[2:])
        return original(*arguments)

    original = live.explain
    monkeypatch.setattr(live, "explain", explain)
    monkeypatch.setitem(live.METHODS, "score-cam", live.ScoreCAM(max_passes=2))
    keys = iter(["m", "c", "m", "q"])
    live.run(live.frames(clip), classifier, "grad-cam", None, lambda _: next(keys))
    assert explained == [
        ("grad-cam", "features", 0),
        ("cam", "classifier.2", 0),
        ("cam", "classifier.2", 1),
        ("score-cam", "features", 1),
    ]


def test_the_class_that_is_asked_for_is_explained(live, classifier, clip):
    photo = next(live.frames(clip))
    most = live.explain(classifier, photo, "grad-cam", "features", rank=0)
    third = live.explain(classifier, photo, "grad-cam", "features", rank=2)
    top = [index for index, _ in classifier.top(most.probabilities[0])]
    assert int(most.targets) == top[0]
    assert int(third.targets) == top[2]
    drawn = [live.draw(classifier, photo, each, "title") for each in (most, third)]
    assert drawn[0].shape == drawn[1].shape
    assert not np.array_equal(*drawn)


@pytest.mark.parametrize("method", ["cam", "grad-cam", "score-cam"])
def test_a_black_frame_is_no_error(live, classifier, tmp_path, method):
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((60, 80, 3), np.uint8))
    shown = []
    live.run(live.frames(str(tmp_path)), classifier, method, None, lambda picture: shown.append(picture) or "")
    assert len(shown) == 1


def test_a_method_that_cannot_explain_the_model_is_left_out(live, classifier, clip, capsys):
    model = nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.Flatten(), nn.Linear(8 * 14 * 14, 16), nn.Linear(16, 1000))
    like_vgg = live.Classifier(model.eval(), classifier.class_names, classifier.preset, classifier.device)
    methods = live.usable(like_vgg, next(live.frames(clip)), "cam", None)
    assert methods == [("grad-cam", "0"), ("score-cam", "0")]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("CAM is left out")


def test_an_unknown_layer_ends_it(live, weights, clip, tmp_path, capsys):
    output = tmp_path / "out.mp4"
    message = message_of(live.main, clip, "--weights", weights, "--layer", "features.99", "--output", output)
    assert message.endswith("no method is left")
    assert "nearest: 'features.9'" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
def test_ctrl_c_and_errors_leave_a_released_camera_and_a_complete_video(
    live, weights, camera, monkeypatch, tmp_path, raised
):
    calls = []

    def explain(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise raised
        return original(*arguments)

    original = live.explain
    monkeypatch.setattr(live, "explain", explain)
    arguments = ["--weights", weights, "--output", str(tmp_path / "out.mp4")]
    if raised is KeyboardInterrupt:
        live.main(arguments)
    else:
        with pytest.raises(raised):
            live.main(arguments)
    assert camera.released == 1
    monkeypatch.undo()
    assert len(written(tmp_path / "out.mp4")[1]) == 2


def test_a_source_without_frames_is_named(live, weights, camera, monkeypatch, tmp_path):
    monkeypatch.setattr(Camera, "works", False)
    options = ["--weights", weights, "--output", tmp_path / "out.mp4"]
    assert message_of(live.main, *options).endswith("no frame can be read from camera 0")
    assert camera.released == 1
    (tmp_path / "empty").mkdir()
    assert "there are no images in" in message_of(live.main, tmp_path / "empty", *options)


@pytest.mark.parametrize(
    "options",
    [["--output", "film.mov"], ["film.mp4", "--output", "./film.mp4"], ["--frames", "0"], ["--model", "resnet"]],
)
def test_bad_options_end_with_code_2(live, options):
    assert message_of(live.main, *options) == 2


def test_without_opencv_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SystemExit, match="pip install opencv-python"):
        loaded(SCRIPT)


class TestWindow:
    @pytest.fixture
    def screen(self, live, monkeypatch):
        """A display on which nothing is drawn, as a dictionary of what it answers."""
        state = {"key": -1, "visible": 1.0, "titles": []}

        def visible(*_):
            if state["visible"] is None:
                raise cv2.error("NULL window")
            return state["visible"]

        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.setattr(cv2, "namedWindow", lambda title, _: state["titles"].append(title))
        monkeypatch.setattr(cv2, "imshow", lambda *_: None)
        monkeypatch.setattr(cv2, "waitKey", lambda _: state["key"])
        monkeypatch.setattr(cv2, "getWindowProperty", visible)
        monkeypatch.setattr(cv2, "destroyAllWindows", state["titles"].clear)
        return state

    @pytest.mark.parametrize(
        ("key", "visible", "answer"),
        [(-1, 1.0, ""), (ord("m"), 1.0, "m"), (27, 1.0, "q"), (-1, 0.0, "q"), (-1, None, "q")],
    )
    def test_it_tells_the_key(self, live, screen, key, visible, answer):
        screen.update(key=key, visible=visible)
        with live.window() as show:
            assert show(np.zeros((4, 4, 3), np.uint8)) == answer

    def test_it_is_closed_after_an_error(self, live, screen):
        opened = live.window()
        opened.__enter__()
        assert screen["titles"] == [live.TITLE]
        assert not opened.__exit__(RuntimeError, RuntimeError(), None)
        assert screen["titles"] == []

    def test_an_opencv_without_windows_is_told_of(self, live, screen, monkeypatch):
        def refuse(*_):
            raise cv2.error("The function is not implemented")

        monkeypatch.setattr(cv2, "namedWindow", refuse)
        with pytest.raises(OSError, match=r"install opencv-python in place .*, or .* --output"):
            live.window().__enter__()

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems always have a display")
    def test_a_machine_without_display_is_told_of(self, live, monkeypatch):
        for name in ("DISPLAY", "WAYLAND_DISPLAY"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(OSError, match=r"no display .* --output"):
            live.window().__enter__()


@pytest.fixture
def display(tmp_path):
    """The name of a virtual display, and the file that holds what is on it."""
    if "NONE" in next(line for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("GUI:")):
        pytest.skip("needs windows: pip install opencv-python in place of opencv-python-headless")
    if not shutil.which("Xvfb"):
        pytest.skip("needs a virtual display: apt-get install xvfb")
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "640x720x24", "-fbdir", str(tmp_path)]
    server = subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        with os.fdopen(read) as name:
            yield f":{name.readline().strip()}", tmp_path / "Xvfb_screen0"
    finally:
        server.terminate()
        server.wait()


def test_on_a_virtual_display_the_window_appears_and_ctrl_c_closes_it(display, weights, tmp_path):
    name, screen = display
    (tmp_path / "frames").mkdir()
    for index, picture in enumerate(pictures(300)):
        cv2.imwrite(str(tmp_path / "frames" / f"{index:03}.png"), picture)
    command = [sys.executable, str(EXAMPLES / SCRIPT), str(tmp_path / "frames"), "--weights", weights]
    viewer = subprocess.Popen(command, env={**os.environ, "DISPLAY": name}, stdout=subprocess.PIPE, text=True)
    try:
        contrast, until = 0.0, time.monotonic() + 300
        while contrast < 20 and viewer.poll() is None and time.monotonic() < until:
            time.sleep(0.2)
            contrast = np.fromfile(screen, np.uint8)[-640 * 720 * 4 :].std()
        viewer.send_signal(signal.SIGINT)
        assert viewer.communicate(timeout=300)[0].strip() == "stopped"
    finally:
        viewer.kill()
        viewer.wait()
    assert viewer.returncode == 0
    assert contrast >= 20
