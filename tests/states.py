"""All that could be left of an explanation: the state of a module and of the process, in values that compare."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HOOKS = [name for name in vars(nn.Module()) if "hooks" in name]


def as_bytes(tensor: Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def state_of(module: nn.Module) -> dict[str, Any]:
    """All that a look could change."""
    numpy_state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002 - the global generator is meant
    parts = dict(module.named_modules())
    return {
        "train flags": {name: part.training for name, part in parts.items()},
        "hooks": {name: [list(getattr(part, hooks) or ()) for hooks in HOOKS] for name, part in parts.items()},
        "attributes": {name: sorted(vars(part)) for name, part in parts.items()},
        "weights and buffers": {name: as_bytes(tensor) for name, tensor in module.state_dict().items()},
        "gradients": {name: as_bytes(parameter.grad) for name, parameter in module.named_parameters()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in module.named_parameters()},
        "generator of torch": as_bytes(torch.get_rng_state()),
        "generator of NumPy": (numpy_state["key"].tolist(), numpy_state["pos"]),
        "generator of Python": random.getstate(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "settings": (torch.get_default_dtype(), torch.get_num_threads(), torch.backends.cudnn.benchmark),
    }
