"""`compile=True`: masked images go through a compiled copy, kept by the caller."""

import copy
import gc
import pickle
import warnings
import weakref
from functools import partial

import pytest
import torch
from torch import nn

from cam_callbacks import ScoreCAM
from cam_callbacks.explain.compilation import CompiledModel


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def _no_code_is_generated(monkeypatch):
    """To write code in C++, and to compile it, takes seconds; what is compiled is the same."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def test_gives_the_same_maps_and_compiles_once_for_all_calls(small_cnn, blobs):
    """The weights may change between the calls, as they do in training."""
    network, images, compiled = small_cnn(channels=40), blobs(3, 24, 24), CompiledModel()
    method = ScoreCAM(tolerance=0, batch_size=16, compile=True)
    plain = ScoreCAM(tolerance=0, batch_size=16)
    graphs = []
    for _ in range(2):
        torch.testing.assert_close(
            method(network, images, compiled=compiled).layer_maps,
            plain(network, images).layer_maps,
            rtol=1e-4,
            atol=1e-5,
        )
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.1)
    assert graphs[0] == graphs[1] > 0


@pytest.mark.usefixtures("_no_code_is_generated")
def test_leaves_the_module_untouched(small_cnn, blobs):
    network, images = small_cnn(), blobs(2, 24, 24)
    before = {name: type(module) for name, module in network.named_modules()}
    forward = network.forward
    ScoreCAM(compile=True)(network, images)
    assert {name: type(module) for name, module in network.named_modules()} == before
    assert network.forward == forward


class RefusesTheCompiler(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(twice(images))


@torch.library.custom_op("cam_callbacks_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:  # no kernel for the compiler's shape inference
    return 2 * x


def test_what_cannot_be_compiled_runs_uncompiled_after_one_warning(small_cnn, blobs):
    network, images, compiled = RefusesTheCompiler(small_cnn()), blobs(2, 24, 24), CompiledModel()
    method = ScoreCAM(compile=True)
    with pytest.warns(UserWarning, match="RefusesTheCompiler cannot be compiled and runs uncompiled"):
        explanation = method(network, images, "inner.features", compiled=compiled)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method(network, images, "inner.features", compiled=compiled)
    torch.testing.assert_close(explanation.layer_maps, ScoreCAM()(network, images, "inner.features").layer_maps)


def test_a_released_or_copied_cache_holds_no_model(small_cnn, blobs):
    network, compiled = RefusesTheCompiler(small_cnn()), CompiledModel()
    with pytest.warns(UserWarning, match="cannot be compiled"):
        compiled(network, blobs(1, 24, 24), torch.zeros(1, dtype=torch.int64), None)
    for copied in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert vars(copied) == vars(CompiledModel())
    gone = weakref.ref(network)
    compiled.release()
    del network
    gc.collect()
    assert gone() is None


class Gate(nn.Module):
    """Lets at most 8 images through; as memory does, it refuses the others however the model is run."""

    @torch.compiler.disable
    def forward(self, images):
        if len(images) > 8:
            raise torch.OutOfMemoryError(f"no room for {len(images)}")
        return images


@pytest.mark.usefixtures("_no_code_is_generated")
def test_out_of_memory_halves_the_chunk_and_the_model_stays_compiled(small_cnn, blobs):
    network, images = small_cnn(channels=20), blobs(2, 24, 24)
    method = ScoreCAM(tolerance=0, compile=True, batch_size=16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        explanation = method(nn.Sequential(Gate(), network), images, "1.features")
    said = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
    # Not tried again as it is, which would be said again.
    assert ["out of memory with 16 images at once; continuing with 8" in text for text in said] == [True], said
    torch.testing.assert_close(
        explanation.layer_maps, ScoreCAM(tolerance=0)(network, images, "features").layer_maps, rtol=1e-4, atol=1e-5
    )
