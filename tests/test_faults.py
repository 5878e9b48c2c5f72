"""Whatever goes wrong while CAMMonitor looks: the run goes on as without it. The source of `docs/faults.md`.

python tests/test_faults.py > docs/faults.md
"""

from __future__ import annotations

import copy
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning_runs import BATCH, Squares, TinyModule, fit, image_steps, loader, own_warnings, scalars, when
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from torch.utils.tensorboard import SummaryWriter
from traces import around, state_of

from cam_callbacks import CAM, CAMMonitor, GradCAM, ScoreCAM

STEPS = 3
"""Of an epoch."""
PROBES = 4
AUDITED = 12


@dataclass(frozen=True)
class Outcome:
    """What becomes of a run in which something goes wrong, at the second look if not said otherwise.

    Attributes:
        words: The same for people.
        looks: The epochs after which the probes were explained.
        pictures: The epochs whose pictures were logged; None for those of the looks.
        audits: The epochs after which there was an audit; None for those of the looks.
        tracebacks: Warnings with one.
        remarks: Warnings without; None for any number of them.
        error: Whether `on_error="raise"` ends the run.
        epochs: How many the run has.
    """

    words: str
    looks: tuple[int, ...] = (0, 1, 2)
    pictures: tuple[int, ...] | None = None
    audits: tuple[int, ...] | None = None
    tracebacks: int = 0
    remarks: int | None = 0
    error: bool = True
    epochs: int = 3


