"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"): the whole family in one file.

Pre-norm blocks, learned positions, tanh GELU, linear layers stored (in, out), output head tied to the embedding.

Letters: B rows, T new tokens, S all tokens, H heads, D head size, E = n_embd, V vocabulary, C choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from quintet.cache import DynamicCache, EncoderDecoderCache
from quintet.config import PreTrainedConfig, check_heads
from quintet.errors import ConfigError, InputError
from quintet.family import BlockMap, Family, KeyRules, StepMap
from quintet.generation import GenerationMixin
from quintet.heads import (
    SequenceSummary,
    ends_with_head,
    keep_logits,
    question_answering_output,
    sequence_classifier_output,
    steps_by,
    token_classifier_output,
)
from quintet.layers.activations import ACTIVATIONS, get_activation
from quintet.layers.attention import attend, cross_attend
from quintet.layers.begin import OpenCache, Past, begin_learned, open_cache
from quintet.layers.conv1d import Conv1D, columns_of_heads
from quintet.layers.inputs import (
    check_forward_kwargs,
    embed_rows,
    embed_types,
    input_shape,
    wanted,
)
from quintet.layers.masks import make_encoder_mask
from quintet.layers.step import Step, run_blocks
from quintet.losses import causal_lm_loss, token_classification_loss
from quintet.modeling import PreTrainedModel
from quintet.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    DoubleHeadsModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from quintet.rules import Choice, Flag, Integer, Number, Rule, Text

__all__ = [
    "FAMILY",
    "GPT2Config",
    "GPT2DoubleHeadsModel",
    "GPT2DoubleHeadsModelOutput",
    "GPT2ForQuestionAnswering",
    "GPT2ForSequenceClassification",
    "GPT2ForTokenClassification",
    "GPT2LMHeadModel",
    "GPT2Model",
    "GPT2PreTrainedModel",
]

__path__: list[str] = []  # so that quintet.models.gpt2.modeling_gpt2 and the like can stand below it, see paths.py

Tensor = torch.Tensor


