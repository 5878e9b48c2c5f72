"""A compiled copy of a model, kept from call to call by whoever explains the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cam_callbacks._warnings import warn_user
from cam_callbacks.explain.forwarding import ForwardFn, forward
from cam_callbacks.explain.written import unwatched


class CompiledModel:
    """Run a model through `torch.compile`, and keep the compiled copy for as long as the model is the same.

    The model itself is not changed. Its weights may change between calls; the compiled code stays valid. If the model
    cannot be compiled, it runs uncompiled, after one warning. A copy or pickle of this object is empty.

    Example::

        compiled = CompiledModel()
        for images in batches:
            explanation = ScoreCAM(compile=True)(model, images, compiled=compiled)
    """

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._compiled: Any = None
        self._failed = False

    def __call__(self, model: nn.Module, images: Tensor, rows: Tensor, forward_fn: ForwardFn | None) -> Any:
        """Return what `cam_callbacks.explain.forwarding.forward` returns."""
        if self._model is not model:
            self._model, self._compiled, self._failed = model, torch.compile(model), False
        if not self._failed:
            try:
                with torch.compiler.set_stance("default"), unwatched():
                    # A copy: if this fails, the model may have changed its input in place before.
                    return forward(self._compiled, images.clone(), rows, forward_fn)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                # Either the model cannot be compiled, or it fails by itself: then the next line fails likewise.
                output = forward(model, images, rows, forward_fn)
                self._failed = True
                reason = str(error).strip().split("\n")[0]
                warn_user(f"{type(model).__name__} cannot be compiled and runs uncompiled: {reason}")
                return output
        return forward(model, images, rows, forward_fn)

    def release(self) -> None:
        """Drop every reference to the model."""
        self._model, self._compiled = None, None

    def __reduce__(self) -> tuple[type[CompiledModel], tuple[()]]:
        return CompiledModel, ()
