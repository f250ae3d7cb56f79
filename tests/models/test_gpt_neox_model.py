"""GPT-NeoX's own rules: what is refused, the head's name, positions without an end, padded vocabularies."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch

from quintet.errors import ConfigError, InputError
from quintet.layers import inputs as layers_inputs
from quintet.models.gpt_neox import (
    FAMILY,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForQuestionAnswering,
    GPTNeoXForSequenceClassification,
    GPTNeoXForTokenClassification,
    GPTNeoXModel,
    tiny,
)

IDS = torch.tensor([[5, 17, 3, 88, 42], [70, 2, 33, 4, 90]])
ONES = torch.ones(2, 5, dtype=torch.long)


@pytest.fixture(scope="module")
def model() -> GPTNeoXForCausalLM:
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(tiny()).eval()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "give either input_ids or inputs_embeds; got neither"),
    "both": ({"input_ids": IDS, "inputs_embeds": torch.ones(2, 5, 32)}, "got both"),
    "no token": ({"input_ids": IDS[:, :0]}, r"the input is empty: its shape is \(2, 0\)"),
    "one dimension": ({"input_ids": IDS[0]}, r"input_ids have shape \(5,\), .* input_ids\[None\]"),
    "floats": ({"input_ids": IDS.float()}, "input_ids are torch.float32, but must be int64 or int32"),
    "an id too large": ({"input_ids": IDS + 9}, "input_ids: 99 is outside the vocabulary .*allowed are 0 to 98"),
    "a negative id": ({"input_ids": IDS - 3}, "input_ids: -1 is outside the vocabulary"),
    "positions of another length": (
        {"input_ids": IDS, "position_ids": ONES[:, :4]},
        r"position_ids have shape \(2, 4\), but must be \(2, 5\) or \(1, 5\)",
    ),
    "another cache_position": (
        {"input_ids": IDS, "cache_position": torch.arange(1, 6)},
        r"cache_position is \[1, 2, 3, 4, 5\], but the cache holds 0 tokens, so the new ones stand at 0 to 4",
    ),
    "a mask of another length": (
        {"input_ids": IDS, "attention_mask": ONES[:, :3]},
        r"attention_mask has shape \(2, 3\), but must be \(2, 5\): a 1 or 0 for each of the 0 cached and 5 new",
    ),
    "embeddings of another width": (
        {"inputs_embeds": torch.ones(2, 5, 31)},
        r"inputs_embeds have shape \(2, 5, 31\), but must be \(batch, tokens, 32\)",
    ),
    "a head mask of another shape": (
        {"input_ids": IDS, "head_mask": torch.ones(3)},
        r"head_mask has shape \(3,\), but must be \(4,\) or \(2, 4\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_a_block_runs(model: GPTNeoXForCausalLM, name: str) -> None:
    given, words = REFUSED[name]

    def ran(*_: Any) -> None:
        raise AssertionError("a block ran")

    handle = model.gpt_neox.layers[0].register_forward_pre_hook(ran)
    try:
        with pytest.raises(InputError, match=words):
            model(**given)
    finally:
        handle.remove()


def test_refused_keywords_and_labels(model: GPTNeoXForCausalLM) -> None:
    with pytest.raises(TypeError, match=r"GPTNeoXForCausalLM.forward\(\) has no argument 'atention_mask'. Did you"):
        model(IDS, atention_mask=None)
    with pytest.raises(TypeError, match=r"GPTNeoXModel.forward\(\) has no argument 'labels'"):
        model.gpt_neox(IDS, labels=IDS)
    with pytest.raises(TypeError, match="unexpected keyword argument 'frobnicate'"):
        GPTNeoXForTokenClassification(tiny())(IDS, frobnicate=1)
    with pytest.raises(InputError, match="labels holds 99; allowed are 0 to 98, and -100 to be ignored"):
        model(IDS, labels=IDS + 9)
    with pytest.raises(InputError, match="labels holds 2; allowed are 0 to 1"):
        GPTNeoXForTokenClassification(tiny())(IDS, labels=IDS * 0 + 2)
    with pytest.raises(InputError, match="a batch of 2 rows needs to know its padding token"):
        GPTNeoXForSequenceClassification(tiny())(IDS)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "sizes": (
        {"hidden_size": 33},
        "hidden_size is 33 and num_attention_heads is 4, but hidden_size must be a multiple of num_attention_heads",
    ),
    "activation": (
        {"hidden_act": "gelu_nwe"},
        "hidden_act is 'gelu_nwe', but must be one of .*Did you mean 'gelu_new'",
    ),
    "dropout": ({"attention_dropout": 1.5}, "attention_dropout is 1.5, but must be a number from 0 to 1"),
    "classifier": ({"classifier_dropout": None}, "classifier_dropout is None, but must be a number from 0 to 1"),
    "flag": ({"use_parallel_residual": 1}, "use_parallel_residual is 1, but must be true or false"),
    "bias": ({"attention_bias": "yes"}, "attention_bias is 'yes', but must be true or false"),
    "heads": ({"num_attention_heads": 0}, "num_attention_heads is 0, but must be an integer from 1"),
    "width": ({"intermediate_size": 3.5}, "intermediate_size is 3.5, but must be an integer from 1"),
    "length": ({"max_position_embeddings": 0}, "max_position_embeddings is 0, but must be an integer from 1"),
    "odd head": (
        {"hidden_size": 36, "rotary_pct": 1.0},
        r"rotary size is 9 \(1.0 of head_dim 9\), but must be even for a head that is rotated whole",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_refused_configurations(name: str) -> None:
    fields, words = CONFIGS[name]
    with pytest.raises(ConfigError, match=f"GPTNeoXConfig: .*{words}"):
        tiny(**fields)


def test_a_configuration_that_was_changed_is_checked_again() -> None:
    config = tiny()
    config.rotary_pct = 0.05
    with pytest.raises(ConfigError, match=r"GPTNeoXConfig: the rotary size is 0 \(0.05 of head_dim 8\)"):
        GPTNeoXModel(config)


def test_the_output_embedding_is_embed_out(model: GPTNeoXForCausalLM) -> None:
    assert model.get_output_embeddings() is model.embed_out
    assert model.get_input_embeddings() is model.gpt_neox.embed_in
    new = torch.nn.Linear(32, 99, bias=False)
    other = copy.deepcopy(model)
    other.set_output_embeddings(new)
    assert other.embed_out is new
    for head in (GPTNeoXForTokenClassification(tiny()), GPTNeoXForQuestionAnswering(tiny())):
        assert head.get_output_embeddings() is None


@pytest.mark.parametrize("tied", [False, True])
def test_resizing_reaches_both_ends(tied: bool) -> None:
    model = GPTNeoXForCausalLM(tiny(tie_word_embeddings=tied)).eval()
    before = model(IDS).logits
    model.resize_token_embeddings(110)
    assert model.config.vocab_size == model.embed_out.out_features == 110
    assert (model.embed_out.weight is model.gpt_neox.embed_in.weight) is tied
    torch.testing.assert_close(model(IDS).logits[..., :99], before)
    assert model(torch.full((1, 3), 109)).logits.shape == (1, 3, 110)


def test_a_padded_vocabulary_is_not_cut_unseen(model: GPTNeoXForCausalLM) -> None:
    """Pythia's tokenizer knows 50277 tokens and its vocabulary has 50304 rows or more."""
    with pytest.raises(InputError, match=r"resize_token_embeddings\(90\) would throw away 9 of 99 rows. A padded voc"):
        model.resize_token_embeddings(90)
    assert model.config.vocab_size == 99
    cut = copy.deepcopy(model)
    cut.resize_token_embeddings(90, allow_shrink=True)
    torch.testing.assert_close(cut(IDS[:1]).logits, model(IDS[:1]).logits[..., :90])


