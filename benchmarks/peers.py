"""Heatmaps of other libraries, and of two methods that no library has, for the table of faithfulness.

- gScoreCAM (Chen et al. 2022, ACCV): Score-CAM with the channels of largest mean gradient only, here a tenth of them.
- Group-CAM (Zhang et al. 2021, arXiv 2103.13859): Grad-CAM's weighted channels in 32 groups; each group's sum, without
  what is below its 70th percentile, is a mask, and weighs what it raises the logit over that of the blurred image.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Explain = Callable[[Tensor], tuple[Tensor, list[int]]]
"""Gives the heatmaps (N, H, W) of classes (N,), and the forward samples that each image took."""

GROUPS = 32
SHARE = 0.1
AT_ONCE = 64


def peers(network: nn.Module, layer: str, images: Tensor) -> dict[str, Explain]:
    """All of them."""
    found = {f"{name} (pytorch-grad-cam)": _grad_cam(name, network, layer, images) for name in ("LayerCAM", "ScoreCAM")}
    found["Grad-CAM++ (pytorch-grad-cam)"] = _grad_cam("GradCAMPlusPlus", network, layer, images)
    found["Score-CAM (torchcam)"] = _torchcam("ScoreCAM", network, layer, images)
    found["gScoreCAM"] = _each(_gscore_cam, network, layer, images)
    found["Group-CAM"] = _each(_group_cam, network, layer, images)
    return found


def _grad_cam(name: str, network: nn.Module, layer: str, images: Tensor) -> Explain:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    theirs = copy.deepcopy(network)  # it keeps hooks on what it is given
    method = getattr(pytorch_grad_cam, name)(theirs, [theirs.get_submodule(layer)])
    method.batch_size = AT_ONCE

    def explain(classes: Tensor) -> tuple[Tensor, list[int]]:
        maps = torch.as_tensor(method(images, [ClassifierOutputTarget(each) for each in classes.tolist()]))
        channels = method.activations_and_grads.activations[0].shape[1] if name == "ScoreCAM" else 0
        return maps, [1 + channels] * len(images)

    return explain


def _torchcam(name: str, network: nn.Module, layer: str, images: Tensor) -> Explain:
    import torchcam.methods

    theirs = copy.deepcopy(network)

    def explain(classes: Tensor) -> tuple[Tensor, list[int]]:
        with getattr(torchcam.methods, name)(theirs, layer, batch_size=AT_ONCE) as extractor:
            scores = theirs(images)
            maps = extractor(classes.tolist(), scores)[0]
            channels = extractor.hook_a[0].shape[1]
        large = F.interpolate(maps[:, None].float().cpu(), images.shape[2:], mode="bilinear")[:, 0]
        return large, [1 + channels] * len(images)

    return explain


def _each(method: Callable[..., tuple[Tensor, int]], network: nn.Module, layer: str, images: Tensor) -> Explain:
    """One image after the other: its activations, their gradient, and a function from masked images to logits."""

    def explain(classes: Tensor) -> tuple[Tensor, list[int]]:
        maps, passes = [], []
        for image, target in zip(images.split(1), classes.tolist(), strict=True):
            own, count = method(image, *_activations(network, layer, image, target), _logit(network, target))
            maps.append(F.interpolate(own[None, None], image.shape[2:], mode="bilinear")[0, 0].cpu())
            passes.append(1 + count)
        return torch.stack(maps), passes

    return explain


def _activations(network: nn.Module, layer: str, image: Tensor, target: int) -> tuple[Tensor, Tensor]:
    kept: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        with torch.enable_grad():
            logit = network(image.clone().requires_grad_())[0, target]
            gradient = torch.autograd.grad(logit, kept[0])[0]
    finally:
        handle.remove()
    return kept[0][0].detach(), gradient[0]


def _logit(network: nn.Module, target: int) -> Callable[[Tensor], Tensor]:
    def logit(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([network(part)[:, target] for part in images.split(AT_ONCE)])

    return logit


def _gscore_cam(
    image: Tensor, activations: Tensor, gradient: Tensor, logit: Callable[[Tensor], Tensor]
) -> tuple[Tensor, int]:
    count = round(SHARE * len(activations))
    chosen = activations[gradient.mean(dim=(1, 2)).topk(count).indices]
    weights = logit(image * _masks(chosen, image)).softmax(dim=0)
    return torch.tensordot(weights, chosen, dims=1).relu(), count


def _group_cam(
    image: Tensor, activations: Tensor, gradient: Tensor, logit: Callable[[Tensor], Tensor]
) -> tuple[Tensor, int]:
    weighted = activations * gradient.mean(dim=(1, 2), keepdim=True)
    groups = torch.stack([part.sum(dim=0) for part in weighted.tensor_split(GROUPS)]).relu()
    least = groups.flatten(1).quantile(0.7, dim=1).view(-1, 1, 1)
    groups = torch.where(groups >= least, groups, 0)
    masks = _masks(groups, image)
    blurred = _blurred(image)
    weights = (logit(image * masks + blurred * (1 - masks)) - logit(blurred)).relu()
    return torch.tensordot(weights, groups, dims=1), len(groups) + 1


def _masks(maps: Tensor, image: Tensor) -> Tensor:
    """Enlarge maps (K, h, w), and scale each to [0, 1]: (K, 1, H, W)."""
    large = F.interpolate(maps.unsqueeze(1), image.shape[2:], mode="bilinear")
    low, high = (part(dim=(1, 2, 3), keepdim=True) for part in (large.amin, large.amax))
    return (large - low) / (high - low).clamp_min(1e-8)


def _blurred(image: Tensor, sigma: float = 50.0, window: int = 51) -> Tensor:
    """Blur as its authors do, by a Gaussian of 51 x 51."""
    at = torch.arange(window, device=image.device) - window // 2
    kernel = torch.exp(-at.float().square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    half = window // 2
    wide = F.pad(image.transpose(0, 1), [half] * 4, mode="reflect")
    return F.conv2d(F.conv2d(wide, kernel), kernel.transpose(2, 3)).transpose(0, 1)
