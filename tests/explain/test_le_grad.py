"""LeGrad is the formula of its paper, however a transformer computes its attention, and refuses what it cannot read."""

import pytest
import torch
import torch.nn.functional as F
from states import state_of
from torch import nn
from torchvision import models

from cam_callbacks import LeGrad, RegressionTarget

KINDS = ["fused", "matrix", "module", "module with weights", "frozen module"]
POOLS = ["class token", "mean", "attention"]
DIM, HEADS = 16, 2


class Block(nn.Module):
    """A pre-norm block; `kind` is how it computes its attention."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.norm = nn.LayerNorm(DIM)
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 32), nn.GELU(), nn.Linear(32, DIM))

    def forward(self, tokens):
        normed = self.norm(tokens)
        if "module" in self.kind:
            mixed, _ = self.attention(normed, normed, normed, need_weights="weights" in self.kind)
            return self.finish(tokens, mixed)
        if self.kind == "fused":
            return self.after(tokens, F.scaled_dot_product_attention(*self.parts(tokens)))
        return self.after(tokens, self.matrix(tokens) @ self.parts(tokens)[2])

    def parts(self, tokens):
        """Queries, keys and values, each (N, heads, tokens, channels of a head)."""
        made = F.linear(self.norm(tokens), self.attention.in_proj_weight, self.attention.in_proj_bias)
        return made.unflatten(2, (3, HEADS, DIM // HEADS)).permute(2, 0, 3, 1, 4)

    def matrix(self, tokens):
        queries, keys, _ = self.parts(tokens)
        return (queries @ keys.mT / (DIM // HEADS) ** 0.5).softmax(dim=-1)

    def after(self, tokens, heads):
        return self.finish(tokens, self.attention.out_proj(heads.transpose(1, 2).flatten(2)))

    def finish(self, tokens, mixed):
        tokens = tokens + mixed
        return tokens + self.mlp(tokens)


class Pool(nn.Module):
    """Attention of one query to all tokens."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(DIM))

    def matrix(self, tokens):
        return (tokens @ self.query / DIM**0.5).softmax(dim=-1).unsqueeze(1)

    def forward(self, tokens):
        query = self.query.expand(len(tokens), 1, 1, DIM)
        return F.scaled_dot_product_attention(query, tokens[:, None], tokens[:, None])[:, 0, 0]


class Transformer(nn.Module):
    """A ViT with a class token, patches of 4 pixels, and more rows than columns of them."""

    def __init__(self, kind="fused", pool="class token", depth=3):
        super().__init__()
        torch.manual_seed(0)
        self.pool, self.patches = pool, nn.Conv2d(3, DIM, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, DIM))
        self.blocks = nn.ModuleList(Block(kind) for _ in range(depth))
        self.norm, self.pooling, self.head = nn.LayerNorm(DIM), Pool(), nn.Linear(DIM, 5)
        nn.init.normal_(self.head.weight)
        self.requires_grad_("frozen" not in kind)

    def embed(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(images), 1, DIM), tokens], dim=1)

    def forward(self, images):
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.answer(tokens)

    def answer(self, tokens):
        tokens = self.norm(tokens)
        if self.pool == "attention":
            return self.head(self.pooling(tokens))
        return self.head(tokens[:, 0] if self.pool == "class token" else tokens.mean(dim=1))


def by_hand(network, image, target, blocks=(0, 1, 2)):
    """The formula for one image, with each attention matrix written out; (h, w)."""
    tokens, maps = network.embed(image.unsqueeze(0)).detach(), []
    for place, block in enumerate(network.blocks):
        matrix = block.matrix(tokens).detach().requires_grad_()
        after = block.after(tokens, matrix @ block.parts(tokens)[2])
        if network.pool == "attention":
            normed = network.norm(after)
            matrix = network.pooling.matrix(normed).detach().requires_grad_()
            scores = network.head((matrix @ normed)[:, 0])
        else:
            scores = network.answer(after)
        (gradient,) = torch.autograd.grad(scores[0, target], matrix)
        if place in blocks:
            maps.append(gradient.relu().reshape(-1, 1 + 6 * 4).mean(dim=0)[1:].view(6, 4))
        tokens = after.detach()
    return torch.stack(maps).mean(dim=0)


