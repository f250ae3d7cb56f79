"""GPT-NeoX (Black et al. 2022, "GPT-NeoX-20B", arXiv 2204.06745) and Pythia: the whole family in one file.

Pre-norm blocks whose attention and feed-forward layer read the same input, rotary positions over a part of each head,
queries, keys and values from one layer, GELU (exact in Pythia), an output head of its own.

Letters: B rows, T new tokens, S all tokens, H heads, D head size, E = hidden_size, V vocabulary, L labels.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from quintet.config import PreTrainedConfig
from quintet.errors import ConfigError
from quintet.family import BlockMap, Family, KeyRules, StepMap
from quintet.generation import GenerationMixin
from quintet.heads import (
    ends_with_head,
    keep_logits,
    question_answering_output,
    sequence_classifier_output,
    steps_by,
    token_classifier_output,
)
from quintet.layers.activations import ACTIVATIONS, get_activation
from quintet.layers.attention import attend
from quintet.layers.begin import Past, begin_rotary, open_cache
from quintet.layers.inputs import check_forward_kwargs, embed_tokens, expand_head_mask, wanted
from quintet.layers.rope import RotaryEmbedding, apply_rope
from quintet.layers.step import Step, run_blocks
from quintet.losses import causal_lm_loss
from quintet.modeling import PreTrainedModel
from quintet.outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from quintet.rope import RopeFields
from quintet.rules import Choice, Flag, Integer, Number, Rule

__all__ = [
    "FAMILY",
    "GPTNeoXConfig",
    "GPTNeoXForCausalLM",
    "GPTNeoXForQuestionAnswering",
    "GPTNeoXForSequenceClassification",
    "GPTNeoXForTokenClassification",
    "GPTNeoXModel",
    "GPTNeoXPreTrainedModel",
]

__path__: list[str] = []  # so that quintet.models.gpt_neox.modeling_gpt_neox can stand below it, see paths.py

Tensor = torch.Tensor


class GPTNeoXConfig(RopeFields, PreTrainedConfig):
    """Configuration of a GPT-NeoX model; the defaults are those of the 20B model.

    Args:
        vocab_size: V; published vocabularies are padded, so that a tokenizer may know fewer.
        hidden_size, num_hidden_layers, num_attention_heads: E, number of blocks, H; E must be a multiple of H.
        intermediate_size: Width of the feed-forward layer.
        hidden_act: Name in `layers.activations`; "gelu" is the exact one.
        rotary_pct: Share of each head that is rotated; also read from `partial_rotary_factor`.
        rotary_emb_base: Base of the frequencies; also read from `rope_theta`.
        attention_dropout, hidden_dropout: Dropout of the attention weights, and of the embeddings and sub-layers.
        classifier_dropout: Dropout before the token classifier.
        max_position_embeddings: Length the model was made for.
        initializer_range: Standard deviation of the initial weights.
        layer_norm_eps: Added to the variance in each norm.
        use_cache: Whether `forward` returns a cache when not told.
        bos_token_id, eos_token_id: First and last token of a text.
        tie_word_embeddings: Whether the output head shares the embedding's weights.
        use_parallel_residual: Attention and feed-forward layer both read the block's input; else one after the other.
        rope_scaling: Kind of the rotary positions, see `quintet.rope`; None for the plain ones.
        attention_bias: Biases of the attention layers.
        rope_parameters: The newer form of `rotary_emb_base`, `rotary_pct` and `rope_scaling`.
        **kwargs: See PreTrainedConfig.
    """

    model_type: ClassVar[str] = "gpt_neox"
    attribute_map: ClassVar[dict[str, str]] = {
        "rotary_emb_base": "rope_theta",
        "rotary_pct": "partial_rotary_factor",
    }
    rope_theta_name: ClassVar[str] = "rotary_emb_base"
    rope_partial_name: ClassVar[str | None] = "rotary_pct"
    default_rope_theta: ClassVar[float] = 10000
    default_rope_partial: ClassVar[float] = 0.25
    rules: ClassVar[dict[str, Rule]] = {
        # Limits far above every model there is, so that a hostile size is refused before it is allocated.
        "vocab_size": Integer(maximum=2**24),
        "hidden_size": Integer(maximum=2**16),
        "num_hidden_layers": Integer(maximum=2**12),
        "num_attention_heads": Integer(maximum=2**12),
        "intermediate_size": Integer(maximum=2**20),
        "hidden_act": Choice(options=tuple(ACTIVATIONS)),
        "attention_dropout": Number(0.0, 1.0),
        "hidden_dropout": Number(0.0, 1.0),
        "classifier_dropout": Number(0.0, 1.0),
        "max_position_embeddings": Integer(),
        "initializer_range": Number(0.0, 100.0),
        "layer_norm_eps": Number(0.0, 1.0),
        "use_cache": Flag(),
        "use_parallel_residual": Flag(),
        "attention_bias": Flag(),
    }

    def __init__(
        self,
        vocab_size: int = 50432,
        hidden_size: int = 6144,
        num_hidden_layers: int = 44,
        num_attention_heads: int = 64,
        intermediate_size: int = 24576,
        hidden_act: str = "gelu",
        rotary_pct: float = 0.25,
        rotary_emb_base: float = 10000,
        attention_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        classifier_dropout: float = 0.1,
        max_position_embeddings: int = 2048,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-5,
        use_cache: bool = True,
        bos_token_id: int | None = 0,
        eos_token_id: int | list[int] | None = 2,
        tie_word_embeddings: bool = False,
        use_parallel_residual: bool = True,
        rope_scaling: dict[str, Any] | None = None,
        attention_bias: bool = True,
        rope_parameters: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.attention_dropout = attention_dropout
        self.hidden_dropout = hidden_dropout
        self.classifier_dropout = classifier_dropout
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.use_cache = use_cache
        self.use_parallel_residual = use_parallel_residual
        self.attention_bias = attention_bias
        self.set_rope(theta=rotary_emb_base, scaling=rope_scaling, parameters=rope_parameters, partial=rotary_pct)
        super().__init__(
            bos_token_id=bos_token_id, eos_token_id=eos_token_id, tie_word_embeddings=tie_word_embeddings, **kwargs
        )

    @property
    def head_dim(self) -> int:
        """D = E / H."""
        return self.hidden_size // self.num_attention_heads

    def validate(self) -> None:
        """See PreTrainedConfig.validate; E must be a multiple of H."""
        super().validate()
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"GPTNeoXConfig: hidden_size is {self.hidden_size} and num_attention_heads is "
                f"{self.num_attention_heads}, but hidden_size must be a multiple of num_attention_heads. Change one of "
                "them."
            )


class GPTNeoXAttention(nn.Module):
    """Causal attention; one layer makes queries, keys and values, head by head."""

    def __init__(self, config: GPTNeoXConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.attention_dropout = config.attention_dropout

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        assert step.rope is not None, "the base model puts the rotary tables into the step"
        # Each head's query, key and value stand together: (B, T, H 3 D) -> (B, T, H, 3, D) -> (B, 3, H, T, D)
        fused = self.query_key_value(x).unflatten(-1, (-1, 3, self.head_dim)).permute(0, 3, 2, 1, 4)
        q, k = apply_rope(fused[:, :2], *step.rope).unbind(1)  # each (B, H, T, D)
        v = fused[:, 2]
        dropout = self.attention_dropout if self.training else 0.0
        return self.dense(attend(q, k, v, step, self.layer_idx, scale=self.scale, dropout=dropout))


class GPTNeoXMLP(nn.Module):
    """Feed-forward layer: widen, activate, narrow."""

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = get_activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        return self.dense_4h_to_h(self.act(self.dense_h_to_4h(x)))


class GPTNeoXLayer(nn.Module):
    """One block: x + attention(norm x) + mlp(norm' x), or, without the parallel residual, one after the other."""

    def __init__(self, config: GPTNeoXConfig, layer_idx: int) -> None:
        super().__init__()
        self.use_parallel_residual = config.use_parallel_residual
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_dropout = nn.Dropout(config.hidden_dropout)
        self.post_mlp_dropout = nn.Dropout(config.hidden_dropout)
        self.attention = GPTNeoXAttention(config, layer_idx)
        self.mlp = GPTNeoXMLP(config)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        attended = self.post_attention_dropout(self.attention(self.input_layernorm(x), step))
        if self.use_parallel_residual:
            return self.post_mlp_dropout(self.mlp(self.post_attention_layernorm(x))) + attended + x
        x = x + attended
        return x + self.post_mlp_dropout(self.mlp(self.post_attention_layernorm(x)))


class GPTNeoXPreTrainedModel(PreTrainedModel):
    """Base of the GPT-NeoX classes."""

    config_class = GPTNeoXConfig
    config: GPTNeoXConfig
    base_model_prefix = "gpt_neox"
    key_rules = KeyRules(
        # Buffers that releases before 2023 stored.
        drop=(r"attention\.(bias|masked_bias)$", r"rotary_emb\.inv_freq$"),
        rename=((r"^lm_head\.", "embed_out."),),  # the head's name in the memory of newer releases
    )
    _no_split_modules = ["GPTNeoXLayer"]
    block_map = BlockMap(
        order="parallel",
        norms=("input_layernorm", "post_attention_layernorm"),
        attention="attention",
        projections=("attention.query_key_value",),
        layout="by head",
        out="attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        activation="mlp.act",
        parallel="use_parallel_residual",
    )

    def _position_limit(self) -> int | None:
        return None  # rotary positions have no end


class GPTNeoXModel(GPTNeoXPreTrainedModel):
    """The blocks without a head: tokens (B, T) to hidden states (B, T, E)."""

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__(config)
        self.embed_in = nn.Embedding(config.vocab_size, config.hidden_size)
        self.emb_dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList([GPTNeoXLayer(config, layer_idx=i) for i in range(config.num_hidden_layers)])
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.rotary_emb = RotaryEmbedding(
            config.rope_parameters,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return `embed_in`."""
        return self.embed_in

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace `embed_in`."""
        self.embed_in = value  # type: ignore[assignment]

    @steps_by(
        StepMap(tokens="embed_in", rotary="rotary_emb", dropout="emb_dropout", blocks="layers", norm="final_layer_norm")
    )
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Past | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Run the blocks.

        Args:
            input_ids: (B, T) token ids; only those that are not in `past_key_values` yet.
            attention_mask: (B, S) with 0 for padding, or 4-D, see `layers.masks.make_masks`.
            position_ids: (B, T); None counts from the first real token of each row.
            head_mask: (H,) or (num_hidden_layers, H) factors of each head's output.
            inputs_embeds: (B, T, E) instead of `input_ids`.
            past_key_values: A Cache, or the tuple form; what is returned has the same form.
            use_cache, output_attentions, output_hidden_states, return_dict: None takes the configuration's value.
            cache_position: (T,) slots of the new tokens; only the next free ones are possible.

        Raises:
            InputError: ids, positions, shapes or lengths that the model cannot take.
        """
        config = self.config
        check_forward_kwargs(type(self).__name__, kwargs)
        want = wanted(config, output_attentions=output_attentions, output_hidden_states=output_hidden_states)
        checkpointing = self.gradient_checkpointing and self.training
        opened = open_cache(config, past_key_values, use_cache, checkpointing)
        x = embed_tokens(self.embed_in, input_ids, inputs_embeds, opened.cache)  # (B, T, E)
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
        x = self.emb_dropout(x)
        x, states = run_blocks(self.layers, x, step, collect=want.hidden_states, checkpointing=checkpointing)
        x = self.final_layer_norm(x)
        if want.hidden_states:
            states[-1] = x  # the reference's last state is the normed one
        return self.finish(
            BaseModelOutputWithPast(
                last_hidden_state=x,
                past_key_values=opened.returned(),
                hidden_states=tuple(states) or None,
                attentions=tuple(step.attentions) or None,
            ),
            return_dict,
        )


class GPTNeoXForCausalLM(GPTNeoXPreTrainedModel, GenerationMixin):
    """GPT-NeoX with next-token scores."""

    _tied_weights_keys = {"embed_out.weight": "gpt_neox.embed_in.weight"}

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__(config)
        self.gpt_neox = GPTNeoXModel(config)
        self.embed_out = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return `embed_out`."""
        return self.embed_out

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace `embed_out`."""
        self.embed_out = new_embeddings  # type: ignore[assignment]

    @ends_with_head
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        head_mask: Tensor | None = None,
        past_key_values: Past | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Score the next token at each position; arguments as in GPTNeoXModel.forward, and these.

        Args:
            labels: (B, T), not shifted, usually `input_ids`; -100 is ignored. Adds `loss`.
            logits_to_keep: Compute logits for the last n positions only (0: all), or for an index tensor of them.
            **kwargs: `num_items_in_batch`, see `losses.causal_lm_loss`.
        """
        check_forward_kwargs(type(self).__name__, kwargs)
        out = self.gpt_neox(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            cache_position=cache_position,
        )
        logits = self.embed_out(keep_logits(out.last_hidden_state, logits_to_keep))  # (B, T kept, V)
        loss = None
        if labels is not None:
            loss = causal_lm_loss(logits, labels, self.config.vocab_size, kwargs.get("num_items_in_batch"))
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


class GPTNeoXForQuestionAnswering(GPTNeoXPreTrainedModel):
    """GPT-NeoX with scores for each token as the start and the end of an answer."""

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.gpt_neox = GPTNeoXModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
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
        """Score each token (B, T) twice; arguments as in GPTNeoXModel.forward, and these.

        Args:
            token_type_ids: Taken because tokenizers may give them; the family has no token types.
            start_positions, end_positions: (B,) first and last token of the answer; both together add `loss`.
        """
        out = self.gpt_neox(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.qa_outputs(out.last_hidden_state)  # (B, T, 2)
        return self.finish(question_answering_output(out, logits, start_positions, end_positions), return_dict)


class GPTNeoXForSequenceClassification(GPTNeoXPreTrainedModel):
    """GPT-NeoX with scores for the whole text, read at its last real token."""

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.gpt_neox = GPTNeoXModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        head_mask: Tensor | None = None,
        past_key_values: Past | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Score each row (B, L); arguments as in GPTNeoXModel.forward, and `labels` (B,) or (B, L), which add `loss`.

        Rows end at their last token that is not `config.pad_token_id`; without one a batch of several rows is refused.
        """
        out = self.gpt_neox(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.score(out.last_hidden_state)  # (B, T, L)
        return self.finish(sequence_classifier_output(self, out, logits, input_ids, labels), return_dict)


class GPTNeoXForTokenClassification(GPTNeoXPreTrainedModel):
    """GPT-NeoX with scores for each token."""

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.gpt_neox = GPTNeoXModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
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
        """Score each token (B, T, L); arguments as in GPTNeoXModel.forward, and these.

        Args:
            token_type_ids: Taken because tokenizers may give them; the family has no token types.
            labels: (B, T); -100 is ignored. Adds `loss`.
        """
        out = self.gpt_neox(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(out.last_hidden_state))  # (B, T, L)
        return self.finish(token_classifier_output(self, out, logits, labels), return_dict)


def tiny(**overrides: Any) -> GPTNeoXConfig:
    """A configuration for tests: 2 blocks, 4 heads of 8 of which 4 are rotated, 99 tokens; keywords override."""
    values: dict[str, Any] = {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "bos_token_id": 98,
        "eos_token_id": 98,
    }
    if "rope_parameters" not in overrides:
        values["rotary_pct"] = 0.5
    return GPTNeoXConfig(**{**values, **overrides})


FAMILY = Family(
    model_type="gpt_neox",
    config=GPTNeoXConfig,
    classes={
        "base": GPTNeoXModel,
        "causal-lm": GPTNeoXForCausalLM,
        "sequence-classification": GPTNeoXForSequenceClassification,
        "token-classification": GPTNeoXForTokenClassification,
        "question-answering": GPTNeoXForQuestionAnswering,
    },
    tokenizer="GPTNeoXTokenizerFast",
    tiny=tiny,
    key_rules=GPTNeoXPreTrainedModel.key_rules,
)