FIRST_LEFT_OUT = Outcome("This look is left out, with one warning; the next one works.", looks=(1, 2), tracebacks=1)
LEFT_OUT = Outcome("This look is left out, with one warning; the next one works.", looks=(0, 2), tracebacks=1)
GIVES_UP = Outcome(
    "Three looks in a row are left out, with a warning each; then there are none any more.",
    looks=(),
    tracebacks=3,
    epochs=4,
)
NO_PICTURES = Outcome(
    "Numbers and heatmaps are there; its pictures and its audit are left out, with one warning; the next look works.",
    pictures=(0, 2),
    audits=(0, 2),
    tracebacks=1,
)
LOGGER_FAILS = Outcome(
    "All else is logged, also the pictures in other loggers, with one warning; it gets the pictures of the next look.",
    pictures=(0, 2),
    tracebacks=1,
)
LOGGER_GIVEN_UP = Outcome(
    "All else is logged; after three looks, with a warning each, it is sent no more pictures.",
    looks=(0, 1, 2, 3),
    pictures=(),
    tracebacks=3,
    epochs=4,
)
NO_AUDIT = Outcome(
    "Heatmaps are logged; this audit is left out, with one warning; the next one works.",
    audits=(0, 2),
    tracebacks=1,
)
REMARKED = Outcome("The look goes on, with one warning that says what is done.", remarks=1, error=False)
SHOWN = Outcome("The look goes on; what could not be computed is shown and counted as such.", error=False)
PASSES_THROUGH = Outcome("It passes through: the run ends as it does without the monitor, and all is put back.")


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        stage: Where.
        what: How it is brought about.
        outcome: What happens then.
        says: A part of each warning.
        monitor: Makes arguments of CAMMonitor.
        module: Makes the module, which has the fault without a monitor too.
        val: Makes the validation data.
        options: Makes arguments of the Trainer, given the folder of the run.
        meddler: Makes a callback that brings the fault about, given the monitor.
    """

    stage: str
    what: str
    outcome: Outcome
    says: str = ""
    monitor: Callable[[], dict[str, Any]] = dict
    module: Callable[[], TinyModule] = TinyModule
    val: Callable[[], Any] = field(default=lambda: loader(Squares(12, seed=1)))
    options: Callable[[Path], dict[str, Any]] = field(default=lambda folder: {})
    meddler: Callable[[CAMMonitor], Callback] | None = None

    def __str__(self) -> str:
        return f"{self.stage}: {re.sub('`', '', self.what)}"


def lowered(words: str) -> str:
    return words[0].lower() + words[1:]


def in_epoch_1(module: Any) -> bool:
    return not module.trainer.sanity_checking and module.current_epoch == 1


class FailsAtCall:
    """A forward_fn that raises at its n-th call in the second look."""

    def __init__(self, call: int, error: BaseException) -> None:
        self.call, self.error, self.calls = call, error, 0

    def __call__(self, module: Any, images: Tensor) -> Any:
        if in_epoch_1(module):
            self.calls += 1
            if self.calls == self.call:
                raise self.error
        return module(images)


def slow(forward_fn: Any) -> dict[str, Any]:
    """A look of many small chunks: one pass over the probes, two of one image, then the masked ones."""
    return {"method": ScoreCAM(batch_size=4), "forward_fn": forward_fn}


IN_THE_MASKED_PASSES = 5


def for_more_than(count: int, error: Exception) -> Callable[[Any, Tensor], Any]:
    """A forward_fn that raises on large batches in the second look."""

    def forward(module: Any, images: Tensor) -> Any:
        if in_epoch_1(module) and len(images) > count:
            raise error
        return module(images)

    return forward


class BatchFn:
    """Raises at its n-th call; the sanity check makes two."""

    def __init__(self, call: int) -> None:
        self.call, self.calls = call, 0

    def __call__(self, batch: Any) -> Any:
        self.calls += 1
        if self.calls == self.call:
            raise KeyError("label")
        return batch


class ProbesFrom(Dataset):
    """Squares on a drive that cannot be reached at first."""

    def __init__(self) -> None:
        self.squares, self.asked = Squares(12, seed=1), 0

    def __len__(self) -> int:
        return len(self.squares)

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        if self.asked == 1:
            raise OSError("the drive is gone")
        return self.squares[index]


class LastBatch(Dataset):
    """Squares of which those after the sanity check are passed through a function."""

    def __init__(self, change: Callable[[Tensor, Tensor], Any], masks: bool = False) -> None:
        self.squares, self.change, self.masks = Squares(12, seed=1), change, masks

    def __len__(self) -> int:
        return len(self.squares)

    def __getitem__(self, index: int) -> Any:
        image, target = self.squares[index]
        if index >= 2 * BATCH:
            return self.change(image, target)
        return (image, target, upper_half()) if self.masks else (image, target)


def upper_half() -> Tensor:
    return (torch.arange(16).view(16, 1).expand(16, 16) < 8).long()


def with_trimap(image: Tensor, target: Tensor) -> Any:
    mask = upper_half()
    mask[0] = 2
    return image, target, mask


class ReadsMappings(TinyModule):
    """Takes mappings too, in words that CAMMonitor does not know."""

    def _loss_of(self, batch: Any) -> Tensor:
        return super()._loss_of((batch["photo"], batch["kind"]) if isinstance(batch, dict) else batch)


class Refuses(TinyModule):
    """Its hook raises on batches that are larger than those of its own training."""

    def __init__(self) -> None:
        super().__init__()
        self.features[2].register_forward_hook(self._refuse)

    def _refuse(self, part: Any, inputs: Any, output: Tensor) -> None:
        if in_epoch_1(self) and len(output) > BATCH:
            raise RuntimeError("the hook knows batches of four only")


class LittleMemory(TinyModule):
    """Has no memory for more images than those of its own batches, or none at all while the monitor looks."""

    def __init__(self, enough_for: int = BATCH) -> None:
        super().__init__()
        self.enough_for = enough_for

    def forward(self, images: Tensor) -> Any:
        if not self.trainer.sanity_checking and len(images) > self.enough_for:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(images)


def no_memory(module: Any, images: Tensor) -> Any:
    if in_epoch_1(module):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return module(images)


class SetsStyle(Callback):
    """Sets a style that does not exist, for the second look."""

    def __init__(self, monitor: CAMMonitor) -> None:
        self.monitor = monitor

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.monitor.style = "rainbow" if in_epoch_1(pl_module) else "blend"


def answers_not_finite(module: Any, images: Tensor) -> Any:
    output = module(images)
    return output * torch.nan if in_epoch_1(module) else output


def answers_for_other_classes(module: Any, images: Tensor) -> Any:
    output = module(images)
    return output[:, :1] if in_epoch_1(module) else output


def answers_in_words(module: Any, images: Tensor) -> Any:
    output = module(images)
    return {"answer": "cat"} if in_epoch_1(module) else output


class BrokenUploads(TensorBoardLogger):
    """TensorBoard whose writer takes no picture at the second look."""

    @property
    def experiment(self) -> Any:
        writer = super().experiment
        writer.add_image = self._add_image
        return writer

    def _add_image(self, tag: str, picture: Any, step: int, dataformats: str) -> None:
        if step == 2 * STEPS - 1:
            raise ConnectionError("the tracking server is gone")
        SummaryWriter.add_image(super().experiment, tag, picture, step, dataformats=dataformats)


class Tracker(Logger):
    """A tracking server on this machine, which is sent pictures; it hangs up at the second look, if it is to."""

    name, version = "tracker", "0"

    def __init__(self, hangs_up: bool) -> None:
        super().__init__()
        self.hangs_up = hangs_up

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        """Takes all."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Takes all."""

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            client = socket.create_connection(server.getsockname(), timeout=10)
            answering = threading.Thread(target=self._answer, args=(server, step))
            answering.start()
            with client:
                client.sendall(images[0].tobytes()[:100])
                answer = client.recv(2)
            answering.join()
        if answer != b"ok":
            raise ConnectionError("the tracking server hung up")

    def _answer(self, server: socket.socket, step: int) -> None:
        with server.accept()[0] as connection:
            connection.recv(100)
            if not (self.hangs_up and step == 2 * STEPS - 1):
                connection.sendall(b"ok")


