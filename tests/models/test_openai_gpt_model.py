"""GPT-1's own rules: outputs without and with a cache, positions, refused inputs, heads that are pruned."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from quintet.cache import DynamicCache
from quintet.errors import ConfigError, InputError
from quintet.models.openai_gpt import (
    FAMILY,
    OpenAIGPTConfig,
    OpenAIGPTDoubleHeadsModel,
    OpenAIGPTForSequenceClassification,
    OpenAIGPTLMHeadModel,
    OpenAIGPTModel,
    tiny,
)

IDS = torch.tensor([[5, 17, 3, 88, 42], [70, 2, 33, 4, 90]])
CLASSES = [OpenAIGPTModel, OpenAIGPTLMHeadModel, OpenAIGPTDoubleHeadsModel, OpenAIGPTForSequenceClassification]


@pytest.fixture(scope="module")
def model() -> OpenAIGPTLMHeadModel:
    return OpenAIGPTLMHeadModel(tiny()).eval()


def long(tokens: int) -> torch.Tensor:
    return torch.ones(1, tokens, dtype=torch.long)


# -- the cache ---------------------------------------------------------------------------------------------------------

PLAIN = {
    "OpenAIGPTModel": "BaseModelOutput",
    "OpenAIGPTLMHeadModel": "CausalLMOutput",
    "OpenAIGPTDoubleHeadsModel": "OpenAIGPTDoubleHeadsModelOutput",
    "OpenAIGPTForSequenceClassification": "SequenceClassifierOutput",
}
WITH_PAST = {
    "OpenAIGPTModel": "BaseModelOutputWithPast",
    "OpenAIGPTLMHeadModel": "CausalLMOutputWithPast",
    "OpenAIGPTDoubleHeadsModel": "DoubleHeadsModelOutput",
    "OpenAIGPTForSequenceClassification": "SequenceClassifierOutputWithPast",
}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_outputs_have_a_cache_only_when_one_is_asked_for(kind: Any) -> None:
    model = kind(tiny(pad_token_id=0)).eval()
    name = kind.__name__
    out = model(IDS)
    assert type(out).__name__ == PLAIN[name]
    assert "past_key_values" not in out and not hasattr(out, "past_key_values")
    asked = model(IDS, use_cache=True)
    assert type(asked).__name__ == WITH_PAST[name]
    assert asked.past_key_values.get_seq_length() == 5
    refused = model(IDS, use_cache=False)
    assert refused.past_key_values is None and list(refused) == list(out)
    # Who hands one in gets it back, unless told otherwise.
    given = DynamicCache()
    assert model(IDS, past_key_values=given).past_key_values is given
    assert model(IDS, past_key_values=given, use_cache=False).past_key_values is None
    assert given.get_seq_length() == 10
    for options in ({}, {"use_cache": True}):
        assert isinstance(model(IDS, return_dict=False, **options), tuple)
    assert len(model(IDS, return_dict=False)) == len(out)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_text_in_two_parts(kind: Any) -> None:
    model = kind(tiny(pad_token_id=0)).eval()
    wanted = model(IDS)
    past = model(IDS[:, :3], use_cache=True).past_key_values
    got = model(IDS[:, 3:], past_key_values=past)
    for name in ("last_hidden_state", "logits", "mc_logits"):
        if name in wanted:
            whole = wanted[name][:, 3:] if wanted[name].dim() == 3 else wanted[name]
            torch.testing.assert_close(got[name], whole, rtol=1e-5, atol=1e-6)


def test_choices_with_a_cache() -> None:
    model = OpenAIGPTDoubleHeadsModel(tiny()).eval()
    choices = torch.stack([IDS, IDS.flip(1)], 1)  # (2, 2, 5)
    wanted = model(choices)
    past = model(choices[..., :3], use_cache=True).past_key_values
    got = model(choices[..., 3:], past_key_values=past)
    torch.testing.assert_close(got.logits, wanted.logits[..., 3:, :])
    torch.testing.assert_close(got.mc_logits, wanted.mc_logits)


def test_the_configurations_use_cache_is_about_generate_alone(model: OpenAIGPTLMHeadModel) -> None:
    assert model.config.use_cache and "past_key_values" not in model(IDS)
    off = OpenAIGPTLMHeadModel(tiny(use_cache=False)).eval()
    seen: list[int] = []
    off.transformer.tokens_embed.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    off.generate(IDS, max_new_tokens=3, pad_token_id=0)
    assert seen == [5, 6, 7]


def test_gradient_checkpointing_makes_no_cache() -> None:
    model = OpenAIGPTLMHeadModel(tiny()).train()
    model.gradient_checkpointing_enable()
    assert model(IDS, use_cache=True).past_key_values is None
    with pytest.raises(InputError, match="past_key_values cannot be used while training with gradient checkpointing"):
        model(IDS, past_key_values=DynamicCache())


# -- positions ---------------------------------------------------------------------------------------------------------


def positions(model: Any, *args: Any, **kwargs: Any) -> list[list[int]]:
    """The positions that a forward pass looks up."""
    seen: list[torch.Tensor] = []
    handle = model.transformer.positions_embed.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        model(*args, **kwargs)
    finally:
        handle.remove()
    return [row.tolist() for row in seen[0]]


def test_positions_count_from_the_first_real_token(model: OpenAIGPTLMHeadModel) -> None:
    def at(mask: list[list[int]], **given: Any) -> list[list[int]]:
        return positions(model, IDS, attention_mask=torch.tensor(mask), **given)

    assert positions(model, IDS) == [[0, 1, 2, 3, 4]]
    assert at([[0, 0, 1, 1, 1], [1] * 5]) == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert at([[0, 1, 0, 1, 1], [1, 0, 1, 1, 0]]) == [[0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]
    own = torch.tensor([[7, 7, 8, 9, 10], [0, 1, 2, 3, 63]])
    assert at([[0, 0, 1, 1, 1], [1] * 5], position_ids=own) == own.tolist()
    past = model(IDS[:, :3], attention_mask=torch.tensor([[0, 0, 1], [1] * 3]), use_cache=True).past_key_values
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    assert positions(model, IDS[:, 3:], past_key_values=past, attention_mask=mask) == [[1, 2], [3, 4]]


def test_the_position_table_is_used_to_its_end(model: OpenAIGPTLMHeadModel) -> None:
    past = model(long(60), use_cache=True).past_key_values
    assert model(long(4), past_key_values=past).logits.shape == (1, 4, 99)
    with pytest.raises(InputError, match=r"65 tokens \(64 cached, 1 new\) are more than the 64 positions"):
        model(long(1), past_key_values=past)
    assert past.get_seq_length() == 64
    mask = torch.ones(1, 70)  # padding on the left does not count
    mask[:, :6] = 0
    assert model(long(70), attention_mask=mask).logits.shape == (1, 70, 99)


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused() -> dict[str, tuple[dict[str, Any], str]]:
    ones = torch.ones(2, 5, dtype=torch.long)
    return {
        "nothing": ({}, "give either input_ids or inputs_embeds; got neither"),
        "both": ({"input_ids": IDS, "inputs_embeds": torch.ones(2, 5, 32)}, "got both"),
        "no token": ({"input_ids": IDS[:, :0]}, r"the input is empty: its shape is \(2, 0\)"),
        "one dimension": ({"input_ids": IDS[0]}, r"input_ids have shape \(5,\), .* input_ids\[None\]"),
        "an id too large": ({"input_ids": IDS + 9}, "input_ids: 99 is outside the vocabulary .*allowed are 0 to 98"),
        "a negative id": ({"input_ids": IDS - 3}, "input_ids: -1 is outside the vocabulary"),
        "too many tokens": ({"input_ids": long(65)}, "65 tokens .* more than the 64 positions"),
        "a position too large": (
            {"input_ids": IDS, "position_ids": torch.arange(60, 65)[None]},
            "position_ids: 64 is outside the table of n_positions; allowed are 0 to 63",
        ),
        "token types of another shape": (
            {"input_ids": IDS, "token_type_ids": ones[:, :3]},
            r"token_type_ids have shape \(2, 3\), but must be \(2, 5\)",
        ),
        "a token type too large": (
            {"input_ids": IDS, "token_type_ids": ones * 99},
            "token_type_ids: 99 is outside the vocabulary",
        ),
        "a mask of another length": ({"input_ids": IDS, "attention_mask": ones[:, :3]}, r"shape \(2, 3\), but must be"),
        "embeddings of another width": (
            {"inputs_embeds": torch.ones(2, 5, 31)},
            r"inputs_embeds have shape \(2, 5, 31\), but must be \(batch, tokens, 32\)",
        ),
        "a head mask of another shape": (
            {"input_ids": IDS, "head_mask": torch.ones(3)},
            r"head_mask has shape \(3,\), but must be \(4,\) or \(2, 4\)",
        ),
    }


@pytest.mark.parametrize("name", refused())
def test_refused_before_anything_is_looked_up(model: OpenAIGPTLMHeadModel, name: str) -> None:
    given, words = refused()[name]

    def gathered(*_: Any) -> None:
        raise AssertionError("an embedding was looked up")

    base = model.transformer
    handles = [part.register_forward_pre_hook(gathered) for part in (base.tokens_embed, base.positions_embed)]
    try:
        with pytest.raises(InputError, match=words):
            model(**given)
    finally:
        for handle in handles:
            handle.remove()


def test_refused_keywords(model: OpenAIGPTLMHeadModel) -> None:
    with pytest.raises(TypeError, match=r"OpenAIGPTLMHeadModel.forward\(\) has no argument 'atention_mask'. Did you m"):
        model(IDS, atention_mask=None)
    with pytest.raises(TypeError, match=r"OpenAIGPTModel.forward\(\) has no argument 'labels'"):
        model.transformer(IDS, labels=IDS)
    with pytest.raises(TypeError, match="unexpected keyword argument 'frobnicate'"):
        OpenAIGPTForSequenceClassification(tiny())(IDS, frobnicate=1)


def test_refused_labels(model: OpenAIGPTLMHeadModel) -> None:
    with pytest.raises(InputError, match="labels holds 99; allowed are 0 to 98, and -100 to be ignored"):
        model(IDS, labels=IDS + 9)
    with pytest.raises(InputError, match="a batch of 2 rows needs to know its padding token"):
        OpenAIGPTForSequenceClassification(tiny())(IDS)
    double = OpenAIGPTDoubleHeadsModel(tiny())
    choices = IDS[:, None].expand(2, 3, 5)
    with pytest.raises(InputError, match="mc_token_ids must be positions from 0 to 4"):
        double(choices, mc_token_ids=torch.tensor([[0, 5, 0], [0, 0, 0]]))
    with pytest.raises(InputError, match="labels holds 3; allowed are 0 to 2"):
        double(choices, mc_labels=torch.tensor([0, 3]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n_embd": 30, "n_head": 4}, "n_embd is 30 and n_head is 4, but n_embd must be a multiple of n_head"),
        ({"afn": "geul"}, "afn is 'geul'.*gelu"),
        ({"afn": "gelu_pytorch_tanh"}, "afn is 'gelu_pytorch_tanh'"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"resid_pdrop": 1.5}, "resid_pdrop is 1.5"),
        ({"summary_type": "attn"}, "summary_type is 'attn'"),
        ({"use_cache": "no"}, "use_cache is 'no'"),
        ({"pruned_heads": {2: [0]}}, r"pruned_heads names \[0\] of layer 2, but there are 2 layers of 4 heads"),
        ({"pruned_heads": {0: [0, 1, 2, 3]}}, "one head of a layer must stay"),
    ],
    ids=str,
)
def test_refused_configurations(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny(**fields)


# -- heads -------------------------------------------------------------------------------------------------------------


def silenced(model: Any, heads: dict[int, list[int]]) -> Any:
    """The model with the rows of the output layer that read those heads set to 0: what no head would give."""
    model = copy.deepcopy(model)
    for layer, numbers in heads.items():
        weight = model.base_model.h[layer].attn.c_proj.weight.data
        for head in numbers:
            weight[head * 8 : head * 8 + 8] = 0
    return model


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_heads_are_silenced_and_pruned(backend: str, tmp_path: Path) -> None:
    model = OpenAIGPTLMHeadModel(tiny(attn_implementation=backend)).eval()
    wanted = silenced(model, {0: [1], 1: [0, 3]})(IDS).logits
    mask = torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 0]])
    torch.testing.assert_close(model(IDS, head_mask=mask).logits, wanted)
    weights = model(IDS, head_mask=mask, output_attentions=True).attentions
    assert weights[0][:, 1].abs().max() == weights[1][:, 3].abs().max() == 0
    one = torch.tensor([0.0, 1, 1, 1])
    torch.testing.assert_close(model(IDS, head_mask=one).logits, silenced(model, {0: [0], 1: [0]})(IDS).logits)
    before = model.num_parameters()
    model.prune_heads({0: [1], 1: [0]})
    model.prune_heads({1: [3]})
    assert before - model.num_parameters() == 3 * (4 * 32 * 8 + 3 * 8)  # q, k, v, their biases, the output's rows
    torch.testing.assert_close(model(IDS).logits, wanted)
    past = model(IDS[:, :3], use_cache=True).past_key_values  # whose layers then differ in heads
    torch.testing.assert_close(model(IDS[:, 3:], past_key_values=past).logits, wanted[:, 3:])
    model.save_pretrained(tmp_path)
    again = OpenAIGPTLMHeadModel.from_pretrained(tmp_path)
    assert again.config.pruned_heads == {0: [1], 1: [0, 3]}
    torch.testing.assert_close(again(IDS).logits, wanted)
    with pytest.raises(InputError, match="head_mask cannot be used with pruned heads"):
        model(IDS, head_mask=one)


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_embeddings_can_be_resized_and_replaced() -> None:
    model = OpenAIGPTLMHeadModel(tiny()).eval()
    before = model(IDS).logits
    model.resize_token_embeddings(101)
    assert model.config.vocab_size == 101
    assert model.lm_head.weight is model.transformer.tokens_embed.weight
    torch.testing.assert_close(model(IDS).logits[..., :99], before)
    table = torch.nn.Embedding(101, 32)
    model.set_input_embeddings(table)
    assert model.get_input_embeddings() is model.transformer.tokens_embed is table


def test_every_class_is_in_the_record() -> None:
    assert set(FAMILY.classes.values()) == set(CLASSES)
    assert FAMILY.config is OpenAIGPTConfig and FAMILY.model_type == "openai-gpt"
    assert FAMILY.tiny(n_layer=1).n_layer == 1


def test_the_model_runs_without_memory() -> None:
    with torch.device("meta"):
        model = OpenAIGPTLMHeadModel(tiny())
        out = model(torch.ones(2, 5, dtype=torch.long), labels=torch.ones(2, 5, dtype=torch.long))
    assert out.logits.shape == (2, 5, 99)


@pytest.mark.slow
def test_the_model_runs_under_torch_compile() -> None:
    model = OpenAIGPTLMHeadModel(tiny()).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # traced whole, but no code is generated
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    with torch.no_grad():
        wanted = model(IDS, attention_mask=mask, labels=IDS)
        got = compiled(IDS, attention_mask=mask, labels=IDS)
        torch.testing.assert_close(got.logits, wanted.logits)
        torch.testing.assert_close(got.loss, wanted.loss)
        past = compiled(IDS[:, :4], attention_mask=mask[:, :4], use_cache=True).past_key_values
        torch.testing.assert_close(
            compiled(IDS[:, 4:], attention_mask=mask, past_key_values=past).logits, wanted.logits[:, 4:]
        )
