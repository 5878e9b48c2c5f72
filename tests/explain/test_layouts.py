"""A layer's output becomes maps, whatever order its dimensions have."""

import pytest
import torch

from cam_callbacks.explain.layouts import is_channels_first, to_maps, token_grid


@pytest.mark.parametrize(
    ("shape", "size", "maps"),
    [
        ((2, 64, 7, 7), (224, 224), (2, 64, 7, 7)),
        ((2, 7, 7, 768), (224, 224), (2, 768, 7, 7)),
        ((2, 56, 56, 96), (224, 224), (2, 96, 56, 56)),
        ((2, 96, 56, 56), (224, 224), (2, 96, 56, 56)),
        ((2, 64, 4, 8), (64, 128), (2, 64, 4, 8)),
        ((2, 4, 8, 64), (64, 128), (2, 64, 4, 8)),
        ((2, 16, 9), (36,), (2, 16, 9)),
        ((2, 16, 2, 6, 6), (4, 48, 48), (2, 16, 2, 6, 6)),
        ((2, 2, 6, 6, 96), (4, 48, 48), (2, 96, 2, 6, 6)),
        ((2, 196, 384), (224, 224), (2, 384, 14, 14)),
        ((2, 197, 384), (224, 224), (2, 384, 14, 14)),
        ((2, 201, 384), (224, 224), (2, 384, 14, 14)),
        ((2, 1 + 14 * 10, 384), (224, 160), (2, 384, 14, 10)),
    ],
    ids=str,
)
def test_positions_are_found(shape, size, maps):
    assert tuple(to_maps(torch.zeros(shape), size).shape) == maps


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 512), (64, 64)),
        ((2, 512, 1, 1), (64, 64)),
        ((2, 4, 7, 90), (64, 64)),
        ((2, 23, 64), (64, 64)),
        ((2, 1, 64), (64, 64)),
        ((2, 16, 8, 8), (64,)),
    ],
    ids=str,
)
def test_what_has_no_positions_has_no_maps(shape, size):
    assert to_maps(torch.zeros(shape), size) is None


def test_tokens_lie_row_by_row_after_those_of_no_position():
    tokens = torch.zeros(1, 2 + 6, 3)
    tokens[0, 2:, 0] = torch.arange(6.0)
    maps = to_maps(tokens, (32, 48))
    assert maps[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [
        (50, (224, 224), (7, 7)),
        (257, (224, 224), (16, 16)),
        (198, (224, 224), (14, 14)),
        (140, (224, 160), (14, 10)),
        (14, (64, 64), (3, 3)),
        (13, (64, 64), None),
        (3, (64, 64), None),
        (30, (64, 64), (5, 5)),
        (20, (64, 64), None),
        (31, (64, 64), None),
    ],
)
def test_the_grid_with_the_fewest_tokens_left_over_is_taken(tokens, size, grid):
    assert token_grid(tokens, size) == grid


def test_the_users_word_comes_first():
    tokens = torch.rand(2, 10, 4)
    maps = to_maps(tokens, (32, 32), lambda output: output[:, 1:].transpose(1, 2).unflatten(2, (3, 3)))
    assert torch.equal(maps.flatten(2), tokens[:, 1:].transpose(1, 2))
    assert to_maps(tokens, (32, 32), lambda output: output) is None


def test_what_the_user_rearranges_must_be_a_tensor():
    with pytest.raises(TypeError, match=r"reshape_transform returned list, not a tensor \(N, channels, \*spatial\)"):
        to_maps(torch.rand(2, 10, 4), (32, 32), list)


def test_whole_numbers_are_no_maps():
    assert to_maps(torch.zeros(2, 64, 7, 7, dtype=torch.int64), (224, 224)) is None


def test_channels_first_are_told_from_channels_last():
    assert is_channels_first(torch.zeros(2, 96, 56, 56), (224, 224))
    assert not is_channels_first(torch.zeros(2, 56, 56, 96), (224, 224))
    assert not is_channels_first(torch.zeros(2, 197, 96), (224, 224))
