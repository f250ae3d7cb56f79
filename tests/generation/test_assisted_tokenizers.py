"""Draft models of another tokenizer: how tokens cross over, and that the result is the model's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from drafts import far_from, made, tokens

from quintet import AutoModelForCausalLM, AutoTokenizer, GPT2Tokenizer, OpenAIGPTTokenizer
from quintet.errors import GenerationError
from quintet.generation.translation import Translator, continuation, rejoined, shared_tokens
from quintet.models.gpt2 import GPT2Config, GPT2LMHeadModel


class Letters:
    """A tokenizer whose tokens are pieces of text, longest first."""

    def __init__(self, pieces: Iterable[str], space: str = " ") -> None:
        self.pieces, self.space = list(pieces), space

    def get_vocab(self) -> dict[str, int]:
        return {piece.replace(" ", self.space): index for index, piece in enumerate(self.pieces)}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[index].replace(" ", self.space) for index in ids]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(self.pieces[index] for index in ids)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        found = []
        while text:
            piece = max((one for one in self.pieces if text.startswith(one)), key=len, default=None)
            if piece is not None:
                found.append(self.pieces.index(piece))
            text = text[1:] if piece is None else text[len(piece) :]
        return {"input_ids": found}


# --- the crossing -----------------------------------------------------------------------------------------------------


def test_the_end_of_a_text_is_exchanged() -> None:
    # The guess 7 8 was wrong: the window says that 5 6 goes on with 9.
    assert rejoined([1, 2, 3, 4, 5, 6, 7, 8], [4, 5, 6, 9], 9) == ([1, 2, 3, 4, 5, 6, 9], 6)
    # The window begins in the middle of a word, and its first token is another one.
    assert rejoined([1, 2, 3, 4], [77, 3, 4, 5], 9) == ([1, 2, 3, 4, 5], 4)
    # What both have at the same length stands twice: the later place counts.
    assert rejoined([1, 2, 9, 1, 2], [1, 2, 3], 9) == ([1, 2, 9, 1, 2, 3], 5)
    assert rejoined([1, 2, 3], [4, 5], 9) is None
    assert rejoined([1, 2, 3, 4, 5, 6], [1, 2, 7], 3) is None, "1 2 is too far back"


def test_what_follows_the_text_in_a_window() -> None:
    assert continuation([1, 2, 3], [2, 3, 4, 5]) == [4, 5]
    assert continuation([1, 2, 3], [1, 2, 3]) == []
    assert continuation([1, 2, 3], [9, 3, 8, 2, 3, 7]) == [7], "two tokens agree there"
    assert continuation([1, 2, 3], [1, 2, 4]) is None, "the last token was cut differently"


def test_tokens_that_two_tokenizers_share() -> None:
    one, two = Letters([" a", "b", "c", "d"], space="Ġ"), Letters(["d", " a", "x", "b"], space="_")
    assert shared_tokens(one, two) == {0: 1, 1: 3, 3: 0}
    two.pieces.append("c")
    assert shared_tokens(one, two) == {0: 1, 1: 3, 3: 0, 2: 4}, "a token that was added since"
    assert shared_tokens(one, Letters("xyz")) == {}


def test_translation_keeps_spaces() -> None:
    tokenizer = AutoTokenizer.from_pretrained("storyteller")
    text = 'She said , "yes" .  Twice\n\nthen'
    there = Translator(Letters(sorted(set(text))), tokenizer)
    assert tokenizer.decode(there(Letters(sorted(set(text)))(text)["input_ids"])) == text


# --- greedy -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def storyteller() -> tuple[Any, Any]:
    """The bundled model, which writes words, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained("storyteller")
    model.generation_config.do_sample = False
    return model, AutoTokenizer.from_pretrained("storyteller")


