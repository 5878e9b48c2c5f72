"""Our Score-CAM against torchcam's and grad-cam's, on the same models, layers, images and classes.

Both peers weight by the softmax over channels of the logit of the class, which is our `"logit-softmax"`, and both
deviate from the paper in how they make a mask. Each deviation is repaired in one line here; nothing else is touched:

- torchcam scales an activation to [0, 1] *before* it upsamples it, so that a mask may not reach 0 and 1. Scaling once
  more after its upsampling repairs that: both steps are affine, so the first of them then has no effect.
- grad-cam upsamples masks with `align_corners=True`, which shifts them against the image by up to half a cell.

Repaired, they must agree with us to rounding. Three more differences need no repair. Both give dead channels, which we
leave out, a share of the softmax; the dead ones here are 0 everywhere, so that this scales a map and leaves the
correlation. Both guard divisions by adding 1e-7 or 1e-8. Both read an activation after it was changed in place; no
in-place operation follows the layers here.
"""

import functools

import pytest
import torch
import torch.nn.functional as F
import torchcam.methods
import torchvision.models
from packaging.version import Version
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from cam_callbacks import ScoreCAM

BATCH_SIZE = 256
"""The same for all engines, and large, because a shared machine is slow with many small calls."""

exact = functools.partial(ScoreCAM, tolerance=0, batch_size=BATCH_SIZE)

LAYERS = {"resnet18": "layer2", "squeezenet1_1": "features.7", "mobilenet_v2": "features.13"}


class ScalesMasksLast(torchcam.methods.ScoreCAM):
    """The torchcam engine, with masks that are scaled to [0, 1] after they are upsampled."""

    def _upsample(self, activation):
        return self._normalize(super()._upsample(activation), spatial_dims=2)


repairable = pytest.mark.skipif(
    Version(torchcam.__version__) < Version("0.5"), reason="needs torchcam 0.5, where upsampling is a method of its own"
)


def torchcam_raw(engine, network, layer, images, targets):
    """Its map at layer resolution, before it is scaled."""
    with engine(network, network.get_submodule(layer), batch_size=BATCH_SIZE) as extract, torch.no_grad():
        network(images)
        return extract(targets.tolist(), normalized=False)[0]


def grad_cam_heatmaps(network, layer, images, targets):
    """Its map at the resolution of the images, scaled to [0, 1]; OpenCV resizes it by the same rule as we do."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with pytorch_grad_cam.ScoreCAM(network, [network.get_submodule(layer)]) as extract:
        extract.batch_size = BATCH_SIZE
        return torch.from_numpy(extract(images, [ClassifierOutputTarget(target) for target in targets.tolist()]))


@pytest.fixture
def half_pixel_masks(monkeypatch):
    """Take `align_corners=True` out of the masks of grad-cam."""
    monkeypatch.setattr(nn, "UpsamplingBilinear2d", lambda size: nn.Upsample(size=size, mode="bilinear"))


def correlation(first, second):
    """Pearson's, of each pair of maps."""
    first, second = (maps.flatten(1).double() for maps in (first, second))
    first, second = (maps - maps.mean(dim=1, keepdim=True) for maps in (first, second))
    return F.cosine_similarity(first, second, dim=1)


def assert_the_weights_matter(network, images, explanation):
    """A map near the plain mean of the activations could not tell one engine from another."""
    activations = []
    hook = network.get_submodule(explanation.target_layer).register_forward_hook(
        lambda _module, _inputs, output: activations.append(output.detach().clone())
    )
    with torch.no_grad():
        network(images)
    hook.remove()
    assert (correlation(explanation.layer_maps, activations[0].mean(dim=1)) < 0.99).all()


@pytest.fixture(scope="module", params=LAYERS)
def case(request):
    """A torchvision model with random weights, two images, and our explanation of their predicted classes."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(request.param, num_classes=10)
    images = F.interpolate(torch.randn(2, 3, 6, 6), size=(48, 48), mode="bilinear") + 0.3 * torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        # One pass in training gives the batch norms statistics that keep activations in range.
        for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.momentum = 1.0
        network.train()(F.interpolate(torch.randn(16, 3, 6, 6), size=(48, 48), mode="bilinear"))
        network.eval()
        # Logits that spread by 5 make the softmax over channels choose among them.
        head = [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
        head.weight.mul_(5 / network(images).std())
    explanation = exact("logit-softmax")(network, images, LAYERS[request.param])
    assert_the_weights_matter(network, images, explanation)
    return network, LAYERS[request.param], images, explanation


@repairable
def test_agrees_with_torchcam_once_it_scales_masks_last(case):
    network, layer, images, explanation = case
    theirs = torchcam_raw(ScalesMasksLast, network, layer, images, explanation.targets)
    assert (correlation(theirs, explanation.layer_maps) > 0.99999).all()


@pytest.mark.usefixtures("half_pixel_masks")
def test_agrees_with_grad_cam_once_its_masks_are_not_shifted(case):
    network, layer, images, explanation = case
    theirs = grad_cam_heatmaps(network, layer, images, explanation.targets)
    assert (correlation(theirs, explanation.heatmaps) > 0.99999).all()
    torch.testing.assert_close(theirs, explanation.heatmaps, atol=1e-3, rtol=0)


PHOTO = "225_n02105162_malinois.jpg"


@pytest.fixture(scope="module")
def photo(data_folder):
    """SqueezeNet with its ImageNet weights, a photo that it knows, and our explanation of it."""
    network = torchvision.models.squeezenet1_1()
    weights = torch.load(data_folder / "weights" / "squeezenet1_1_imagenet_fp16.pth", weights_only=True)
    network.load_state_dict({name: weight.float() for name, weight in weights.items()})
    prepare = v2.Compose(
        [
            v2.Resize(72),
            v2.CenterCrop(72),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    images = prepare(Image.open(data_folder / "imagenet-sample" / PHOTO).convert("RGB")).unsqueeze(0)
    explanation = exact("logit-softmax")(network.eval(), images, "features")
    assert explanation.targets.tolist() == [225]
    assert_the_weights_matter(network, images, explanation)
    return network, images, explanation


@repairable
def test_agrees_with_torchcam_on_a_photo_and_trained_weights(photo):
    network, images, explanation = photo
    theirs = torchcam_raw(ScalesMasksLast, network, "features", images, explanation.targets)
    assert (correlation(theirs, explanation.layer_maps) > 0.99999).all()


@pytest.mark.usefixtures("half_pixel_masks")
def test_agrees_with_grad_cam_on_a_photo_and_trained_weights(photo):
    network, images, explanation = photo
    theirs = grad_cam_heatmaps(network, "features", images, explanation.targets)
    assert (correlation(theirs, explanation.heatmaps) > 0.99999).all()


def test_is_near_torchcam_as_it_comes_on_a_photo_and_trained_weights(photo):
    network, images, explanation = photo
    theirs = torchcam_raw(torchcam.methods.ScoreCAM, network, "features", images, explanation.targets)
    assert (correlation(theirs, explanation.layer_maps) > 0.99).all()
