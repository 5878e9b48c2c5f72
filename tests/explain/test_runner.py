"""How a model is run: where, in which type, and what happens when memory runs out."""

import pytest
import torch
from torch import nn

from cam_callbacks import ScoreCAM
from cam_callbacks.explain.runner import activation_bytes, device_and_dtype


class TestDeviceAndType:
    def test_are_those_of_the_first_floating_parameter(self):
        network = nn.Sequential(nn.Embedding(2, 2).requires_grad_(False), nn.Linear(2, 2)).double()
        network.whole = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
        assert device_and_dtype(network, torch.zeros(1)) == (torch.device("cpu"), torch.float64)

    def test_are_those_of_the_images_where_there_is_no_parameter(self):
        images = torch.zeros(1, dtype=torch.float16)
        assert device_and_dtype(nn.ReLU(), images) == (torch.device("cpu"), torch.float16)


class Small(nn.Module):
    """Runs out of memory with more than `most` images."""

    def __init__(self, inner, most):
        super().__init__()
        self.inner, self.most = inner, most

    def forward(self, images):
        if len(images) > self.most:
            raise torch.OutOfMemoryError(f"no room for {len(images)}")
        return self.inner(images)


def test_out_of_memory_halves_the_chunk_and_changes_no_result(small_cnn, blobs, forwarded):
    network, images = small_cnn(channels=20), blobs(6, 24, 24)
    tight = Small(network, most=4)
    sizes = forwarded(tight.inner)
    with pytest.warns(UserWarning, match="out of memory with 6 images at once; continuing with 3") as caught:
        explanation = ScoreCAM(tolerance=0)(tight, images, "inner.features")
    assert len(caught) == 1
    assert max(sizes) == 3
    torch.testing.assert_close(explanation.layer_maps, ScoreCAM(tolerance=0)(network, images, "features").layer_maps)
    assert torch.equal(explanation.passes, ScoreCAM(tolerance=0)(network, images, "features").passes)


def test_out_of_memory_with_a_single_image_is_an_error(small_cnn, blobs):
    with pytest.raises(torch.OutOfMemoryError):
        ScoreCAM()(Small(small_cnn(), most=0), blobs(1, 24, 24), "inner.features")


def test_the_bytes_of_activations_are_those_of_innermost_modules():
    network = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()), nn.Flatten(), nn.Linear(32, 3))
    image = torch.zeros(1, 1, 4, 4)
    assert activation_bytes(network, lambda: network(image)) == 4 * (32 + 32 + 32 + 3)
