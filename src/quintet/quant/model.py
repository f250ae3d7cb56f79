"""The part of `PreTrainedModel` that knows packed weights: loading them, making them, unpacking them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch

from quintet.checkpoint.load import TensorSource
from quintet.checkpoint.pretrained import LoadSave
from quintet.checkpoint.rules import KeyRules, LoadReport
from quintet.errors import CheckpointError, ConfigError
from quintet.quant.calibration import PartStore, calibration_rows
from quintet.quant.config import IntegerConfig, Mxfp4Config, Quantization, parse_quantization, parse_short, said_of
from quintet.quant.experts import dequantize_experts, experts_of, fit_experts, quantize_experts
from quintet.quant.foreign import TorchAoLinear, check_installed, dequantize_foreign, fit_foreign, pack_foreign
from quintet.quant.foreign_config import BitsAndBytesConfig, TorchAoConfig
from quintet.quant.linears import (
    config_of_packed,
    dequantize_linears,
    fit_linears,
    head_of,
    linears_of,
    packed_linears_of,
    quantize_linears,
)
from quintet.quant.packed_experts import PackedExperts
from quintet.quant.sources import QuantizeReport

__all__ = ["Quantized"]

logger = logging.getLogger("quintet.quant")


class Quantized(LoadSave):
    """Loads and makes models with packed weights."""

    @classmethod
    def _parse_quantization(
        cls, quantization_config: Any, dequantize: bool | None, quantization: str | None = None
    ) -> Quantization:
        owner = f"The call of {cls.__name__}.from_pretrained"
        asked = parse_quantization(quantization_config, owner)
        if quantization is not None:
            if quantization_config is not None:
                raise ConfigError(f"{owner}: give either quantization or quantization_config, not both.")
            if not isinstance(quantization, str):
                raise ConfigError(
                    f"{owner}: quantization is a {type(quantization).__name__}, but must be a name such as 'int4'. "
                    "Settings go into quantization_config=IntegerConfig(...)."
                )
            asked = parse_short(quantization, owner)
        if asked.foreign is not None:
            check_installed(asked.foreign)  # before anything is read
        if dequantize is None:
            return asked
        if not isinstance(dequantize, bool):
            raise ConfigError(f"from_pretrained: dequantize={dequantize!r} must be True or False.")
        for one in (asked.experts, asked.linears):
            if one is not None and one.dequantize != dequantize:
                raise ConfigError(
                    f"from_pretrained: dequantize={dequantize} and quantization_config={one!r} contradict each other. "
                    "Give one of them."
                )
        if asked != Quantization() or not dequantize:
            return asked
        return Quantization(Mxfp4Config(dequantize=True), IntegerConfig(dequantize=True))

    def _fit_to_checkpoint(
        self, source: TensorSource, *, asked: Any, rules: KeyRules, dtype: torch.dtype, device: torch.device
    ) -> TensorSource:
        stored = getattr(self.config, "quantization_config", None)
        declared = parse_quantization(stored, f"The configuration of '{self.name_or_path or type(self).__name__}'")
        asked = asked or Quantization()
        if declared.foreign is not None:
            self._check_foreign(asked, declared)
            source, finish = fit_foreign(
                self, source, declared.foreign, rules=rules, prefix=self.base_model_prefix, device=device
            )
            object.__setattr__(self, "_finish_load", finish)
            return source
        where: dict[str, Any] = {
            "rules": rules,
            "prefix": self.base_model_prefix,
            "dtype": dtype,
            "device": device,
        }
        beside = declared.expert_activations
        source, experts = fit_experts(
            self, source, asked=asked.experts, declared=declared.experts, activations=beside, **where
        )
        source, linears = fit_linears(self, source, asked=asked.linears, declared=declared.linears, **where)
        if experts and not linears and declared.experts is not None and stored:
            return source  # what a file said of its packed weights stays, word for word
        if linears and not experts and declared.linears is not None and stored:
            return source
        self._declare((asked.experts or declared.experts) if experts else None, (asked.linears or declared.linears))
        return source

    @staticmethod
    def _check_foreign(asked: Quantization, declared: Quantization) -> None:
        wanted = asked.linears or asked.experts
        if asked.foreign not in (None, declared.foreign) or (wanted is not None and not wanted.dequantize):
            raise ConfigError(
                f"The checkpoint is packed by {declared.foreign.quant_method}, and another format is asked for. Leave "
                "quantization out to load it as it is, or pack the original checkpoint."
            )

    def _load(self, source: TensorSource, *, quantization: Any = None, **options: Any) -> LoadReport:
        report = super()._load(source, quantization=quantization, **options)
        finish = self.__dict__.pop("_finish_load", None)
        asked = quantization or Quantization()
        if finish is not None:
            finish(self)
            if asked.linears is not None:  # dequantize=True, as the others were refused
                self.dequantize()
        elif asked.foreign is not None:
            self.quantize(asked.foreign)
        return report

    def _declare(self, experts: Mxfp4Config | None = None, linears: IntegerConfig | None = None) -> None:
        """Let the configuration say how the weights are."""
        packed = packed_linears_of(self)
        if packed:
            linears = linears if linears is not None and not linears.dequantize else config_of_packed(self)
            assert linears is not None, "there are packed layers"
            head = head_of(self)
            plain = [path for path in linears_of(self, head) if path not in packed]
            ignored = plain + list(experts_of(self))
            beside = {path: module for path, module in self.named_modules() if isinstance(module, PackedExperts)}
            ignored += beside
            # readers of other libraries call the head of every family lm_head
            names = dict.fromkeys(((head or "lm_head").rpartition(".")[2], "lm_head"))
            if head in ignored:
                ignored += [name for name in names if name not in ignored]
            self.config.quantization_config = linears.to_dict(
                ignored, next(iter(names)) if len(names) == 1 else f"({'|'.join(names)})"
            )
            for module in beside.values():
                self.config.quantization_config.update(said_of(expert_activations=module.activations))
        elif any(isinstance(module, PackedExperts) for module in self.modules()):
            self.config.quantization_config = (experts or Mxfp4Config()).to_dict()
        elif hasattr(self.config, "quantization_config"):
            del self.config.quantization_config

    def _check_savable(self) -> None:
        if any(isinstance(module, TorchAoLinear) for module in self.modules()):
            raise CheckpointError(
                "Layers packed by torchao cannot be saved. Save the model before packing it, or call dequantize(); "
                'quintet\'s own "int8" and "int4" can be saved.'
            )

    def quantize(
        self,
        method: str | IntegerConfig | Mxfp4Config | BitsAndBytesConfig | TorchAoConfig = "mxfp4",
        modules_to_not_convert: Iterable[str] | None = None,
        *,
        calibration: Any = None,
        tokenizer: Any = None,
        progress: Callable[[str], Any] | None = None,
        store: PartStore | None = None,
    ) -> QuantizeReport:
        """Pack weights in place, one module after the other.

        Each number is rounded to the nearest there is; with a `calibration` linear layers are rounded so that their
        results on that text change least, which makes up for about half of what 4 bits cost.

        Args:
            method: "mxfp4" for experts, "int8" or "int4" for linear layers, "mxfp4+int4" for both, or a configuration
                (those of bitsandbytes and torchao too).
            modules_to_not_convert: Paths of modules to leave alone, `*` for any text.
            calibration: A text like those that the model will meet, token ids (T,) or (B, T), or a list of texts or
                ids; 32,768 tokens of it are used. Experts are not calibrated.
            tokenizer: For texts.
            progress: Called with the path of each linear layer that is done.
            store: Keeps the packed blocks of a calibration; see `quintet.quant.calibration.PartStore`.

        Returns:
            The error of each weight.

        Raises:
            ConfigError: an unknown method, a model with nothing to pack, or nothing that can be calibrated.
            InputError: a size that does not fit the format, naming the weight; or an unusable calibration.
        """
        asked = parse_quantization(method, "quantize")
        skip = None if modules_to_not_convert is None else list(modules_to_not_convert)
        for one in (asked.experts, asked.linears):
            if one is not None and skip is not None:
                one.modules_to_not_convert = skip
        rows = None
        if calibration is not None:
            if asked.linears is None:
                raise ConfigError(f"quantize({method!r}) packs no linear layers, which are what a calibration is for.")
            rows = calibration_rows(calibration, tokenizer, getattr(self.config, "max_position_embeddings", None))
        report = QuantizeReport()
        if asked.foreign is not None:
            if skip is not None:
                raise ConfigError("quantize: name the modules to skip in the configuration of the other package.")
            pack_foreign(self, asked.foreign, report)
            self.config.quantization_config = asked.foreign.to_dict()
            return report
        if asked.experts is not None:
            quantize_experts(self, asked.experts, report)
        if asked.linears is not None:
            quantize_linears(self, asked.linears, report, progress, rows=rows, store=store)
        self._declare(asked.experts, asked.linears)
        return report

    def dequantize(self, dtype: torch.dtype | None = None) -> list[str]:
        """Unpack packed weights in place, into `dtype` or the type of the others; return the modules it was done to."""
        done = [*dequantize_experts(self, dtype), *dequantize_linears(self, dtype), *dequantize_foreign(self, dtype)]
        self._declare()
        return done