class GPT2Config(PreTrainedConfig):
    """Configuration of a GPT-2 model; the defaults are those of the 124M model.

    Args:
        vocab_size: V.
        n_positions: Longest sequence in tokens.
        n_embd, n_layer, n_head: E, number of blocks, H; E must be a multiple of H.
        n_inner: Width of the feed-forward layer; None means 4 E.
        activation_function: Name in `layers.activations`.
        resid_pdrop, embd_pdrop, attn_pdrop: Dropout of the sub-layers' outputs, the embeddings, the attention weights.
        layer_norm_epsilon: Added to the variance in each norm.
        initializer_range: Standard deviation of the initial weights.
        summary_type, summary_use_proj, summary_activation, summary_proj_to_labels, summary_first_dropout: Of the
            multiple-choice head, see `heads.SequenceSummary`.
        scale_attn_weights: Divide the scores by sqrt(D).
        use_cache: Whether `forward` returns a cache when not told.
        bos_token_id, eos_token_id: The end-of-text token, for both.
        scale_attn_by_inverse_layer_idx: Divide the scores by (layer index + 1) besides.
        reorder_and_upcast_attn: Compute the scores in float32.
        **kwargs: See PreTrainedConfig.
    """

    model_type: ClassVar[str] = "gpt2"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }
    rules: ClassVar[dict[str, Rule]] = {
        # The limits are far above every model there is; they keep a hostile size from an allocation that would end
        # the process.
        "vocab_size": Integer(maximum=2**24),
        "n_positions": Integer(maximum=2**24),
        "n_embd": Integer(maximum=2**16),
        "n_layer": Integer(maximum=2**12),
        "n_head": Integer(maximum=2**12),
        "n_inner": Integer(maximum=2**20, optional=True),
        "activation_function": Choice(options=tuple(ACTIVATIONS)),
        "resid_pdrop": Number(0.0, 1.0),
        "embd_pdrop": Number(0.0, 1.0),
        "attn_pdrop": Number(0.0, 1.0),
        "layer_norm_epsilon": Number(0.0, 1.0),
        "initializer_range": Number(0.0, 100.0),
        "summary_type": Choice(options=("last", "first", "mean", "cls_index")),
        "summary_use_proj": Flag(),
        "summary_activation": Text(optional=True),
        "summary_proj_to_labels": Flag(),
        "summary_first_dropout": Number(0.0, 1.0),
        "summary_last_dropout": Number(0.0, 1.0, optional=True),
        "classifier_dropout": Number(0.0, 1.0, optional=True),
        "hidden_dropout": Number(0.0, 1.0, optional=True),
        "scale_attn_weights": Flag(),
        "use_cache": Flag(),
        "scale_attn_by_inverse_layer_idx": Flag(),
        "reorder_and_upcast_attn": Flag(),
    }

    def __init__(
        self,
        vocab_size: int = 50257,
        n_positions: int = 1024,
        n_embd: int = 768,
        n_layer: int = 12,
        n_head: int = 12,
        n_inner: int | None = None,
        activation_function: str = "gelu_new",
        resid_pdrop: float = 0.1,
        embd_pdrop: float = 0.1,
        attn_pdrop: float = 0.1,
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        summary_type: str = "cls_index",
        summary_use_proj: bool = True,
        summary_activation: str | None = None,
        summary_proj_to_labels: bool = True,
        summary_first_dropout: float = 0.1,
        scale_attn_weights: bool = True,
        use_cache: bool = True,
        bos_token_id: int | None = 50256,
        eos_token_id: int | list[int] | None = 50256,
        scale_attn_by_inverse_layer_idx: bool = False,
        reorder_and_upcast_attn: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.n_positions = n_positions
        self.n_embd = n_embd
        self.n_layer = n_layer
        self.n_head = n_head
        self.n_inner = n_inner
        self.activation_function = activation_function
        self.resid_pdrop = resid_pdrop
        self.embd_pdrop = embd_pdrop
        self.attn_pdrop = attn_pdrop
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range
        self.summary_type = summary_type
        self.summary_use_proj = summary_use_proj
        self.summary_activation = summary_activation
        self.summary_proj_to_labels = summary_proj_to_labels
        self.summary_first_dropout = summary_first_dropout
        self.scale_attn_weights = scale_attn_weights
        self.use_cache = use_cache
        self.scale_attn_by_inverse_layer_idx = scale_attn_by_inverse_layer_idx
        self.reorder_and_upcast_attn = reorder_and_upcast_attn
        super().__init__(bos_token_id=bos_token_id, eos_token_id=eos_token_id, **kwargs)

    def validate(self) -> None:
        """See PreTrainedConfig.validate; E must be a multiple of H."""
        super().validate()
        check_heads(self)


class GPT2Attention(nn.Module):
    """Causal attention over the tokens, or attention over encoder states.

    Args:
        config: The model's configuration.
        layer_idx: Which block this is, from 0.
        is_cross_attention: Keys and values come from the encoder states.
    """

    def __init__(self, config: GPT2Config, layer_idx: int, is_cross_attention: bool = False) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.n_head
        self.head_dim = config.n_embd // config.n_head
        self.upcast = config.reorder_and_upcast_attn
        self.scale = self.head_dim**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer_idx + 1
        self.is_cross_attention = is_cross_attention
        self.c_attn = Conv1D((2 if is_cross_attention else 3) * config.n_embd, config.n_embd)
        if is_cross_attention:
            self.q_attn = Conv1D(config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        dropout = self.attn_dropout.p if self.training else 0.0
        if self.is_cross_attention:
            k, v = self._encoder_keys_values(step)
            q = self._heads(self.q_attn(x))
            out = cross_attend(q, k, v, step, scale=self.scale, dropout=dropout, upcast=self.upcast)
        else:
            # (B, T, 3 H D) -> three of (B, H, T, D)
            q, k, v = (self._heads(t) for t in self.c_attn(x).split(self.num_heads * self.head_dim, dim=2))
            out = attend(q, k, v, step, self.layer_idx, scale=self.scale, dropout=dropout, upcast=self.upcast)
        return self.resid_dropout(self.c_proj(out))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)  # (B, T, H D) -> (B, H, T, D)

    def _encoder_keys_values(self, step: Step) -> tuple[Tensor, Tensor]:
        store = step.cache if isinstance(step.cache, EncoderDecoderCache) else None
        if store is not None and store.is_updated.get(self.layer_idx):
            cross = store.cross_attention_cache
            if isinstance(cross, DynamicCache):
                return cross[self.layer_idx]
        assert step.encoder_states is not None, "a block asks for cross-attention only with encoder states"
        k, v = (self._heads(t) for t in self.c_attn(step.encoder_states).split(self.num_heads * self.head_dim, dim=2))
        if store is not None:
            k, v = store.cross_attention_cache.update(k, v, self.layer_idx)
            store.is_updated[self.layer_idx] = True
        return k, v

    def prune_heads(self, heads: set[int]) -> None:
        """Remove heads, counted as they stand now."""
        keep = [h for h in range(self.num_heads) if h not in heads]
        width = self.num_heads * self.head_dim
        index = columns_of_heads(self.num_heads, self.head_dim, keep)
        parts = 2 if self.is_cross_attention else 3
        self.c_attn.select(torch.cat([index + part * width for part in range(parts)]), dim=1)
        if self.is_cross_attention:
            self.q_attn.select(index, dim=1)
        self.c_proj.select(index, dim=0)
        self.num_heads = len(keep)


class GPT2MLP(nn.Module):
    """Feed-forward layer: widen, activate, narrow."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        inner = config.n_inner or 4 * config.n_embd
        self.c_fc = Conv1D(inner, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, inner)
        self.act = get_activation(config.activation_function)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class GPT2Block(nn.Module):
    """One block: attention, cross-attention when there are encoder states, feed-forward; each normed before."""

    def __init__(self, config: GPT2Config, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPT2Attention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        if config.add_cross_attention:
            self.crossattention = GPT2Attention(config, layer_idx, is_cross_attention=True)
            self.ln_cross_attn = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        x = x + self.attn(self.ln_1(x), step)
        if step.encoder_states is not None:
            x = x + self.crossattention(self.ln_cross_attn(x), step)
        return x + self.mlp(self.ln_2(x))


class GPT2PreTrainedModel(PreTrainedModel):
    """Base of the GPT-2 classes: names and initial values."""

    config_class = GPT2Config
    config: GPT2Config
    base_model_prefix = "transformer"
    # The mask buffers that releases before 2021 stored.
    key_rules = KeyRules(drop=(r"(^|\.)(cross)?attn\.(bias|masked_bias)$", r"crossattention\.(bias|masked_bias)$"))
    _no_split_modules = ["GPT2Block"]
    block_map = BlockMap(
        order="pre",
        norms=("ln_1", "ln_2"),
        attention="attn",
        projections=("attn.c_attn",),
        layout="in turn",
        out="attn.c_proj",
        up="mlp.c_fc",
        down="mlp.c_proj",
        activation="mlp.act",
    )

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (GPT2Attention, GPT2MLP)):
            # The paper scales the layers that write to the residual by 1 / sqrt(number of residual additions).
            std = self.config.initializer_range / math.sqrt(2 * self.config.n_layer)
            nn.init.normal_(module.c_proj.weight, std=std)

    def parallelize(self, device_map: Any = None) -> None:
        """Refused: splitting by hand was removed from the reference."""
        raise ConfigError("parallelize() is gone: load with from_pretrained(name, device_map='cuda') or 'auto'.")

    def deparallelize(self) -> None:
        """Refused, see parallelize."""
        raise ConfigError("deparallelize() is gone: a model is on one device; move it with model.to('cpu').")


class GPT2Model(GPT2PreTrainedModel):
    """The blocks without a head: tokens (B, T) to hidden states (B, T, E)."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([GPT2Block(config, layer_idx=i) for i in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return `wte`."""
        return self.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace `wte`."""
        self.wte = value  # type: ignore[assignment]

    def _prune_heads(self, heads_to_prune: Mapping[int, set[int]]) -> None:
        for layer, heads in heads_to_prune.items():
            attention: Any = self.h[layer].attn
            attention.prune_heads(heads)

    @steps_by(StepMap(tokens="wte", positions="wpe", dropout="drop", blocks="h", norm="ln_f"))
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Past | None = None,
        cache_position: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions | tuple[Any, ...]:
        """Run the blocks.

        Args:
            input_ids: (B, T) or (B, C, T) token ids; only those that are not in `past_key_values` yet.
            past_key_values: A Cache, or the tuple form; what is returned has the same form.
            cache_position: (T,) places of the new tokens; only the next free ones are possible.
            attention_mask: (B, S) with 0 for padding, or 4-D, see `layers.masks.make_masks`.
            token_type_ids: (B, T) ids whose token embeddings are added.
            position_ids: (B, T); None counts from the first real token of each row.
            head_mask: (H,) or (n_layer, H) factors of each head's output.
            inputs_embeds: (B, T, E) instead of `input_ids`.
            encoder_hidden_states: (B, S_enc, E) for cross-attention (`config.add_cross_attention`).
            encoder_attention_mask: (B, S_enc).
            use_cache, output_attentions, output_hidden_states, return_dict: None takes the configuration's value.

        Raises:
            InputError: ids, positions, shapes or lengths that the model cannot take.
        """
        config = self.config
        check_forward_kwargs(type(self).__name__, kwargs)
        want = wanted(config, output_attentions=output_attentions, output_hidden_states=output_hidden_states)
        shape = input_shape(input_ids, inputs_embeds, config.n_embd)
        checkpointing = self.gradient_checkpointing and self.training
        opened = self._cache(past_key_values, use_cache, checkpointing)
        step, positions, past = begin_learned(
            config,
            shape,
            self.wpe.weight.device,
            opened,
            want,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache_position=cache_position,
            head_mask=head_mask,
            encoder=self._encoder(encoder_hidden_states, encoder_attention_mask, shape),
        )
        types = embed_types(self.wte, token_type_ids, shape, past)
        x = embed_rows(self.wte, input_ids, inputs_embeds, past)  # (B, T, E)
        x = x if types is None else x + types
        x = self.drop(x + self.wpe(positions))
        x, states = run_blocks(self.h, x, step, collect=want.hidden_states, checkpointing=checkpointing)
        x = self.ln_f(x).view(*shape, config.n_embd)
        if want.hidden_states:
            states[-1] = x  # the reference's last state is the normed one
        return self.finish(
            BaseModelOutputWithPastAndCrossAttentions(
                last_hidden_state=x,
                past_key_values=opened.returned(),
                hidden_states=tuple(states) or None,
                attentions=tuple(step.attentions) or None,
                cross_attentions=tuple(step.cross_attentions) or None,
            ),
            return_dict,
        )

    def _cache(self, past_key_values: Past | None, use_cache: bool | None, checkpointing: bool) -> OpenCache:
        opened = open_cache(self.config, past_key_values, use_cache, checkpointing)
        if opened.cache is None or not self.config.add_cross_attention:
            return opened
        if isinstance(opened.cache, EncoderDecoderCache):
            return opened
        return replace(opened, cache=EncoderDecoderCache(opened.cache, DynamicCache()))

    def _encoder(self, states: Tensor | None, mask: Tensor | None, shape: torch.Size) -> dict[str, Any]:
        if states is None:
            return {}
        if not self.config.add_cross_attention:
            raise InputError(
                "encoder_hidden_states are given, but this model has no cross-attention. Make it with "
                "config.add_cross_attention=True."
            )
        rows, tokens = shape.numel() // shape[-1], shape[-1]
        if states.dim() != 3 or states.shape[0] != rows or states.shape[2] != self.config.n_embd:
            raise InputError(
                f"encoder_hidden_states have shape {tuple(states.shape)}, but must be ({rows}, tokens, "
                f"{self.config.n_embd})."
            )
        spec = make_encoder_mask(mask, rows=rows, queries=tokens, states=states.shape[1])
        return {"encoder_states": states, "encoder_mask": spec}


class GPT2LMHeadModel(GPT2PreTrainedModel, GenerationMixin):
    """GPT-2 with next-token scores; the head shares the embedding's weights."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.transformer = GPT2Model(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    @ends_with_head
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Past | None = None,
        cache_position: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions | tuple[Any, ...]:
        """Score the next token at each position; arguments as in GPT2Model.forward, and these.

        Args:
            labels: (B, T), not shifted, usually `input_ids`; -100 is ignored. Adds `loss`.
            logits_to_keep: Compute logits for the last n positions only (0: all), or for an index tensor of them.
            **kwargs: `num_items_in_batch`, see `heads.causal_lm_loss`.
        """
        check_forward_kwargs(type(self).__name__, kwargs)
        out = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            cache_position=cache_position,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.lm_head(keep_logits(out.last_hidden_state, logits_to_keep))  # (B, T kept, V)
        loss = None
        if labels is not None:
            loss = causal_lm_loss(logits, labels, self.config.vocab_size, kwargs.get("num_items_in_batch"))
        return self.finish(
            CausalLMOutputWithCrossAttentions(
                loss=loss,
                logits=logits,
                past_key_values=out.past_key_values,
                hidden_states=out.hidden_states,
                attentions=out.attentions,
                cross_attentions=out.cross_attentions,
            ),
            return_dict,
        )


@dataclass(eq=False)
class GPT2DoubleHeadsModelOutput(DoubleHeadsModelOutput):
    """See DoubleHeadsModelOutput."""


class GPT2DoubleHeadsModel(GPT2PreTrainedModel, GenerationMixin):
    """GPT-2 with next-token scores and one score for each of several choices; sets `config.num_labels` to 1."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        config.num_labels = 1
        self.transformer = GPT2Model(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.multiple_choice_head = SequenceSummary(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Past | None = None,
        cache_position: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mc_token_ids: Tensor | None = None,
        labels: Tensor | None = None,
        mc_labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> GPT2DoubleHeadsModelOutput | tuple[Any, ...]:
        """Score tokens and choices; `input_ids` is (B, C, T), arguments as in GPT2Model.forward, and these.

        Args:
            mc_token_ids: (B, C) position of each choice's classification token; None for the last.
            labels: (B, C, T), not shifted; -100 is ignored. Adds `loss`.
            mc_labels: (B,) the right choice, from 0 to C - 1. Adds `mc_loss`.
        """
        check_forward_kwargs(type(self).__name__, kwargs)
        out = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            cache_position=cache_position,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.lm_head(out.last_hidden_state)  # (B, C, T, V)
        mc_logits = self.multiple_choice_head(out.last_hidden_state, mc_token_ids).squeeze(-1)  # (B, C)
        loss = mc_loss = None
        if labels is not None:
            loss = causal_lm_loss(logits, labels, self.config.vocab_size, kwargs.get("num_items_in_batch"))
        if mc_labels is not None:
            mc_loss = token_classification_loss(mc_logits, mc_labels, mc_logits.shape[-1])
        return self.finish(
            GPT2DoubleHeadsModelOutput(
                loss=loss,
                mc_loss=mc_loss,
                logits=logits,
                mc_logits=mc_logits,
                past_key_values=out.past_key_values,
                hidden_states=out.hidden_states,
                attentions=out.attentions,
            ),
            return_dict,
        )


class GPT2ForSequenceClassification(GPT2PreTrainedModel):
    """GPT-2 with scores for the whole text, read at its last real token."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = GPT2Model(config)
        self.score = nn.Linear(config.n_embd, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Past | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Score each row (B, L); arguments as in GPT2Model.forward, and `labels` (B,) or (B, L), which add `loss`.

        Rows end at their last token that is not `config.pad_token_id`; without one a batch of several rows is refused.
        """
        out = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.score(out.last_hidden_state)  # (B, T, L)
        return self.finish(sequence_classifier_output(self, out, logits, input_ids, labels), return_dict)


class GPT2ForTokenClassification(GPT2PreTrainedModel):
    """GPT-2 with scores for each token."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = GPT2Model(config)
        rates = (getattr(config, name, None) for name in ("classifier_dropout", "hidden_dropout"))
        self.dropout = nn.Dropout(next((rate for rate in rates if rate is not None), 0.1))
        self.classifier = nn.Linear(config.n_embd, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Past | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Score each token (B, T, L); arguments as in GPT2Model.forward, and `labels` (B, T), which add `loss`."""
        out = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(out.last_hidden_state))  # (B, T, L)
        return self.finish(token_classifier_output(self, out, logits, labels), return_dict)


class GPT2ForQuestionAnswering(GPT2PreTrainedModel):
    """GPT-2 with scores for each token as the start and the end of an answer."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = GPT2Model(config)
        self.qa_outputs = nn.Linear(config.n_embd, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> QuestionAnsweringModelOutput | tuple[Any, ...]:
        """Score each token (B, T) twice; arguments as in GPT2Model.forward, and these.

        Args:
            start_positions, end_positions: (B,) first and last token of the answer; both together add `loss`.
        """
        out = self.transformer(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.qa_outputs(out.last_hidden_state)  # (B, T, 2)
        return self.finish(question_answering_output(out, logits, start_positions, end_positions), return_dict)


def tiny(**overrides: Any) -> GPT2Config:
    """A configuration for tests: 2 blocks, 4 heads, 99 tokens; keywords override."""
    values = {"vocab_size": 99, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return GPT2Config(**{**values, "bos_token_id": 98, "eos_token_id": 98, **overrides})


FAMILY = Family(
    model_type="gpt2",
    config=GPT2Config,
    classes={
        "base": GPT2Model,
        "causal-lm": GPT2LMHeadModel,
        "double-heads": GPT2DoubleHeadsModel,
        "sequence-classification": GPT2ForSequenceClassification,
        "token-classification": GPT2ForTokenClassification,
        "question-answering": GPT2ForQuestionAnswering,
    },
    tokenizer="GPT2TokenizerFast",
    tiny=tiny,
    key_rules=GPT2PreTrainedModel.key_rules,
)
