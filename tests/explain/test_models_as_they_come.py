"""Models that collect, change their input, mix types or images, or take more than images: right maps, or the reason."""

import collections
import functools

import pytest
import torch
from torch import nn

from cam_callbacks import GradCAM, ProbeSet, RegressionTarget, ScoreCAM, audit_model
from cam_callbacks.explain.isolation import isolated

METHODS = [GradCAM(), ScoreCAM(tolerance=0), ScoreCAM("increase", tolerance=0), ScoreCAM("increase", batch_size=3)]


class Collects(nn.Module):
    """Its forward collects its input in all that it has, and writes new attributes."""

    def __init__(self):
        super().__init__()
        self.items, self.rebound, self.last = [1], [1], None
        self.by_name, self.ordered = {"train": [1]}, collections.OrderedDict(a=1)
        self.by_default, self.latest, self.seen = collections.defaultdict(list), collections.deque([1], 2), {1}

    def forward(self, x):
        self.items.append(x)
        self.rebound = [*self.rebound, x]
        self.last = self.new = x
        self.by_name["train"].append(x)
        self.by_name["val"] = x
        self.ordered["a"] = x
        self.by_default["x"].append(x)
        self.latest.extend([x, x])
        self.seen.add(x)
        return x


class Collector:
    def __init__(self):
        self.found, self.last = [1], None

    def __call__(self, _module, _inputs, output):
        self.keep(_module, _inputs, output)

    def keep(self, _module, _inputs, output):
        self.found.append(output)
        self.last = output


@pytest.mark.parametrize("fails", [False, True])
class TestWhatIsCollected:
    def run(self, module, fails):
        try:
            with isolated(module):
                module(torch.ones(2))
                if fails:
                    raise ValueError
        except ValueError:
            assert fails

    def test_by_a_forward_is_put_back(self, fails):
        module = Collects()
        before = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        self.run(nn.Sequential(module), fails)
        after = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        assert after.keys() == before.keys()
        assert all(after[name] is before[name] for name in before)
        assert (module.items, module.by_name, module.ordered) == ([1], {"train": [1]}, {"a": 1})
        assert (module.by_default, list(module.latest), module.seen) == ({}, [1], {1})

    @pytest.mark.parametrize("kind", ["closure", "method", "callable", "partial", "pre"])
    def test_by_a_hook_is_put_back(self, fails, kind):
        collector, items, module = Collector(), [1], nn.Linear(2, 2)
        if kind == "closure":
            module.register_forward_hook(lambda _module, _inputs, output: items.append(output))
        elif kind == "pre":
            module.register_forward_pre_hook(lambda _module, inputs: items.append(inputs))
        elif kind == "partial":
            module.register_forward_hook(functools.partial(lambda kept, *_: kept.append(1), items))
        else:
            module.register_forward_hook(collector if kind == "callable" else collector.keep)
        self.run(module, fails)
        assert items == collector.found == [1]
        assert collector.last is None

    def test_by_a_hook_that_counts_is_put_back(self, fails):
        count = 0

        def hook(*_):
            nonlocal count
            count += 1

        module = nn.Linear(2, 2)
        module.register_forward_hook(hook)
        self.run(module, fails)
        assert count == 0


