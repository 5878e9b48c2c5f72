"""Our Grad-CAM and CAM against grad-cam's, torchcam's and captum's, on the same models, layers, images and classes."""

import cv2
import pytest
import torch
import torchcam.methods
import torchvision.models
from torch import nn

from cam_callbacks import CAM, GradCAM, HiResCAM, LayerCAM

LAYERS = {"resnet18": "layer4", "squeezenet1_1": "features", "mobilenet_v2": "features.13", "vgg11": "features.20"}


def correlation(a, b):
    """Pearson correlation of each map (N, ...) with its counterpart."""
    pairs = zip(a.detach().flatten(1).double(), b.detach().flatten(1).double(), strict=True)
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])


@pytest.fixture(scope="module", params=LAYERS)
def model(request):
    """A network with random weights, without in-place operations, which the peers do not survive; and its layer."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(request.param, num_classes=10).eval()
    for module in network.modules():
        if isinstance(module, (nn.ReLU, nn.ReLU6)):
            module.inplace = False
    return network, LAYERS[request.param]


@pytest.fixture(scope="module")
def images():
    draw = torch.Generator().manual_seed(0)
    return nn.functional.interpolate(torch.randn(2, 3, 8, 8, generator=draw), (64, 64), mode="bilinear")


@pytest.fixture(scope="module")
def explanation(model, images):
    return GradCAM()(model[0], images, model[1])


def test_grad_cam_is_that_of_captum(model, images, explanation):
    from captum.attr import LayerGradCam

    network, layer = model
    theirs = LayerGradCam(network, network.get_submodule(layer)).attribute(
        images, explanation.targets, relu_attributions=True
    )
    assert (correlation(explanation.layer_maps, theirs) > 0.9999).all()


def test_grad_cam_is_that_of_torchcam(model, images, explanation):
    network, layer = model
    with torchcam.methods.GradCAM(network, layer) as extract:
        theirs = extract(explanation.targets.tolist(), network(images), normalized=False)[0]
    assert (correlation(explanation.layer_maps, theirs) > 0.9999).all()


def test_grad_cam_is_that_of_grad_cam(model, images, explanation):
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network, layer = model
    with pytorch_grad_cam.GradCAM(network, [network.get_submodule(layer)]) as extract:
        theirs = torch.from_numpy(
            extract(images, [ClassifierOutputTarget(target) for target in explanation.targets.tolist()])
        )
    # Theirs is at the resolution of the images, resized by OpenCV.
    ours = torch.stack([torch.from_numpy(cv2.resize(each.numpy(), (64, 64))) for each in explanation.layer_maps])
    assert (correlation(ours, theirs) > 0.9999).all()
    assert (correlation(explanation.heatmaps, theirs) > 0.9999).all()


@pytest.mark.parametrize("ours", [HiResCAM, LayerCAM])
@pytest.mark.parametrize("layer", ["layer2", "layer4"])
def test_gradients_of_positions_weigh_as_those_of_grad_cam(images, ours, layer):
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10).eval()
    explanation = ours()(network, images, layer, [3, 7])
    theirs = getattr(pytorch_grad_cam, ours.__name__)
    with theirs(network, [network.get_submodule(layer)]) as extract:
        maps = torch.from_numpy(extract(images, [ClassifierOutputTarget(target) for target in (3, 7)]))
    assert (correlation(explanation.heatmaps, maps) > 0.9999).all()


@pytest.mark.parametrize("layers", [["layer3"], ["layer2", "layer4"]])
def test_layercam_is_that_of_torchcam(images, layers):
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10).eval()
    ours = LayerCAM()(network, images, layers, [3, 7])
    with torchcam.methods.LayerCAM(network, layers) as extract:
        theirs = extract([3, 7], network(images), normalized=False)
    if len(layers) == 1:
        assert (correlation(ours.layer_maps, theirs[0]) > 0.9999).all()
    else:  # theirs shifts each map to a smallest value of 0 first
        fused = torchcam.methods.LayerCAM.fuse_cams([each / each.amax(dim=(1, 2), keepdim=True) for each in theirs])
        assert (correlation(ours.layer_maps, fused) > 0.9999).all()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mnasnet0_5"])
def test_cam_is_that_of_torchcam(name, images):
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, num_classes=10).eval()
    ours = CAM()(network, images)
    linear = [each for each, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    with torchcam.methods.CAM(network, ours.target_layer, fc_layer=linear) as extract, torch.no_grad():
        network(images)
        theirs = extract(ours.targets.tolist(), normalized=False)[0].relu()
    assert (correlation(ours.layer_maps, theirs) > 0.9999).all()
