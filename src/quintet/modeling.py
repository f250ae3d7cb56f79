"""The base of every model: making, initialising, tying, pruning; its two halves load and save, and resize."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from quintet.checkpoint.options import parse_dtype
from quintet.config import PreTrainedConfig
from quintet.embeddings import Embeddings
from quintet.errors import ConfigError, InputError
from quintet.family import BlockMap
from quintet.fused.blocks import fuse_blocks
from quintet.fused.cpu_experts import use_cpu_twins
from quintet.fused.report import OptimizeReport
from quintet.fused.whole_step import Stepped, WholeStep
from quintet.generation import GenerationConfig
from quintet.layers.attention import check_backend
from quintet.layers.conv1d import Conv1D
from quintet.layers.norm import RMSNorm
from quintet.outputs import ModelOutput
from quintet.quant.model import Quantized
from quintet.quant.packed_experts import count
from quintet.quant.packed_linear import PackedLinear

__all__ = ["PreTrainedModel"]

OutputT = TypeVar("OutputT", bound=ModelOutput)
ModelT = TypeVar("ModelT", bound="PreTrainedModel")


class PreTrainedModel(Embeddings, Quantized):
    """Base of every model.

    Args:
        config: The family's configuration; it is checked again here.

    Raises:
        ConfigError: the configuration is of another class, or holds a value that is not allowed.
    """

    main_input_name: ClassVar[str] = "input_ids"
    supports_gradient_checkpointing: ClassVar[bool] = True
    block_map: ClassVar[BlockMap | None] = None
    _no_split_modules: ClassVar[list[str]] = []

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
        self._whole_step = WholeStep()
        self.generation_config = GenerationConfig.from_model_config(config)

    def finish(self, output: OutputT, return_dict: bool | None) -> OutputT | tuple[Any, ...]:
        """Return the record, or its tuple when `return_dict` (None: the configuration's) is false."""
        use = self.config.use_return_dict if return_dict is None else return_dict
        return output if use else output.to_tuple()

    # -- making ------------------------------------------------------------------------------------------------

    @classmethod
    def _from_config(
        cls: type[ModelT],
        config: PreTrainedConfig,
        *,
        attn_implementation: str | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
    ) -> ModelT:
        """Make a model with new weights from a copy of `config`; `torch_dtype` is the older name of `dtype`."""
        config = copy.deepcopy(config)
        if attn_implementation is not None:
            config._attn_implementation = check_backend(attn_implementation)
        wanted = parse_dtype(dtype if dtype is not None else torch_dtype)
        model = cls(config)
        return model if wanted is None else model.to(wanted)

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Choose the attention backend from now on: a key of `layers.attention.BACKENDS`.

        Raises:
            ConfigError: there is none of that name, or it cannot run here; the model is then as it was.
        """
        self.config._attn_implementation = check_backend(attn_implementation)

    def post_init(self) -> None:
        """Prune, initialise and tie; the last line of every `__init__`."""
        if self.base_model is self and self.config.pruned_heads:
            self._prune_heads({layer: set(heads) for layer, heads in self.config.pruned_heads.items()})
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
        if isinstance(module, PackedLinear):
            return  # whole numbers, which come from a checkpoint or from packing
        if isinstance(module, (nn.Linear, Conv1D)):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, (nn.LayerNorm, RMSNorm)):
            if module.weight is not None:
                nn.init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def tie_weights(self) -> None:
        """Let the output embedding share the input embedding's memory when the configuration says so."""
        if not self.config.tie_word_embeddings:
            return
        for name, source in self._tied_weights_keys.items():
            owner, attribute = name.rsplit(".", 1)
            setattr(self.get_submodule(owner), attribute, self.get_parameter(source))

    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Remove attention heads for good.

        Args:
            heads_to_prune: Heads by layer, counted as in the unpruned model; `{1: [0, 2]}` removes two of layer 1.

        Raises:
            InputError: a layer or head that does not exist, or all heads of a layer; the model is then as it was.
        """
        layers, heads = self.config.num_hidden_layers, self.config.num_attention_heads
        new: dict[int, set[int]] = {}
        for layer, asked in heads_to_prune.items():
            gone, asked = set(self.config.pruned_heads.get(layer, ())), set(asked)
            if not 0 <= layer < layers or not asked <= set(range(heads)):
                raise InputError(
                    f"prune_heads: layer {layer}, heads {sorted(asked)}; there are layers 0 to {layers - 1} with heads "
                    f"0 to {heads - 1}."
                )
            if len(gone | asked) == heads:
                raise InputError(f"prune_heads: layer {layer} would have no head left. Keep at least one.")
            # Where the heads that are left stand now, after those that went before.
            standing = [head for head in range(heads) if head not in gone]
            new[layer] = {standing.index(head) for head in asked - gone}
        base: Any = self.base_model
        base._prune_heads(new)
        for layer, asked in heads_to_prune.items():
            self.config.pruned_heads[layer] = sorted({*self.config.pruned_heads.get(layer, ()), *asked})

    def _prune_heads(self, heads_to_prune: Mapping[int, set[int]]) -> None:
        raise InputError(f"{type(self).__name__} cannot prune heads.")

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
        """Count the parameters, shared ones once; a packed one counts as the numbers that it holds."""
        skip = set()
        if exclude_embeddings:
            skip = {id(p) for m in self.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        return sum(count(p) for p in self.parameters() if id(p) not in skip and (p.requires_grad or not only_trainable))

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights, and of the buffers unless told otherwise."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(t.numel() * t.element_size() for t in tensors)

    # -- inference ---------------------------------------------------------------------------------------------

    def optimize(self) -> OptimizeReport:
        """Swap modules for twins that compute faster on this device.

        `generate`, `score`, the pipelines and the evaluations do it when the model is in eval mode. Parameters and
        their names stay. Twins compute as the plain modules whenever gradients are on.

        Returns:
            What was replaced, and what computes the model now; `print(model.optimize())` shows it, a second time too.
        """
        report = use_cpu_twins(self)
        blocks = fuse_blocks(self, self.block_map, tuple(self._no_split_modules))
        return OptimizeReport(report.replaced + blocks.replaced, report.kept + blocks.kept, self)

    def native_step(
        self, ids: torch.Tensor, cache: Any, mask: torch.Tensor | None = None, best: int | None = None
    ) -> Stepped | None:
        """Do a decoding step in one native call, as the forward pass would; None, and nothing done, where it has to.

        Args:
            ids: (B, 1) int64 tokens.
            cache: Keys and values of the tokens before; it gets theirs.
            mask: (B, S) with 0 for padding, the new tokens included; None for none.
            best: Return only so many of the best scores; None for all.
        """
        return self._whole_step.run(self, ids, cache, mask, best)

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
