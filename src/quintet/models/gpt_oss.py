"""gpt-oss (OpenAI 2025, model card arXiv 2508.10925): the whole family in one file.

Pre-norm blocks with RMS norms, rotary positions (YaRN), grouped key/value heads with a learned sink for each query
head, windows in every other layer, and a mixture of experts in place of a feed-forward layer.

Letters: B rows, T new tokens, S all tokens, H query heads, G key/value heads, D head size, E = hidden_size,
F = intermediate_size, V vocabulary, L labels, X experts, k experts of a token.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from quintet.config import PreTrainedConfig, check_shapes
from quintet.errors import ConfigError, suggest
from quintet.family import BlockMap, Family, KeyRules, StepMap
from quintet.generation import GenerationMixin
from quintet.heads import (
    GenericForSequenceClassification,
    GenericForTokenClassification,
    ends_with_head,
    keep_logits,
    steps_by,
)
from quintet.layers.activations import ACTIVATIONS
from quintet.layers.attention import attend
from quintet.layers.begin import Past, begin_rotary, open_cache
from quintet.layers.experts import Experts, TopKRouter, load_balancing_loss
from quintet.layers.inputs import check_forward_kwargs, embed_tokens, expand_head_mask, wanted
from quintet.layers.norm import RMSNorm
from quintet.layers.rope import RotaryEmbedding, apply_rope
from quintet.layers.step import Step, run_blocks
from quintet.losses import causal_lm_loss
from quintet.modeling import PreTrainedModel
from quintet.outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from quintet.rope import RopeFields
from quintet.rules import Choice, Flag, Integer, Number, Rule

__all__ = [
    "FAMILY",
    "GptOssConfig",
    "GptOssForCausalLM",
    "GptOssForSequenceClassification",
    "GptOssForTokenClassification",
    "GptOssModel",
    "GptOssPreTrainedModel",
]

__path__: list[str] = []  # so that quintet.models.gpt_oss.modeling_gpt_oss and the like can stand below it

Tensor = torch.Tensor

LAYER_TYPES = ("sliding_attention", "full_attention")

# What `forward` reads from its keywords besides its own arguments.
OPTIONS = ("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "head_mask")


class GptOssConfig(RopeFields, PreTrainedConfig):
    """Configuration of a gpt-oss model; the defaults are those of the 120B model.

    Args:
        num_hidden_layers: Number of blocks.
        num_local_experts: X.
        vocab_size: V.
        hidden_size, intermediate_size: E, F.
        head_dim: D; None means E / H.
        num_attention_heads: H.
        num_key_value_heads: G, a divisor of H; None means H.
        sliding_window: Tokens that a query of a sliding layer sees, its own included; None: sliding layers see all.
        tie_word_embeddings: Whether the output head shares the embedding's weights.
        hidden_act: Kept for the file; a model is made with "silu" alone, whose clamped form the experts compute.
        initializer_range: Standard deviation of the initial weights.
        max_position_embeddings: Length the model was made for.
        rms_norm_eps: Added to the mean square in each norm.
        rope_parameters: Base and kind of the rotary positions, see `quintet.rope`; None is the published YaRN.
        attention_dropout: Dropout of the attention weights.
        num_experts_per_tok: k, at most X.
        router_aux_loss_coef: Weight of the load-balancing loss in `loss`.
        output_router_logits: Whether `forward` returns the router's scores when not told.
        use_cache: Whether `forward` returns a cache when not told.
        layer_types: "sliding_attention" or "full_attention" for each block; None: in turn, sliding first.
        attention_bias: Biases of the attention layers.
        swiglu_alpha, swiglu_limit: Of the experts' activation, see `layers.experts.clamped_swiglu`.
        rope_theta, rope_scaling: The older form of `rope_parameters`.
        **kwargs: See PreTrainedConfig.
    """

    model_type: ClassVar[str] = "gpt_oss"
    attribute_map: ClassVar[dict[str, str]] = {"num_experts": "num_local_experts"}
    default_rope_theta: ClassVar[float] = 150000.0
    default_rope_scaling: ClassVar[dict[str, Any] | None] = {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    }
    rules: ClassVar[dict[str, Rule]] = {
        # Limits far above every model there is, so that a hostile size is refused before it is allocated.
        "num_hidden_layers": Integer(maximum=2**12),
        "num_local_experts": Integer(maximum=2**14),
        "vocab_size": Integer(maximum=2**24),
        "hidden_size": Integer(maximum=2**17),
        "intermediate_size": Integer(maximum=2**20),
        "head_dim": Integer(maximum=2**14),
        "num_attention_heads": Integer(maximum=2**12),
        "num_key_value_heads": Integer(maximum=2**12),
        "sliding_window": Integer(optional=True),
        "hidden_act": Choice(options=tuple(ACTIVATIONS)),
        "initializer_range": Number(0.0, 100.0),
        "max_position_embeddings": Integer(),
        "rms_norm_eps": Number(0.0, 1.0),
        "attention_dropout": Number(0.0, 1.0),
        "num_experts_per_tok": Integer(maximum=2**14),
        "swiglu_alpha": Number(),
        "swiglu_limit": Number(),
        "router_aux_loss_coef": Number(),
        "output_router_logits": Flag(),
        "use_cache": Flag(),
        "attention_bias": Flag(),
        "classifier_dropout": Number(0.0, 1.0, optional=True),
        "hidden_dropout": Number(0.0, 1.0, optional=True),
    }

    def __init__(
        self,
        num_hidden_layers: int = 36,
        num_local_experts: int = 128,
        vocab_size: int = 201088,
        hidden_size: int = 2880,
        intermediate_size: int = 2880,
        head_dim: int | None = 64,
        num_attention_heads: int = 64,
        num_key_value_heads: int | None = 8,
        sliding_window: int | None = 128,
        tie_word_embeddings: bool = False,
        hidden_act: str = "silu",
        initializer_range: float = 0.02,
        max_position_embeddings: int = 131072,
        rms_norm_eps: float = 1e-5,
        rope_parameters: dict[str, Any] | None = None,
        attention_dropout: float = 0.0,
        num_experts_per_tok: int = 4,
        router_aux_loss_coef: float = 0.9,
        output_router_logits: bool = False,
        use_cache: bool = True,
        layer_types: list[str] | None = None,
        attention_bias: bool = True,
        swiglu_alpha: float = 1.702,
        swiglu_limit: float = 7.0,
        rope_theta: float | None = None,
        rope_scaling: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_hidden_layers = num_hidden_layers
        self.num_local_experts = num_local_experts
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.head_dim = hidden_size // max(num_attention_heads, 1) if head_dim is None else head_dim
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.sliding_window = sliding_window
        self.hidden_act = hidden_act
        self.initializer_range = initializer_range
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.attention_dropout = attention_dropout
        self.num_experts_per_tok = num_experts_per_tok
        self.router_aux_loss_coef = router_aux_loss_coef
        self.output_router_logits = output_router_logits
        self.use_cache = use_cache
        self.layer_types = layer_types
        self.attention_bias = attention_bias
        self.swiglu_alpha = swiglu_alpha
        self.swiglu_limit = swiglu_limit
        if rope_parameters is None and rope_scaling is None:
            rope_scaling = self.default_rope_scaling
        self.set_rope(theta=rope_theta, scaling=rope_scaling, parameters=rope_parameters)
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """See PreTrainedConfig.from_dict; published files say `num_experts_per_tok` a second time by another name."""
        given = dict(config_dict)
        again = given.pop("experts_per_token", None)
        if again is not None and given.setdefault("num_experts_per_tok", again) != again:
            raise ConfigError(
                f"GptOssConfig: num_experts_per_tok is {given['num_experts_per_tok']!r} and experts_per_token, another "
                f"name of it, is {again!r}. Remove one of them."
            )
        return super().from_dict(given, **kwargs)

    def validate(self) -> None:
        """See PreTrainedConfig.validate; what sizes and layer types must be to each other."""
        super().validate()
        check_shapes(self)
        if self.layer_types is None:
            self.layer_types = [LAYER_TYPES[index % 2] for index in range(self.num_hidden_layers)]
        self._check_layer_types(self.layer_types)
        if self.num_experts_per_tok > self.num_local_experts:
            raise ConfigError(
                f"GptOssConfig: num_experts_per_tok is {self.num_experts_per_tok}, but there are only "
                f"{self.num_local_experts} experts (num_local_experts). Change one of them."
            )

    def _check_layer_types(self, kinds: Any) -> None:
        if not isinstance(kinds, list):
            raise ConfigError(f"GptOssConfig: layer_types is {kinds!r}, but must be a list of names, or None.")
        for kind in kinds:
            if kind not in LAYER_TYPES:
                hint = suggest(kind, LAYER_TYPES) if isinstance(kind, str) else ""
                raise ConfigError(
                    f"GptOssConfig: layer_types holds {kind!r}, but only {' and '.join(LAYER_TYPES)} are known.{hint}"
                )
        if len(kinds) != self.num_hidden_layers:
            raise ConfigError(
                f"GptOssConfig: layer_types has {len(kinds)} entries for {self.num_hidden_layers} layers "
                "(num_hidden_layers). Give one for each, or None."
            )


class GptOssAttention(nn.Module):
    """Causal attention with G key/value heads, each for H / G query heads, and a sink for each query head."""

    def __init__(self, config: GptOssConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.attention_bias)
        self.sinks = nn.Parameter(torch.empty(config.num_attention_heads))

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        assert step.rope is not None, "the base model puts the rotary tables into the step"
        q, k, v = (self._heads(layer(x)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        q, k = apply_rope(q, *step.rope), apply_rope(k, *step.rope)
        dropout = self.attention_dropout if self.training else 0.0
        return self.o_proj(attend(q, k, v, step, self.layer_idx, scale=self.scale, dropout=dropout, sinks=self.sinks))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, T, H D) -> (B, H, T, D)


class GptOssMLP(nn.Module):
    """X experts, of which each token uses k."""

    def __init__(self, config: GptOssConfig) -> None:
        super().__init__()
        self.router = TopKRouter(config.num_local_experts, config.hidden_size, config.num_experts_per_tok)
        self.experts = Experts(
            config.num_local_experts,
            config.hidden_size,
            config.intermediate_size,
            alpha=config.swiglu_alpha,
            limit=config.swiglu_limit,
        )

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        tokens = x.flatten(0, -2)  # (B, T, E) -> (B * T, E)
        logits, weights, indices = self.router(tokens)
        if step.output_router_logits:
            step.router_logits.append(logits)
        return self.experts(tokens, indices, weights).view(x.shape)


class GptOssBlock(nn.Module):
    """One block: attention, experts; each normed before."""

    def __init__(self, config: GptOssConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = GptOssAttention(config, layer_idx)
        self.mlp = GptOssMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        x = x + self.self_attn(self.input_layernorm(x), step)
        return x + self.mlp(self.post_attention_layernorm(x), step)


class GptOssPreTrainedModel(PreTrainedModel):
    """Base of the gpt-oss classes."""

    config_class = GptOssConfig
    config: GptOssConfig
    base_model_prefix = "model"
    key_rules = KeyRules(drop=(r"rotary_emb\.inv_freq$",))
    _no_split_modules = ["GptOssBlock"]
    block_map = BlockMap(
        order="pre",
        norms=("input_layernorm", "post_attention_layernorm"),
        attention="self_attn",
        projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        layout="separate",
        out="self_attn.o_proj",
        experts="mlp.experts",
        router="mlp.router",
    )

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, GptOssAttention):
            nn.init.normal_(module.sinks, std=std)
        elif isinstance(module, TopKRouter):
            nn.init.normal_(module.weight, std=std)
            nn.init.normal_(module.bias, std=std)
        elif isinstance(module, Experts):
            nn.init.normal_(module.gate_up_proj, std=std)
            nn.init.zeros_(module.gate_up_proj_bias)
            nn.init.normal_(module.down_proj, std=std)
            nn.init.zeros_(module.down_proj_bias)

    def _position_limit(self) -> int | None:
        return None  # rotary positions have no end


class GptOssModel(GptOssPreTrainedModel):
    """The blocks without a head: tokens (B, T) to hidden states (B, T, E)."""

    def __init__(self, config: GptOssConfig) -> None:
        super().__init__(config)
        if config.hidden_act not in ("silu", "swish"):
            raise ConfigError(
                f"GptOssModel: hidden_act is {config.hidden_act!r}, but the experts of this family compute a clamped "
                "silu and nothing else. Set it to 'silu'."
            )
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([GptOssBlock(config, layer_idx=i) for i in range(config.num_hidden_layers)])
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
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast | tuple[Any, ...]:
        """Run the blocks.

        Args:
            input_ids: (B, T) token ids; only those that are not in `past_key_values` yet.
            attention_mask: (B, S) with 0 for padding, 4-D, or a mapping from each layer type to one of these, see
                `layers.masks.make_masks`.
            position_ids: (B, T); None counts from the first real token of each row.
            past_key_values: A Cache, or the tuple form; what is returned has the same form.
            inputs_embeds: (B, T, E) instead of `input_ids`.
            use_cache: None takes the configuration's value.
            cache_position: (T,) slots of the new tokens; only the next free ones are possible.
            **kwargs: `output_attentions`, `output_hidden_states`, `output_router_logits`, `return_dict` (None takes
                the configuration's value), `head_mask` (H,) or (n_layer, H).

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
            MoeModelOutputWithPast(
                last_hidden_state=x,
                past_key_values=opened.returned(),
                hidden_states=tuple(states) or None,
                attentions=tuple(step.attentions) or None,
                router_logits=tuple(step.router_logits) or None,
            ),
            want.return_dict,
        )


