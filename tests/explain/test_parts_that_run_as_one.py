"""Scripted, traced, exported, quantized and checkpointed parts: left alone, or an error that says what works."""

import copy

import pytest
import torch
from states import state_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from cam_callbacks import CAM, GradCAM, ScoreCAM

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
]

EXACT = ScoreCAM(tolerance=0)
METHODS = [GradCAM(), EXACT, CAM()]


class Parts(nn.Module):
    """A convolutional network whose parts can be exchanged: `stem`, `body`, `head`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

    def forward(self, x):
        return self.head(self.body(self.stem(x)))


class Checkpointed(Parts):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x):
        for part in (self.stem, self.body):
            x = checkpoint(part, x, use_reentrant=self.reentrant)
        return self.head(x)


class Attends(nn.Module):
    """Two blocks of attention over patches and a class token, which alone is read."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.one, self.two = (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1) + self.places
        return self.head(self.two(self.one(tokens))[:, 0])


@pytest.fixture
def images(blobs):
    return blobs(3, 32, 32)


def exported(module, example):
    return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("n")},)).module()


AS_ONE = {
    "scripted": lambda module, example: torch.jit.script(module),
    "traced": torch.jit.trace,
    "frozen": lambda module, example: torch.jit.freeze(torch.jit.script(module)),
    "exported": exported,
}
EXAMPLES = {"stem": (3, 3, 32, 32), "body": (3, 6, 16, 16), "head": (3, 8, 16, 16)}


def with_part(name, kind):
    model = Parts().eval()
    setattr(model, name, AS_ONE[kind](getattr(model, name), torch.rand(EXAMPLES[name])))
    return model


def comparable_state(model):
    for module in model.modules():  # what is frozen has no such flag
        if not hasattr(module, "training"):
            return {"attributes": {name: sorted(vars(part)) for name, part in model.named_modules()}}
    return state_of(model)


@pytest.mark.parametrize("kind", AS_ONE)
@pytest.mark.parametrize("name", EXAMPLES)
def test_parts_that_run_as_one_change_no_map_and_stay_as_they_are(images, name, kind):
    model, eager = with_part(name, kind), Parts().eval()
    before = comparable_state(model)
    for method in METHODS[:2] if name == "head" else METHODS:
        for layer in (None, "stem", "body"):
            if isinstance(method, CAM) and layer == "stem":
                continue
            found, wanted = (method(each, images, layer, targets=1) for each in (model, eager))
            assert found.target_layer == (layer or "body")
            torch.testing.assert_close(found.layer_maps, wanted.layer_maps, atol=1e-4, rtol=1e-3)
    assert comparable_state(model) == before


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_traced_block_of_attention_is_followed_from_the_first_call(images, name):
    model, eager = Attends().eval(), Attends().eval()
    setattr(model, name, torch.jit.trace(getattr(model, name), torch.rand(3, 17, 16), check_trace=False))
    for method in (GradCAM(), EXACT):
        found = method(model, images, targets=1)
        wanted = method(eager, images, found.target_layer, targets=1)
        torch.testing.assert_close(found.layer_maps, wanted.layer_maps, atol=1e-4, rtol=1e-3)
        assert found.target_layer == "one"  # the last of whose positions more than the class token is read


@pytest.mark.parametrize("kind", ["scripted", "traced", "exported"])
@pytest.mark.parametrize("method", METHODS)
def test_a_layer_within_a_part_that_runs_as_one_is_told_what_works(images, kind, method):
    with pytest.raises(ValueError, match=r"'body.0' was never called .* a part of 'body' .* name 'body' itself"):
        method(with_part("body", kind), images, "body.0", targets=1)


@pytest.mark.parametrize("kind", AS_ONE)
@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_runs_as_one_is_told_what_works(images, kind, method):
    model = AS_ONE[kind](Parts().eval(), images)
    for wrapped in (model, nn.Sequential(nn.Identity(), model)):
        with pytest.raises(ValueError, match=r"no layer of .* runs as one, .* keep the eager module .* forward_fn"):
            method(wrapped, images, targets=1)
    if kind == "scripted":
        found = ScoreCAM()(model, images, targets=1, forward_fn=lambda model, x: model.head(model.body(model.stem(x))))
        assert found.target_layer == "body"


