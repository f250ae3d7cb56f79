"""The base of every model: making, initialising, tying, resizing, loading and saving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from quintet.checkpoint.pretrained import LoadSave
from quintet.config import PreTrainedConfig
from quintet.errors import ConfigError, InputError
from quintet.family import KeyRules
from quintet.generation import GenerationConfig
from quintet.layers.attention import check_backend
from quintet.layers.conv1d import Conv1D
from quintet.outputs import ModelOutput

__all__ = ["PreTrainedModel"]

OutputT = TypeVar("OutputT", bound=ModelOutput)


class PreTrainedModel(LoadSave):
    """Base of every model.

    Args:
        config: The family's configuration; it is checked again here.

    Raises:
        ConfigError: the configuration is of another class, or holds a value that is not allowed.
    """

    config_class: ClassVar[type[PreTrainedConfig]] = PreTrainedConfig
    base_model_prefix: ClassVar[str] = ""
    main_input_name: ClassVar[str] = "input_ids"
    supports_gradient_checkpointing: ClassVar[bool] = True
    key_rules: ClassVar[KeyRules] = KeyRules()
    # parameter -> the parameter it shares memory with when config.tie_word_embeddings is true
    _tied_weights_keys: ClassVar[Mapping[str, str]] = {}

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"{type(self).__name__} needs a {self.config_class.__name__} and got a {type(config).__name__}. "
                f"To load a checkpoint use {type(self).__name__}.from_pretrained(name)."
            )
        config.validate()
        check_backend(config._attn_implementation)
        self.config = config
        self.name_or_path = config.name_or_path
        self.gradient_checkpointing = False
        self.generation_config = GenerationConfig.from_model_config(config)

    def finish(self, output: OutputT, return_dict: bool | None) -> OutputT | tuple[Any, ...]:
        """Return the record, or its tuple when `return_dict` (None: the configuration's) is false."""
        use = self.config.use_return_dict if return_dict is None else return_dict
        return output if use else output.to_tuple()

    # -- making ------------------------------------------------------------------------------------------------

    def post_init(self) -> None:
        """Initialise and tie the weights; the last line of every head's `__init__`."""
        self.init_weights()

    def init_weights(self) -> None:
        """Give every weight its initial value (nothing happens on the meta device), then tie."""
        if not any(p.device.type == "meta" for p in self.parameters()):
            with torch.no_grad():
                self.apply(self._init_weights)  # children first, so that a parent has the last word
        self.tie_weights()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module's own weights: normal with `initializer_range`, biases 0, norms 1."""
        std = getattr(self.config, "initializer_range", 0.02)
        if isinstance(module, (nn.Linear, Conv1D)):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.LayerNorm):
            if module.weight is not None:
                nn.init.ones_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def tie_weights(self) -> None:
        """Let the output embedding share the input embedding's memory when the configuration says so."""
        if not self.config.tie_word_embeddings:
            return
        for name, source in self._tied_weights_keys.items():
            owner, attribute = name.rsplit(".", 1)
            setattr(self.get_submodule(owner), attribute, self.get_parameter(source))

    @property
    def base_model(self) -> nn.Module:
        """The model without its head."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the (floating-point) weights."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count the parameters, shared ones once."""
        skip = set()
        if exclude_embeddings:
            skip = {id(p) for m in self.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        return sum(
            p.numel() for p in self.parameters() if id(p) not in skip and (p.requires_grad or not only_trainable)
        )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights, and of the buffers unless told otherwise."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(t.numel() * t.element_size() for t in tensors)

    # -- embeddings --------------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        if self.base_model is self:
            raise NotImplementedError(f"{type(self).__name__} must define get_input_embeddings().")
        base: Any = self.base_model
        return base.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        if self.base_model is self:
            raise NotImplementedError(f"{type(self).__name__} must define set_input_embeddings().")
        base: Any = self.base_model
        base.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the language-model head, or None for a model without one."""
        return getattr(self, "lm_head", None)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language-model head."""
        if getattr(self, "lm_head", None) is None:
            raise InputError(f"{type(self).__name__} has no language-model head to replace.")
        self.lm_head = new_embeddings

    # -- training helpers --------------------------------------------------------------------------------------

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Keep only each block's input in training and compute the rest again in the backward pass.

        Args:
            gradient_checkpointing_kwargs: Only `{"use_reentrant": False}` is taken; it is what happens anyway.
        """
        for key, value in (gradient_checkpointing_kwargs or {}).items():
            if key != "use_reentrant" or value:
                raise InputError(f"gradient_checkpointing_kwargs: {key}={value!r} is not supported; leave it out.")
        self.base_model.gradient_checkpointing = True  # type: ignore[assignment]

    def gradient_checkpointing_disable(self) -> None:
        """Undo gradient_checkpointing_enable."""
        self.base_model.gradient_checkpointing = False  # type: ignore[assignment]

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether gradient checkpointing is on."""
        return bool(self.base_model.gradient_checkpointing)