class GptOssForCausalLM(GptOssPreTrainedModel, GenerationMixin):
    """gpt-oss with next-token scores."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: GptOssConfig) -> None:
        super().__init__(config)
        self.model = GptOssModel(config)
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
        output_router_logits: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast | tuple[Any, ...]:
        """Score the next token at each position; arguments as in GptOssModel.forward, and these.

        Args:
            labels: (B, T), not shifted, usually `input_ids`; -100 is ignored. Adds `loss`.
            output_router_logits: Return the router's scores and their load-balancing loss, `aux_loss`, which is then
                part of `loss` with the weight `config.router_aux_loss_coef`.
            logits_to_keep: Compute logits for the last n positions only (0: all), or for an index tensor of them.
            **kwargs: As in GptOssModel.forward, and `num_items_in_batch`, see `losses.causal_lm_loss`.
        """
        config = self.config
        items, return_dict = kwargs.pop("num_items_in_batch", None), kwargs.pop("return_dict", None)
        out = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache_position=cache_position,
            output_router_logits=output_router_logits,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(keep_logits(out.last_hidden_state, logits_to_keep))  # (B, T kept, V)
        loss = None if labels is None else causal_lm_loss(logits, labels, config.vocab_size, items)
        aux_loss = None
        if out.router_logits is not None:
            aux_loss = load_balancing_loss(
                out.router_logits,
                config.num_local_experts,
                config.num_experts_per_tok,
                _padding_of_new(attention_mask, out.last_hidden_state),
            )
            if loss is not None:
                loss = loss + config.router_aux_loss_coef * aux_loss.to(loss.device)
        return self.finish(
            MoeCausalLMOutputWithPast(
                loss=loss,
                aux_loss=aux_loss,
                logits=logits,
                past_key_values=out.past_key_values,
                hidden_states=out.hidden_states,
                attentions=out.attentions,
                router_logits=out.router_logits,
            ),
            return_dict,
        )


def _padding_of_new(attention_mask: Any, states: Tensor) -> Tensor | None:
    """Return which of the new tokens are real, (B, T), from a mask over all tokens; None when all count."""
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2:
        return None
    return attention_mask[:, -states.shape[1] :]


class GptOssForSequenceClassification(GenericForSequenceClassification, GptOssPreTrainedModel):
    """gpt-oss with scores for the whole text, read at its last real token."""

    base_class = GptOssModel


class GptOssForTokenClassification(GenericForTokenClassification, GptOssPreTrainedModel):
    """gpt-oss with scores for each token."""

    base_class = GptOssModel


def tiny(**overrides: Any) -> GptOssConfig:
    """A configuration for tests: 2 blocks (a window of 4, then all), 4 experts of which 2, 99 tokens."""
    values: dict[str, Any] = {
        "num_hidden_layers": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 4,
        "max_position_embeddings": 256,
        "rope_parameters": {
            **(GptOssConfig.default_rope_scaling or {}),
            "rope_theta": 150000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "pad_token_id": 97,
        "eos_token_id": 98,
    }
    return GptOssConfig(**{**values, **overrides})


FAMILY = Family(
    model_type="gpt_oss",
    config=GptOssConfig,
    classes={
        "base": GptOssModel,
        "causal-lm": GptOssForCausalLM,
        "sequence-classification": GptOssForSequenceClassification,
        "token-classification": GptOssForTokenClassification,
    },
    tokenizer="PreTrainedTokenizerFast",
    tiny=tiny,
    key_rules=GptOssPreTrainedModel.key_rules,
)
