"""GPT-2's own rules: positions, limits, refused inputs, what heads and options do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quintet.errors import ConfigError, InputError
from quintet.models.gpt2 import (
    FAMILY,
    GPT2Config,
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
    tiny,
)

IDS = torch.tensor([[5, 17, 3, 88, 42], [70, 2, 33, 4, 90]])


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(tiny()).eval()


def positions(model: Any, *args: Any, **kwargs: Any) -> list[list[int]]:
    """The positions that a forward pass looks up."""
    seen: list[torch.Tensor] = []
    handle = model.transformer.wpe.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        model(*args, **kwargs)
    finally:
        handle.remove()
    return [row.tolist() for row in seen[0]]


MASKS = {
    "none": (None, [[0, 1, 2, 3, 4]]),
    "all real": ([[1] * 5, [1] * 5], [[0, 1, 2, 3, 4]]),
    "right": ([[1, 1, 1, 0, 0], [1] * 5], [[0, 1, 2, 3, 4]] * 2),
    "left": ([[0, 0, 1, 1, 1], [1] * 5], [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]),
    "left with a hole": ([[0, 1, 0, 1, 1], [0, 0, 1, 1, 0]], [[0, 0, 1, 2, 3], [0, 0, 0, 1, 2]]),
    "a hole": ([[1, 0, 1, 1, 1], [1] * 5], [[0, 1, 2, 3, 4]] * 2),
    "nothing real": ([[0] * 5, [1] * 5], [[0, 1, 2, 3, 4]] * 2),
}


@pytest.mark.parametrize("name", MASKS)
def test_positions_count_from_the_first_real_token(model: GPT2LMHeadModel, name: str) -> None:
    mask, wanted = MASKS[name]
    given = None if mask is None else torch.tensor(mask)
    assert positions(model, IDS, attention_mask=given) == wanted
    if given is not None:
        assert positions(model, IDS, attention_mask=given.float()) == wanted
        assert positions(model, IDS, attention_mask=given.bool()) == wanted


def test_positions_with_a_cache(model: GPT2LMHeadModel) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    past = model(IDS[:, :3], attention_mask=mask[:, :3]).past_key_values
    assert positions(model, IDS[:, 3:], past_key_values=past, attention_mask=mask) == [[1, 2], [3, 4]]
    past.crop(3)
    assert positions(model, IDS[:, 3:], past_key_values=past) == [[3, 4]]
    past.crop(3)
    assert positions(model, IDS[:, 3:], past_key_values=past, cache_position=torch.tensor([3, 4])) == [[3, 4]]


def test_given_positions_win(model: GPT2LMHeadModel) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    own = torch.tensor([[7, 7, 8, 9, 10], [0, 1, 2, 3, 63]])
    assert positions(model, IDS, attention_mask=mask, position_ids=own) == own.tolist()
    assert positions(model, IDS, attention_mask=mask, position_ids=own[:1]) == own[:1].tolist()
    # the reference's positions of a left-padded batch, when they are wanted
    assert positions(model, IDS, attention_mask=mask, position_ids=torch.arange(5)[None]) == [[0, 1, 2, 3, 4]]


def long(tokens: int) -> torch.Tensor:
    return torch.ones(1, tokens, dtype=torch.long)


def refused() -> dict[str, tuple[dict[str, Any], str]]:
    ones = torch.ones(2, 5, dtype=torch.long)
    return {
        "nothing": ({}, "give either input_ids or inputs_embeds; got neither"),
        "both": ({"input_ids": IDS, "inputs_embeds": torch.ones(2, 5, 32)}, "got both"),
        "no token": ({"input_ids": IDS[:, :0]}, r"the input is empty: its shape is \(2, 0\)"),
        "no row": ({"input_ids": IDS[:0]}, r"the input is empty: its shape is \(0, 5\)"),
        "one dimension": ({"input_ids": IDS[0]}, r"input_ids have shape \(5,\), .* input_ids\[None\]"),
        "floats": ({"input_ids": IDS.float()}, "input_ids are torch.float32, but must be int64 or int32"),
        "an id too large": ({"input_ids": IDS + 9}, "input_ids: 99 is outside the vocabulary .*allowed are 0 to 98"),
        "a negative id": ({"input_ids": IDS - 3}, "input_ids: -1 is outside the vocabulary"),
        "too many tokens": ({"input_ids": long(65)}, "65 tokens .* more than the 64 positions"),
        "too many real tokens": (
            {"input_ids": long(70), "attention_mask": torch.ones(1, 70).triu(5)[:1]},
            "positions of the input: 64 is outside the table of n_positions; allowed are 0 to 63",
        ),
        "a position too large": (
            {"input_ids": IDS, "position_ids": torch.arange(60, 65)[None]},
            "position_ids: 64 is outside the table of n_positions; allowed are 0 to 63",
        ),
        "a negative position": ({"input_ids": IDS, "position_ids": -ones}, "position_ids: -1 is outside"),
        "float positions": ({"input_ids": IDS, "position_ids": ones.float()}, "position_ids has type torch.float32"),
        "positions of another length": (
            {"input_ids": IDS, "position_ids": ones[:, :4]},
            r"position_ids have shape \(2, 4\), but must be \(2, 5\) or \(1, 5\)",
        ),
        "cache_position of another length": (
            {"input_ids": IDS, "cache_position": torch.arange(4)},
            r"cache_position has shape \(4,\), but must be \(5,\)",
        ),
        "another cache_position": (
            {"input_ids": IDS, "cache_position": torch.arange(1, 6)},
            r"cache_position is \[1, 2, 3, 4, 5\], but the cache holds 0 tokens, so the new ones stand at 0 to 4",
        ),
        "token types of another shape": (
            {"input_ids": IDS, "token_type_ids": ones[:, :3]},
            r"token_type_ids have shape \(2, 3\), but must be \(2, 5\)",
        ),
        "a token type too large": (
            {"input_ids": IDS, "token_type_ids": ones * 99},
            "token_type_ids: 99 is outside the vocabulary",
        ),
        "float token types": (
            {"input_ids": IDS, "token_type_ids": ones.float()},
            "token_type_ids has type torch.float32",
        ),
        "a mask of another length": (
            {"input_ids": IDS, "attention_mask": ones[:, :3]},
            r"attention_mask has shape \(2, 3\), but must be \(2, 5\): a 1 or 0 for each of the 0 cached and 5 new",
        ),
        "a mask of other rows": ({"input_ids": IDS, "attention_mask": ones[:1]}, r"attention_mask has shape \(1, 5\)"),
        "a mask of one dimension": ({"input_ids": IDS, "attention_mask": ones[0]}, r"attention_mask has shape \(5,\)"),
        "a mask of no dimension": ({"input_ids": IDS, "attention_mask": ones[0, 0]}, r"attention_mask has shape \(\)"),
        "a 4-D mask of another length": (
            {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 5, 4)},
            r"a 4-D mask must broadcast to \(2, heads, 5, 5\)",
        ),
        "embeddings of another width": (
            {"inputs_embeds": torch.ones(2, 5, 31)},
            r"inputs_embeds have shape \(2, 5, 31\), but must be \(batch, tokens, 32\)",
        ),
        "embeddings of two dimensions": ({"inputs_embeds": torch.ones(5, 32)}, "inputs_embeds have shape"),
        "a head mask of another shape": (
            {"input_ids": IDS, "head_mask": torch.ones(3)},
            r"head_mask has shape \(3,\), but must be \(4,\) or \(2, 4\)",
        ),
        "encoder states without cross-attention": (
            {"input_ids": IDS, "encoder_hidden_states": torch.ones(2, 3, 32)},
            "this model has no cross-attention. Make it with config.add_cross_attention=True",
        ),
    }


@pytest.mark.parametrize("name", refused())
def test_refused_before_anything_is_looked_up(model: GPT2LMHeadModel, name: str) -> None:
    given, words = refused()[name]

    def gathered(*_: Any) -> None:
        raise AssertionError("an embedding was looked up")

    handles = [part.register_forward_pre_hook(gathered) for part in (model.transformer.wte, model.transformer.wpe)]
    try:
        with pytest.raises(InputError, match=words) as error:
            model(**given)
        assert isinstance(error.value, ValueError)
    finally:
        for handle in handles:
            handle.remove()


def test_refused_with_a_cache(model: GPT2LMHeadModel) -> None:
    past = model(long(60)).past_key_values
    with pytest.raises(InputError, match=r"65 tokens \(60 cached, 5 new\) are more than the 64 positions"):
        model(long(5), past_key_values=past)
    assert past.get_seq_length() == 60
    assert model(long(4), past_key_values=past).logits.shape == (1, 4, 99)
    past.crop(63)
    with pytest.raises(InputError, match="input_ids: 120 is outside"):
        model(long(1) * 120, past_key_values=past)
    # padding on the left does not count
    mask = torch.ones(1, 70)
    mask[:, :6] = 0
    assert model(long(70), attention_mask=mask).logits.shape == (1, 70, 99)


def test_refused_encoder_states() -> None:
    model = GPT2Model(tiny(add_cross_attention=True))
    with pytest.raises(
        InputError, match=r"encoder_hidden_states have shape \(2, 3, 31\), but must be \(2, tokens, 32\)"
    ):
        model(IDS, encoder_hidden_states=torch.ones(2, 3, 31))
    with pytest.raises(InputError, match=r"encoder_hidden_states have shape \(1, 3, 32\)"):
        model(IDS, encoder_hidden_states=torch.ones(1, 3, 32))
    with pytest.raises(
        InputError, match=r"encoder_attention_mask has shape \(2, 4\), but must be \(2, 3\): .* 3 encoder states"
    ):
        model(IDS, encoder_hidden_states=torch.ones(2, 3, 32), encoder_attention_mask=torch.ones(2, 4))


def test_encoder_states_that_are_all_masked_give_finite_results() -> None:
    model = GPT2Model(tiny(add_cross_attention=True)).eval()
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    for attentions in (False, True):
        out = model(
            IDS,
            encoder_hidden_states=torch.randn(2, 3, 32),
            encoder_attention_mask=mask,
            output_attentions=attentions,
        )
        assert out.last_hidden_state.isfinite().all()


def test_refused_keywords(model: GPT2LMHeadModel) -> None:
    with pytest.raises(
        TypeError, match=r"GPT2LMHeadModel.forward\(\) has no argument 'atention_mask'. Did you mean 'att"
    ):
        model(IDS, atention_mask=None)
    with pytest.raises(TypeError, match=r"GPT2Model.forward\(\) has no argument 'labels'"):
        model.transformer(IDS, labels=IDS)
    with pytest.raises(TypeError, match="unexpected keyword argument 'frobnicate'"):
        GPT2ForTokenClassification(tiny())(IDS, frobnicate=1)
    with pytest.raises(InputError, match="logits_to_keep is -1; give 0 for all"):
        model(IDS, logits_to_keep=-1)


def test_refused_labels(model: GPT2LMHeadModel) -> None:
    with pytest.raises(InputError, match="labels holds 99; allowed are 0 to 98, and -100 to be ignored"):
        model(IDS, labels=IDS + 9)
    with pytest.raises(InputError, match=r"labels have shape \(2, 4\) and the logits are for \(2, 5\) tokens"):
        model(IDS, labels=IDS[:, 1:])
    with pytest.raises(InputError, match="do not cut the logits with logits_to_keep"):
        model(IDS, labels=IDS, logits_to_keep=1)
    with pytest.raises(InputError, match="labels holds 2; allowed are 0 to 1"):
        GPT2ForTokenClassification(tiny())(IDS, labels=IDS * 0 + 2)
    with pytest.raises(InputError, match="a batch of 2 rows needs to know its padding token"):
        GPT2ForSequenceClassification(tiny())(IDS)
    double = GPT2DoubleHeadsModel(tiny())
    choices = IDS[:, None].expand(2, 3, 5)
    with pytest.raises(
        InputError, match=r"mc_token_ids must be positions from 0 to 4, and got \[\[0, 5, 0\], \[0, 0, 0\]\]"
    ):
        double(choices, mc_token_ids=torch.tensor([[0, 5, 0], [0, 0, 0]]))
    with pytest.raises(InputError, match=r"mc_token_ids have shape \(2,\), but must be \(2, 3\)"):
        double(choices, mc_token_ids=torch.tensor([0, 1]))
    with pytest.raises(InputError, match="labels holds 3; allowed are 0 to 2"):
        double(choices, mc_labels=torch.tensor([0, 3]))


def test_removed_methods_say_what_to_do(model: GPT2LMHeadModel) -> None:
    with pytest.raises(ConfigError, match=r"parallelize\(\) is gone: load with from_pretrained\(name, device_map="):
        model.parallelize({0: [0, 1]})
    with pytest.raises(ConfigError, match=r"deparallelize\(\) is gone"):
        model.transformer.deparallelize()


def test_int32_ids_and_labels_are_taken(model: GPT2LMHeadModel) -> None:
    wanted, got = model(IDS, labels=IDS), model(IDS.int(), labels=IDS.int())
    assert torch.equal(got.logits, wanted.logits)
    assert torch.equal(got.loss, wanted.loss)
    sequence = GPT2ForSequenceClassification(tiny(pad_token_id=0)).eval()
    assert sequence(IDS, labels=torch.tensor([0, 1], dtype=torch.int32)).loss.isfinite()
    assert sequence.config.problem_type == "single_label_classification"


def test_embeddings_of_any_memory_layout_are_taken(model: GPT2LMHeadModel) -> None:
    embeds = torch.randn(5, 2, 3, 32)
    turned = embeds.permute(1, 2, 0, 3)  # (2, 3, 5, 32), not contiguous
    assert model(inputs_embeds=turned).logits.shape == (2, 3, 5, 99)


def test_choices_in_the_base_model(model: GPT2LMHeadModel) -> None:
    choices = torch.stack([IDS, IDS.flip(1)], 1)  # (2, 2, 5)
    out = model(choices, attention_mask=torch.ones_like(choices), labels=choices, output_hidden_states=True)
    assert out.logits.shape == (2, 2, 5, 99)
    torch.testing.assert_close(out.logits[:, 0], model(IDS).logits)
    torch.testing.assert_close(out.logits[:, 1], model(IDS.flip(1)).logits)


def test_the_position_table_is_used_to_its_end(model: GPT2LMHeadModel) -> None:
    assert model(long(64)).logits.shape == (1, 64, 99)


def test_an_unknown_backend_is_refused(model: GPT2LMHeadModel) -> None:
    config = tiny(attn_implementation="sdap")
    with pytest.raises(
        ConfigError, match="unknown attn_implementation 'sdap'; there are eager, sdpa, .*Did you mean 'sdpa'"
    ):
        GPT2Model(config)
    late = GPT2Model(tiny())
    late.config._attn_implementation = "flash"
    with pytest.raises(ConfigError, match="unknown attn_implementation 'flash'"):
        late(IDS)


def test_every_class_is_in_the_record() -> None:
    assert set(FAMILY.classes.values()) == {
        GPT2Model,
        GPT2LMHeadModel,
        GPT2DoubleHeadsModel,
        GPT2ForSequenceClassification,
        GPT2ForTokenClassification,
        GPT2ForQuestionAnswering,
    }
    assert FAMILY.config is GPT2Config
    assert FAMILY.tiny(n_layer=1).n_layer == 1


@pytest.mark.slow
def test_the_model_runs_under_torch_compile() -> None:
    model = GPT2LMHeadModel(tiny()).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # traced whole, but no code is generated
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    with torch.no_grad():
        wanted = model(IDS, attention_mask=mask, labels=IDS)
        got = compiled(IDS, attention_mask=mask, labels=IDS)
        torch.testing.assert_close(got.logits, wanted.logits)
        torch.testing.assert_close(got.loss, wanted.loss)
        past = compiled(IDS[:, :4], attention_mask=mask[:, :4]).past_key_values
        torch.testing.assert_close(
            compiled(IDS[:, 4:], attention_mask=mask, past_key_values=past).logits, wanted.logits[:, 4:]
        )


def test_the_model_runs_without_memory() -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(tiny(reorder_and_upcast_attn=True))
        out = model(torch.ones(2, 5, dtype=torch.long), labels=torch.ones(2, 5, dtype=torch.long))
    assert out.logits.shape == (2, 5, 99)
