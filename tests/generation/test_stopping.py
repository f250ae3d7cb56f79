"""Stopping criteria, alone and compiled into StopRules; stop strings wherever token boundaries fall."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quintet.errors import GenerationError
from quintet.generation import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from quintet.generation.stop_strings import TokenBytes
from quintet.generation.stopping import StopRules

IDS = torch.tensor([[5, 6, 7], [5, 6, 8]])


def test_length() -> None:
    assert MaxLengthCriteria(3)(IDS, None).tolist() == [True, True]
    assert MaxLengthCriteria(4, max_position_embeddings=9)(IDS, None).tolist() == [False, False]


def test_time() -> None:
    assert MaxTimeCriteria(10.0)(IDS, None).tolist() == [False, False]
    assert MaxTimeCriteria(10.0, initial_timestamp=time.time() - 11)(IDS, None).tolist() == [True, True]


def test_end_of_sequence() -> None:
    assert EosTokenCriteria(8)(IDS, None).tolist() == [False, True]
    assert EosTokenCriteria([7, 8])(IDS, None).tolist() == [True, True]
    assert EosTokenCriteria(torch.tensor(6))(IDS, None).tolist() == [False, False]
    assert EosTokenCriteria(6)(IDS, None, new_token_length=2).tolist() == [True, True]


def test_a_list_joins_answers() -> None:
    both = StoppingCriteriaList([EosTokenCriteria(8), lambda input_ids, scores: torch.tensor([False, False])])
    assert both(IDS, None).tolist() == [False, True]
    assert both.max_length is None
    both.append(MaxLengthCriteria(9))
    assert both.max_length == 9


def test_the_base_class_says_what_to_define() -> None:
    with pytest.raises(NotImplementedError, match=r"must define __call__\(input_ids, scores\)"):
        StoppingCriteria()(IDS, None)


class Columns:
    """Feeds StopRules as a loop does."""

    def __init__(self, criteria: list[Any], prompt: torch.Tensor) -> None:
        self.ids = prompt
        self.rules = StopRules(criteria, prompt.shape[0], prompt.shape[1])

    def put(self, *tokens: int) -> bool:
        self.ids = torch.cat([self.ids, torch.tensor(tokens)[:, None]], dim=1)
        return self.rules.update(list(tokens), lambda: self.ids, lambda: None)


def test_rules_answer_as_the_criteria() -> None:
    text = Columns([MaxLengthCriteria(7), EosTokenCriteria([1, 2])], IDS)
    assert text.rules.pads_rows
    assert not text.put(4, 4)
    assert not text.rules.any_done
    assert not text.put(4, 2)
    assert text.rules.done == [False, True]
    assert not text.put(5, 5)
    assert text.rules.done == [False, True]
    assert text.put(5, 5)  # the length
    assert text.rules.done == [True, True]


def test_rules_take_the_shortest_length_and_the_clock() -> None:
    text = Columns([MaxLengthCriteria(9), MaxLengthCriteria(4)], IDS)
    assert not text.rules.pads_rows
    assert text.put(1, 1)
    assert Columns([MaxTimeCriteria(1.0, initial_timestamp=0.0)], IDS).put(1, 1)


def test_rules_ask_criteria_of_other_kinds() -> None:
    class Late(MaxLengthCriteria):
        """A subclass may answer otherwise, and is asked."""

        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return super().__call__(input_ids[:, 1:], scores)

    text = Columns([Late(4), lambda input_ids, scores: input_ids[:, -1:] == 9], IDS)
    assert not text.put(9, 1)
    assert text.rules.done == [True, False]
    assert text.put(3, 3)


@pytest.mark.parametrize("answer", [True, torch.tensor(True), torch.tensor([True])])
def test_one_answer_for_all_rows(answer: Any) -> None:
    assert Columns([lambda input_ids, scores: answer], IDS).put(1, 1)


@pytest.mark.parametrize("answer", [torch.tensor([True] * 3), None, "yes"], ids=str)
def test_answers_of_a_wrong_shape(answer: Any) -> None:
    with pytest.raises(GenerationError, match=r"returned .*, but must return a bool tensor of shape \(2,\)"):
        Columns([lambda input_ids, scores: answer], IDS).put(1, 1)


# --- stop strings -----------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer whose tokens are given strings."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = list(tokens)

    def convert_ids_to_tokens(self, index: int) -> str:
        return self.tokens[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        self.tokens.append(text)
        return {"input_ids": [len(self.tokens) - 1]}


@pytest.mark.parametrize(
    ("tokens", "stops", "found"),
    [
        (["st", "op"], "stop", True),
        (["stop"], "stop", True),
        (["st", "opera"], "stop", True),
        (["sto", "pper"], "stop", True),
        (["las", "topper"], "stop", True),
        (["s", "to", "pped"], "stop", True),
        (["a stop b"], "stop", True),
        (["stop", "at"], "stop", False),
        (["st", "op", "at"], "stop", False),
        (["st", "opera", "tion"], "stop", False),
        (["st", "o"], "stop", False),
        (["stop", "stop"], "stop", True),
        (["aa", "a"], "aa", True),
        (["x", "ab"], ["abc", "xa"], True),
        (["long tail of text", " end", "."], ["nd.", "zzzzzzzzzzzzzz"], True),
        (["x"], "y", False),
    ],
)
def test_stop_strings_end_in_the_last_token(tokens: list[str], stops: Any, found: bool) -> None:
    criterion = StopStringCriteria(Letters(*tokens), stops)
    assert criterion(torch.arange(len(tokens))[None], None).tolist() == [found]


def test_each_row_for_itself() -> None:
    criterion = StopStringCriteria(Letters("st", "op", "x"), "stop")
    assert criterion(torch.tensor([[2, 0, 1], [0, 2, 1]]), None).tolist() == [True, False]


STOPS = ["stop", "op", " sto", "tops", "e\n", "漢", "ï", "p. St"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.sampled_from(STOPS), min_size=1, max_size=3), data=st.data())
def test_stop_strings_as_the_reference(
    make_tokenizer: Callable[[], Any], stops: list[str], data: st.DataObject
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = make_tokenizer()
    letters = set("".join(stops)) | set(" Ġ")
    likely = [i for token, i in tokenizer.get_vocab().items() if set(token) & letters]
    token = st.one_of(st.sampled_from(likely), st.integers(0, 299))
    pieces = st.one_of(token.map(lambda one: [one]), st.sampled_from(stops).map(tokenizer.encode))
    rows = [sum(data.draw(st.lists(pieces, min_size=1, max_size=6)), []) for _ in range(3)]
    length = min(len(row) for row in rows)
    ids = torch.tensor([row[:length] for row in rows])
    expected = transformers.StopStringCriteria(tokenizer, stops)(ids, None)
    assert torch.equal(StopStringCriteria(tokenizer, stops)(ids, None), expected)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.sampled_from(["stop", "st", "op", " ", "漢", "é", "😀", "\n"]), min_size=1, max_size=8))
def test_no_stop_string_is_missed(make_tokenizer: Callable[[], Any], words: list[str]) -> None:
    """Reading a text token by token, it stops at the first token after which the text holds the string."""
    tokenizer = make_tokenizer()
    ids = tokenizer.encode("".join(words))
    criterion = StopStringCriteria(tokenizer, ["stop", "😀"])
    spelled = TokenBytes(tokenizer)
    for end in range(1, len(ids) + 1):
        text = b"".join(spelled[one] for one in ids[:end])
        held = any(stop.encode() in text for stop in ("stop", "😀"))
        assert criterion(torch.tensor([ids[:end]]), None).tolist() == [held]
        if held:
            break


def test_bytes_of_other_kinds_of_tokenizers() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    pieces = [("<unk>", 0.0), ("<0xE6>", -9.0), ("<0xBC>", -9.0), ("<0xA2>", -9.0), ("▁stop", -1.0), ("abcdef", -2.0)]
    engine = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0, byte_fallback=True))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    engine.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=engine)
    spelled = TokenBytes(tokenizer)
    assert b"".join(spelled[one] for one in (1, 2, 3)) == "漢".encode()
    assert spelled[4] == b" stop"
    assert spelled[999] == b""
    assert StopStringCriteria(tokenizer, "漢")(torch.tensor([[4, 1, 2, 3]]), None).tolist() == [True]


@pytest.mark.parametrize("stops", [[], [""], ["a", ""], [3]], ids=str)
def test_stop_strings_that_are_none(stops: Any) -> None:
    with pytest.raises(GenerationError, match="must be a string or a list of strings, none empty"):
        StopStringCriteria(Letters("a"), stops)


def test_a_tokenizer_that_cannot_spell() -> None:
    with pytest.raises(GenerationError, match=r"need a tokenizer with convert_ids_to_tokens\(\), and int has none"):
        StopStringCriteria(3, "stop")