def _knowing(tokenizer: Any, size: int, story: str) -> Any:
    """Return a draft model of another tokenizer that knows how the story goes on."""
    model = made("gpt2", vocab_size=size, n_positions=1024)
    read: list[int] = []
    forward = model.forward

    def told(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        out = forward(input_ids, **kwargs)
        del read[out.past_key_values.get_seq_length() - input_ids.shape[1] :]
        read.extend(input_ids[0].tolist())
        text = tokenizer.decode(read)
        rest = tokenizer(story[len(text) :])["input_ids"] if story.startswith(text) else []
        out.logits[:, -1] = torch.nn.functional.one_hot(torch.tensor(rest[0] if rest else 0), size) * 20.0
        return out

    model.forward = told
    return model


def _passes(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts: list[int] = []
    forward = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        counts.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    return counts


@pytest.mark.parametrize("lookbehind", [0, 1, 10])
@pytest.mark.parametrize("kind", ["letters", "words"])
def test_a_draft_model_that_knows_the_text_is_believed(
    storyteller: tuple[Any, Any], kind: str, lookbehind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = storyteller
    ids = tokenizer("Once upon a time there was a little dog", return_tensors="pt")["input_ids"]
    plain = model.generate(ids, max_new_tokens=60, eos_token_id=None)
    story = tokenizer.decode(model.generate(ids, max_new_tokens=80, eos_token_id=None)[0])
    pieces = sorted(set(story)) if kind == "letters" else sorted({*story, *(f" {word}" for word in story.split())})
    other = Letters(pieces)
    draft, passes = _knowing(other, len(pieces), story), _passes(model, monkeypatch)
    out = model.generate(
        ids,
        max_new_tokens=60,
        eos_token_id=None,
        assistant_model=draft,
        tokenizer=tokenizer,
        assistant_tokenizer=other,
        num_assistant_tokens=24 if kind == "letters" else 6,
        assistant_lookbehind=lookbehind,
        target_lookbehind=lookbehind,
    )
    assert torch.equal(out, plain)
    if lookbehind:
        assert len(passes) < 25, "60 tokens by themselves would be 60 passes"


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_a_draft_model_that_knows_nothing_changes_nothing(storyteller: tuple[Any, Any], threshold: float) -> None:
    model, tokenizer = storyteller
    other = Letters([chr(code) for code in range(32, 127)] + [" the", " and", "ing"])
    draft = made("gpt2", vocab_size=98, n_positions=512)
    ids = tokenizer("The dog", return_tensors="pt")["input_ids"]
    padded = torch.cat([torch.full((1, 3), 7), ids], dim=1)
    given: dict[str, Any] = {"tokenizer": tokenizer, "assistant_tokenizer": other, "assistant_model": draft}
    given |= {"assistant_confidence_threshold": threshold}
    shape: dict[str, Any] = {"max_new_tokens": 30, "eos_token_id": None, "repetition_penalty": 1.3}
    assert torch.equal(model.generate(ids, **shape, **given), model.generate(ids, **shape))
    shape["attention_mask"] = (torch.arange(padded.shape[1]) >= 3).long()[None]
    assert torch.equal(model.generate(padded, **shape, **given), model.generate(padded, **shape))
    stops: dict[str, Any] = {"max_new_tokens": 60, "stop_strings": [".", ","], "tokenizer": tokenizer}
    assert torch.equal(model.generate(ids, **(given | stops)), model.generate(ids, **stops))


def test_published_tokenizers(storyteller: tuple[Any, Any], data_dir: Any) -> None:
    model, tokenizer = storyteller
    ids = tokenizer('The king said: "I have', return_tensors="pt")["input_ids"]
    plain = model.generate(ids, max_new_tokens=40, eos_token_id=None)
    for kind, name in ((GPT2Tokenizer, "gpt2"), (OpenAIGPTTokenizer, "openai-gpt")):
        other = kind.from_pretrained(data_dir / "tokenizers" / name)
        draft = made("gpt2", vocab_size=len(other.get_vocab()), n_embd=8, n_head=2)
        given: dict[str, Any] = {"tokenizer": tokenizer, "assistant_tokenizer": other, "assistant_model": draft}
        given |= {"max_new_tokens": 40, "eos_token_id": None, "num_assistant_tokens": 3}
        assert torch.equal(model.generate(ids, **given), plain)
        assert model.generate(ids, do_sample=True, **given).shape == plain.shape


def test_two_tokenizers_with_the_same_tokens_need_no_crossing(storyteller: tuple[Any, Any]) -> None:
    model, tokenizer = storyteller
    same = AutoTokenizer.from_pretrained("storyteller")
    draft = made("gpt2", vocab_size=4224, n_embd=8, n_head=2)  # the same tokens, another padding of the vocabulary
    small = made("gpt2", vocab_size=4000, n_embd=8, n_head=2)
    ids = tokenizer("The dog", return_tensors="pt")["input_ids"]
    plain = model.generate(ids, max_new_tokens=20, eos_token_id=None)
    for one in (draft, small):
        given: dict[str, Any] = {"tokenizer": tokenizer, "assistant_tokenizer": same, "assistant_model": one}
        assert torch.equal(model.generate(ids, max_new_tokens=20, eos_token_id=None, **given), plain)
        assert model.generate(ids, max_new_tokens=20, eos_token_id=None, do_sample=True, **given).shape == (1, 22)


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_sampling_over_shared_tokens_has_the_models_distribution() -> None:
    torch.manual_seed(4)
    own, other = Letters("abcdefgh"), Letters("xhgfedcby")
    sizes: dict[str, Any] = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.5}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, **sizes)).eval()
    draft = GPT2LMHeadModel(GPT2Config(vocab_size=9, **sizes)).eval()
    start, counts = torch.tensor([[3, 5, 1]]), torch.zeros(8, 8)
    with torch.no_grad():
        exact = torch.zeros(8, 8)
        first = model(start).logits[0, -1].softmax(-1)
        for a in range(8):
            second = model(torch.tensor([[3, 5, 1, a]])).logits[0, -1].softmax(-1)
            thirds = model(torch.tensor([[3, 5, 1, a, b] for b in range(8)])).logits[:, -1].softmax(-1)
            exact += first[a] * second[:, None] * thirds
    torch.manual_seed(7)
    for _ in range(600):
        out = model.generate(
            start,
            max_new_tokens=4,
            eos_token_id=None,
            do_sample=True,
            top_k=0,
            assistant_model=draft,
            tokenizer=own,
            assistant_tokenizer=other,
            assistant_confidence_threshold=0.0,
        )
        counts[int(out[0, 4]), int(out[0, 5])] += 1
    assert not far_from(counts.reshape(-1), exact.reshape(-1))


def test_tokenizers_that_share_nothing() -> None:
    model, draft = made("gpt2"), made("gpt2", vocab_size=60)
    given: dict[str, Any] = {
        "assistant_model": draft,
        "tokenizer": Letters([chr(code) for code in range(33, 127)]),
        "assistant_tokenizer": Letters([chr(code) for code in range(200, 260)]),
        "max_new_tokens": 4,
        "eos_token_id": None,
    }
    with pytest.raises(GenerationError, match="have no token in common.*Use do_sample=False"):
        model.generate(tokens(1, 5), do_sample=True, **given)
    plain = model.generate(tokens(1, 5), max_new_tokens=4, eos_token_id=None)
    assert torch.equal(model.generate(tokens(1, 5), **given), plain), "as text: nothing crosses over"
    with pytest.raises(GenerationError, match="assistant_ensemble_weight mixes probabilities of the same tokens"):
        model.generate(tokens(1, 5), assistant_ensemble_weight=0.5, **given)
