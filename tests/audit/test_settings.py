"""The settings of the audit are a value that checks itself and nests in a YAML file."""

import pickle

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from cam_callbacks import Audit


class Bright:
    """Takes what is bright for the object."""

    def __init__(self, above: float = 0.5) -> None:
        self.above = above

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=1) > self.above

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bright) and other.above == self.above

    def __hash__(self) -> int:
        return hash(self.above)


def is_bright(images: torch.Tensor) -> torch.Tensor:
    return Bright()(images)


def test_the_defaults_are_those_of_the_documentation():
    assert vars(Audit()) == {
        "num_images": 128,
        "threshold": 0.05,
        "on_alarm": "warn",
        "foreground_values": None,
        "randomization": False,
        "masks": None,
        "interventions": (),
        "task": None,
    }


def test_it_is_a_value():
    assert Audit(foreground_values=[1, 3]) == Audit(foreground_values=(1, 3))
    assert hash(Audit(foreground_values=[1, 3])) == hash(Audit(foreground_values=(1, 3)))
    for values in (np.array([1, 3]), torch.tensor([1, 3])):
        assert Audit(foreground_values=values) == Audit(foreground_values=[1, 3])
    assert pickle.loads(pickle.dumps(Audit(64, on_alarm="stop"))) == Audit(64, on_alarm="stop")


@pytest.mark.parametrize("on_alarm", ["warn", "stop", print])
def test_an_alarm_may_warn_stop_or_call(on_alarm):
    assert Audit(on_alarm=on_alarm).on_alarm == on_alarm


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"num_images": 0}, ValueError, "num_images=0 must be a whole number of at least 1"),
        ({"num_images": True}, ValueError, "num_images=True must be a whole number"),
        ({"threshold": 1}, ValueError, "threshold=1 must be a number of at least 0 and below 1"),
        ({"threshold": "a"}, ValueError, "threshold='a' must be a number"),
        ({"on_alarm": "shout"}, ValueError, "on_alarm='shout' is unknown; choose one of 'warn', 'stop' or a callable"),
        ({"foreground_values": [0.5]}, TypeError, "foreground_values=.* must be a list of whole numbers, or None"),
        ({"foreground_values": 1}, TypeError, "foreground_values=1 must be a list of whole numbers, or None"),
        ({"foreground_values": []}, TypeError, r"foreground_values=\[\] must be a list of whole numbers, at least one"),
        ({"foreground_values": [True]}, TypeError, r"foreground_values=\[True\] must be a list of whole numbers"),
        ({"foreground_values": np.array([0.5])}, TypeError, r"foreground_values=\[0.5\] must be a list of whole"),
        ({"foreground_values": torch.tensor(1)}, TypeError, "foreground_values=1 must be a list of whole numbers"),
        ({"on_alarm": lambda: 1}, TypeError, "on_alarm must be .*a callable: .*this one does not take 1 arguments"),
        ({"masks": "sam"}, TypeError, r"masks='sam' must be a callable: images \(N, C, H, W\) -> masks .*, or None"),
        ({"masks": lambda: 1}, TypeError, "masks must be .*this one does not take 1 arguments"),
        ({"masks": Bright}, TypeError, r"masks=Bright is a class; give Bright\(...\), with brackets"),
        ({"randomization": "yes"}, TypeError, "randomization='yes' must be True or False"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name_with_a_remedy(wrong, error, message):
    with pytest.raises(error, match=rf"Audit\(\.\.\.\): {message}"):
        Audit(**wrong)


@pytest.mark.filterwarnings("ignore")  # a newer jsonargparse has another name for building
@pytest.mark.parametrize(
    ("written", "read"),
    [
        (
            "{class_path: cam_callbacks.Audit, init_args: {num_images: 60, foreground_values: [1, 3]}}",
            Audit(60, foreground_values=(1, 3)),
        ),
        ("{class_path: cam_callbacks.Audit, init_args: {on_alarm: builtins.print}}", Audit(on_alarm=print)),
        (f"{{masks: {__name__}.is_bright}}", Audit(masks=is_bright)),
        (f"{{masks: {{class_path: {__name__}.Bright, init_args: {{above: 0.7}}}}}}", Audit(masks=Bright(0.7))),
        ("{threshold: 0.1, on_alarm: stop}", Audit(threshold=0.1, on_alarm="stop")),
        ("false", False),
        ("null", None),
    ],
)
def test_it_is_read_from_yaml(written, read):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--audit", type=Audit | bool | None, default=Audit())
    assert parser.instantiate_classes(parser.parse_string(f"audit: {written}")).audit == read