def test_positions_have_no_end_but_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    layers_inputs._warn_once.cache_clear()
    model = GPTNeoXForCausalLM(tiny(max_position_embeddings=8)).eval()
    ids = torch.randint(99, (1, 20))
    with caplog.at_level(logging.WARNING, logger="quintet"):
        model(ids[:, :8])
        assert not caplog.records
        logits = model(ids).logits
        model(ids)
    assert len(caplog.records) == 1
    assert "longer than the 8 tokens (max_position_embeddings)" in caplog.text
    assert logits.shape == (1, 20, 99)
    assert model._position_limit() is None
    assert model.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0).shape == (1, 23)


def test_only_a_part_of_each_head_is_rotated() -> None:
    """What is not rotated does not know its place: with nothing rotated but a zero part, order would not matter."""
    model = GPTNeoXModel(tiny(rotary_pct=0.25, num_hidden_layers=1)).eval()
    with torch.no_grad():
        qkv = model.layers[0].attention.query_key_value
        rows = torch.arange(96).view(4, 3, 8)  # the fused layout: (heads, query key value, features)
        qkv.weight[rows[:, :2, :2].reshape(-1)] = 0  # the rotated features of queries and keys
        qkv.bias[rows[:, :2, :2].reshape(-1)] = 0
    last = [model(ids).last_hidden_state[:, -1] for ids in (IDS, IDS[:, [2, 0, 3, 1, 4]])]
    torch.testing.assert_close(*last)
    whole = GPTNeoXModel(tiny(rotary_pct=0.25, num_hidden_layers=1, initializer_range=0.5)).eval()
    last = [whole(ids).last_hidden_state[:, -1] for ids in (IDS, IDS[:, [2, 0, 3, 1, 4]])]
    assert not torch.allclose(*last, atol=1e-3)


