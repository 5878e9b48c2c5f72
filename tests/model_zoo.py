"""Well-known models: the layer chosen in each, and the methods that explain it; `docs/models.md` is made from it.

Importing this imports none of the libraries that the models come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

METHODS = ("Score-CAM", "Grad-CAM", "CAM")
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
        layer: The layer that is chosen where none is named.
        build: Builds it.
        size: Spatial size of the images.
        segmented: The class that is explained at one position of a segmentation; None if the predicted class is.
        refused: Why a method cannot explain it, a phrase of the error, by the method's name.
        layers: The layer that a method chooses instead, by the method's name.
        seed: Of the random weights; one with which no heatmap is blank. In a network that is not trained the weighted
            sum of the channels may be negative everywhere.
    """

    library: str
    name: str
    layer: str
    build: Callable[[], nn.Module]
    size: tuple[int, ...] = (64, 64)
    segmented: int | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.library}-{self.name}"


def _torchvision(name: str, layer: str, no_cam: str | None = None, **known: Any) -> Entry:
    options = known.pop("options", {})

    def build() -> nn.Module:
        from torchvision import models

        return models.get_model(name, num_classes=CLASSES, **options)

    return Entry("torchvision", name, layer, build, refused=_no_cam(no_cam), **known)


def _segmentation(name: str, layer: str, class_index: int, **options: Any) -> Entry:
    """A segmentation model, explained at one position."""
    options = {"weights_backbone": None, **options}
    return _torchvision(name, layer, NO_CLASSES, segmented=class_index, options=options)


def _timm(name: str, layer: str, no_cam: str | None = None, **known: Any) -> Entry:
    options = known.pop("options", {})

    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=CLASSES, **options)

    return Entry("timm", name, layer, build, refused=_no_cam(no_cam), **known)


def _no_cam(reason: str | None) -> dict[str, str]:
    return {} if reason is None else {"CAM": reason}


def _vit_b_16() -> nn.Module:
    """torchvision starts the weights of the head at 0, so that no heatmap of it has contrast: here they are drawn."""
    from torch import nn
    from torchvision import models

    network = models.vit_b_16(num_classes=CLASSES, image_size=64)
    nn.init.normal_(network.heads.head.weight, std=0.02)
    return network


def _maxvit_t() -> nn.Module:
    """For smaller images than `maxvit_t` takes, and with windows that fit them."""
    from torchvision import models

    return models.MaxVit((64, 64), 64, 2, [64, 128, 256, 512], [2, 2, 5, 2], 32, 0.2, num_classes=CLASSES)


def _hugging_face() -> nn.Module:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=64,
        patch_size=8,
        num_labels=CLASSES,
    )
    return transformers.ViTForImageClassification(config)


ZOO = (
    _torchvision("alexnet", "features.11", HIDDEN_LAYERS.format(3)),
    _torchvision("vgg16", "features.29", HIDDEN_LAYERS.format(3), options={"init_weights": False}),
    _torchvision("squeezenet1_1", "features", layers={"CAM": "classifier.2"}),
    _torchvision("googlenet", "inception5b", options={"init_weights": False}),
    _torchvision("inception_v3", "Mixed_7c", size=(128, 128), options={"init_weights": False}),
    _torchvision("resnet18", "layer4"),
    _torchvision("resnet50", "layer4"),
    _torchvision("resnext50_32x4d", "layer4"),
    _torchvision("wide_resnet50_2", "layer4"),
    _torchvision("mobilenet_v2", "features"),
    _torchvision("mobilenet_v3_small", "features", HIDDEN_LAYERS.format(2)),
    _torchvision("densenet121", "features"),
    _torchvision("efficientnet_b0", "features"),
    _torchvision("convnext_tiny", "features", NOT_THE_MEAN, seed=6),
    _torchvision("shufflenet_v2_x1_0", "conv5"),
    _torchvision("mnasnet1_0", "layers"),
    _torchvision("regnet_y_400mf", "trunk_output"),
    Entry("torchvision", "vit_b_16", "encoder.layers.encoder_layer_11.ln_1", _vit_b_16, refused=_no_cam(NOT_THE_MEAN)),
    _torchvision("swin_t", "norm"),
    Entry("torchvision", "maxvit_t", "blocks.3", _maxvit_t, refused=_no_cam(HIDDEN_LAYERS.format(2)), seed=6),
    _segmentation("fcn_resnet50", "classifier.2", 0, aux_loss=True),
    _segmentation("deeplabv3_resnet50", "classifier.3", 3, aux_loss=True),
    _segmentation("lraspp_mobilenet_v3_large", "classifier.cbr", 1),
    _torchvision("r3d_18", "layer4", size=(16, 32, 32)),
    _timm("resnet18", "layer4"),
    _timm("convnext_atto", "stages", NOT_THE_MEAN),
    _timm("vit_tiny_patch16_224", "blocks.11.norm1", NOT_THE_MEAN, options={"img_size": 64}),
    _timm("swin_tiny_patch4_window7_224", "norm", options={"img_size": 64}),
    _timm("efficientformer_l1", "norm", TWO_HEADS, size=(224, 224)),
    Entry(
        "transformers",
        "ViTForImageClassification",
        "vit.layers.2.layernorm_before",
        _hugging_face,
        refused=_no_cam(NOT_THE_MEAN),
    ),
)
