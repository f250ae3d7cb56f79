"""Beam search against a plain search written down in full; what it refuses; what it costs; what it leaves behind."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from quintet.cache import DynamicCache
from quintet.errors import GenerationError
from quintet.generation import DecodeState, GenerationConfig, TextStreamer
from quintet.generation.loops.beam import draw
from quintet.generation.loops.hypotheses import NOTHING, Hypotheses

ONE = torch.tensor([[5, 6, 7]])
PAD, EOS = 0, 2


def search(model: Any, ids: torch.Tensor, **options: Any) -> Any:
    pad = PAD if model.config.vocab_size > 4 else None  # every token of a table is text
    kwargs = {"num_beams": 3, "max_new_tokens": 12, "pad_token_id": pad} | options
    return model.generate(ids, **kwargs)


# --- the search itself ------------------------------------------------------------------------------------------------

#  after   a    b    c    end
WALK = [
    [0.40, 0.30, 0.20, 0.10],  # a
    [0.10, 0.10, 0.70, 0.10],  # b
    [0.05, 0.05, 0.10, 0.80],  # c
    [0.25, 0.25, 0.25, 0.25],
]


def test_a_search_by_hand(make_table: Callable[..., Any]) -> None:
    """From a, two beams, plain sums.

    Step 1: a .4, b .3. Step 2: bc .21, aa .16 (before ab .12). Step 3: bc and the end .168, aaa .064.
    """
    model = make_table(WALK)
    options = {"num_beams": 2, "eos_token_id": 3, "length_penalty": 0.0, "early_stopping": "never"}
    options |= {"num_return_sequences": 2, "return_dict_in_generate": True, "output_scores": True}
    out = search(model, torch.tensor([[0]]), max_new_tokens=3, **options)
    assert out.sequences.tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]
    assert out.sequences_scores.exp().tolist() == pytest.approx([0.7 * 0.3 * 0.8, 0.4**3])
    assert out.beam_indices.tolist() == [[0, 1, 0], [0, 0, 1]]


def test_the_length_penalty_by_hand(make_table: Callable[..., Any]) -> None:
    """The end after one token has .1; three tokens to the end have .168: sums and means differ in what they prefer."""
    model = make_table([[0.1, 0.3, 0.2, 0.4], *WALK[1:]])
    first = torch.tensor([[0]])
    for penalty, text in ((0.0, [3]), (1.0, [1, 2, 3]), (-1.0, [3])):
        out = search(model, first, eos_token_id=3, length_penalty=penalty, early_stopping="never", max_new_tokens=4)
        assert out[0, 1 : 1 + len(text)].tolist() == text
    assert -math.log(0.4) > -math.log(0.168) / 3  # why the mean prefers the longer text


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_with_enough_beams_the_best_of_all_texts_is_found(
    make_table: Callable[..., Any], seed: int, penalty: float
) -> None:
    """Every text of up to four tokens, by brute force."""
    table = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    logs = table.log().double()
    found = {}
    for length in range(1, 5):
        for text in itertools.product(range(4), repeat=length):
            if 3 in text[:-1] or (length < 4 and text[-1] != 3):
                continue
            total = sum(float(logs[a, b]) for a, b in itertools.pairwise((0, *text)))
            found[text] = total / length**penalty
    best = sorted(found.values(), reverse=True)[:6]
    out = search(
        make_table(table.tolist()),
        torch.tensor([[0]]),
        num_beams=64,
        num_return_sequences=6,
        max_new_tokens=4,
        eos_token_id=3,
        length_penalty=penalty,
        early_stopping="never",
        return_dict_in_generate=True,
        output_scores=True,
    )
    lengths = (out.beam_indices >= 0).sum(dim=1).tolist()
    texts = [tuple(row[1 : 1 + length].tolist()) for row, length in zip(out.sequences, lengths, strict=True)]
    assert len(set(texts)) == 6  # texts of equal sums may come in any order
    assert out.sequences_scores.tolist() == pytest.approx(best, abs=1e-5)
    assert [found[text] for text in texts] == pytest.approx(best, abs=1e-5)


def test_more_beams_never_find_worse(model: Any, prompt: torch.Tensor) -> None:
    """Not a theorem, but so with these weights; and better than greedy decoding is what beams are for."""
    scores = []
    for beams in (2, 8, 32):
        out = search(
            model, prompt, num_beams=beams, eos_token_id=None, return_dict_in_generate=True, output_scores=True
        )
        scores.append(out.sequences_scores)
    greedy = model.generate(
        prompt,
        max_new_tokens=12,
        eos_token_id=None,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_logits=True,
    )
    mean = model.compute_transition_scores(greedy.sequences, greedy.logits, normalize_logits=True).mean(dim=1)
    assert (
        (scores[0] >= mean - 1e-6).all()
        and (scores[1] >= scores[0] - 1e-6).all()
        and (scores[2] >= scores[1] - 1e-6).all()
    )
    assert (scores[2] > mean).any()


def test_scores_are_those_of_the_texts(model: Any, prompt: torch.Tensor) -> None:
    """Each returned text, read again in one pass, is worth what the search says."""
    out = search(
        model, prompt, num_return_sequences=3, eos_token_id=None, return_dict_in_generate=True, output_scores=True
    )
    logs = model(out.sequences[:, :-1]).logits.log_softmax(-1)[:, 6:]
    values = logs.gather(2, out.sequences[:, 7:, None])[:, :, 0]
    torch.testing.assert_close(values.mean(dim=1), out.sequences_scores, atol=1e-5, rtol=1e-5)
    assert (out.sequences_scores.view(3, 3).diff(dim=1) <= 0).all()  # the best first
    assert len(out.sequences.unique(dim=0)) == 9


def test_the_end_of_a_search_depends_on_early_stopping() -> None:
    def steps(early: bool | str, penalty: float = 1.0) -> int:
        found = Hypotheses(1, 2, 4, most=50, length_penalty=penalty, early_stopping=early)
        parents, tokens = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[9, 8, 9, 8]])
        ends = torch.tensor([[True, False, True, False]])
        for step in range(50):
            # The beams lose 0.1 a step; each text that ends loses 0.3 more.
            base = -0.1 * (step + 1)
            values = torch.tensor([[base, base - 0.01, base - 0.3, base - 0.31]])
            found.step(values.sort(descending=True)[0], parents, tokens, ends)
            if found.finished:
                return step + 1
        return 50

    assert steps(True) < steps("never")
    assert steps(False, penalty=0.0) < steps("never", penalty=1.0)


def test_places_that_hold_nothing(make_table: Callable[..., Any]) -> None:
    """A search that ends with fewer texts than asked for returns empty ones with a score of next to nothing."""

    def only_the_end(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -math.inf).index_copy(1, torch.tensor([3]), scores[:, 3:])

    options = {"logits_processor": [only_the_end], "eos_token_id": 3, "num_return_sequences": 3}
    out = search(
        make_table(WALK),
        torch.tensor([[1]]),
        return_dict_in_generate=True,
        output_scores=True,
        early_stopping=True,
        **options,
    )
    assert out.sequences[0].tolist() == [1, 3]
    assert out.sequences_scores[0] == pytest.approx(math.log(0.1))
    assert (out.sequences_scores[1:] < NOTHING / 4).all()


# --- batches, randomness ----------------------------------------------------------------------------------------------


def left_padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(8, 300, (4, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 8, 1)):
        ids[row, :padding], mask[row, :padding] = PAD, 0
    return ids, mask


@pytest.mark.parametrize("sampling", [False, True])
def test_a_row_gives_what_it_gives_alone(model: Any, sampling: bool) -> None:
    """With draws too, when they come from a generator of the call."""
    ids, mask = left_padded()

    def run(rows: slice | list[int], tokens: slice) -> Any:
        options: dict[str, Any] = {"eos_token_id": list(range(8, 60)), "num_return_sequences": 2}
        if sampling:
            options |= {"do_sample": True, "generator": torch.Generator().manual_seed(4), "temperature": 1.5}
        return search(model, ids[rows, tokens], attention_mask=mask[rows, tokens], **options)

    together = run(slice(None), slice(None))
    state = torch.get_rng_state()
    for row, padding in enumerate((0, 3, 8, 1)):
        alone = run([row], slice(padding, None))[:, 9 - padding :]
        got = together[2 * row : 2 * row + 2, 9:]
        width = min(alone.shape[1], got.shape[1])
        assert torch.equal(alone[:, :width], got[:, :width])
        assert (alone[:, width:] == EOS + 6).all() or alone.shape[1] == width
    if sampling:
        assert torch.equal(torch.get_rng_state(), state)  # the global generator was left alone


def test_draws_without_replacement() -> None:
    """The first two places of a race have the probabilities of drawing one after the other."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    sums = p.log().repeat(40_000, 1)
    torch.manual_seed(1)
    values, places = draw(sums, 2)
    assert torch.equal(values, sums.gather(1, places))
    assert (places[:, 0] != places[:, 1]).all()
    statistic = 0.0
    for first, second in itertools.permutations(range(4), 2):
        expected = 40_000 * float(p[first] * p[second] / (1 - p[first]))
        seen = int(((places[:, 0] == first) & (places[:, 1] == second)).sum())
        statistic += (seen - expected) ** 2 / expected
    assert statistic < 31.3  # chi-square with 11 degrees of freedom, 0.1 %


