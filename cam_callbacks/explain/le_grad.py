"""LeGrad: how sensitive each block's answer is to its attention (Bousselham et al. 2024, arXiv 2404.03214)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cam_callbacks.explain import layers, progress
from cam_callbacks.explain.attention_blocks import Blocks, NoBlocksError, attentions, find_blocks
from cam_callbacks.explain.forward_pass import ForwardPass, gradients_of
from cam_callbacks.explain.gradient_method import GradientMethod
from cam_callbacks.explain.method import LayerMap
from cam_callbacks.explain.network import Network, TargetLayer
from cam_callbacks.explain.targets import Targets


@dataclass(frozen=True)
class LeGrad(GradientMethod):
    r"""LeGrad, for vision transformers: which tokens a class would have each block attend to more.

    Z_l are the tokens after block l and A_l the attention matrices in it, (heads, queries, keys). The score s_l of a
    class is what the model answers if it goes on from Z_l with what follows its last block: norm, pooling and head.

        E_l  = mean over heads and queries of ReLU(ds_l / dA_l)
        heat = mean over all blocks of E_l,   at the keys that are patches

    then upsampled and scaled to [0, 1] for each image (section 3 of the paper). It takes one forward pass and, for each
    block, another one with a backward pass through that block only.

    The pooling is that of the model: where it reads the class token, only the row of that token in each matrix has a
    gradient. The authors' code for CLIP reads the mean of all tokens instead. Where one attention pools the tokens, as
    in SigLIP, A_l is its matrix instead of that in the block, as in the authors' code.

    `target_layer` names the blocks that are read, one or several; None reads all of them. Found are blocks of models
    that are not changed for it, with fused attention or not, such as the ViTs of timm, torchvision and Hugging Face.

    Settings are those of `GradCAM`.

    Raises:
        ValueError: The model has no blocks that attend among all tokens, such as a CNN or Swin, which attends in
            windows; a `target_layer` that is not one of the blocks; or as for `GradCAM`.

    Example::

        from torchvision.models import VisionTransformer
        from cam_callbacks import LeGrad

        model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
        torch.nn.init.normal_(model.heads.head.weight)  # torchvision begins with 0
        explanation = LeGrad()(model, torch.rand(2, 3, 32, 32), targets=[3, 7])
        explanation.heatmaps.shape  # (2, 32, 32)
    """

    name: ClassVar[str] = "LeGrad"

    def forward_pass(self, network: Network, target_layer: TargetLayer, targets: Targets) -> ForwardPass:  # noqa: D102
        blocks = find_blocks(network.model, network.images[:1], network.try_run, network.outputs.columns)
        names = blocks.names if target_layer is None else network.layer_names(target_layer)
        for name in names:
            if layers.find(network.model, name) not in blocks.modules:
                raise ValueError(
                    f"target_layer={name!r} is not a block of {type(network.model).__name__}; LeGrad reads "
                    f"{', '.join(map(repr, blocks.names))}, all of them if target_layer is left out"
                )
        found = network.forward_pass(names, targets, self.score)
        tokens = tuple(_tokens(network, blocks, layer) for layer in found.readers)
        return _Attended(**vars(found), blocks=blocks, tokens=tokens)

    def layer_map(self, network: Network, forward_pass: ForwardPass, layer: int) -> LayerMap:  # noqa: D102
        assert isinstance(forward_pass, _Attended)
        parts: list[Tensor] = []

        def read(chunk: slice) -> None:
            parts.append(network.ranks.agreed(_sensitivity(network, forward_pass, layer, chunk)))
            progress.advance(chunk.stop - chunk.start)

        progress.expect(len(network.images))
        network.in_chunks(len(network.images), read)
        maps = torch.cat(parts)
        passes = torch.ones(len(maps), dtype=torch.int64, device=maps.device)
        return LayerMap(maps, passes, torch.zeros(maps.shape[:2], device=maps.device))

    def fused(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the mean of the blocks' maps, as they are; all have the same positions."""
        return torch.stack(list(maps)).mean(dim=0)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Attended(ForwardPass):
    """A forward pass of a transformer.

    Attributes:
        blocks: All of its blocks.
        tokens: Of each layer, which token is at each position, (*spatial) int64.
    """

    blocks: Blocks
    tokens: tuple[Tensor, ...]


def _tokens(network: Network, blocks: Blocks, layer: layers.ReadLayer) -> Tensor:
    """Return which token is at each position, (*spatial) int64.

    Raises:
        NoBlocksError: Tokens lie along several dimensions, or are not those that are attended to.
    """
    places = torch.arange(blocks.shape.numel(), device=network.images.device).view(blocks.shape)
    at = torch.unravel_index(layer.to_maps(places)[0, 0], blocks.shape)
    along = [dimension for dimension, index in enumerate(at) if index.amin() < index.amax()]
    if len(along) != 1 or blocks.shape[along[0]] != blocks.keys:
        raise NoBlocksError(
            network.model,
            f"blocks put out {tuple(blocks.shape)} for one image, but each attends to {blocks.keys} tokens",
        )
    return at[along[0]]


def _sensitivity(network: Network, forward_pass: _Attended, layer: int, chunk: slice) -> Tensor:
    """Return the map E_l of one block for a chunk of n images, (n, T, *spatial) float32."""
    blocks, rows = forward_pass.blocks, network.rows[chunk]
    block = layers.find(network.model, forward_pass.layers[layer])
    images = network.images[chunk].clone()
    if images.is_floating_point():  # so that parts that are frozen have gradients, too
        images.requires_grad_()
    with torch.enable_grad(), blocks.ending_at(block) as ending:
        scores = forward_pass.reader.read(network.first_run(images, rows), rows)
        read = attentions(scores, ending.edge) if blocks.is_pooled else ending.inside
        is_half = ending.tokens is not None and ending.tokens.dtype == torch.float16
        by_attention = gradients_of(scores, [attention.edge for attention in read], is_half)
    maps = []
    for gradient in by_attention[0]:
        matrix = read[0].of_matrix(gradient).detach()  # (n, heads, queries, keys), or (n*heads, queries, keys)
        sensitivity = matrix.relu().reshape(len(images), -1, blocks.keys).mean(dim=1)
        maps.append(sensitivity[:, forward_pass.tokens[layer]])  # (n, keys) -> (n, *spatial)
    return torch.stack(maps, dim=1)
