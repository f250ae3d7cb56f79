"""Seed-OSS (ByteDance Seed 2025, https://github.com/ByteDance-Seed/seed-oss): the whole family in one file.

Pre-norm blocks with RMS norms, rotary positions over whole heads, grouped key/value heads, gated feed-forward.

Letters: B rows, T new tokens, S all tokens, H query heads, G key/value heads, D head size, E = hidden_size,
F = intermediate_size, V vocabulary, L labels.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from quintet.config import PreTrainedConfig, check_shapes
from quintet.family import BlockMap, Family, KeyRules, StepMap
from quintet.generation import GenerationMixin
from quintet.heads import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    ends_with_head,
    keep_logits,
    steps_by,
)
from quintet.layers.activations import ACTIVATIONS, get_activation
from quintet.layers.attention import attend
from quintet.layers.begin import Past, begin_rotary, open_cache
from quintet.layers.inputs import check_forward_kwargs, embed_tokens, expand_head_mask, wanted
from quintet.layers.norm import RMSNorm
from quintet.layers.rope import RotaryEmbedding, apply_rope
from quintet.layers.step import Step, run_blocks
from quintet.losses import causal_lm_loss
from quintet.modeling import PreTrainedModel
from quintet.outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from quintet.rope import RopeFields
from quintet.rules import Choice, Flag, Integer, Number, Rule

__all__ = [
    "FAMILY",
    "SeedOssConfig",
    "SeedOssForCausalLM",
    "SeedOssForQuestionAnswering",
    "SeedOssForSequenceClassification",
    "SeedOssForTokenClassification",
    "SeedOssModel",
    "SeedOssPreTrainedModel",
]

__path__: list[
    str
] = []  # so that quintet.models.seed_oss.modeling_seed_oss and the like can stand below it, see paths.py

Tensor = torch.Tensor

# What `forward` reads from its keywords besides its own arguments.
OPTIONS = ("output_attentions", "output_hidden_states", "return_dict", "head_mask")


class SeedOssConfig(RopeFields, PreTrainedConfig):
    """Configuration of a Seed-OSS model; the defaults are the reference's (the 36B model has `hidden_size` 5120 and
    `rope_theta` 1e7).

    Args:
        vocab_size: V.
        hidden_size, intermediate_size: E, F.
        num_hidden_layers, num_attention_heads: Number of blocks, H.
        num_key_value_heads: G, a divisor of H; None means H.
        hidden_act: Activation of the gate, a name in `layers.activations`.
        max_position_embeddings: Length the model was made for.
        initializer_range: Standard deviation of the initial weights.
        rms_norm_eps: Added to the mean square in each norm.
        use_cache: Whether `forward` returns a cache when not told.
        pretraining_tp: Kept for the file; 1 and every other value compute the same.
        tie_word_embeddings: Whether the output head shares the embedding's weights.
        rope_theta, rope_scaling: Base and kind of the rotary positions, see `quintet.rope`.
        attention_bias: Biases of the query, key and value layers.
        attention_out_bias: Bias of the layer after attention.
        attention_dropout, residual_dropout: Dropout of the attention weights, and of the sub-layers' outputs.
        mlp_bias: Biases of the feed-forward layers.
        head_dim: D; None means E / H.
        rope_parameters: The newer form of `rope_theta` and `rope_scaling`.
        **kwargs: See PreTrainedConfig.
    """

    model_type: ClassVar[str] = "seed_oss"
    rules: ClassVar[dict[str, Rule]] = {
        # Limits far above every model there is, so that a hostile size is refused before it is allocated.
        "vocab_size": Integer(maximum=2**24),
        "hidden_size": Integer(maximum=2**17),
        "intermediate_size": Integer(maximum=2**20),
        "num_hidden_layers": Integer(maximum=2**12),
        "num_attention_heads": Integer(maximum=2**12),
        "num_key_value_heads": Integer(maximum=2**12),
        "hidden_act": Choice(options=tuple(ACTIVATIONS)),
        "max_position_embeddings": Integer(),
        "initializer_range": Number(0.0, 100.0),
        "rms_norm_eps": Number(0.0, 1.0),
        "use_cache": Flag(),
        "pretraining_tp": Integer(),
        "attention_bias": Flag(),
        "attention_out_bias": Flag(),
        "attention_dropout": Number(0.0, 1.0),
        "residual_dropout": Number(0.0, 1.0),
        "mlp_bias": Flag(),
        "head_dim": Integer(maximum=2**14),
        "classifier_dropout": Number(0.0, 1.0, optional=True),
        "hidden_dropout": Number(0.0, 1.0, optional=True),
    }

    def __init__(
        self,
        vocab_size: int = 155136,
        hidden_size: int = 4096,
        intermediate_size: int = 27648,
        num_hidden_layers: int = 64,
        num_attention_heads: int = 80,
        num_key_value_heads: int | None = 8,
        hidden_act: str = "silu",
        max_position_embeddings: int = 524288,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-6,
        use_cache: bool = True,
        pad_token_id: int | None = 1,
        bos_token_id: int | None = 0,
        eos_token_id: int | list[int] | None = 2,
        pretraining_tp: int = 1,
        tie_word_embeddings: bool = False,
        rope_theta: float = 10000.0,
        rope_scaling: dict[str, Any] | None = None,
        attention_bias: bool = True,
        attention_out_bias: bool = False,
        attention_dropout: float = 0.1,
        residual_dropout: float = 0.1,
        mlp_bias: bool = False,
        head_dim: int | None = 128,
        rope_parameters: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.pretraining_tp = pretraining_tp
        self.attention_bias = attention_bias
        self.attention_out_bias = attention_out_bias
        self.attention_dropout = attention_dropout
        self.residual_dropout = residual_dropout
        self.mlp_bias = mlp_bias
        self.head_dim = hidden_size // max(num_attention_heads, 1) if head_dim is None else head_dim
        self.set_rope(theta=rope_theta, scaling=rope_scaling, parameters=rope_parameters)
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )

    def validate(self) -> None:
        """See PreTrainedConfig.validate; H must be a multiple of G, and the padding token one of the vocabulary."""
        super().validate()
        check_shapes(self)


class SeedOssAttention(nn.Module):
    """Causal attention with G key/value heads, each for H / G query heads."""

    def __init__(self, config: SeedOssConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.attention_out_bias)
        self.residual_dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        assert step.rope is not None, "the base model puts the rotary tables into the step"
        q, k, v = (self._heads(layer(x)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        q, k = apply_rope(q, *step.rope), apply_rope(k, *step.rope)
        dropout = self.attention_dropout if self.training else 0.0
        out = attend(q, k, v, step, self.layer_idx, scale=self.scale, dropout=dropout)
        return self.residual_dropout(self.o_proj(out))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, T, H D) -> (B, H, T, D)


class SeedOssMLP(nn.Module):
    """Gated feed-forward layer (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: SeedOssConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act = get_activation(config.hidden_act)
        self.residual_dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        return self.residual_dropout(self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x)))


