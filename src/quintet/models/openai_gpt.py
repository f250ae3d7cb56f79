"""GPT-1 (Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training"): the whole family.

Post-norm blocks, learned positions, tanh GELU, linear layers stored (in, out), output head tied to the embedding.

Letters: B rows, T new tokens, S all tokens, H heads, D head size, E = n_embd, V vocabulary, C choices, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from quintet.config import PreTrainedConfig, check_heads
from quintet.family import BlockMap, Family, KeyRules, StepMap
from quintet.generation import GenerationMixin
from quintet.heads import SequenceSummary, ends_with_head, keep_logits, last_token_logits, steps_by
from quintet.layers.activations import get_activation
from quintet.layers.attention import attend
from quintet.layers.begin import Past, begin_learned, open_cache
from quintet.layers.conv1d import Conv1D, columns_of_heads
from quintet.layers.inputs import (
    check_forward_kwargs,
    embed_rows,
    embed_types,
    input_shape,
    wanted,
)
from quintet.layers.step import Step, run_blocks
from quintet.losses import causal_lm_loss, sequence_classification_loss, token_classification_loss
from quintet.modeling import PreTrainedModel
from quintet.outputs import (
    BaseModelOutput,
    BaseModelOutputWithPast,
    CausalLMOutput,
    CausalLMOutputWithPast,
    DoubleHeadsModelOutput,
    ModelOutput,
    SequenceClassifierOutput,
    SequenceClassifierOutputWithPast,
)
from quintet.rules import Choice, Flag, Integer, Number, Rule, Text

__all__ = [
    "FAMILY",
    "OpenAIGPTConfig",
    "OpenAIGPTDoubleHeadsModel",
    "OpenAIGPTDoubleHeadsModelOutput",
    "OpenAIGPTForSequenceClassification",
    "OpenAIGPTLMHeadModel",
    "OpenAIGPTModel",
    "OpenAIGPTPreTrainedModel",
]

Tensor = torch.Tensor

# The names that `afn` takes. The release of 2018 calls the tanh form "gelu", and no published model has the exact one.
ACTIVATION_OF = {"gelu": "gelu_new", "gelu_new": "gelu_new", "relu": "relu", "silu": "silu", "swish": "swish"}


class OpenAIGPTConfig(PreTrainedConfig):
    """Configuration of a GPT-1 model; the defaults are those of the published one.

    Args:
        vocab_size: V.
        n_positions: Longest sequence in tokens.
        n_embd, n_layer, n_head: E, number of blocks, H; E must be a multiple of H.
        afn: Activation of the feed-forward layer: "gelu" (in this family its tanh form, as "gelu_new" is), "relu",
            "silu" or "swish".
        resid_pdrop, embd_pdrop, attn_pdrop: Dropout of the sub-layers' outputs, the embeddings, the attention weights.
        layer_norm_epsilon: Added to the variance in each norm.
        initializer_range: Standard deviation of the initial weights.
        summary_type, summary_use_proj, summary_activation, summary_proj_to_labels, summary_first_dropout: Of the
            multiple-choice head, see `heads.SequenceSummary`.
        **kwargs: `use_cache` (default true: `generate` keeps keys and values), and those of PreTrainedConfig.
    """

    model_type: ClassVar[str] = "openai-gpt"
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
        "afn": Choice(options=tuple(ACTIVATION_OF)),
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
        "use_cache": Flag(),
    }

    def __init__(
        self,
        vocab_size: int = 40478,
        n_positions: int = 512,
        n_embd: int = 768,
        n_layer: int = 12,
        n_head: int = 12,
        afn: str = "gelu",
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
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.n_positions = n_positions
        self.n_embd = n_embd
        self.n_layer = n_layer
        self.n_head = n_head
        self.afn = afn
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
        self.use_cache = kwargs.pop("use_cache", True)
        super().__init__(**kwargs)

    def validate(self) -> None:
        """See PreTrainedConfig.validate; E must be a multiple of H."""
        super().validate()
        check_heads(self)


class OpenAIGPTAttention(nn.Module):
    """Causal attention over the tokens.

    Args:
        config: The model's configuration.
        layer_idx: Which block this is, from 0.
    """

    def __init__(self, config: OpenAIGPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.n_head
        self.head_dim = config.n_embd // config.n_head
        self.c_attn = Conv1D(3 * config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        dropout = self.attn_dropout.p if self.training else 0.0
        # (B, T, 3 H D) -> three of (B, H, T, D)
        q, k, v = (self._heads(t) for t in self.c_attn(x).split(self.num_heads * self.head_dim, dim=2))
        out = attend(q, k, v, step, self.layer_idx, scale=self.head_dim**-0.5, dropout=dropout)  # (B, T, H D)
        return self.resid_dropout(self.c_proj(out))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)  # (B, T, H D) -> (B, H, T, D)

    def prune_heads(self, heads: set[int]) -> None:
        """Remove heads, counted as they stand now."""
        keep = [h for h in range(self.num_heads) if h not in heads]
        width = self.num_heads * self.head_dim
        index = columns_of_heads(self.num_heads, self.head_dim, keep)
        self.c_attn.select(torch.cat([index + part * width for part in range(3)]), dim=1)
        self.c_proj.select(index, dim=0)
        self.num_heads = len(keep)


class OpenAIGPTMLP(nn.Module):
    """Feed-forward layer: widen four times, activate, narrow."""

    def __init__(self, config: OpenAIGPTConfig) -> None:
        super().__init__()
        self.c_fc = Conv1D(4 * config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, 4 * config.n_embd)
        self.act = get_activation(ACTIVATION_OF[config.afn])
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class OpenAIGPTBlock(nn.Module):
    """One block: attention, then feed-forward; what each adds to is normed after the addition."""

    def __init__(self, config: OpenAIGPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.attn = OpenAIGPTAttention(config, layer_idx)
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = OpenAIGPTMLP(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        x = self.ln_1(x + self.attn(x, step))
        return self.ln_2(x + self.mlp(x))


class OpenAIGPTPreTrainedModel(PreTrainedModel):
    """Base of the GPT-1 classes: names and initial values."""

    config_class = OpenAIGPTConfig
    config: OpenAIGPTConfig
    base_model_prefix = "transformer"
    # Buffers of older releases: the causal mask of each block, the numbers of the positions.
    key_rules = KeyRules(drop=(r"(^|\.)attn\.bias$", r"(^|\.)position_ids$"))
    _no_split_modules = ["OpenAIGPTBlock"]
    block_map = BlockMap(
        order="post",
        norms=("ln_1", "ln_2"),
        attention="attn",
        projections=("attn.c_attn",),
        layout="in turn",
        out="attn.c_proj",
        up="mlp.c_fc",
        down="mlp.c_proj",
        activation="mlp.act",
    )


class OpenAIGPTModel(OpenAIGPTPreTrainedModel):
    """The blocks without a head: tokens (B, T) to hidden states (B, T, E)."""

    def __init__(self, config: OpenAIGPTConfig) -> None:
        super().__init__(config)
        self.tokens_embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions_embed = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([OpenAIGPTBlock(config, layer_idx=i) for i in range(config.n_layer)])
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return `tokens_embed`."""
        return self.tokens_embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace `tokens_embed`."""
        self.tokens_embed = value  # type: ignore[assignment]

    def _prune_heads(self, heads_to_prune: Mapping[int, set[int]]) -> None:
        for layer, heads in heads_to_prune.items():
            attention: Any = self.h[layer].attn
            attention.prune_heads(heads)

    @steps_by(StepMap(tokens="tokens_embed", positions="positions_embed", dropout="drop", blocks="h"))
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        past_key_values: Past | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput | BaseModelOutputWithPast | tuple[Any, ...]:
        """Run the blocks.

        Args:
            input_ids: (B, T) or (B, C, T) token ids; only those that are not in `past_key_values` yet.
            attention_mask: (B, S) with 0 for padding, or 4-D, see `layers.masks.make_masks`.
            token_type_ids: (B, T) ids whose token embeddings are added.
            position_ids: (B, T); None counts from the first real token of each row.
            head_mask: (H,) or (n_layer, H) factors of each head's output.
            inputs_embeds: (B, T, E) instead of `input_ids`.
            output_attentions, output_hidden_states, return_dict: None takes the configuration's value.
            past_key_values: A Cache, or the tuple form; what is returned has the same form.
            use_cache: Return a cache. None returns one only when `past_key_values` are given.
            **kwargs: `num_items_in_batch`, which the heads read.

        Returns:
            BaseModelOutput; with a cache in play, or `use_cache` given at all, BaseModelOutputWithPast.

        Raises:
            InputError: ids, positions, shapes or lengths that the model cannot take.
        """
        config = self.config
        check_forward_kwargs(type(self).__name__, kwargs)
        want = wanted(config, output_attentions=output_attentions, output_hidden_states=output_hidden_states)
        shape = input_shape(input_ids, inputs_embeds, config.n_embd)
        checkpointing = self.gradient_checkpointing and self.training
        # The page's outputs have no cache: without a word about one there is none.
        with_past = use_cache is not None or past_key_values is not None
        opened = open_cache(config, past_key_values, with_past if use_cache is None else use_cache, checkpointing)
        step, positions, past = begin_learned(
            config,
            shape,
            self.positions_embed.weight.device,
            opened,
            want,
            attention_mask=attention_mask,
            position_ids=position_ids,
            head_mask=head_mask,
        )
        types = embed_types(self.tokens_embed, token_type_ids, shape, past)
        x = embed_rows(self.tokens_embed, input_ids, inputs_embeds, past)  # (B, T, E)
        x = x + self.positions_embed(positions)
        x = self.drop(x if types is None else x + types)
        x, states = run_blocks(self.h, x, step, collect=want.hidden_states, checkpointing=checkpointing)
        x = x.view(*shape, config.n_embd)  # (B, T, E) -> (..., T, E)
        if want.hidden_states:
            states[-1] = x  # the reference's last state has the shape of the result, the others that of the rows
        fields: dict[str, Any] = {
            "last_hidden_state": x,
            "hidden_states": tuple(states) or None,
            "attentions": tuple(step.attentions) or None,
        }
        if with_past:
            return self.finish(BaseModelOutputWithPast(past_key_values=opened.returned(), **fields), return_dict)
        return self.finish(BaseModelOutput(**fields), return_dict)


def _record(plain: type[ModelOutput], with_past: type[ModelOutput], base: ModelOutput, **fields: Any) -> Any:
    """Make a head's output: of the page's class, or of the one with a cache when the base model returned such a one."""
    fields |= {name: getattr(base, name) for name in ("hidden_states", "attentions")}
    if isinstance(base, BaseModelOutputWithPast):
        return with_past(past_key_values=base.past_key_values, **fields)
    return plain(**fields)


class OpenAIGPTLMHeadModel(OpenAIGPTPreTrainedModel, GenerationMixin):
    """GPT-1 with next-token scores; the head shares the embedding's weights."""

    _tied_weights_keys = {"lm_head.weight": "transformer.tokens_embed.weight"}

    def __init__(self, config: OpenAIGPTConfig) -> None:
        super().__init__(config)
        self.transformer = OpenAIGPTModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    @ends_with_head
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        *,
        past_key_values: Past | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput | CausalLMOutputWithPast | tuple[Any, ...]:
        """Score the next token at each position; arguments as in OpenAIGPTModel.forward, and these.

        Args:
            labels: (B, T), not shifted, usually `input_ids`; -100 is ignored. Adds `loss`.
            logits_to_keep: Compute logits for the last n positions only (0: all), or for an index tensor of them.
            **kwargs: `num_items_in_batch`, see `losses.causal_lm_loss`.
        """
        check_forward_kwargs(type(self).__name__, kwargs)
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
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        logits = self.lm_head(keep_logits(out.last_hidden_state, logits_to_keep))  # (B, T kept, V)
        loss = None
        if labels is not None:
            loss = causal_lm_loss(logits, labels, self.config.vocab_size, kwargs.get("num_items_in_batch"))
        return self.finish(_record(CausalLMOutput, CausalLMOutputWithPast, out, loss=loss, logits=logits), return_dict)