@pytest.mark.parametrize("count", [1, 3])
def test_a_model_for_one_size_of_the_batch_is_told_what_works(images, count):
    model = torch.export.export(Parts().eval(), (images[:count],)).module()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), model)
    remedy = "batch_size=1" if count == 1 else "fill each batch"
    with pytest.raises(ValueError, match=rf"answers {count} at once, but not .*dynamic_shapes.*{remedy}"):
        EXACT(model, images, "0", targets=1)
    if count == 1:
        assert not ScoreCAM(tolerance=0, batch_size=1)(model, images, "0", targets=1).skipped.any()


class TestQuantized:
    def test_linear_layers_are_explained_without_gradients(self, images):
        model = Parts().eval()
        quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
        found = EXACT(quantized, images, targets=1)
        assert found.target_layer == "body"
        torch.testing.assert_close(found.layer_maps, EXACT(model, images, targets=1).layer_maps, atol=0.05, rtol=0.05)
        with pytest.raises(ValueError, match=r"cuts the gradient .*a quantized part.* ScoreCAM does not"):
            GradCAM()(quantized, images, targets=1)

    @pytest.mark.parametrize("layer", ["parts.body", None])
    def test_convolutions_are_explained(self, images, layer):
        class Quantized(nn.Module):
            def __init__(self):
                super().__init__()
                self.enter, self.leave = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
                self.parts = Parts()

            def forward(self, x):
                return self.parts.head(self.leave(self.parts.body(self.parts.stem(self.enter(x)))))

        eager = Quantized().eval()
        model = copy.deepcopy(eager)
        engine = torch.backends.quantized.engine
        try:
            torch.backends.quantized.engine = next(
                each for each in ("qnnpack", "fbgemm", "x86") if each in torch.backends.quantized.supported_engines
            )
            config = torch.ao.quantization.get_default_qconfig(torch.backends.quantized.engine)
            for part in (model.enter, model.leave, model.parts.stem, model.parts.body):
                part.qconfig = config
            torch.ao.quantization.prepare(model, inplace=True)
            model(images)
            torch.ao.quantization.convert(model, inplace=True)
            found = EXACT(model, images, layer, targets=1)
            assert found.target_layer == (layer or "leave")
            wanted = EXACT(eager, images, "parts.body", targets=1)
            together = torch.stack([found.layer_maps.flatten(), wanted.layer_maps.flatten()])
            assert torch.corrcoef(together)[0, 1] > 0.98
        finally:
            torch.backends.quantized.engine = engine


@pytest.mark.parametrize("frozen", [False, True])
class TestCheckpoints:
    def model(self, checkpointed, frozen):
        return (Parts() if checkpointed is None else Checkpointed(checkpointed)).eval().requires_grad_(not frozen)

    @pytest.mark.parametrize("layer", [None, "stem.0", "stem", "body.0", ["stem", "body"]])
    def test_change_no_map(self, images, layer, frozen):
        for method in (GradCAM(), EXACT):
            found, wanted = (method(self.model(each, frozen), images, layer, [[0, 1]] * 3) for each in (False, None))
            torch.testing.assert_close(found.layer_maps, wanted.layer_maps)

    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
    def test_that_are_reentrant_are_told_what_works(self, images, frozen):
        model = self.model(True, frozen)
        model = nn.Sequential(nn.Conv2d(3, 3, 1), model).eval()
        for layer in ("0", "1.stem", "1.body.0"):
            with pytest.raises(ValueError, match=r"use_reentrant=False.*ScoreCAM does not"):
                GradCAM()(model, images, layer, targets=1)
        assert EXACT(model, images, targets=1).target_layer == "1.body"
