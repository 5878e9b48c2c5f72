"""A compiled copy of a model's forward, kept from call to call; the model itself is not touched."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from cam_callbacks.explain.model_outputs import ForwardFn, forward


class Compiled:
    """Runs a model through `torch.compile`, in two batch sizes only, so that it is compiled twice and no more.

    Weights may change between calls, the graph stays. Where the model cannot be compiled it is run as it is, said once.
    Nothing of it is copied or pickled: a copy begins without a compiled model.
    """

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._compiled: Any = None
        self._failed = False

    def __call__(self, model: nn.Module, images: Tensor, forward_fn: ForwardFn | None) -> Any:
        """What `forward` returns, faster."""
        if self._model is not model:
            self._model, self._compiled, self._failed = model, torch.compile(model), False
        if not self._failed:
            try:
                with torch.compiler.set_stance("default"):
                    return forward(self._compiled, images, forward_fn)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                # Either the model cannot be compiled, or it fails by itself: then the next line fails likewise.
                output = forward(model, images, forward_fn)
                self._failed = True
                reason = str(error).strip().split("\n")[0]
                warnings.warn(f"{type(model).__name__} cannot be compiled, it is run as it is: {reason}", stacklevel=2)
                return output
        return forward(model, images, forward_fn)

    def release(self) -> None:
        """Let go of the model."""
        self._model, self._compiled = None, None

    def __reduce__(self) -> tuple[type[Compiled], tuple[()]]:
        return Compiled, ()
