"""`model.score`: the definition, batches, memory at a vocabulary of 200,000, and what is refused."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quintet.auto import family_of, model_types
from quintet.errors import InputError
from quintet.evaluate import encode_pair, score_targets
from quintet.generation import scoring
from quintet.models.gpt2 import GPT2Config, GPT2LMHeadModel

LENGTHS = (9, 2, 17, 5, 9)


def tiny(model_type: str, **fields: Any) -> Any:
    """A model of the family with uneven weights; every expert takes part."""
    family = family_of(model_type)
    experts = getattr(family.tiny(), "num_local_experts", None)
    fields = fields if experts is None else {"num_experts_per_tok": experts, **fields}
    torch.manual_seed(0)
    model = family.classes["causal-lm"](family.tiny(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.15)
    return model.eval()


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(90, (length,), generator=generator).tolist() for length in LENGTHS]


def by_definition(model: Any, ids: list[int]) -> torch.Tensor:
    """(T - 1,) log-probabilities of all tokens but the first, from the logits of the whole text."""
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return logs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


@pytest.fixture(scope="module", params=model_types())
def family_model(request: pytest.FixtureRequest) -> Any:
    return tiny(request.param)


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return tiny("gpt2")


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_every_token_by_definition(family_model: Any, batch_size: int) -> None:
    scores = family_model.score(texts(), batch_size=batch_size)
    assert len(scores) == len(LENGTHS)
    for score, ids in zip(scores, texts(), strict=True):
        assert score.ids == tuple(ids[1:])
        assert score.tokens == len(ids) - 1
        wanted = by_definition(family_model, ids)
        bound = 1e-6 if batch_size == 1 else 2e-5  # padding adds numbers in another order
        torch.testing.assert_close(torch.tensor(score.logprobs), wanted, rtol=bound, atol=bound)
        assert score.logprob == pytest.approx(float(wanted.double().sum()), abs=1e-4)


def test_the_forms_of_a_text(gpt2: Any) -> None:
    rows = texts()
    wanted = [score.logprobs for score in gpt2.score(rows, batch_size=1)]

    def check(got: Any, count: int = 5) -> None:
        for score, want in zip(got, wanted[:count], strict=True):
            assert score.logprobs == pytest.approx(want, abs=2e-5)

    check(gpt2.score(rows[0]), 1)
    check(gpt2.score(torch.tensor(rows[0])), 1)
    check(gpt2.score(tuple(map(tuple, rows))))
    check(gpt2.score([torch.tensor(row) for row in rows]))
    longest = max(LENGTHS)
    for side in ("left", "right"):
        pads = [[0] * (longest - len(row)) for row in rows]
        ids = [pad + row if side == "left" else row + pad for pad, row in zip(pads, rows, strict=True)]
        real = [[1] * len(row) for row in rows]
        mask = [
            [0] * len(pad) + one if side == "left" else one + [0] * len(pad)
            for pad, one in zip(pads, real, strict=True)
        ]
        check(gpt2.score(torch.tensor(ids), attention_mask=torch.tensor(mask)))
        check(gpt2.score(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).bool()))


def test_a_token_before_the_first(gpt2: Any) -> None:
    rows = texts()
    for score, ids in zip(gpt2.score(rows, prefix_token_id=98, batch_size=1), rows, strict=True):
        assert score.ids == tuple(ids)
        torch.testing.assert_close(torch.tensor(score.logprobs), by_definition(gpt2, [98, *ids]), rtol=1e-6, atol=1e-6)
    assert gpt2.score([[5]], prefix_token_id=98)[0].tokens == 1


def test_what_follows_a_text(family_model: Any) -> None:
    rows = texts()
    after = [[7, 8], [9], [1, 2, 3], [4], [5, 6]]
    for score, ids, following in zip(family_model.score(rows, after, batch_size=3), rows, after, strict=True):
        wanted = by_definition(family_model, ids + following)[len(ids) - 1 :]
        torch.testing.assert_close(torch.tensor(score.logprobs), wanted, rtol=2e-5, atol=2e-5)
        assert score.ids == tuple(following)
    (with_prefix,) = family_model.score([5, 6], [7], prefix_token_id=3)
    assert with_prefix.logprob == pytest.approx(float(by_definition(family_model, [3, 5, 6, 7])[-1]), abs=2e-5)


def test_greedy_says_whether_decoding_would_write_it(gpt2: Any) -> None:
    written = gpt2.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False)[0, 3:].tolist()
    other = [*written[:2], (written[2] + 1) % 90]
    assert [score.greedy for score in gpt2.score([[5, 6, 7]] * 2, [written, other])] == [True, False]


def test_strings_with_their_tokenizer(model: Any, make_tokenizer: Callable[[], Any]) -> None:
    tokenizer = make_tokenizer()
    sentences = ["The stop sign stood at the top.", "Nobody stopped"]
    wanted = model.score([tokenizer(one)["input_ids"] for one in sentences])
    got = model.score(sentences, tokenizer=tokenizer)
    assert [one.logprobs for one in got] == [one.logprobs for one in wanted]
    (alone,) = model.score(sentences[0], tokenizer=tokenizer)
    assert alone.logprob == pytest.approx(wanted[0].logprob, abs=1e-4)
    (follows,) = model.score("The stop ", "sign stood", tokenizer=tokenizer)
    context, target = encode_pair(tokenizer, "The stop ", "sign stood")
    assert follows.ids == tuple(target)
    assert follows == score_targets(model, [(context, target)])[0]
    (empty,) = model.score("", "Nobody", tokenizer=tokenizer, prefix_token_id=tokenizer.bos_token_id)
    assert empty == model.score("", "Nobody", tokenizer=tokenizer)[0]  # bos comes once


def test_dropout_is_off_and_the_mode_stays(gpt2: Any) -> None:
    model = copy.deepcopy(gpt2).train()
    first, second = (model.score(texts()) for _ in range(2))
    assert first == second
    assert model.training
    assert first[0].logprobs == pytest.approx(gpt2.score(texts())[0].logprobs, abs=2e-5)
    assert torch.is_grad_enabled()


def test_long_contexts_lose_their_beginning_and_long_texts_are_refused(gpt2: Any) -> None:
    long = [index % 90 for index in range(70)]  # the model has 64 positions
    (score,) = gpt2.score(long, [7, 8])
    assert score.cut == 7
    with pytest.raises(InputError, match="the target has 69 tokens, but the model is given 64 at most.*in parts"):
        gpt2.score(long)
    assert gpt2.score(long[:20], [7], max_length=8)[0].cut == 12
    steps: list[tuple[int, int]] = []
    gpt2.score(texts(), batch_size=2, progress=lambda *numbers: steps.append(numbers))
    assert steps == [(2, 5), (4, 5), (5, 5)]


def test_half_precision_is_scored_in_single(gpt2: Any) -> None:
    model = copy.deepcopy(gpt2).bfloat16()
    (score,) = model.score(texts()[2])
    with torch.no_grad():
        logits = model(torch.tensor([texts()[2]])).logits[0, :-1]
    wanted = logits.float().log_softmax(-1)[torch.arange(16), torch.tensor(texts()[2][1:])]
    torch.testing.assert_close(torch.tensor(score.logprobs), wanted, rtol=1e-6, atol=1e-6)


# --- memory -----------------------------------------------------------------------------------------------------------


class Peak(TorchDispatchMode):
    """The largest tensor that any operator makes, and the most bytes of new tensors alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.alive = self.most = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor) and one.untyped_storage()._cdata not in given:
                size = one.untyped_storage().nbytes()
                self.largest = max(self.largest, size)
                self.alive += size
                self.most = max(self.most, self.alive)
                weakref.finalize(one, self._gone, size)
        return out

    def _gone(self, size: int) -> None:
        self.alive -= size


