"""The part of `PreTrainedModel` that knows packed weights: loading them, making them, unpacking them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch

from quintet.checkpoint.load import TensorSource
from quintet.checkpoint.pretrained import LoadSave
from quintet.checkpoint.rules import KeyRules
from quintet.errors import ConfigError
from quintet.quant.config import METHODS, Mxfp4Config, parse_quantization
from quintet.quant.load import QuantizeReport, dequantize, fit_to_checkpoint, quantize

__all__ = ["Quantized"]

logger = logging.getLogger("quintet.quant")


class Quantized(LoadSave):
    """Loads and makes models with packed experts."""

    @classmethod
    def _parse_quantization(cls, quantization_config: Any, dequantize: bool | None) -> Mxfp4Config | None:
        asked = parse_quantization(quantization_config, f"The call of {cls.__name__}.from_pretrained")
        if dequantize is None:
            return asked
        if not isinstance(dequantize, bool):
            raise ConfigError(f"from_pretrained: dequantize={dequantize!r} must be True or False.")
        if asked is not None and asked.dequantize != dequantize:
            raise ConfigError(
                f"from_pretrained: dequantize={dequantize} and quantization_config={asked!r} contradict each other. "
                "Give one of them."
            )
        return asked or (Mxfp4Config(dequantize=True) if dequantize else None)

    def _fit_to_checkpoint(
        self, source: TensorSource, *, asked: Any, rules: KeyRules, dtype: torch.dtype, device: torch.device
    ) -> TensorSource:
        stored = getattr(self.config, "quantization_config", None)
        declared = parse_quantization(stored, f"The configuration of '{self.name_or_path or type(self).__name__}'")
        source, packed = fit_to_checkpoint(
            self,
            source,
            asked=asked,
            declared=declared,
            rules=rules,
            prefix=self.base_model_prefix,
            dtype=dtype,
            device=device,
        )
        self._declare((asked or declared or Mxfp4Config()) if packed else None, stored)
        return source

    def _declare(self, packed: Mxfp4Config | None, stored: Any = None) -> None:
        """Let the configuration say how the weights are; what a file said of packed ones stays, word for word."""
        if packed is not None and not stored:
            self.config.quantization_config = packed.to_dict()
        elif packed is None and hasattr(self.config, "quantization_config"):
            del self.config.quantization_config

    def quantize(self, method: str = "mxfp4", modules_to_not_convert: Iterable[str] | None = None) -> QuantizeReport:
        """Pack the weights of the experts in place, one module after the other.

        Args:
            method: "mxfp4".
            modules_to_not_convert: Paths of modules to leave alone, `*` for any text.

        Returns:
            The error of each weight.

        Raises:
            ConfigError: an unknown method, or a model without experts.
            InputError: a size that is not a multiple of 32, naming the weight.
        """
        if method not in METHODS:
            raise ConfigError(f"quantize: unknown method {method!r}; known are {', '.join(METHODS)}.")
        skip = None if modules_to_not_convert is None else list(modules_to_not_convert)
        report = quantize(self, skip)
        self._declare(Mxfp4Config(skip))
        return report

    def dequantize(self, dtype: torch.dtype | None = None) -> list[str]:
        """Unpack packed weights in place, into `dtype` or the type of the others; return the modules it was done to."""
        done = dequantize(self, dtype)
        self._declare(None)
        return done
