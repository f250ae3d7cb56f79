"""`generate(response_format=...)`: batches, strategies, thoughts before the answer, dead ends."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from quintet import GenerationConfig
from quintet.chat.harmony import Harmony
from quintet.chat.seed_oss import SeedOss
from quintet.errors import GenerationError
from quintet.generation import LogitsProcessor, LogitsProcessorList
from quintet.generation.structured import compile_form, form_processor
from quintet.generation.structured.processor import FormLogitsProcessor, FormRow
from quintet.generation.thinking_formats import thinking_format

sys.path.insert(0, str(Path(__file__).parents[1]))

from obsessed import Obsessed

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5, "pattern": "^[a-z]*$"},
        "tags": {"type": "array", "items": {"enum": ["x", "yy", None]}, "maxItems": 3},
        "size": {"type": "integer", "minimum": 1, "maximum": 20},
    },
    "required": ["name", "tags", "size"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}
QUESTION = [{"role": "user", "content": "What?"}]


@pytest.fixture(scope="module")
def writer(small: Any) -> Obsessed:
    """Writes anything; the rows of its vocabulary that are no tokens it likes best."""
    return Obsessed(small, [], spare=9)


def ids(tokenizer: Any, text: str) -> torch.Tensor:
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


def padded(tokenizer: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    return dict(tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt"))


def answers(tokenizer: Any, found: torch.Tensor, start: int) -> list[str]:
    """The texts behind the prompt; each must have ended by itself."""
    end = tokenizer.eos_token_id
    rows = [row[start:].tolist() for row in found]
    assert all(end in row for row in rows), [tokenizer.decode(row) for row in rows]
    return [tokenizer.decode(row[: row.index(end)]) for row in rows]


def check(text: str) -> None:
    jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize("seed", range(6))
def test_every_sampled_answer_is_valid(writer: Obsessed, small: Any, seed: int) -> None:
    prompt = ids(small, "Once upon")
    torch.manual_seed(seed)
    options: dict[str, Any] = {"do_sample": True, "top_k": 20, "top_p": 0.95, "temperature": 2.0, "max_new_tokens": 300}
    found = writer.generate(
        prompt, tokenizer=small, response_format=FORM, num_return_sequences=3, repetition_penalty=1.2, **options
    )
    for text in answers(small, found, prompt.shape[1]):
        check(text)


def test_rows_of_a_batch_are_those_of_each_prompt_alone(writer: Obsessed, small: Any) -> None:
    texts = ["The cat", "In the house lived an old woman", "A"]
    batch = padded(small, texts)
    options: dict[str, Any] = {"tokenizer": small, "response_format": FORM, "max_new_tokens": 200}
    together = answers(small, writer.generate(**batch, **options), batch["input_ids"].shape[1])
    for text, prompt in zip(together, texts, strict=True):
        check(text)
        alone = writer.generate(ids(small, prompt), **options)
        assert [text] == answers(small, alone, ids(small, prompt).shape[1])


@pytest.mark.parametrize("sampling", [False, True])
def test_beams(writer: Obsessed, small: Any, sampling: bool) -> None:
    batch = padded(small, ["The cat", "Once upon a time"])
    found = writer.generate(
        **batch,
        tokenizer=small,
        response_format=FORM,
        num_beams=4,
        num_return_sequences=2,
        do_sample=sampling,
        max_new_tokens=200,
    )
    for text in answers(small, found, batch["input_ids"].shape[1]):
        check(text)


def test_beams_of_a_choice_find_the_likeliest(writer: Obsessed, small: Any) -> None:
    """With as many beams as there are ways to write a choice, the best one comes out."""
    prompt = ids(small, "The cat")
    choices = ["no", "ab", "maybe"]
    options: dict[str, Any] = {"tokenizer": small, "response_format": {"type": "choice", "choice": choices}}
    [text] = answers(small, writer.generate(prompt, num_beams=8, max_new_tokens=20, **options), prompt.shape[1])
    assert text in choices


def test_more_texts_than_the_form_has_answers(make_bytes: Any) -> None:
    tokenizer = make_bytes(("<e>",), eos_token="<e>", pad_token="<e>")
    prompt, model = ids(tokenizer, "Yes or no?"), Obsessed(tokenizer, [])
    options: dict[str, Any] = {"response_format": {"type": "choice", "choice": ["yes", "no"]}, "num_beams": 4}
    options |= {"tokenizer": tokenizer, "max_new_tokens": 12}
    found = model.generate(prompt, num_return_sequences=2, **options)
    assert set(answers(tokenizer, found, prompt.shape[1])) == {"yes", "no"}
    with pytest.raises(GenerationError, match="beams found 2 answers in the form of response_format, and 3 are asked"):
        model.generate(prompt, num_return_sequences=3, **options)


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 4}, {"penalty_alpha": 0.5, "top_k": 4}])
def test_other_strategies(writer: Obsessed, small: Any, options: dict[str, Any]) -> None:
    prompt = ids(small, '{"name": "abc", "tags": ["x"], "size": 1} {"name": "abc", "tags')
    common: dict[str, Any] = {"tokenizer": small, "response_format": FORM, "max_new_tokens": 200}
    [text] = answers(small, writer.generate(prompt, **common, **options), prompt.shape[1])
    check(text)
    if "prompt_lookup_num_tokens" in options:
        assert [text] == answers(small, writer.generate(prompt, **common), prompt.shape[1])


def test_a_draft_model(writer: Obsessed, small: Any) -> None:
    prompt = ids(small, "The cat")
    common: dict[str, Any] = {"tokenizer": small, "response_format": FORM, "max_new_tokens": 200}
    plain = writer.generate(prompt, **common)
    assert torch.equal(writer.generate(prompt, assistant_model=Obsessed(small, ["a"], spare=9), **common), plain)


def test_streams_and_iterators(writer: Obsessed, small: Any) -> None:
    prompt = ids(small, "The cat")
    options: dict[str, Any] = {"tokenizer": small, "response_format": FORM, "max_new_tokens": 200}
    whole = writer.generate(prompt, **options)[0, prompt.shape[1] :].tolist()
    assert [column.ids[0] for column in writer.generate_iter(prompt, **options)] == whole
    for column in writer.generate_iter(prompt, **options):
        if column.ids[0] == whole[2]:
            break  # an answer that is given up leaves nothing behind
    check(small.decode(whole[:-1]))


def test_the_scores_are_those_of_the_tokens_that_are_allowed(writer: Obsessed, small: Any) -> None:
    prompt = ids(small, "The cat")
    found = writer.generate(
        prompt,
        tokenizer=small,
        response_format={"type": "regex", "regex": "[ab]{2}"},
        max_new_tokens=5,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    assert len(found.scores) == 3
    allowed = (found.scores[-1][0] > -torch.inf).nonzero().flatten().tolist()
    assert allowed == [small.eos_token_id]
    kept = found.scores[0] > -torch.inf
    assert torch.equal(found.scores[0][kept], found.logits[0][kept]) and not kept[0, len(small) :].any()


# --- thoughts before the answer --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thinker(seed_tokenizer: Any) -> Obsessed:
    return Obsessed(seed_tokenizer, ["x"], opening="<seed:think>", spare=3)


def seed_answer(model: Any, tokenizer: Any, prompt: torch.Tensor, **options: Any) -> str:
    options = {"tokenizer": tokenizer, "response_format": FORM, "max_new_tokens": 900, **options}
    found = model.generate(prompt, **options)[0, prompt.shape[1] :].tolist()
    assert found[-1] == tokenizer.eos_token_id
    return str(tokenizer.decode(found[:-1]))


@pytest.mark.parametrize("budget", [0, 5, 512])
def test_first_the_budget_and_then_the_form(thinker: Obsessed, seed_tokenizer: Any, budget: int) -> None:
    for told in ({}, {"thinking_budget": budget}):
        prompt = torch.tensor([SeedOss().render(QUESTION, **told).ids(seed_tokenizer)])
        text = seed_answer(thinker, seed_tokenizer, prompt, thinking_budget=budget)
        thoughts, mark, answer = text.partition("</seed:think>")
        assert mark and thoughts.count("x") >= budget * 0.3
        check(answer)


def test_thoughts_may_end_before_the_budget_or_not_begin(seed_tokenizer: Any) -> None:
    prompt = torch.tensor([SeedOss().render(QUESTION).ids(seed_tokenizer)])
    short = Obsessed(seed_tokenizer, ["x"], opening="<seed:think>", after={"x": "</seed:think>"})
    text = seed_answer(short, seed_tokenizer, prompt, thinking_budget=50)
    assert text.startswith("<seed:think>x</seed:think>")
    check(text.partition("</seed:think>")[2])
    check(seed_answer(Obsessed(seed_tokenizer, ["x"]), seed_tokenizer, prompt))
    # Neither the end of the text nor another mark can come while it thinks.
    eager = Obsessed(seed_tokenizer, ["<seed:eos>", "<seed:bos>", "<seed:tool_call>", "x"], opening="<seed:think>")
    text = seed_answer(eager, seed_tokenizer, prompt, thinking_budget=6)
    assert text.startswith("<seed:think>xxxxxx</seed:think>")
    check(text.partition("</seed:think>")[2])


def test_an_answer_on_a_new_line(seed_tokenizer: Any) -> None:
    prompt = torch.tensor([SeedOss().render(QUESTION).ids(seed_tokenizer)])
    model = Obsessed(seed_tokenizer, ["b"], opening="<seed:think>", after={"</seed:think>": "\n"})
    options: dict[str, Any] = {"thinking_budget": 2, "response_format": {"type": "regex", "regex": "[ab]{3}"}}
    assert seed_answer(model, seed_tokenizer, prompt, **options) == "<seed:think>bb</seed:think>\nbbb"


@pytest.fixture(scope="module")
def analyst(harmony_tokenizer: Any) -> Obsessed:
    """Opens the analysis channel and never leaves it."""
    opening = ["assistant", "<|channel|>", "analysis", "<|message|>", " x"]
    return Obsessed(harmony_tokenizer, [" x"], after=dict(zip(opening, opening[1:], strict=False)), spare=5)


HARMONY_ENDS = [200002, 199999, 200012]  # return, endoftext, call: those of the published generation config


@pytest.mark.parametrize("budget", [0, 4])
def test_only_the_final_channel_is_held_to_the_form(analyst: Obsessed, harmony_tokenizer: Any, budget: int) -> None:
    prompt = torch.tensor([Harmony().render(QUESTION).ids(harmony_tokenizer)])
    found = analyst.generate(
        prompt,
        tokenizer=harmony_tokenizer,
        response_format=FORM,
        thinking_budget=budget,
        max_new_tokens=200,
        eos_token_id=HARMONY_ENDS,
    )[0, prompt.shape[1] :].tolist()
    text = harmony_tokenizer.decode(found)
    before, mark, answer = text.partition("<|channel|>final<|message|>")
    assert before == ("<|channel|>analysis<|message|>" + " x" * budget + "<|end|><|start|>assistant" if budget else "")
    assert mark and found[-1] in HARMONY_ENDS[:2]
    check(answer.rpartition("<|")[0])


def test_headers_of_harmony_are_held_to_their_form(harmony_tokenizer: Any) -> None:
    """A model that writes nonsense still comes to a message in a channel."""
    model = Obsessed(
        harmony_tokenizer, ["final", " to", "=f", "<|end|>", "<|call|>", "<|return|>", "<|start|>"], spare=5
    )
    prompt = torch.tensor([Harmony().render(QUESTION).ids(harmony_tokenizer)])
    options: dict[str, Any] = {"response_format": {"type": "choice", "choice": ["yes"]}, "eos_token_id": HARMONY_ENDS}
    found = model.generate(prompt, tokenizer=harmony_tokenizer, max_new_tokens=60, **options)
    text = harmony_tokenizer.decode(found[0, prompt.shape[1] :])
    assert text in ("<|channel|>final<|message|>yes<|return|>", "<|channel|>final<|message|>yes<|endoftext|>")


def harmony_allowed(tokenizer: Any, behind: str) -> set[int]:
    """What a row may go on with."""
    compiled = compile_form({"type": "choice", "choice": ["yes"]}, tokenizer)
    assert compiled is not None
    text = Harmony().render(QUESTION).text + behind
    row = FormRow(
        compiled, thinking_format(tokenizer), tokenizer(text, add_special_tokens=False)["input_ids"], HARMONY_ENDS
    )
    return set(row.allowed().nonzero()[0].tolist())


def test_what_may_follow_in_harmony(harmony_tokenizer: Any) -> None:
    start, end, message, channel, constrain, call, back = (
        harmony_tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("start", "end", "message", "channel", "constrain", "call", "return")
    )

    def names(behind: str) -> set[str]:
        return {harmony_tokenizer.decode([index]) for index in harmony_allowed(harmony_tokenizer, behind)}

    assert harmony_allowed(harmony_tokenizer, "") == {channel}
    assert names("<|channel|>") == {"analysis", "comment", "final"} or "final" in names("<|channel|>")
    assert harmony_allowed(harmony_tokenizer, "<|channel|>final") == {message}
    inside = harmony_allowed(harmony_tokenizer, "<|channel|>analysis<|message|>Hm")
    assert end in inside and not {start, channel, message, call, back, constrain} & inside and len(inside) > 199_000
    calling = harmony_allowed(harmony_tokenizer, "<|channel|>commentary to=functions.f<|message|>{}")
    assert call in calling and end not in calling and back not in calling
    header = harmony_allowed(harmony_tokenizer, "<|channel|>commentary")
    assert {message, constrain} <= header and end not in header
    assert harmony_allowed(harmony_tokenizer, "<|channel|>analysis<|message|>Hm<|end|>") == {start}
    assert names("<|channel|>analysis<|message|>Hm<|end|><|start|>") == {"assistant"}
    assert harmony_allowed(harmony_tokenizer, "<|channel|>commentary" + " x" * 80) == {message}
    assert names("<|channel|>final<|message|>") <= {"y", "ye", "yes"}


def test_a_prompt_without_messages_is_held_to_the_form_at_once(harmony_tokenizer: Any) -> None:
    model = Obsessed(harmony_tokenizer, ["q"], spare=5)
    prompt = ids(harmony_tokenizer, "Yes or no? ")
    options: dict[str, Any] = {"response_format": {"type": "choice", "choice": ["yes", "no"]}}
    found = model.generate(prompt, tokenizer=harmony_tokenizer, max_new_tokens=9, **options)
    assert answers(harmony_tokenizer, found, prompt.shape[1])[0] in ("yes", "no")


# --- the processor ---------------------------------------------------------------------------------------------------


class Prompted:
    """As much of a Prompt as the processors need."""

    def __init__(self, tokens: list[list[int]]) -> None:
        self.ids, self.mask = torch.tensor(tokens), None


def made(tokenizer: Any, given: Any, rows: int = 1, **options: Any) -> FormLogitsProcessor:
    prompt: Any = Prompted([[5, 6]] * rows)
    processor = form_processor(given, tokenizer, prompt, [tokenizer.eos_token_id], **options)
    assert processor is not None
    return processor


def allowed(processor: FormLogitsProcessor, tokenizer: Any, *texts: str) -> list[set[str]]:
    """What each row may go on with, as texts."""
    rows = [[5, 6, *(tokenizer.convert_tokens_to_ids(letter) for letter in text)] for text in texts]
    scores = processor(torch.tensor(rows), torch.zeros(len(rows), len(tokenizer)))
    return [{tokenizer.decode([index]) for index in (row > -torch.inf).nonzero().flatten().tolist()} for row in scores]


def test_rows_are_followed_whatever_happens_to_them(make_bytes: Any) -> None:
    tokenizer = make_bytes(("<e>",), eos_token="<e>")
    processor = made(tokenizer, {"type": "regex", "regex": "(ab|ac|xyz)+"}, rows=2, copies=2)
    end = tokenizer.decode([tokenizer.eos_token_id])
    first = allowed(processor, tokenizer, "", "", "", "")
    assert all(row == first[0] and {"a", "x"} <= row for row in first)
    assert allowed(processor, tokenizer, "a", "x", "a", "a") == [{"b", "c"}, {"y"}, {"b", "c"}, {"b", "c"}]
    # Beams change places, two go on from one.
    assert allowed(processor, tokenizer, "xy", "ab", "ab", "ac")[0] == {"z"}
    assert allowed(processor, tokenizer, "xyz", "xyz", "aba", "abx") == [
        {"a", "x", end},
        {"a", "x", end},
        {"b", "c"},
        {"y"},
    ]
    # A draft is taken back, several tokens come at once.
    assert allowed(processor, tokenizer, "x", "x", "a", "a") == [{"y"}, {"y"}, {"b", "c"}, {"b", "c"}]
    more = {"a", "x", end}
    assert allowed(processor, tokenizer, "xyzab", "xyzac", "abxyz", "acacx") == [more, more, more, {"y"}]
    processor.select(torch.tensor([3, 1, 1]))
    assert allowed(processor, tokenizer, "acacx", "xyzac", "xyzac") == [{"y"}, more, more]
    processor.chosen([tokenizer.convert_tokens_to_ids(letter) for letter in "yax"])
    processor.select(torch.tensor([2, 0]))
    assert allowed(processor, tokenizer, "xyzacx", "acacxy") == [{"y"}, {"z"}]
    processor.chosen([tokenizer.convert_tokens_to_ids(letter) for letter in "zz"])  # a hint that turns out wrong
    assert allowed(processor, tokenizer, "xyzacxy", "acacxyz") == [{"z"}, more]


def test_a_row_that_is_finished_is_left_alone(small: Any) -> None:
    processor = made(small, {"type": "choice", "choice": ["a"]}, rows=2)
    end = small.eos_token_id
    letter = small.convert_tokens_to_ids("a")
    zeros = torch.zeros(2, len(small))
    processor(torch.tensor([[5, 6], [5, 6]]), zeros)
    processor(torch.tensor([[5, 6, letter], [5, 6, letter]]), zeros)
    scores = processor(
        torch.tensor([[5, 6, letter, end], [5, 6, letter, 9]]), zeros
    )  # complete; filled up with padding
    assert torch.equal(scores, zeros)


def test_masks_are_made_while_the_model_runs(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that makes them is another one, and is at work before the next scores come."""
    threads: list[str] = []
    real = FormRow.allowed

    def slow(self: FormRow) -> Any:
        threads.append(threading.current_thread().name)
        time.sleep(0.05)
        return real(self)

    monkeypatch.setattr(FormRow, "allowed", slow)
    processor = made(small, {"type": "regex", "regex": "a+"})
    token = small.convert_tokens_to_ids("a")
    scores = torch.zeros(1, len(small))
    processor(torch.tensor([[5, 6]]), scores)
    begun = time.perf_counter()
    processor.chosen([token])
    assert time.perf_counter() - begun < 0.04
    time.sleep(0.08)  # the model
    begun = time.perf_counter()
    processor(torch.tensor([[5, 6, token]]), scores)
    assert time.perf_counter() - begun < 0.04
    assert len(threads) == 2 and all(name.startswith("quintet-form") for name in threads)


