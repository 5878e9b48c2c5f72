"""Well-known models: the layer chosen in each, and the methods that explain it; `docs/models.md` is made from it.

Importing this imports none of the libraries that the models come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

METHODS = ("Recipro-CAM", "Score-CAM", "Grad-CAM", "CAM")
CLASSES = 5

HIDDEN_LAYERS = "{} fully connected layers"
NOT_THE_MEAN = "the input of the linear layer is not the spatial mean"
TWO_HEADS = HIDDEN_LAYERS.format(2)
NO_CLASSES = "CAM explains classes and RegressionTarget"


@dataclass(frozen=True)
class Entry:
    """A model with random weights, and what is known of it.

    Attributes:
        library: Where it is from.
        name: What it is called there.
        layer: The layer that is chosen where none is named, for images of the usual size.
        small_layer: The same for small images.
        build: Builds it for images of a spatial size.
        size: Spatial size of small images.
        usual_size: The usual spatial size.
        enough: A smaller size for which the same layer is chosen for the same reason, where the usual one costs much.
        segmented: The class that is explained at one position of a segmentation; None if the predicted class is.
        refused: Why a method cannot explain it, a phrase of the error, by the method's name.
        layers: The layer that a method chooses instead, by the method's name.
        is_sized: Whether it is built for images of one size; else one network takes images of all sizes.
        seed: Of the random weights; one with which no heatmap is blank. In a network that is not trained the weighted
            sum of the channels may be negative everywhere.
    """

    library: str
    name: str
    layer: str
    small_layer: str
    build: Callable[[tuple[int, ...]], nn.Module]
    size: tuple[int, ...] = (64, 64)
    usual_size: tuple[int, ...] = (224, 224)
    enough: tuple[int, ...] | None = None
    segmented: int | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    is_sized: bool = False
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.library}-{self.name}"


def _torchvision(name: str, layer: str, small_layer: str, no_cam: str | None = None, **known: Any) -> Entry:
    options = known.pop("options", {})

    def build(_size: tuple[int, ...]) -> nn.Module:
        from torchvision import models

        return models.get_model(name, num_classes=CLASSES, **options)

    return Entry("torchvision", name, layer, small_layer, build, refused=_no_cam(no_cam), **known)


def _segmentation(
    name: str, layer: str, small_layer: str, class_index: int, aux_loss: bool = False, **known: Any
) -> Entry:
    """A segmentation model, explained at one position."""
    options = {"weights_backbone": None} | ({"aux_loss": True} if aux_loss else {})
    return _torchvision(name, layer, small_layer, NO_CLASSES, segmented=class_index, options=options, **known)


def _timm(name: str, layer: str, small_layer: str, no_cam: str | None = None, **known: Any) -> Entry:
    is_sized = known.get("is_sized", False)

    def build(size: tuple[int, ...]) -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=CLASSES, **({"img_size": size[0]} if is_sized else {}))

    return Entry("timm", name, layer, small_layer, build, refused=_no_cam(no_cam), **known)


def _no_cam(reason: str | None) -> dict[str, str]:
    return {} if reason is None else {"CAM": reason}


def _with_narrow_head(name: str) -> Callable[[tuple[int, ...]], nn.Module]:
    """A network that has most of its weights in three linear layers: here these have 64 channels, to be built fast."""

    def build(_size: tuple[int, ...]) -> nn.Module:
        import torch
        from torch import nn
        from torchvision import models

        with torch.device("meta"):
            network = models.get_model(name)
        first, second, last = (place for place, each in enumerate(network.classifier) if isinstance(each, nn.Linear))
        network.classifier[first] = nn.Linear(network.classifier[first].in_features, 64)
        network.classifier[second] = nn.Linear(64, 64)
        network.classifier[last] = nn.Linear(64, CLASSES)
        network.features.to_empty(device="cpu")
        for each in network.features:
            if isinstance(each, nn.Conv2d):
                each.reset_parameters()
        return network

    return build


def _vit_b_16(size: tuple[int, ...]) -> nn.Module:
    """torchvision starts the weights of the head at 0, so that no heatmap of it has contrast: here they are drawn."""
    from torch import nn
    from torchvision import models

    network = models.vit_b_16(num_classes=CLASSES, image_size=size[0])
    nn.init.normal_(network.heads.head.weight, std=0.02)
    return network


def _maxvit_t(size: tuple[int, ...]) -> nn.Module:
    """`maxvit_t` takes images of 224 pixels only; this one is for others, with windows that fit them, and smaller."""
    from torchvision import models

    return models.MaxVit(size, 32, size[0] // 32, [32, 64, 128, 256], [2, 2, 2, 2], 32, 0.2, num_classes=CLASSES)


def _hugging_face(size: tuple[int, ...]) -> nn.Module:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=size[0],
        patch_size=8,
        num_labels=CLASSES,
    )
    return transformers.ViTForImageClassification(config)


_STRIDE_32 = (192, 192)
"""Images of which a layer with a stride of 32 has 6 x 6 positions: as many as are needed to be chosen."""
_STRIDE_16 = (96, 96)
"""The same for a stride of 16."""
_VIT_B_16 = "encoder.layers.encoder_layer_11.ln_1"
_VIT_OF_HUGGING_FACE = "vit.layers.2.layernorm_before"

ZOO = (
    Entry(
        "torchvision",
        "alexnet",
        "features.11",
        "features.4",
        _with_narrow_head("alexnet"),
        refused=_no_cam(HIDDEN_LAYERS.format(3)),
    ),
    Entry(
        "torchvision",
        "vgg16",
        "features.29",
        "features.22",
        _with_narrow_head("vgg16"),
        enough=_STRIDE_16,
        refused=_no_cam(HIDDEN_LAYERS.format(3)),
    ),
    _torchvision("squeezenet1_1", "features", "features.7", layers={"CAM": "classifier.2"}),
    _torchvision(
        "inception_v3",
        "Mixed_7c",
        "Mixed_6e",
        size=(128, 128),
        usual_size=(299, 299),
        enough=(235, 235),
        options={"init_weights": False},
    ),
    _torchvision("resnet18", "layer4", "layer2"),
    _torchvision("resnet50", "layer4", "layer2", enough=_STRIDE_32),
    _torchvision("resnext50_32x4d", "layer4", "layer2", enough=_STRIDE_32),
    _torchvision("mobilenet_v2", "features", "features.7.conv.0"),
    _torchvision("mobilenet_v3_small", "features", "features.4.block.0", HIDDEN_LAYERS.format(2), seed=1),
    _torchvision("densenet121", "features", "features.transition2.conv", enough=_STRIDE_32),
    _torchvision("efficientnet_b0", "features", "features.4.0.block.0"),
    _torchvision("convnext_tiny", "features", "features.4.0", NOT_THE_MEAN, enough=_STRIDE_32, seed=6),
    _torchvision("shufflenet_v2_x1_0", "conv5", "stage2"),
    _torchvision("regnet_y_400mf", "trunk_output", "trunk_output.block2"),
    Entry(
        "torchvision",
        "vit_b_16",
        _VIT_B_16,
        _VIT_B_16,
        _vit_b_16,
        enough=_STRIDE_16,
        refused=_no_cam(NOT_THE_MEAN),
        is_sized=True,
    ),
    _torchvision("swin_t", "features.7.0", "features.3", enough=_STRIDE_32, layers={"CAM": "norm"}),
    Entry(
        "torchvision",
        "maxvit_t",
        "blocks.3",
        "blocks.1",
        _maxvit_t,
        enough=_STRIDE_32,
        refused=_no_cam(HIDDEN_LAYERS.format(2)),
        is_sized=True,
        seed=1,
    ),
    _segmentation("deeplabv3_resnet50", "classifier.3", "classifier.3", 3, aux_loss=True, enough=_STRIDE_16),
    _segmentation("lraspp_mobilenet_v3_large", "backbone.4", "backbone.4", 1, seed=1),
    _torchvision(
        "r3d_18",
        "layer3",
        "layer2",
        size=(8, 32, 32),
        usual_size=(16, 112, 112),
        enough=(16, 64, 64),
        layers={"CAM": "layer4"},
    ),
    _timm("convnext_atto", "stages", "stages.2.downsample.0", NOT_THE_MEAN),
    _timm("vit_tiny_patch16_224", "blocks.11.norm1", "blocks.11.norm1", NOT_THE_MEAN, is_sized=True),
    _timm(
        "swin_tiny_patch4_window7_224",
        "layers.3.blocks.0",
        "layers.2.blocks.4",
        is_sized=True,
        size=(112, 112),
        layers={"CAM": "norm"},
    ),
    _timm("efficientformer_l1", "norm", "norm", TWO_HEADS, size=(224, 224)),
    Entry(
        "transformers",
        "ViTForImageClassification",
        _VIT_OF_HUGGING_FACE,
        _VIT_OF_HUGGING_FACE,
        _hugging_face,
        refused=_no_cam(NOT_THE_MEAN),
        is_sized=True,
    ),
)