def test_int32_ids_and_labels_are_taken(model: GPTNeoXForCausalLM) -> None:
    got = model(IDS.int(), labels=IDS.int())
    torch.testing.assert_close(got.loss, model(IDS, labels=IDS).loss)


def test_every_class_is_in_the_record() -> None:
    assert set(FAMILY.classes.values()) == {
        GPTNeoXModel,
        GPTNeoXForCausalLM,
        GPTNeoXForSequenceClassification,
        GPTNeoXForTokenClassification,
        GPTNeoXForQuestionAnswering,
    }
    assert FAMILY.config is GPTNeoXConfig
    assert FAMILY.tiny(num_hidden_layers=1).num_hidden_layers == 1
    given = {"rope_type": "linear", "factor": 2.0, "rope_theta": 9.0, "partial_rotary_factor": 0.75}
    assert FAMILY.tiny(rope_parameters=given).rope_parameters == given


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["default", "dynamic", "longrope"])
def test_the_model_runs_under_torch_compile(kind: str) -> None:
    scaling = {
        "default": None,
        "dynamic": {"type": "dynamic", "factor": 2.0},
        "longrope": {
            "rope_type": "longrope",
            "short_factor": [1.0, 1.5],
            "long_factor": [2.0, 3.0],
            "original_max_position_embeddings": 4,
        },
    }[kind]
    model = GPTNeoXForCausalLM(tiny(rope_scaling=scaling)).eval()
    torch._dynamo.reset()  # programs are counted for each piece of code, and every model here has the same
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # traced whole, but no code is generated
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    with torch.no_grad():
        wanted = model(IDS, attention_mask=mask, labels=IDS)
        got = compiled(IDS, attention_mask=mask, labels=IDS)
        torch.testing.assert_close(got.logits, wanted.logits)
        torch.testing.assert_close(got.loss, wanted.loss)
        past = compiled(IDS[:, :4], attention_mask=mask[:, :4]).past_key_values
        last = compiled(IDS[:, 4:], attention_mask=mask, past_key_values=past).logits
        if kind == "default":  # the others rotate each part by the length it had then
            torch.testing.assert_close(last, wanted.logits[:, 4:])
        assert last.isfinite().all()


def test_the_model_runs_without_memory() -> None:
    with torch.device("meta"):
        model = GPTNeoXForCausalLM(tiny(rope_scaling={"type": "dynamic", "factor": 2.0}))
        out = model(torch.ones(2, 5, dtype=torch.long), labels=torch.ones(2, 5, dtype=torch.long))
    assert out.logits.shape == (2, 5, 99)
