"""Memory depends on the batch size, neither on the channels of the layer nor on the number of images.

Counted are the bytes of all storages that tensors hold at once, each storage once, whatever views it has; so the
figures are exact and the same in every run. What is held inside one kernel is not seen.
"""

import functools
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cam_callbacks import ScoreCAM

exact = functools.partial(ScoreCAM, tolerance=0)

WEIGHTINGS = ["probability", "logit-softmax", "increase", "matlab"]


class LiveBytes(TorchDispatchMode):
    """The bytes that tensors made inside hold at once: `now`, and the most there were, `peak`."""

    def __init__(self, *existing: Tensor) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in existing)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, storage.nbytes())

    def _remove(self, size: int) -> None:
        self.now -= size


@pytest.fixture
def network():
    """Build a network whose first layer needs most memory, whatever the channels of the last, `6`."""

    def build(channels: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(8),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, channels, 3, stride=2, padding=1),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, 4),
        )

    return build


def peak(weighting, network, images):
    """The most bytes held at once for an explanation, beside the model and the images, and the bytes it keeps."""
    with LiveBytes(*network.parameters(), images) as live:
        explanation = exact(weighting, batch_size=16)(network, images, "6")
    assert (explanation.passes > 0.9 * network[5].out_channels).all()
    parts = (part for part in vars(explanation).values() if isinstance(part, Tensor))
    return live.peak, sum(part.untyped_storage().nbytes() for part in parts)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_does_not_grow_with_the_channels_of_the_layer(network, blobs, weighting):
    images = blobs(1, 64, 64)
    few, _ = peak(weighting, network(64), images)
    many, _ = peak(weighting, network(512), images)
    assert few <= many <= 1.1 * few


def test_does_not_grow_with_the_images_beyond_themselves_and_their_maps(network, blobs):
    model, few, many = network(16), blobs(4, 64, 64), blobs(16, 64, 64)
    peak_of_few, kept_of_few = peak("probability", model, few)
    peak_of_many, kept_of_many = peak("probability", model, many)
    images = many.nbytes - few.nbytes
    activations = 12 * 16 * 4 * 4 * 4  # 12 images more, 16 channels of 4*4 positions, float32
    maps = activations + kept_of_many - kept_of_few
    assert peak_of_many - peak_of_few <= images + maps + 0.01 * peak_of_few


def test_no_more_than_a_batch_of_images_is_forwarded_at_once(small_cnn, blobs, forwarded):
    model = small_cnn()
    sizes = forwarded(model)
    exact(batch_size=8)(model, blobs(19, 24, 24), "features")
    assert max(sizes) == 8


def test_grows_with_the_batch_size(network, blobs):
    """Else the figures above measure nothing."""
    model, images = network(64), blobs(2, 64, 64)
    peaks = []
    for batch_size in (8, 32):
        with LiveBytes(*model.parameters(), images) as live:
            exact(batch_size=batch_size)(model, images, "6")
        peaks.append(live.peak)
    assert 3 < peaks[1] / peaks[0] < 4


def test_of_the_adaptive_form_grows_with_positions_not_their_square(blobs):
    """Fine layers, as in decoders and volumes: here 48*48 positions and 32 channels; squared they are 21 MB."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)
    )
    peaks = []
    for side in (24, 48):
        images = blobs(1, side, side)
        with LiveBytes(*model.parameters(), images) as live:
            explanation = ScoreCAM(batch_size=4, tolerance=1e-9)(model, images, "1")
        assert explanation.passes > 16
        peaks.append(live.peak)
    assert peaks[1] < 4.4 * peaks[0]
    assert peaks[1] < 48**4 * 4