class SeedOssBlock(nn.Module):
    """One block: attention, feed-forward; each normed before."""

    def __init__(self, config: SeedOssConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = SeedOssAttention(config, layer_idx)
        self.mlp = SeedOssMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        x = x + self.self_attn(self.input_layernorm(x), step)
        return x + self.mlp(self.post_attention_layernorm(x))


class SeedOssPreTrainedModel(PreTrainedModel):
    """Base of the Seed-OSS classes."""

    config_class = SeedOssConfig
    config: SeedOssConfig
    base_model_prefix = "model"
    key_rules = KeyRules(drop=(r"rotary_emb\.inv_freq$",))
    _no_split_modules = ["SeedOssBlock"]
    block_map = BlockMap(
        order="pre",
        norms=("input_layernorm", "post_attention_layernorm"),
        attention="self_attn",
        projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        layout="separate",
        out="self_attn.o_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
        gate="mlp.gate_proj",
        activation="mlp.act",
    )

    def _position_limit(self) -> int | None:
        return None  # rotary positions have no end


class SeedOssModel(SeedOssPreTrainedModel):
    """The blocks without a head: tokens (B, T) to hidden states (B, T, E)."""

    def __init__(self, config: SeedOssConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([SeedOssBlock(config, layer_idx=i) for i in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(
            config.rope_parameters,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return `embed_tokens`."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace `embed_tokens`."""
        self.embed_tokens = value  # type: ignore[assignment]

    @steps_by(StepMap(tokens="embed_tokens", rotary="rotary_emb", blocks="layers", norm="norm"))
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Past | None = None,
        inputs_embeds: Tensor | None = None,
        cache_position: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Run the blocks.

        Args:
            input_ids: (B, T) token ids; only those that are not in `past_key_values` yet.
            attention_mask: (B, S) with 0 for padding, or 4-D, see `layers.masks.make_masks`.
            position_ids: (B, T); None counts from the first real token of each row.
            past_key_values: A Cache, or the tuple form; what is returned has the same form.
            inputs_embeds: (B, T, E) instead of `input_ids`.
            cache_position: (T,) slots of the new tokens; only the next free ones are possible.
            use_cache: None takes the configuration's value.
            **kwargs: `output_attentions`, `output_hidden_states`, `return_dict` (None takes the configuration's value),
                `head_mask` (H,) or (n_layer, H).

        Raises:
            InputError: ids, positions, shapes or lengths that the model cannot take.
        """
        config = self.config
        check_forward_kwargs(type(self).__name__, kwargs, OPTIONS)
        head_mask = kwargs.pop("head_mask", None)
        want = wanted(config, **kwargs)
        checkpointing = self.gradient_checkpointing and self.training
        opened = open_cache(config, past_key_values, use_cache, checkpointing)
        x = embed_tokens(self.embed_tokens, input_ids, inputs_embeds, opened.cache)  # (B, T, E)
        step = begin_rotary(
            config,
            x,
            self.rotary_emb,
            opened,
            want,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache_position=cache_position,
            head_mask=expand_head_mask(head_mask, config.num_hidden_layers, config.num_attention_heads, False),
        )
        x, states = run_blocks(self.layers, x, step, collect=want.hidden_states, checkpointing=checkpointing)
        x = self.norm(x)
        if want.hidden_states:
            states[-1] = x  # the reference's last state is the normed one
        return self.finish(
            BaseModelOutputWithPast(
                last_hidden_state=x,
                past_key_values=opened.returned(),
                hidden_states=tuple(states) or None,
                attentions=tuple(step.attentions) or None,
            ),
            want.return_dict,
        )


class SeedOssForCausalLM(SeedOssPreTrainedModel, GenerationMixin):
    """Seed-OSS with next-token scores."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: SeedOssConfig) -> None:
        super().__init__(config)
        self.model = SeedOssModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @ends_with_head
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Past | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Score the next token at each position; arguments as in SeedOssModel.forward, and these.

        Args:
            labels: (B, T), not shifted, usually `input_ids`; -100 is ignored. Adds `loss`.
            logits_to_keep: Compute logits for the last n positions only (0: all), or for an index tensor of them.
            **kwargs: As in SeedOssModel.forward, and `num_items_in_batch`, see `losses.causal_lm_loss`.
        """
        items, return_dict = kwargs.pop("num_items_in_batch", None), kwargs.pop("return_dict", None)
        out = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            cache_position=cache_position,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(keep_logits(out.last_hidden_state, logits_to_keep))  # (B, T kept, V)
        loss = None if labels is None else causal_lm_loss(logits, labels, self.config.vocab_size, items)
        return self.finish(
            CausalLMOutputWithPast(
                loss=loss,
                logits=logits,
                past_key_values=out.past_key_values,
                hidden_states=out.hidden_states,
                attentions=out.attentions,
            ),
            return_dict,
        )


class SeedOssForSequenceClassification(GenericForSequenceClassification, SeedOssPreTrainedModel):
    """Seed-OSS with scores for the whole text, read at its last real token."""

    base_class = SeedOssModel


class SeedOssForTokenClassification(GenericForTokenClassification, SeedOssPreTrainedModel):
    """Seed-OSS with scores for each token."""

    base_class = SeedOssModel


class SeedOssForQuestionAnswering(GenericForQuestionAnswering, SeedOssPreTrainedModel):
    """Seed-OSS with scores for each token as the start and the end of an answer."""

    base_class = SeedOssModel
    base_model_prefix = "transformer"  # the reference's name in this one class
    key_rules = KeyRules(drop=SeedOssPreTrainedModel.key_rules.drop, rename=((r"^model\.", "transformer."),))


def tiny(**overrides: Any) -> SeedOssConfig:
    """A configuration for tests: 2 blocks, 4 query and 2 key/value heads, 99 tokens; keywords override."""
    values: dict[str, Any] = {
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "pad_token_id": 1,
        "bos_token_id": 98,
        "eos_token_id": 98,
    }
    return SeedOssConfig(**{**values, **overrides})


FAMILY = Family(
    model_type="seed_oss",
    config=SeedOssConfig,
    classes={
        "base": SeedOssModel,
        "causal-lm": SeedOssForCausalLM,
        "sequence-classification": SeedOssForSequenceClassification,
        "token-classification": SeedOssForTokenClassification,
        "question-answering": SeedOssForQuestionAnswering,
    },
    tokenizer="PreTrainedTokenizerFast",
    tiny=tiny,
    key_rules=SeedOssPreTrainedModel.key_rules,
)