# --- dead ends and bad calls -----------------------------------------------------------------------------------------


class Without(LogitsProcessor):
    """Rules tokens out."""

    def __init__(self, tokenizer: Any, letters: str) -> None:
        self.ids = torch.tensor([tokenizer.convert_tokens_to_ids(letter) for letter in letters])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(-1, self.ids, -torch.inf)


def test_a_dead_end_says_what_happened(writer: Obsessed, small: Any) -> None:
    prompt = ids(small, "The cat")
    common: dict[str, Any] = {"tokenizer": small, "max_new_tokens": 30}
    own = LogitsProcessorList([Without(small, "QZ")])
    with pytest.raises(GenerationError, match=r"the answer of row 0 cannot go on behind 'aaa': 2 tokens would go on"):
        writer.generate(prompt, response_format={"type": "regex", "regex": "aaa[QZ]"}, logits_processor=own, **common)
    with pytest.raises(GenerationError, match=r"cannot go on behind 'ab': 1 tokens.*min_new_tokens"):
        writer.generate(prompt, response_format={"type": "regex", "regex": "ab"}, min_new_tokens=9, **common)


def test_scores_that_are_nan_are_not_called_a_dead_end(writer: Obsessed, small: Any) -> None:
    class Broken(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores * torch.nan

    with pytest.raises(GenerationError, match="hold NaN"):
        writer.generate(
            ids(small, "The"), tokenizer=small, response_format=FORM, logits_processor=[Broken()], max_new_tokens=9
        )


def test_a_vocabulary_without_the_letters(make_bytes: Any) -> None:
    tokenizer = make_bytes(("<e>",), eos_token="<e>")
    whole, wave = tokenizer.get_vocab(), tokenizer.convert_tokens_to_ids("~")
    tokenizer.get_vocab = lambda: {token: index for token, index in whole.items() if index != wave}
    model = Obsessed(tokenizer, ["a"])
    with pytest.raises(
        GenerationError, match="cannot go on behind 'a': the vocabulary has no token that the form allows"
    ):
        model.generate(
            ids(tokenizer, "b"),
            tokenizer=tokenizer,
            response_format={"type": "choice", "choice": ["a~"]},
            max_new_tokens=5,
        )


def test_calls_that_cannot_have_a_form(writer: Obsessed, small: Any, make_bytes: Any) -> None:
    prompt = ids(small, "The")
    with pytest.raises(GenerationError, match=r"response_format needs the tokenizer.*tokenizer=tokenizer"):
        writer.generate(prompt, response_format=FORM)
    with pytest.raises(GenerationError, match="needs a token that ends the answer, and eos_token_id is None"):
        writer.generate(prompt, response_format=FORM, tokenizer=small, eos_token_id=None)
    with pytest.raises(GenerationError, match="forced_eos_token_id=0 ends a text whatever it holds"):
        writer.generate(prompt, response_format=FORM, tokenizer=small, forced_eos_token_id=0)
    with pytest.raises(GenerationError, match="must be a dict with a 'type'"):
        writer.generate(prompt, response_format="json", tokenizer=small)
    other = compile_form(FORM, make_bytes(("<e>",), eos_token="<e>"))
    with pytest.raises(GenerationError, match="was compiled for another tokenizer"):
        writer.generate(prompt, response_format=other, tokenizer=small)


def test_text_as_it_comes_and_forms_that_are_compiled(writer: Obsessed, small: Any) -> None:
    prompt = ids(small, "The")
    options: dict[str, Any] = {"max_new_tokens": 60, "tokenizer": small}
    plain = writer.generate(prompt, **options)
    assert torch.equal(writer.generate(prompt, response_format={"type": "text"}, **options), plain)
    config = GenerationConfig(response_format=FORM, max_new_tokens=60)
    held = writer.generate(prompt, config, tokenizer=small)
    compiled = compile_form(FORM, small)
    assert torch.equal(writer.generate(prompt, response_format=compiled, **options), held)
    again = GenerationConfig(response_format=compiled, max_new_tokens=60)
    assert torch.equal(writer.generate(prompt, again, tokenizer=small), held)


def test_the_option_survives_a_round_trip(tmp_path: Path) -> None:
    GenerationConfig(response_format=FORM).save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).response_format == FORM
    assert re.search('"strict": true', (tmp_path / "generation_config.json").read_text())
