"""Building a model without memory: on the meta device, and without the work of initialising nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["SkipMetaInit", "without_memory"]

_FILLS = {
    torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.zero_, torch.Tensor.fill_, torch.Tensor.exponential_,
    torch.Tensor.copy_, torch.Tensor.clamp_, torch.Tensor.mul_, torch.Tensor.add_, torch.Tensor.erfinv_,
}  # fmt: skip


class SkipMetaInit(TorchFunctionMode):
    """Skip initialisation in place of tensors on the meta device.

    It would do nothing, at a price: torch's rule for `normal_` on meta imports torch._dynamo, which takes seconds.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the tensor untouched when it is on the meta device and the call only fills it."""
        kwargs = kwargs or {}
        if func in _FILLS or getattr(func, "__module__", "") == "torch.nn.init":
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Everything made in this block is on the meta device, and initialising it costs nothing."""
    with torch.device("meta"), SkipMetaInit():
        yield