class WithSecondInput(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network, self.gate = network, nn.Linear(3, 12)

    def forward(self, images, more):
        features = self.network.features(images).mean((2, 3))
        return self.network.head(features * torch.tanh(4 * self.gate(more)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["network.features", None])
def test_rows_pair_each_image_with_its_second_input(small_cnn, blobs, method, layer):
    model, images, more = WithSecondInput(small_cnn()).eval(), blobs(5, 24, 24), torch.randn(5, 3)
    targets = torch.tensor([0, 1, 2, 3, 4])
    found = method(model, images, layer, targets, forward_fn=lambda model, x, rows: model(x, more[rows]))
    for row in range(5):
        alone = method(
            model,
            images[row : row + 1],
            layer,
            targets[row : row + 1],
            forward_fn=lambda model, x, row=row: model(x, more[row].expand(len(x), -1)),
        )
        torch.testing.assert_close(found.layer_maps[row], alone.layer_maps[0], atol=1e-4, rtol=1e-3)


def test_rows_are_right_in_an_audit(small_cnn, blobs):
    model, images, labels = small_cnn(), blobs(8, 24, 24), torch.arange(8) % 2
    answers = torch.eye(5)[labels] * 100  # which follow from the row alone
    result = audit_model(
        model, ProbeSet(images, labels), "features", forward_fn=lambda model, x, rows: model(x) + answers[rows]
    )
    torch.testing.assert_close(result.swap_answers.nan_to_num(1.0), torch.ones(8, 3))


def test_a_third_argument_with_a_default_is_left_alone(small_cnn, blobs):
    def forward_fn(model, images, scale=1.0):
        assert scale == 1.0
        return model(images) * scale

    GradCAM()(small_cnn(), blobs(2, 24, 24), forward_fn=forward_fn)


class InPlace(nn.Module):
    def __init__(self, network, inplace):
        super().__init__()
        self.network, self.inplace = network, inplace

    def forward(self, images):
        return self.network(images.sub_(0.5).div_(0.25) if self.inplace else (images - 0.5) / 0.25)


@pytest.mark.parametrize("method", METHODS)
def test_each_pass_of_a_model_that_changes_its_input_sees_a_copy(small_cnn, blobs, method):
    images = blobs(3, 24, 24)
    found, wanted = (method(InPlace(small_cnn(), inplace), images) for inplace in (True, False))
    torch.testing.assert_close(found.layer_maps, wanted.layer_maps)
    assert torch.equal(images, blobs(3, 24, 24))


class ScaledIn(nn.Module):
    """Its first parameter is of single precision, whatever the rest is."""

    def __init__(self, network, dtype):
        super().__init__()
        self.scale, self.network = nn.Parameter(torch.ones(1)), network.to(dtype)

    def forward(self, images):
        return self.network(images) * self.scale


@pytest.mark.parametrize("given", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_images_enter_in_a_type_that_the_model_takes(small_cnn, blobs, method, given):
    images = blobs(2, 24, 24).to(given)
    found = method(ScaledIn(small_cnn(), torch.float64), images, targets=1)
    torch.testing.assert_close(
        found.layer_maps, method(small_cnn(), images, targets=1).layer_maps, atol=1e-4, rtol=1e-3
    )


def network_of_batch_statistics():
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(channels, track_running_stats=False) for channels in (8, 16)]
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), norms[0], nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), norms[1], nn.ReLU()),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    ).eval()


@pytest.mark.parametrize("method", METHODS)
def test_images_that_would_influence_each_other_are_forwarded_alone(blobs, method):
    model, images = network_of_batch_statistics(), blobs(3, 32, 32)
    with pytest.warns(UserWarning, match="each image is forwarded alone") as caught:
        together = method(model, images, "0", targets=1)
    assert caught[0].filename == __file__
    alone = [method(model, image.unsqueeze(0), "0", targets=1).layer_maps for image in images]
    torch.testing.assert_close(together.layer_maps, torch.cat(alone))


def test_a_batch_norm_without_statistics_that_is_not_run_costs_nothing(small_cnn, blobs, recwarn):
    network = small_cnn()
    network.unused = nn.BatchNorm2d(3, track_running_stats=False)
    GradCAM()(network, blobs(2, 24, 24))
    assert not recwarn.list


class StandardizesEachImage(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images / images.std((1, 2, 3), keepdim=True))


@pytest.mark.parametrize(
    ("weighting", "targets", "instead"),
    [("increase", 1, "probability"), ("probability", RegressionTarget(1), "logit-softmax")],
)
def test_an_empty_image_without_an_answer_is_named_with_the_way_out(small_cnn, blobs, weighting, targets, instead):
    model, images = StandardizesEachImage(small_cnn()), blobs(2, 24, 24)
    for call in (ScoreCAM(weighting), ScoreCAM(weighting).check):
        with pytest.raises(ValueError, match=f"image that is 0 everywhere.*weighting='{instead}'"):
            call(model, images, None, targets)
    assert not ScoreCAM(instead)(model, images, None, targets).skipped.any()


class TakesBatch(nn.Module):
    def __init__(self, network, read):
        super().__init__()
        self.network, self.read = network, read

    def forward(self, batch):
        return self.network(self.read(batch))


class ByName(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *, pixels):
        return self.network(pixels)


@pytest.mark.parametrize(
    ("wrap", "advice"),
    [
        (ByName, "lambda model, images: model(pixels=images)"),
        (lambda network: TakesBatch(network, lambda x: x["image"]), "lambda model, images: model({'image': images})"),
        (lambda network: TakesBatch(network, lambda x: x.get("x") if "x" in x else x["x"]), "model({'x': images})"),
    ],
    ids=["keyword", "mapping", "asked first"],
)
@pytest.mark.parametrize("method", METHODS[:2])
def test_a_forward_of_another_form_is_told_how_to_be_called(small_cnn, blobs, wrap, advice, method):
    model, images = wrap(small_cnn()), blobs(3, 24, 24)
    with pytest.raises(TypeError) as error:
        method(model, images)
    assert advice in str(error.value)
    forward_fn = eval(advice if advice.startswith("lambda") else f"lambda model, images: {advice}")
    assert not method(model, images, forward_fn=forward_fn).skipped.any()