@dataclass(eq=False)
class OpenAIGPTDoubleHeadsModelOutput(ModelOutput):
    """Next-token scores (B, C, T, V) of C choices, and one score for each choice (B, C)."""

    loss: torch.Tensor | None = None
    mc_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mc_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class OpenAIGPTDoubleHeadsModel(OpenAIGPTPreTrainedModel):
    """GPT-1 with next-token scores and one score for each of several choices; sets `config.num_labels` to 1."""

    _tied_weights_keys = {"lm_head.weight": "transformer.tokens_embed.weight"}

    def __init__(self, config: OpenAIGPTConfig) -> None:
        super().__init__(config)
        config.num_labels = 1
        self.transformer = OpenAIGPTModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.multiple_choice_head = SequenceSummary(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mc_token_ids: Tensor | None = None,
        labels: Tensor | None = None,
        mc_labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        past_key_values: Past | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> OpenAIGPTDoubleHeadsModelOutput | DoubleHeadsModelOutput | tuple[Any, ...]:
        """Score tokens and choices; `input_ids` is (B, C, T), arguments as in OpenAIGPTModel.forward, and these.

        Args:
            mc_token_ids: (B, C) position of each choice's classification token; None for the last.
            labels: (B, C, T), not shifted; -100 is ignored. Adds `loss`.
            mc_labels: (B,) the right choice, from 0 to C - 1. Adds `mc_loss`.
            **kwargs: `num_items_in_batch`, see `losses.causal_lm_loss`.
        """
        check_forward_kwargs(type(self).__name__, kwargs)
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
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        logits = self.lm_head(out.last_hidden_state)  # (B, C, T, V)
        mc_logits = self.multiple_choice_head(out.last_hidden_state, mc_token_ids).squeeze(-1)  # (B, C)
        loss = mc_loss = None
        if labels is not None:
            loss = causal_lm_loss(logits, labels, self.config.vocab_size, kwargs.get("num_items_in_batch"))
        if mc_labels is not None:
            mc_loss = token_classification_loss(mc_logits, mc_labels, mc_logits.shape[-1])
        record = _record(
            OpenAIGPTDoubleHeadsModelOutput,
            DoubleHeadsModelOutput,
            out,
            loss=loss,
            mc_loss=mc_loss,
            logits=logits,
            mc_logits=mc_logits,
        )
        return self.finish(record, return_dict)


class OpenAIGPTForSequenceClassification(OpenAIGPTPreTrainedModel):
    """GPT-1 with scores for the whole text, read at its last real token."""

    def __init__(self, config: OpenAIGPTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = OpenAIGPTModel(config)
        self.score = nn.Linear(config.n_embd, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        past_key_values: Past | None = None,
        use_cache: bool | None = None,
    ) -> SequenceClassifierOutput | SequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Score each row (B, L); arguments as in OpenAIGPTModel.forward, and `labels` (B,) or (B, L), which add `loss`.

        Rows end at their last token that is not `config.pad_token_id`; without one a batch of several rows is refused.
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
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        logits = last_token_logits(self.score(out.last_hidden_state), input_ids, self.config.pad_token_id)  # (B, L)
        loss = None if labels is None else sequence_classification_loss(self.config, logits, labels)
        record = _record(SequenceClassifierOutput, SequenceClassifierOutputWithPast, out, loss=loss, logits=logits)
        return self.finish(record, return_dict)


def tiny(**overrides: Any) -> OpenAIGPTConfig:
    """A configuration for tests: 2 blocks, 4 heads, 99 tokens; keywords override."""
    values = {"vocab_size": 99, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return OpenAIGPTConfig(**{**values, **overrides})


FAMILY = Family(
    model_type="openai-gpt",
    config=OpenAIGPTConfig,
    classes={
        "base": OpenAIGPTModel,
        "causal-lm": OpenAIGPTLMHeadModel,
        "double-heads": OpenAIGPTDoubleHeadsModel,
        "sequence-classification": OpenAIGPTForSequenceClassification,
    },
    tokenizer="OpenAIGPTTokenizerFast",
    tiny=tiny,
    key_rules=OpenAIGPTPreTrainedModel.key_rules,
)