@pytest.fixture
def images(blobs):
    return blobs(3, 24, 16)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_formula(kind, pool, images):
    network = Transformer(kind, pool)
    targets = torch.tensor([[0, 3], [2, 1], [4, 4]])
    explanation = LeGrad(batch_size=2)(network, images, targets=targets)
    expected = [[by_hand(network, image, c) for c in own] for image, own in zip(images, targets.tolist(), strict=True)]
    torch.testing.assert_close(explanation.layer_maps, torch.stack([torch.stack(own) for own in expected]))
    assert explanation.target_layer == ("blocks.0", "blocks.1", "blocks.2")
    assert explanation.passes.tolist() == [4, 4, 4]
    assert not explanation.blank.any()


def test_the_blocks_that_are_named_are_read(images):
    network = Transformer()
    one = LeGrad()(network, images, network.blocks[1], targets=2)
    two = LeGrad()(network, images, ["blocks.0", "blocks.2"], targets=2)
    torch.testing.assert_close(one.layer_maps, torch.stack([by_hand(network, image, 2, [1]) for image in images]))
    torch.testing.assert_close(two.layer_maps, torch.stack([by_hand(network, image, 2, [0, 2]) for image in images]))


def test_a_callable_and_a_probability_are_explained(images):
    network = Transformer()
    by_class = LeGrad()(network, images, targets=3)
    by_number = LeGrad()(network, images, targets=RegressionTarget(3))
    torch.testing.assert_close(by_number.layer_maps, by_class.layer_maps)
    assert not LeGrad(score="probability")(network, images, targets=3).blank.any()


@pytest.mark.parametrize("kind", ["fused", "matrix"])
@pytest.mark.parametrize("size", [1, 20_000], ids=["small gradients", "large gradients"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_nearly_the_same_map(dtype, size, kind, images):
    network = Transformer(kind)
    nn.init.normal_(network.head.weight, std=0.001 * size)
    full = LeGrad()(network, images, targets=1).layer_maps
    half = LeGrad()(network.to(dtype), images, targets=1).layer_maps
    torch.testing.assert_close(half, full, atol=0.03 * float(full.max()), rtol=0)


def test_tokens_of_a_signal_with_the_batch_in_the_second_place(blobs):
    class Signals(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.head = nn.Conv1d(3, DIM, 4, 4), nn.Linear(DIM, 5)
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(DIM, HEADS, 32), 2, enable_nested_tensor=False
            )

        def forward(self, signals):
            return self.head(self.encoder(self.patches(signals).permute(2, 0, 1)).mean(dim=0))

    torch.manual_seed(0)
    network, signals = Signals(), blobs(3, 64)
    explanation = LeGrad()(network, signals, targets=1)
    assert explanation.layer_maps.shape == (3, 16)
    alone = torch.cat([LeGrad()(network, signal[None], targets=1).layer_maps for signal in signals])
    torch.testing.assert_close(explanation.layer_maps, alone)


def test_a_vit_of_timm_with_registers_is_read_fused_or_not(blobs):
    timm = pytest.importorskip("timm")
    maps = []
    for is_fused in (True, False):
        torch.manual_seed(0)
        network = timm.models.VisionTransformer(
            32, 8, embed_dim=32, depth=2, num_heads=2, num_classes=5, reg_tokens=2, global_pool="avg"
        )
        for block in network.blocks:
            block.attn.fused_attn = is_fused
        maps.append(LeGrad()(network, blobs(2, 32, 32), targets=3).layer_maps)
    assert maps[0].shape == (2, 4, 4)
    torch.testing.assert_close(maps[0], maps[1], atol=1e-5 * float(maps[0].max()), rtol=1e-4)


def test_a_vit_of_hugging_face_is_read_fused_or_not(blobs):
    transformers = pytest.importorskip("transformers")
    maps = []
    for attention in ("sdpa", "eager"):
        torch.manual_seed(0)
        config = transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
            num_labels=5,
            attn_implementation=attention,
        )
        network = transformers.ViTForImageClassification(config)
        maps.append(LeGrad()(network, blobs(2, 32, 32), targets=3).layer_maps)
    assert maps[0].shape == (2, 4, 4)
    torch.testing.assert_close(maps[0], maps[1], atol=1e-5 * float(maps[0].max()), rtol=1e-4)


def test_a_vit_of_torchvision_is_read(blobs):
    network = models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5)
    nn.init.normal_(network.heads.head.weight)
    explanation = LeGrad()(network, blobs(2, 32, 32))
    assert explanation.target_layer == ("encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1")
    assert explanation.heatmaps.shape == (2, 32, 32)
    assert not explanation.blank.any()