def test_memory_at_a_vocabulary_of_two_hundred_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of the batch would be 190 MB in float32; what is alive at a time is a few slices of 8 MiB."""
    rows, tokens, vocabulary = 4, 61, 200_000
    config = GPT2Config(vocab_size=vocabulary, n_positions=64, n_embd=8, n_layer=1, n_head=2, initializer_range=0.5)
    model = GPT2LMHeadModel(config).eval()
    ids = torch.randint(vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(scoring, "SLICE_BYTES", 8 * 2**20)
    with Peak() as peak:
        scores = model.score(ids, batch_size=rows)
    whole = rows * tokens * vocabulary * 4
    assert peak.largest <= 8 * 2**20
    assert peak.most <= 4 * 8 * 2**20 < whole / 5
    with torch.no_grad(), Peak() as everything:  # and the measure sees what it should
        logits = model(ids).logits
    assert everything.largest >= whole
    wanted = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    got = torch.tensor([score.logprobs for score in scores])
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_no_cache_is_made(gpt2: Any) -> None:
    seen: list[Any] = []
    hook = gpt2.transformer.register_forward_hook(lambda module, args, out: seen.append(out.past_key_values))
    gpt2.score(texts())
    hook.remove()
    assert seen == [None] * len(seen)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        (None, {}, "give either texts or input_ids; got neither"),
        ([[1, 2]], {"input_ids": torch.ones(1, 2, dtype=torch.long)}, "give either texts or input_ids; got both"),
        ("words", {}, r"texts are strings, so their tokenizer is needed: score\(texts, tokenizer=tokenizer\)"),
        (["a", "b"], {"continuations": ["c", "d"]}, "their tokenizer is needed"),
        ([[1, 2], [3]], {}, r"text 1 \(counted from 0\) has 1 tokens, so there is nothing to score.*prefix_token_id"),
        ([[1, 2], []], {}, r"text 1 \(counted from 0\) has 0 tokens"),
        ([[1, 2]], {"continuations": [[3], [4]]}, "there are 1 texts and 2 continuations"),
        ([[1, 2]], {"continuations": [[]]}, "the target has no tokens"),
        ([[1, 2], [3, 200]], {}, "token ids go from 1 to 200, but the model has 99 tokens"),
        ([[1, -2]], {}, "token ids go from -2"),
        ([[1, 2.5]], {}, r"texts\[0\] is \[1, 2.5\], but must be a string or a list of token ids"),
        ([[1, 2], None], {}, r"texts\[1\] is None"),
        ([[1, True]], {}, r"texts\[0\] is \[1, True\]"),
        (7, {}, "texts are of type int, but must be a text"),
        ({"input_ids": [1]}, {}, "texts are of type dict"),
        (torch.rand(2, 3), {}, r"texts are torch.float32 of shape \(2, 3\), but must be ids"),
        (torch.ones(2, 3, 4, dtype=torch.long), {}, r"of shape \(2, 3, 4\)"),
        ([[1, 2]], {"attention_mask": torch.ones(1, 2)}, "attention_mask goes with a tensor of ids"),
        (
            torch.ones(2, 3, dtype=torch.long),
            {"attention_mask": torch.ones(2, 4)},
            r"attention_mask is \(2, 4\), but must have the shape of the ids, \(2, 3\)",
        ),
        (torch.ones(2, 3, dtype=torch.long), {"attention_mask": [[1]]}, "attention_mask is list"),
        ([[1, 2]], {"batch_size": 0}, "batch_size is 0, but must be a whole number from 1"),
        ([[1, 2]], {"batch_size": True}, "batch_size is True"),
        ([[1, 2]], {"max_length": 65}, "max_length is 65, but must be at least 1, and this model has room for 64"),
        ([[1, 2]], {"max_length": 0}, "max_length is 0"),
    ],
)
def test_what_cannot_be_scored(gpt2: Any, given: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        gpt2.score(given, **options)


def test_nothing_to_score(gpt2: Any) -> None:
    assert gpt2.score([]) == []