def full_disk(folder: Path) -> None:
    """What is written of the second look's heatmaps goes to a device that is full."""
    (folder / "cam").mkdir(parents=True)
    (folder / "cam" / f"heatmaps_step={2 * STEPS - 1:06d}.png").symlink_to("/dev/full")


def without_logger(folder: Path) -> dict[str, Any]:
    full_disk(folder)
    return {"logger": False}


def with_table(folder: Path) -> dict[str, Any]:
    full_disk(folder / "table")
    return {"logger": CSVLogger(folder, name="", version="table")}


def file_in_the_way(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    (folder / "cam").write_text("not a folder")
    return {"logger": False}


FAULTS = (
    Fault("probe capture", "`batch_fn` raises", FIRST_LEFT_OUT, "KeyError: 'label'", lambda: {"batch_fn": BatchFn(4)}),
    Fault(
        "probe capture",
        "a batch comes, in each validation, that is of another kind than those of the sanity check",
        GIVES_UP,
        "the batch is not understood",
        module=ReadsMappings,
        val=lambda: loader(LastBatch(lambda image, target: {"photo": image, "kind": target})),
    ),
    Fault(
        "probe capture",
        "images come that are larger than those of the sanity check",
        REMARKED,
        "CAMMonitor left out 4 images that are not finite, or whose size",
        val=lambda: loader(LastBatch(lambda image, target: (image.repeat(1, 2, 2), target))),
        monitor=lambda: {"num_probes": 12},
    ),
    Fault(
        "probe capture",
        "images come that are not finite",
        REMARKED,
        "CAMMonitor left out 4 images that are not finite",
        val=lambda: loader(LastBatch(lambda image, target: (image * torch.nan, target))),
        monitor=lambda: {"num_probes": 12},
    ),
    Fault(
        "probe capture",
        "the data set of `probes` cannot be read at first",
        FIRST_LEFT_OUT,
        "the drive is gone",
        lambda: {"probes": ProbesFrom()},
        options=lambda folder: {"num_sanity_val_steps": 0},
    ),
    Fault(
        "forward",
        "`forward_fn` raises on the probes themselves",
        LEFT_OUT,
        "out of luck",
        lambda: slow(FailsAtCall(1, RuntimeError("out of luck"))),
    ),
    Fault(
        "forward",
        "`forward_fn` raises in the middle of the masked passes",
        LEFT_OUT,
        "out of luck",
        lambda: slow(FailsAtCall(IN_THE_MASKED_PASSES, RuntimeError("out of luck"))),
    ),
    Fault(
        "forward",
        "`forward_fn` raises at every look",
        GIVES_UP,
        "out of luck",
        lambda: {"forward_fn": when(lambda module: True, RuntimeError("out of luck"))},
    ),
    Fault("forward", "the model's answers are not finite", SHOWN, monitor=lambda: {"forward_fn": answers_not_finite}),
    Fault(
        "forward",
        "the model answers for fewer classes than there are",
        LEFT_OUT,
        "targets contains",
        lambda: {"forward_fn": answers_for_other_classes},
    ),
    Fault("forward", "the model answers in words", LEFT_OUT, "returned dict", lambda: {"forward_fn": answers_in_words}),
    Fault("hook", "a hook of the user's module raises", LEFT_OUT, "batches of four only", module=Refuses),
    Fault(
        "memory",
        "memory runs out with more than four images at once",
        replace(REMARKED, remarks=None, words="Chunks are halved, with a warning each time, and the look goes on."),
        "out of memory",
        module=LittleMemory,
    ),
    Fault(
        "memory",
        "memory runs out with a single image",
        replace(LEFT_OUT, remarks=None, words="Chunks are halved, with warnings; " + lowered(LEFT_OUT.words)),
        "out of memory",
        monitor=lambda: {"forward_fn": no_memory},
    ),
    Fault(
        "audit",
        "`forward_fn` raises on the images of the audit",
        NO_AUDIT,
        "out of luck",
        lambda: {"forward_fn": for_more_than(PROBES, RuntimeError("out of luck")), "method": GradCAM()},
    ),
    Fault(
        "audit",
        "masks of the last batch have three values",
        replace(REMARKED, remarks=2, words="The look goes on without these masks and images, with two warnings."),
        "masks",
        val=lambda: loader(LastBatch(with_trimap, masks=True)),
    ),
    Fault(
        "audit",
        "all masks are empty",
        SHOWN,
        val=lambda: loader(TensorDataset(Squares(12, seed=1).images, Squares(12).targets, torch.zeros(12, 16, 16))),
    ),
    Fault(
        "rendering",
        "a style is set that does not exist",
        NO_PICTURES,
        "style='rainbow' is unknown",
        meddler=SetsStyle,
    ),
    Fault(
        "TensorBoard",
        "its writer raises",
        LOGGER_FAILS,
        "the tracking server is gone",
        options=lambda folder: {"logger": BrokenUploads(folder, "", "run")},
    ),
    Fault(
        "another logger",
        "its server hangs up in the middle of a picture",
        replace(LOGGER_FAILS, pictures=None),
        "the tracking server hung up",
        options=lambda folder: {"logger": [TensorBoardLogger(folder, "", "run"), Tracker(hangs_up=True)]},
    ),
    Fault("no logger", "the disk is full", LOGGER_FAILS, "No space left on device", options=without_logger),
    Fault("CSVLogger", "the disk is full", LOGGER_FAILS, "No space left on device", options=with_table),
    Fault("no logger", "a file stands where the folder should be", LOGGER_GIVEN_UP, "cam'", options=file_in_the_way),
    Fault("the whole process", "Ctrl-C in the middle of the masked passes", PASSES_THROUGH),
    Fault("the whole process", "SIGTERM in the middle of the masked passes", PASSES_THROUGH),
)
LOOKS_FAIL = [fault for fault in FAULTS if fault.outcome is not PASSES_THROUGH]


STAYS = ("train flags", "hooks", "requires_grad", "gradients", "weights and buffers", "attributes")
"""What a run that ends by an error leaves as it was when the look began."""


class Watches(Callback):
    """Notes the epochs after whose validation the monitor has a new explanation, or a new audit."""

    def __init__(self, monitor: CAMMonitor) -> None:
        self.monitor = monitor
        self.looks: list[int] = []
        self.audits: list[int] = []
        self.last: tuple[Any, Any] = (None, None)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        now = (self.monitor.explanation, self.monitor.audit_result)
        for epochs, new, old in zip((self.looks, self.audits), now, self.last, strict=True):
            if new is not old:
                epochs.append(trainer.current_epoch)
        self.last = now


@dataclass
class Ran:
    """A run with a fault: its trainer and module, and all warnings, in which its folder is called `folder`."""

    trainer: Trainer
    module: TinyModule
    said: list[str]


def run(fault: Fault, folder: Path, callbacks: list[Callback]) -> Ran:
    seed_everything(5)
    module = fault.module()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(
            folder,
            callbacks,
            module,
            loader(Squares(BATCH * STEPS), shuffle=True),
            fault.val(),
            **({"max_epochs": fault.outcome.epochs} | fault.options(folder)),
        )
    return Ran(trainer, module, [str(warning.message).replace(str(folder), "folder") for warning in caught])


def watched(fault: Fault, **arguments: Any) -> CAMMonitor:
    """The monitor of a run with a fault; it audits, on all images that there are."""
    return CAMMonitor(**({"num_probes": PROBES, "num_audit_images": AUDITED} | fault.monitor() | arguments))


def assert_equal(a: Any, b: Any) -> None:
    """Bit for bit."""
    if isinstance(a, Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for mine, theirs in zip(a, b, strict=True):
            assert_equal(mine, theirs)
    else:
        assert a == b


@pytest.mark.parametrize("fault", LOOKS_FAIL, ids=str)
def test_the_run_goes_on_as_without_the_monitor(fault: Fault, tmp_path: Path) -> None:
    monitor, outcome = watched(fault), fault.outcome
    callbacks, before, after = around(monitor)
    watches = Watches(monitor)
    meddlers = [] if fault.meddler is None else [fault.meddler(monitor)]
    ran = run(fault, tmp_path / "with", [*meddlers, *callbacks, watches])
    without = run(fault, tmp_path / "without", [])

    assert ran.trainer.current_epoch == outcome.epochs
    assert_equal(ran.module.state_dict(), without.module.state_dict())
    assert_equal(ran.trainer.optimizers[0].state_dict(), without.trainer.optimizers[0].state_dict())
    assert after.states == before.states

    def epochs(given: tuple[int, ...] | None) -> list[int]:
        return list(outcome.looks if given is None else given)

    assert watches.looks == epochs(None)
    assert watches.audits == epochs(outcome.audits)
    if (tmp_path / "with" / "run").exists():
        logged, plain = scalars(tmp_path / "with"), scalars(tmp_path / "without")
        for tag in ("train_loss", "val_loss"):
            assert repr(logged[tag]) == repr(plain[tag])  # nan is nan
        pictures = image_steps(tmp_path / "with").get("cam/heatmaps", [])
        assert [step // STEPS for step in pictures] == epochs(outcome.pictures)

    own = [text for text in ran.said if text not in without.said and "are written as" not in text]
    with_traceback = [text for text in own if "Traceback (most recent call last)" in text]
    assert len(with_traceback) == outcome.tracebacks
    if outcome.remarks is None:
        assert len(own) > len(with_traceback)
    else:
        assert len(own) - len(with_traceback) == outcome.remarks
    assert all(fault.says in text for text in own)
    if outcome.tracebacks == 3:
        assert ["gives up" in text for text in with_traceback] == [False, False, True]
    else:
        assert not any("gives up" in text for text in own)


@pytest.mark.parametrize("fault", [fault for fault in LOOKS_FAIL if fault.outcome.error], ids=str)
def test_those_who_want_it_get_the_error_itself_and_nothing_stays(fault: Fault, tmp_path: Path) -> None:
    monitor = watched(fault, on_error="raise")
    callbacks, before, _ = around(monitor)
    meddlers = [] if fault.meddler is None else [fault.meddler(monitor)]
    module = fault.module()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - it is compared in the last line
        run(replace(fault, module=lambda: module), tmp_path / "with", [*meddlers, *callbacks])
    left = state_of(module)
    for what in STAYS:
        assert left[what] == before.states[-1][what], what
    assert fault.says in f"{type(caught.value).__name__}: {caught.value}"


@pytest.fixture
def handler_of_ctrl_c() -> Iterator[None]:
    """Lightning ignores all further Ctrl-C once there was one."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


class Interrupts(Callback):
    """Ctrl-C at the end of the second validation."""

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if in_epoch_1(pl_module) and args[2] == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("on_error", ["warn", "raise"])
@pytest.mark.usefixtures("handler_of_ctrl_c")
def test_ctrl_c_passes_through_and_all_is_put_back(on_error: Any, tmp_path: Path) -> None:
    fault = next(fault for fault in FAULTS if "Ctrl-C" in fault.what)
    module, plain = TinyModule(), TinyModule()
    forward_fn = FailsAtCall(IN_THE_MASKED_PASSES, KeyboardInterrupt())
    callbacks, before, after = around(watched(fault, on_error=on_error, **slow(forward_fn)))
    with pytest.raises(SystemExit) as ended:
        run(replace(fault, module=lambda: module), tmp_path / "with", callbacks)
    with pytest.raises(SystemExit) as without:
        run(replace(fault, module=lambda: plain), tmp_path / "without", [Interrupts()])
    assert ended.value.code == without.value.code
    assert forward_fn.calls == IN_THE_MASKED_PASSES
    assert len(after.states) == len(before.states) - 1
    left = state_of(module)
    for what in (*STAYS, "generator of torch", "generator of NumPy", "generator of Python"):
        assert left[what] == before.states[-1][what], what
    assert_equal(module.state_dict(), plain.state_dict())
    assert left["train flags"] == state_of(plain)["train flags"]


SIGTERM_SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from lightning.pytorch import Callback, seed_everything
from lightning_runs import Squares, TinyModule, fit, loader
from test_faults import IN_THE_MASKED_PASSES, FailsAtCall, Watches, in_epoch_1, slow
from traces import around
from cam_callbacks import CAMMonitor

folder = Path(sys.argv[1])


class TerminatesLook(FailsAtCall):
    def __call__(self, module, images):
        if in_epoch_1(module):
            self.calls += 1
            if self.calls == self.call:
                os.kill(os.getpid(), signal.SIGTERM)
        return module(images)


class TerminatesValidation(Callback):
    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        if in_epoch_1(module) and batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)


class Reports(Callback):
    def __init__(self, name):
        self.name = name

    def on_exception(self, trainer, module, exception):
        report = {"exception": type(exception).__name__, "step": trainer.global_step, "epoch": trainer.current_epoch}
        report |= {"weights": module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}
        torch.save(report, folder / f"{self.name}.pt")


def run(name, callbacks):
    seed_everything(5)
    train, val = loader(Squares(12), shuffle=True), loader(Squares(12, seed=1))
    fit(folder / name, [*callbacks, Reports(name)], TinyModule(), train, val, max_epochs=4)


try:
    run("without", [TerminatesValidation()])
except BaseException as error:
    assert type(error).__name__ == "SIGTERMException"
monitor = CAMMonitor(num_probes=4, num_audit_images=12, **slow(TerminatesLook(IN_THE_MASKED_PASSES, None)))
callbacks, before, after = around(monitor)
watches = Watches(monitor)
try:
    run("with", [*callbacks, watches])
finally:
    # The look in whose middle it came is finished, before Lightning ends the run.
    print("LOOKS", watches.looks, "AUDITS", watches.audits, "UNDISTURBED", before.states == after.states)
"""


def start(script: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A process that runs a script in a folder of its own."""
    folder.mkdir(parents=True)
    (folder / "script.py").write_text(script)
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(folder / "script.py"), str(folder), *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def end(process: subprocess.Popen[str]) -> str:
    """What the process has printed."""
    try:
        return process.communicate(timeout=400)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"it hangs\n{process.communicate()[0][-4000:]}")


def test_sigterm_ends_the_run_as_it_does_without_the_monitor(tmp_path: Path) -> None:
    process = start(SIGTERM_SCRIPT, tmp_path / "terminated")
    printed = end(process)
    watched, without = (torch.load(tmp_path / "terminated" / f"{which}.pt") for which in ("with", "without"))
    assert_equal(watched, without)
    assert watched["exception"] == "SIGTERMException"
    assert process.returncode == 0, printed[-3000:]
    assert "LOOKS [0, 1] AUDITS [0, 1] UNDISTURBED True" in printed
    assert "CAMMonitor failed" not in printed


DDP_SCRIPT = """
import sys, warnings
from pathlib import Path
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning_runs import Squares, TinyModule, loader, quiet
from test_faults import BrokenUploads, Watches, in_epoch_1
from traces import around
from cam_callbacks import CAM, CAMMonitor, GradCAM, ScoreCAM

folder = Path(sys.argv[1])


def on_second_rank(largest):
    def forward(module, images):
        if in_epoch_1(module) and module.global_rank == 1 and len(images) > largest:
            raise OSError("rank 1 is out of luck")
        return module(images)
    return forward


class BatchFn:
    "Raises on the second rank, at the last batch of the first validation after the sanity check."
    calls = 0

    def __call__(self, batch):
        self.calls += 1
        if self.calls == 4 and torch.distributed.get_rank() == 1:
            raise OSError("rank 1 is out of luck")
        return batch


def run(name, monitor, **options):
    seed_everything(5)
    module = TinyModule()
    watches = None if monitor is None else Watches(monitor)
    callbacks, before, after = around(monitor) if monitor is not None else ([], None, None)
    settings = {"max_epochs": 3, "strategy": "ddp", "devices": 2} | options
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watching = [] if watches is None else [*callbacks, watches]
        trainer = Trainer(callbacks=watching, **quiet(folder / name, **settings))
        trainer.fit(module, loader(Squares(24), shuffle=True), loader(Squares(24, seed=1)))
    rank = trainer.global_rank
    reports[name] = {
        "epochs": trainer.current_epoch,
        "weights": module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "looks": None if watches is None else watches.looks,
        "audits": None if watches is None else watches.audits,
        "undisturbed": monitor is None or before.states == after.states,
        "said": [str(w.message) for w in caught if "Traceback (most recent call last)" in str(w.message)],
    }
    return rank


reports = {}
small = {"num_probes": 4, "num_audit_images": 24}
run("without", None)
run("probe capture", CAMMonitor(batch_fn=BatchFn(), **small))
run("forward", CAMMonitor(forward_fn=on_second_rank(0), **small))
run("audit", CAMMonitor(forward_fn=on_second_rank(4), method=GradCAM(), **small))
rank = run("logger", CAMMonitor(**small), logger=BrokenUploads(folder, "", "broken"))
torch.save(reports, folder / f"rank{rank}.pt")
"""

ON_TWO_RANKS = {"probe capture": FIRST_LEFT_OUT, "forward": LEFT_OUT, "audit": NO_AUDIT, "logger": LOGGER_FAILS}


def test_two_processes_fail_and_go_on_together(tmp_path: Path) -> None:
    folder = tmp_path / "ddp"
    process = start(DDP_SCRIPT, folder)
    printed = end(process)
    assert process.returncode == 0, printed[-4000:]
    first, second = (torch.load(folder / f"rank{rank}.pt") for rank in range(2))
    for stage, outcome in ON_TWO_RANKS.items():
        for rank in (first, second):
            ran, without = rank[stage], rank["without"]
            assert ran["epochs"] == outcome.epochs
            assert_equal(ran["weights"], without["weights"])
            assert_equal(ran["optimizer"], without["optimizer"])
            assert ran["undisturbed"]
            assert ran["looks"] == list(outcome.looks), stage
            assert ran["audits"] == list(outcome.looks if outcome.audits is None else outcome.audits), stage
        said = [text for rank in (first, second) for text in rank[stage]["said"]]
        where = "server is gone" if stage == "logger" else "rank 1 is out of luck"
        assert len([text for text in said if where in text]) == 1, stage
        assert all("CAMMonitor" in text for text in said)


@pytest.mark.parametrize("logger", [TensorBoardLogger, CSVLogger])
def test_a_class_name_that_a_logger_cannot_write_ends_no_run(logger: Any, tmp_path: Path) -> None:
    """As that of a folder whose name is not UTF-8, which Python reads with surrogates."""
    monitor = CAMMonitor(num_probes=PROBES, num_audit_images=AUDITED, class_names=["cat", "d\udce4chs", "owl"])
    trainer = fit(tmp_path, monitor, max_epochs=2, logger=logger(tmp_path, "", "run"))
    assert trainer.current_epoch == 2


@pytest.mark.parametrize("names", [("ネコ", "イヌ", "フクロウ"), ("..", "cat ", "")], ids=["not ASCII", "of a path"])
def test_the_tags_of_all_numbers_are_names_that_mlflow_takes(names: tuple[str, ...], tmp_path: Path) -> None:
    """Lightning hands it only those letters of a tag that MLflow takes: of `cam/bg_gap/ネコ` no name is left."""
    validation = pytest.importorskip("mlflow.utils.validation")
    fit(tmp_path, CAMMonitor(num_probes=PROBES, num_audit_images=AUDITED, class_names=names))
    tags = [tag for tag in scalars(tmp_path) if "_by_class" in tag]
    handed_over = [re.sub("[^a-zA-Z0-9_/. -]+", "", tag) for tag in tags]
    assert len(set(handed_over)) == len(tags) > 9
    for tag in handed_over:
        validation._validate_metric_name(tag)


def test_validations_without_a_look_do_not_count_as_successes(tmp_path: Path) -> None:
    broken = when(lambda module: True, OSError("gone"))
    with own_warnings() as said:
        fit(tmp_path, CAMMonitor(num_probes=PROBES, every_n_epochs=2, forward_fn=broken), max_epochs=10)
    assert len(said) == 3
    assert "gives up" in said[2]


def test_an_audit_that_was_given_up_is_tried_again_in_the_next_fit(tmp_path: Path) -> None:
    fails = [True]

    def forward(module: Any, images: torch.Tensor) -> Any:
        if fails[0] and len(images) == AUDITED:
            raise OSError("gone")
        return module(images)

    monitor = CAMMonitor("features", num_probes=PROBES, num_audit_images=AUDITED, forward_fn=forward, method=CAM())
    fit(tmp_path / "first", monitor, max_epochs=4)
    assert monitor.audit_result is None
    fails[0] = False
    fit(tmp_path / "second", monitor)
    assert monitor.audit_result is not None


class UnpicklableError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def test_after_a_failed_look_the_monitor_can_be_copied_and_pickled(tmp_path: Path) -> None:
    copied = []

    class Copies(Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            copied.append((copy.deepcopy(monitor), pickle.dumps(monitor)))

    error = UnpicklableError("one", "two")
    monitor = CAMMonitor(num_probes=PROBES, forward_fn=Raises(error))
    with own_warnings() as said:
        fit(tmp_path, [monitor, Copies()])
    assert len(copied) == 2
    assert any("CAMMonitor failed" in text for text in said)


class Raises:
    """A forward_fn that can be pickled, and raises once training has begun."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, module: Any, images: torch.Tensor) -> Any:
        if not module.trainer.sanity_checking:
            raise self.error
        return module(images)

    def __getstate__(self) -> dict[str, Any]:
        return {}


def test_the_page_of_faults_is_up_to_date() -> None:
    docs = Path(__file__).parents[1] / "docs" / "faults.md"
    assert docs.read_text() == table(), "python tests/test_faults.py > docs/faults.md writes it anew"


def table() -> str:
    """What `docs/faults.md` holds."""
    lines = [
        "# Faults",
        "",
        f"{len(FAULTS)} things that go wrong once training has begun, and what happens then.",
        "`tests/test_faults.py` brings each about. But for the last two the run goes on to its end; weights, optimizer",
        "state and metrics are bit for bit those of a run without CAMMonitor; no hook, train flag, gradient or random",
        "number state is left behind. A warning of what is left out holds the traceback.",
        "",
        f"Errors of one of two processes are brought about in {', '.join(ON_TWO_RANKS)}:",
        "both leave the same out.",
        "",
        'The last column says what becomes of the run with `on_error="raise"` instead of `"warn"`.',
        "",
        _row(["where", "what goes wrong", "what happens", 'with `on_error="raise"`']),
        _row(["---"] * 4),
    ]
    for fault in FAULTS:
        ends = fault.outcome.error and fault.outcome is not PASSES_THROUGH
        raises = "it ends with the error" if ends else "the same"
        lines.append(_row([fault.stage, fault.what, fault.outcome.words, raises]))
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(table(), end="")