class ReadsTwoBlocks(Transformer):
    """The answer is read from the first block, too."""

    def forward(self, images):
        first = self.blocks[0](self.embed(images))
        return self.answer(self.blocks[2](self.blocks[1](first))) + self.answer(first)


class PoolsMore(Transformer):
    """The attention that pools sees one token more than the blocks put out, as in CaiT."""

    def answer(self, tokens):
        return self.head(self.pooling(torch.cat([tokens[:, :1], tokens], dim=1)))


class WindowBlock(Block):
    def forward(self, tokens):
        return super().forward(tokens.reshape(-1, 12, DIM)).reshape_as(tokens)


class Windows(Transformer):
    """Attention among the upper patches, and among the lower ones."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(WindowBlock("fused") for _ in range(2))

    def embed(self, images):
        return super().embed(images)[:, 1:]


class OneBlockTwice(Transformer):
    def __init__(self):
        super().__init__()
        self.blocks[1] = self.blocks[0]


class WithoutGradients(Transformer):
    def embed(self, images):
        with torch.no_grad():
            return self.blocks[0](super().embed(images))

    def forward(self, images):
        return self.answer(self.embed(images))


@pytest.mark.parametrize(
    ("build", "missing"),
    [
        (lambda: models.resnet18(num_classes=5), "ResNet: no module takes tokens"),
        (lambda: models.swin_t(num_classes=5), "SwinTransformer: no module takes tokens"),
        (Windows, r"blocks put out \(1, 24, 16\) for one image, but each attends to 12 tokens"),
        (ReadsTwoBlocks, "the answer is not made from 'blocks.0' by way of 'blocks.1' alone"),
        (PoolsMore, "'blocks.2' is followed by attention that does not pool its tokens"),
        (OneBlockTwice, "'blocks.0' to 'blocks.2', are not alike, or called twice"),
        (WithoutGradients, "one attention inside with a gradient"),
    ],
)
def test_what_cannot_be_read_is_refused(build, missing, blobs):
    size = (24, 16) if issubclass(type(network := build()), Transformer) else (64, 64)
    with pytest.raises(ValueError, match=missing) as raised:
        LeGrad().check(network, blobs(1, *size))
    assert "GradCAM, LayerCAM and ScoreCAM explain networks of any kind" in str(raised.value)


def test_a_layer_that_is_not_a_block_is_refused(images):
    with pytest.raises(ValueError, match=r"'blocks.1.norm' is not a block of Transformer; LeGrad reads 'blocks.0'"):
        LeGrad()(Transformer(), images, "blocks.1.norm")


def test_it_leaves_all_as_it_was(images):
    network = Transformer("module")
    F.cross_entropy(network(images), torch.tensor([0, 1, 2])).backward()
    before = state_of(network)
    LeGrad()(network, images)
    with pytest.raises(ValueError, match="not a block"):
        LeGrad()(network, images, "norm")
    assert state_of(network) == before


def test_it_leaves_all_as_it_was_when_the_model_fails(images):
    network = Transformer()
    network.head.register_forward_hook(fails_at(3))
    before = state_of(network)
    with pytest.raises(KeyboardInterrupt):
        LeGrad()(network, images)
    assert state_of(network) == before


def fails_at(call):
    calls = []

    def hook(_module, _inputs, _output):
        calls.append(None)
        if len(calls) >= call:
            raise KeyboardInterrupt

    return hook