def test_draws_are_those_of_torch() -> None:
    sums = torch.randn(3, 50)
    torch.manual_seed(7)
    wanted = torch.multinomial(sums.softmax(-1), 6)
    torch.manual_seed(7)
    assert torch.equal(draw(sums, 6)[1], wanted)


# --- cost -------------------------------------------------------------------------------------------------------------


def test_a_prompt_is_read_once_for_all_its_beams(model: Any, prompt: torch.Tensor) -> None:
    shapes = []
    original = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(kwargs["input_ids"].shape))
        return original(*args, **kwargs)

    try:
        model.forward = forward
        search(model, prompt, max_new_tokens=4, eos_token_id=None)
    finally:
        del model.forward
    assert shapes == [(3, 7), (9, 1), (9, 1), (9, 1)]


def test_only_what_differs_moves_in_the_cache(
    model: Any, prompt: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []
    original = DynamicCache.reorder_newest

    def reorder_newest(self: DynamicCache, rows: torch.Tensor, newest: int) -> None:
        for layer in self.layers:  # what is promised: older tokens are the same already
            keys = layer.keys
            assert keys is not None
            assert torch.equal(keys[rows][:, :, : keys.shape[2] - newest], keys[:, :, : keys.shape[2] - newest])
        moved.append(newest)
        original(self, rows, newest)

    monkeypatch.setattr(DynamicCache, "reorder_newest", reorder_newest)
    search(model, prompt, max_new_tokens=30, eos_token_id=None)
    assert moved and max(moved) < 29 and min(moved) > 0
    assert len(moved) < 29  # nothing at all after the first step, when all beams are one


@pytest.mark.parametrize("seed", range(12))
def test_prompts_that_are_settled_leave_the_batch(model: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts are those of a call that returns everything, for which every prompt has to stay."""
    ids, mask = left_padded()
    options: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 40}
    options |= {"eos_token_id": list(range(8, 20 + seed * 4)), "early_stopping": (True, False, "never")[seed % 3]}
    options |= {"length_penalty": (0.0, 1.0, 1.3)[seed // 2 % 3], "attention_mask": mask}
    if seed % 4 == 1:
        options |= {"do_sample": True, "repetition_penalty": 1.2}
    if seed % 4 == 2:
        options |= {"num_beam_groups": 2, "diversity_penalty": 0.5, "use_cache": seed != 2}
    torch.manual_seed(seed)
    wanted = search(model, ids, return_dict_in_generate=True, **options).sequences
    rows = []
    original = DecodeState.advance
    monkeypatch.setattr(
        DecodeState, "advance", lambda self, tokens: (rows.append(len(tokens)), original(self, tokens))[1]
    )
    torch.manual_seed(seed)
    assert torch.equal(search(model, ids, **options), wanted)
    assert rows == sorted(rows, reverse=True) and {count % 4 for count in rows} == {0}
    assert len(set(rows)) > 1 or seed in (0, 1, 5, 11)  # where all prompts end together


def test_texts_do_not_depend_on_the_store(model: Any, prompt: torch.Tensor) -> None:
    wanted = search(model, prompt, max_new_tokens=30)
    for options in ({"cache_implementation": "static"}, {"cache_implementation": "offloaded"}, {"use_cache": False}):
        assert torch.equal(search(model, prompt, max_new_tokens=30, **options), wanted)
    assert torch.equal(search(model, prompt, max_new_tokens=30, low_memory=True), wanted)


def test_beams_while_training(model: Any, prompt: torch.Tensor) -> None:
    """Dropout makes copies of a prompt differ, so each is read; no token may be taken for shared."""
    noisy = copy.deepcopy(model).train()
    torch.manual_seed(3)
    once = search(noisy, prompt, max_new_tokens=8)
    torch.manual_seed(3)
    assert torch.equal(search(noisy, prompt, max_new_tokens=8), once)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"num_beams": 0}, "num_beams is 0, but must be an integer of at least 1"),
        ({"num_beams": 2.5}, "num_beams is 2.5, but must be an integer"),
        (
            {"num_return_sequences": 4},
            r"num_return_sequences is 4, but must be at most num_beams \(3\). Raise num_beams",
        ),
        ({"early_stopping": "always"}, "early_stopping is 'always', but must be True, False or \"never\""),
        ({"length_penalty": math.nan}, "length_penalty is nan, but must be a finite number"),
        (
            {"length_penalty": 1e4},
            r"length_penalty is 10000.0.*divided by 12 \*\* 10000.0.*Use a value between -5 and 5",
        ),
        ({"length_penalty": -1e4}, "length_penalty is -10000.0.*beyond the range of numbers"),
        ({"low_memory": "yes"}, "low_memory is 'yes', but must be True or False"),
        ({"num_beam_groups": 2, "diversity_penalty": 1.0}, "num_beam_groups is 2 and num_beams 3.*a multiple of"),
        ({"num_beam_groups": 6, "diversity_penalty": 1.0}, "every group needs equally many beams"),
        (
            {"num_beam_groups": 3},
            "diversity_penalty 0.0, so that all groups would find the same. Set diversity_penalty",
        ),
        ({"diversity_penalty": 0.5}, "diversity_penalty is 0.5, and has no effect without groups.*Set num_beam_groups"),
        ({"diversity_penalty": -0.5}, "diversity_penalty is -0.5, but must be a number of at least 0"),
        ({"diversity_penalty": 0.5, "num_beams": 1}, "has no effect without groups of beams"),
        ({"num_beam_groups": 3, "num_beams": 1}, "num_beam_groups is 3 and num_beams 1"),
        (
            {"num_beam_groups": 3, "diversity_penalty": 1.0, "do_sample": True},
            "groups of beams are kept apart by a pen",
        ),
        ({"num_beam_groups": 3, "diversity_penalty": 1.0, "num_return_sequences": 4}, "must be at most num_beams"),
        ({"constraints": [3]}, r"constraints=\[3\] \(from the call\) is refused.*prefix_allowed_tokens_fn.*grammar"),
        ({"force_words_ids": [[5]]}, "force_words_ids.*is refused.*prefix_allowed_tokens_fn"),
        ({"dola_layers": "high"}, "dola_layers='high'.*is refused.*penalty_alpha"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "num_beams=3 contradict"),
        ({"prompt_lookup_num_tokens": 3}, "num_beams=3 contradict"),
        ({"generator": 3}, "generator is a int, but beam search takes one torch.Generator"),
        (
            {"eos_token_id": list(range(300))},
            "300 end-of-sequence tokens looks at 903 continuations of 3 beams, and with",
        ),
        ({"streamer": TextStreamer(None)}, "a streamer is given, and beam search knows its text only at the end"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),  # no addresses of objects
)
def test_what_is_refused(model: Any, kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(GenerationError, match=words):
        search(model, ONE, **kwargs)


def test_an_assistant_beside_beams(model: Any) -> None:
    with pytest.raises(GenerationError, match="num_beams=3"):
        search(model, ONE, assistant_model=model)


def test_columns_of_beams(model: Any) -> None:
    with pytest.raises(GenerationError, match="beams are chosen at the end"):
        next(model.generate_iter(ONE, num_beams=3))


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize(
    ("value", "words"), [(math.nan, "hold NaN"), (-math.inf, "are all -inf"), (math.inf, r"hold \+inf")]
)
def test_scores_that_cannot_be_used(
    model: Any, prompt: torch.Tensor, value: float, words: str, do_sample: bool
) -> None:
    """Of the second prompt, at the third step."""

    def spoil(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        if ids.shape[1] == 9:
            scores[3:6] = value
        return scores

    with pytest.raises(GenerationError, match=f"scores of row 3 {words}"):
        search(model, prompt, logits_processor=[spoil], do_sample=do_sample, top_k=0 if do_sample else None)


def test_one_beam_may_die(model: Any, prompt: torch.Tensor) -> None:
    """A beam whose tokens are all ruled out gives its place to the others."""

    def spoil(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(0, torch.tensor([1]), -math.inf)

    out = search(model, prompt, logits_processor=[spoil], eos_token_id=None)
    assert out.shape == (3, 19) and (out >= 0).all()


def test_processors_and_criteria_of_a_wrong_shape(model: Any) -> None:
    with pytest.raises(GenerationError, match=r"returned scores of shape \(3, 5\)"):
        search(model, ONE, logits_processor=[lambda ids, scores: scores[:, :5]])
    with pytest.raises(GenerationError, match=r"returned \(2,\), but must return a bool tensor of shape \(6,\)"):
        search(model, ONE, stopping_criteria=[lambda ids, scores: torch.zeros(2, dtype=torch.bool)])


# --- what it leaves behind --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["model", "processor"])
def test_ctrl_c_leaves_model_and_cache_usable(model: Any, prompt: torch.Tensor, where: str) -> None:
    first = model.generate(prompt, max_new_tokens=5, eos_token_id=None, pad_token_id=PAD, return_dict_in_generate=True)
    cache, wanted = first.past_key_values, search(model, first.sequences)
    calls = 0

    def interrupt(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return args[1]

    options: dict[str, Any] = {"logits_processor": [interrupt]} if where == "processor" else {}
    hook = model.transformer.h[1].register_forward_pre_hook(lambda module, args: interrupt(None, None))
    if where == "processor":
        hook.remove()
    try:
        with pytest.raises(KeyboardInterrupt):
            search(model, first.sequences, past_key_values=cache, **options)
    finally:
        hook.remove()
    assert calls == 4
    assert cache.get_seq_length() == 11 and len(cache[0][0]) == 3
    assert torch.equal(search(model, first.sequences), wanted)
    assert torch.equal(search(model, first.sequences, past_key_values=cache), wanted)


def test_the_config_of_a_model_asks_for_beams(model: Any) -> None:
    config = GenerationConfig(
        num_beams=4, early_stopping=True, num_return_sequences=2, max_new_tokens=5, pad_token_id=0
    )
    assert model.generate(ONE, config).shape == (2, 8)
    assert model.generate(ONE, config, num_beams=1, do_sample=True, early_stopping=None).shape == (2, 8)
