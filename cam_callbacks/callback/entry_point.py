"""Where the images enter a module without a `forward`, whose steps call a part of it."""

from __future__ import annotations

from torch import nn


def only_network(module: nn.Module) -> str | None:
    """Return the name of the only part with weights of a module that has no `forward`; None if it has one, or several.

    Losses and metrics have no weights, so that they do not count.
    """
    if "forward" in vars(module) or not _is_inherited(module):
        return None
    networks = [name for name, part in module.named_children() if next(part.parameters(), None) is not None]
    return networks[0] if len(networks) == 1 else None


def _is_inherited(module: nn.Module) -> bool:
    """Whether `forward` is that of Lightning or PyTorch, which only says that there is none."""
    package = type(module).forward.__module__.partition(".")[0]
    return package in ("lightning", "pytorch_lightning", "torch")
