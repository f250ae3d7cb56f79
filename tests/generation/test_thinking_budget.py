"""The thinking budget: models that would think for ever, in both formats that have thoughts."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet import GenerationConfig
from quintet.chat import chat_format, collect
from quintet.chat.harmony import Harmony
from quintet.chat.seed_oss import SeedOss
from quintet.errors import GenerationError
from quintet.generation import LogitsProcessor
from quintet.generation.thinking import ThinkingRow
from quintet.generation.thinking_formats import State, thinking_format

sys.path.insert(0, str(Path(__file__).parent))

from obsessed import Obsessed

QUESTION = [{"role": "user", "content": "Why?"}]
LAST_WORDS = (
    "<seed:cot_budget_reflect>I have exhausted my token budget, and now I will start answering the question."
    "</seed:cot_budget_reflect>\n</seed:think>"
)
NO_THOUGHTS = (
    "<seed:think><seed:cot_budget_reflect>The current thinking budget is 0, so I will directly start answering the "
    "question.</seed:cot_budget_reflect>\n</seed:think>"
)
TO_FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"


@pytest.fixture(scope="module")
def thinker(seed_tokenizer: Any) -> Obsessed:
    """Opens its thoughts, and then thinks of nothing but x."""
    return Obsessed(seed_tokenizer, opening="<seed:think>")


def ids(tokenizer: Any, text: str) -> torch.Tensor:
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


def answer(model: Any, tokenizer: Any, prompt: torch.Tensor, **options: Any) -> list[str]:
    """What the model writes behind the prompt, as text."""
    options = {"max_new_tokens": 700, "tokenizer": tokenizer, "eos_token_id": None, **options}
    found = model.generate(prompt, **options)
    return [tokenizer.decode(row[prompt.shape[1] :]) for row in found]


def thoughts(tokenizer: Any, text: str) -> int:
    """How many tokens are between the marks."""
    return len(tokenizer(text.partition("<seed:think>")[2].partition("</seed:think>")[0])["input_ids"])


def seed_prompt(tokenizer: Any, **options: Any) -> torch.Tensor:
    return torch.tensor([SeedOss().render(QUESTION, **options).ids(tokenizer)])


def harmony_prompt(tokenizer: Any, behind: str = "") -> torch.Tensor:
    prompt = torch.tensor([Harmony().render(QUESTION).ids(tokenizer)])
    return torch.cat([prompt, ids(tokenizer, behind)], dim=1) if behind else prompt


# --- Seed-OSS ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 7, 64])
def test_a_small_budget_ends_the_thoughts_without_a_note(thinker: Obsessed, seed_tokenizer: Any, budget: int) -> None:
    [text] = answer(
        thinker, seed_tokenizer, seed_prompt(seed_tokenizer), thinking_budget=budget, max_new_tokens=budget + 20
    )
    assert text == "<seed:think>" + "x" * budget + "</seed:think>" + "x" * 18


def test_notes_come_at_the_intervals_and_before_the_end(thinker: Obsessed, seed_tokenizer: Any) -> None:
    [text] = answer(thinker, seed_tokenizer, seed_prompt(seed_tokenizer, thinking_budget=512), thinking_budget=512)
    before, _, after = text.partition("</seed:think>")
    notes = [
        f"<seed:cot_budget_reflect>I have used {used} tokens, and there are {512 - used} tokens remaining for use."
        "</seed:cot_budget_reflect>\n"
        for used in (144, 272)
    ]
    assert all(f"x\n{note}x" in before for note in notes) and before.count("<seed:cot_budget_reflect>") == 3
    assert text.startswith("<seed:think>" + "x" * 144 + "\n" + notes[0]) and f"x\n{LAST_WORDS}x" in text
    assert thoughts(seed_tokenizer, text) == 512  # the notes are thoughts too
    assert set(after) == {"x"}


def test_notes_that_the_model_begins_hold_the_true_numbers(thinker: Obsessed, seed_tokenizer: Any) -> None:
    behind = "<seed:think>" + "y" * 40 + "\n<seed:cot_budget_reflect>"
    prompt = torch.cat([seed_prompt(seed_tokenizer), ids(seed_tokenizer, behind)], dim=1)
    [text] = answer(thinker, seed_tokenizer, prompt, thinking_budget=2048, max_new_tokens=100)
    note = "I have used 41 tokens, and there are 2007 tokens remaining for use.</seed:cot_budget_reflect>"
    assert text.startswith(note + "x" * 10)


def test_a_model_that_only_writes_notes_is_brought_to_an_end(seed_tokenizer: Any) -> None:
    model = Obsessed(seed_tokenizer, ["<seed:cot_budget_reflect>"], opening="<seed:think>")
    [text] = answer(model, seed_tokenizer, seed_prompt(seed_tokenizer), thinking_budget=512)
    assert text.count("</seed:think>") == 1 and thoughts(seed_tokenizer, text) <= 512
    assert text.partition("</seed:think>")[0].endswith("answering the question.</seed:cot_budget_reflect>\n")


def test_a_budget_of_nothing_is_an_answer_at_once(thinker: Obsessed, seed_tokenizer: Any) -> None:
    options: dict[str, Any] = {"thinking_budget": 0, "max_new_tokens": 130}
    [plain] = answer(thinker, seed_tokenizer, seed_prompt(seed_tokenizer), **options)
    assert plain.startswith(NO_THOUGHTS + "xxx")
    # The template opens the thoughts and the note itself when it is told of the budget.
    [opened] = answer(thinker, seed_tokenizer, seed_prompt(seed_tokenizer, thinking_budget=0), **options)
    assert opened.startswith(NO_THOUGHTS.removeprefix("<seed:think><seed:cot_budget_reflect>") + "xxx")
    behind = torch.cat([seed_prompt(seed_tokenizer), ids(seed_tokenizer, "<seed:think>hm")], dim=1)
    assert answer(thinker, seed_tokenizer, behind, **options)[0].startswith("</seed:think>xxx")
    parser = SeedOss().parser(seed_tokenizer, SeedOss().render(QUESTION))
    read = collect(parser.parse(seed_tokenizer(plain, add_special_tokens=False)["input_ids"]))
    assert set(read["content"]) == {"x"} and not read.get("reasoning_content")


def test_thoughts_of_the_prompt_count(thinker: Obsessed, seed_tokenizer: Any) -> None:
    prompt = torch.cat([seed_prompt(seed_tokenizer), ids(seed_tokenizer, "<seed:think>abcde")], dim=1)
    options: dict[str, Any] = {"max_new_tokens": 20}
    for budget, more in ((12, 7), (6, 1), (5, 0), (3, 0)):
        [text] = answer(thinker, seed_tokenizer, prompt, thinking_budget=budget, **options)
        assert text.startswith("x" * more + "</seed:think>x")
    # Thoughts of an earlier turn do not.
    turns = [*QUESTION, {"role": "assistant", "content": "So.", "reasoning_content": "y" * 50}, *QUESTION]
    prompt = torch.tensor([SeedOss().render(turns).ids(seed_tokenizer)])
    assert answer(thinker, seed_tokenizer, prompt, thinking_budget=4, **options)[0].startswith(
        "<seed:think>xxxx</seed:think>"
    )


def test_a_model_that_ends_its_thoughts_itself_is_left_alone(seed_tokenizer: Any) -> None:
    model = Obsessed(seed_tokenizer, ["x"], opening="<seed:think>", after={"<seed:think>": "</seed:think>"})
    prompt = seed_prompt(seed_tokenizer)
    options: dict[str, Any] = {"max_new_tokens": 30}
    free = answer(model, seed_tokenizer, prompt, **options)
    assert free == answer(model, seed_tokenizer, prompt, thinking_budget=10, **options)
    assert free == answer(model, seed_tokenizer, prompt, thinking_budget=-1, **options)
    never = Obsessed(seed_tokenizer)  # it does not think at all
    assert answer(never, seed_tokenizer, prompt, thinking_budget=5, **options) == ["x" * 30]


def test_thoughts_that_begin_anew_have_no_second_budget(seed_tokenizer: Any) -> None:
    model = Obsessed(seed_tokenizer, ["<seed:think>"])
    [text] = answer(model, seed_tokenizer, seed_prompt(seed_tokenizer), thinking_budget=3, max_new_tokens=20)
    think, end = "<seed:think>", "</seed:think>"
    assert text == think + think * 3 + end + (think + end) * 7 + think


# --- harmony ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def analyst(harmony_tokenizer: Any) -> Obsessed:
    """Opens the analysis channel and never leaves it."""
    opening = ["assistant", "<|channel|>", "analysis", "<|message|>", " x"]
    return Obsessed(harmony_tokenizer, [" x"], after=dict(zip(opening, opening[1:], strict=False)))


@pytest.mark.parametrize("budget", [1, 5, 40])
def test_the_analysis_channel_is_closed(analyst: Obsessed, harmony_tokenizer: Any, budget: int) -> None:
    prompt = harmony_prompt(harmony_tokenizer)
    [text] = answer(analyst, harmony_tokenizer, prompt, thinking_budget=budget, max_new_tokens=budget + 15)
    analysis = "<|channel|>analysis<|message|>"
    assert text == analysis + " x" * budget + TO_FINAL + " x" * (15 - 3 - 6)
    parser = Harmony().parser(harmony_tokenizer, Harmony().render(QUESTION))
    read = collect(parser.parse(harmony_tokenizer(text, add_special_tokens=False)["input_ids"]))
    assert (read["reasoning_content"], read["content"]) == (" x" * budget, " x" * 6)


@pytest.mark.parametrize(
    ("behind", "begins"),
    [
        ("", "<|channel|>final<|message|>"),
        ("<|channel|>", "final<|message|>"),
        ("<|channel|>analysis<|message|>", TO_FINAL),
        ("<|channel|>analysis<|message|>one two", TO_FINAL),
        ("<|channel|>final<|message|>So", " x x x"),
    ],
)
def test_no_analysis_at_all(analyst: Obsessed, harmony_tokenizer: Any, behind: str, begins: str) -> None:
    prompt = harmony_prompt(harmony_tokenizer, behind)
    [text] = answer(analyst, harmony_tokenizer, prompt, thinking_budget=0, max_new_tokens=12)
    assert text.startswith(begins) and text.endswith(" x x x")


def test_analysis_of_the_prompt_counts(analyst: Obsessed, harmony_tokenizer: Any) -> None:
    prompt = harmony_prompt(harmony_tokenizer, "<|channel|>analysis<|message|> a b c")
    [text] = answer(analyst, harmony_tokenizer, prompt, thinking_budget=5, max_new_tokens=12)
    assert text.startswith(" x x" + TO_FINAL)


def test_a_second_analysis_goes_on_from_the_first(harmony_tokenizer: Any) -> None:
    opening = ["assistant", "<|channel|>", "analysis", "<|message|>", " x", "<|end|>", "<|start|>", "assistant"]
    model = Obsessed(harmony_tokenizer, [" x"], after=dict(zip(opening, opening[1:], strict=False)))
    [text] = answer(model, harmony_tokenizer, harmony_prompt(harmony_tokenizer), thinking_budget=3, max_new_tokens=40)
    one = "<|channel|>analysis<|message|> x<|end|><|start|>assistant"
    two = "<|channel|>analysis<|message|> x"
    # Another analysis behind the answer is closed before it begins.
    assert text.startswith(
        one * 2 + two + TO_FINAL + " x<|end|><|start|>assistant<|channel|>analysis<|message|>" + TO_FINAL
    )


@pytest.mark.parametrize(
    ("header", "place", "called"),
    [
        ("<|channel|>analysis", "analysis", False),
        ("<|channel|>analysis to=python code", "other", True),
        (" to=functions.f<|channel|>commentary json", "other", True),
        ("<|channel|>commentary to=functions.f <|constrain|>json", "other", True),
        ("<|channel|>commentary", "other", False),
        ("<|channel|>final <|constrain|>json", "final", False),
        ("", "other", False),
    ],
)
def test_headers(harmony_tokenizer: Any, header: str, place: str, called: bool) -> None:
    form = thinking_format(harmony_tokenizer)
    assert form is not None
    text = f"<|start|>user<|message|>x<|end|><|start|>assistant{header}<|message|>"
    state = form.begin(harmony_tokenizer(text, add_special_tokens=False)["input_ids"])
    assert (state.place, state.called) == (place, called)


# --- batches, strategies, streams -------------------------------------------------------------------------------------


def padded(tokenizer: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    tokenizer.padding_side = "left"
    return dict(tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt"))


PROMPTS = [
    "<seed:bos>user\nOne<seed:eos><seed:bos>assistant\n",
    "<seed:bos>user\nA longer question<seed:eos><seed:bos>assistant\n<seed:think>ab",
    "<seed:bos>user\nTwo<seed:eos><seed:bos>assistant\n<seed:think>abc</seed:think>d",
]


@pytest.mark.parametrize("budgets", [6, [6, 4, 0], [-1, 3, 9]])
def test_rows_of_a_batch_have_their_own_thoughts(thinker: Obsessed, seed_tokenizer: Any, budgets: Any) -> None:
    batch = padded(seed_tokenizer, PROMPTS)
    options: dict[str, Any] = {"max_new_tokens": 25, "eos_token_id": None, "tokenizer": seed_tokenizer}
    together = thinker.generate(**batch, thinking_budget=budgets, **options)[:, batch["input_ids"].shape[1] :]
    for row, text in enumerate(PROMPTS):
        alone = thinker.generate(
            ids(seed_tokenizer, text), thinking_budget=budgets if budgets == 6 else budgets[row], **options
        )
        assert together[row].tolist() == alone[0, -25:].tolist()


def test_sampling_with_several_rows_for_each_prompt(thinker: Obsessed, seed_tokenizer: Any) -> None:
    batch = padded(seed_tokenizer, PROMPTS[:2])
    options: dict[str, Any] = {"do_sample": True, "top_k": 3, "temperature": 90.0, "num_return_sequences": 3}
    found = thinker.generate(
        **batch, thinking_budget=[5, 9], max_new_tokens=40, tokenizer=seed_tokenizer, eos_token_id=None, **options
    )
    assert found.shape[0] == 6
    for row, most in zip(found, (5, 5, 5, 9, 9, 9), strict=True):
        think, end = (seed_tokenizer.convert_tokens_to_ids(mark) for mark in ("<seed:think>", "</seed:think>"))
        tokens = row.tolist()
        assert tokens.index(end) - tokens.index(think) - 1 <= most


def test_the_stream_and_the_iterator_show_the_forced_tokens(thinker: Obsessed, seed_tokenizer: Any) -> None:
    prompt = seed_prompt(seed_tokenizer)
    options: dict[str, Any] = {"thinking_budget": 4, "max_new_tokens": 9, "tokenizer": seed_tokenizer}
    columns = [column.ids[0] for column in thinker.generate_iter(prompt, **options)]
    assert seed_tokenizer.decode(columns) == "<seed:think>xxxx</seed:think>xxx"

    class Heard:
        def __init__(self) -> None:
            self.heard: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.heard += value.reshape(-1).tolist()

        def end(self) -> None:
            self.heard.append(-1)

    streamer = Heard()
    thinker.generate(prompt, streamer=streamer, **options)
    assert streamer.heard == [*prompt[0].tolist(), *columns, -1]


@pytest.mark.parametrize("sampling", [False, True])
def test_beams(thinker: Obsessed, seed_tokenizer: Any, sampling: bool) -> None:
    batch = padded(seed_tokenizer, PROMPTS)
    found = thinker.generate(
        **batch,
        thinking_budget=[6, 4, 2],
        num_beams=3,
        num_return_sequences=2,
        do_sample=sampling,
        max_new_tokens=20,
        tokenizer=seed_tokenizer,
        eos_token_id=None,
    )
    texts = [seed_tokenizer.decode(row).rpartition("assistant\n")[2] for row in found]
    if not sampling:
        assert texts[0] == "<seed:think>" + "x" * 6 + "</seed:think>" + "x" * 12
        assert texts[2] == "<seed:think>abxx</seed:think>" + "x" * 17
    for text, most in zip(texts, (6, 6, 4, 4, 3, 3), strict=True):
        assert thoughts(seed_tokenizer, text) <= most and text.count("</seed:think>") == 1


def test_no_other_processor_rules_the_end_out(thinker: Obsessed, seed_tokenizer: Any) -> None:
    end = seed_tokenizer.convert_tokens_to_ids("</seed:think>")

    class Never(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores.index_fill(-1, torch.tensor([end]), -torch.inf)

    [text] = answer(
        thinker,
        seed_tokenizer,
        seed_prompt(seed_tokenizer),
        thinking_budget=3,
        logits_processor=[Never()],
        max_new_tokens=9,
        do_sample=True,
        top_k=1,
    )
    assert text == "<seed:think>xxx</seed:think>xxxx"


def test_rows_are_followed_when_they_are_dropped_and_taken_back(seed_tokenizer: Any) -> None:
    from quintet.generation.thinking import ThinkingBudgetLogitsProcessor

    form = thinking_format(seed_tokenizer)
    assert form is not None
    think, end, x, y = form.marks["<seed:think>"], form.marks["</seed:think>"], 50, 60
    rows = [ThinkingRow(form, [think], budget) for budget in (2, 3, 4)]
    processor = ThinkingBudgetLogitsProcessor(rows, 1)

    def forced(*tokens: list[int]) -> list[int | None]:
        scores = processor(torch.tensor([[think, *row] for row in tokens]), torch.zeros(len(tokens), 300))
        sure = (scores > -torch.inf).sum(dim=-1) == 1
        return [int(row.argmax()) if one else None for row, one in zip(scores, sure, strict=True)]

    assert forced([], [], []) == [None] * 3
    assert forced([x], [x], [x]) == [None] * 3
    assert forced([x, x], [x, x], [x, x]) == [end, None, None]
    assert forced([x, y], [x, x], [x, x]) == [end, None, None]  # another token in its place
    assert forced([x], [x], [x]) == [None] * 3  # a draft is taken back
    assert forced([x, x, x], [y, y, y], [x, x, x]) == [end, end, None]  # several at once
    processor.select(torch.tensor([2, 1]))
    assert forced([x, x, x, x], [y, y, y, end]) == [end, None]
    with pytest.raises(GenerationError, match="keeps something for each of 2 rows and got 3"):
        forced([x], [x], [x])


def test_beams_change_places_within_their_prompt(seed_tokenizer: Any) -> None:
    from quintet.generation.thinking import ThinkingBudgetLogitsProcessor

    form = thinking_format(seed_tokenizer)
    assert form is not None
    think, end, x, y = form.marks["<seed:think>"], form.marks["</seed:think>"], 50, 60
    rows = [ThinkingRow(form, [think] * 2, budget) for budget in (3, 3, 2, 2)]
    processor = ThinkingBudgetLogitsProcessor(rows, 0, copies=2)
    for tokens in ([[x], [y]] * 2, [[y, end], [x, x]] * 2, [[x, x, x], [y, end, x]] * 2):
        scores = processor(torch.tensor(tokens), torch.zeros(4, 300))
    assert (scores[0] > -torch.inf).nonzero().tolist() == [[end]] and bool((scores[1] == 0).all())
    scores = processor(torch.tensor([[x, x, x, end]] * 2 + [[x, x, end, x]] * 2), torch.zeros(4, 300))
    assert bool((scores == 0).all())


@settings(max_examples=25)
@given(st.integers(0, 700), st.integers(0, 2**32), st.sampled_from([(), ("<seed:think>",), ("<seed:think>", "yes")]))
def test_whatever_a_model_writes_its_thoughts_are_within_the_budget(
    seed_tokenizer: Any, budget: int, seed: int, opened: tuple[str, ...]
) -> None:
    form = thinking_format(seed_tokenizer)
    assert form is not None
    think, end = form.marks["<seed:think>"], form.marks["</seed:think>"]
    chance = random.Random(seed)
    # Letters mostly; marks of all kinds at all places.
    tokens = [*[50] * chance.randint(20, 400), *range(256, len(seed_tokenizer))]
    text = seed_tokenizer("<seed:bos>assistant\n" + "".join(opened), add_special_tokens=False)["input_ids"]
    row, written = ThinkingRow(form, text, budget), text[len(text) - len(opened) :]
    for _ in range(900):
        forced = row.forced
        written.append(chance.choice(tokens) if forced is None else forced)
        row.advance(written[-1])
    inside, used = False, 0
    for token in written[written.index(think) if think in written else len(written) :]:
        if token == end or (token == think and not inside):
            inside = token == think
        elif inside:
            used += 1
    assert used <= max(budget, 3 if "yes" in opened else 0) or budget == 0
    if budget == 0 and not opened:
        assert seed_tokenizer.decode(written).startswith(NO_THOUGHTS)


# --- the option -------------------------------------------------------------------------------------------------------


def test_the_option_survives_a_round_trip(tmp_path: Path) -> None:
    for value in (512, 0, -1, [512, -1]):
        GenerationConfig(thinking_budget=value).save_pretrained(tmp_path)
        assert GenerationConfig.from_pretrained(tmp_path).thinking_budget == value
    GenerationConfig().save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).thinking_budget is None


def test_the_option_of_the_model_counts(thinker: Obsessed, seed_tokenizer: Any) -> None:
    config = GenerationConfig(thinking_budget=3, max_new_tokens=8)
    found = thinker.generate(seed_prompt(seed_tokenizer), config, tokenizer=seed_tokenizer)
    assert seed_tokenizer.decode(found[0, -8:]) == "<seed:think>xxx</seed:think>xxx"


@pytest.mark.parametrize("value", [-2, 1.5, "512", True, [], [1, "2"], {"a": 1}])
def test_values_that_are_no_budget(thinker: Obsessed, seed_tokenizer: Any, value: Any) -> None:
    with pytest.raises(GenerationError, match="thinking_budget is .*, but must be a number of tokens"):
        thinker.generate(seed_prompt(seed_tokenizer), thinking_budget=value, tokenizer=seed_tokenizer)


def test_calls_that_cannot_have_a_budget(thinker: Obsessed, seed_tokenizer: Any, make_bytes: Any) -> None:
    prompt = seed_prompt(seed_tokenizer)
    with pytest.raises(GenerationError, match=r"thinking_budget=5 needs the tokenizer.*tokenizer=tokenizer"):
        thinker.generate(prompt, thinking_budget=5)
    with pytest.raises(GenerationError, match="has no tokens that begin and end thoughts"):
        thinker.generate(prompt, thinking_budget=5, tokenizer=make_bytes(("<e>",), eos_token="<e>"))
    with pytest.raises(GenerationError, match="thinking_budget has 2 numbers and there are 1 prompts"):
        thinker.generate(prompt, thinking_budget=[5, 6], tokenizer=seed_tokenizer)
    with pytest.warns(UserWarning, match="thinking_budget is 50 and at most 9 new tokens"):
        thinker.generate(prompt, thinking_budget=50, max_new_tokens=9, tokenizer=seed_tokenizer)


def test_only_models_that_think_have_a_format(seed_tokenizer: Any, harmony_tokenizer: Any, make_bytes: Any) -> None:
    assert thinking_format(make_bytes(())) is None
    for tokenizer in (seed_tokenizer, harmony_tokenizer):
        form = thinking_format(tokenizer)
        assert form is not None and type(form).__name__.lower().startswith(
            chat_format(tokenizer).name.partition("_")[0][:4]
        )
    # A vocabulary of Seed-OSS without the tokens of its notes.
    bare = make_bytes(("<seed:bos>", "<seed:eos>", "<seed:think>", "</seed:think>"), eos_token="<seed:eos>")
    form = thinking_format(bare)
    assert form is not None
    prompt = bare("<seed:bos>assistant\n", add_special_tokens=False)["input_ids"]
    assert form.begin(prompt, 0).pending == tuple(bare("<seed:think></seed:think>")["input_ids"])
    assert form.begin(prompt, 9) == State("start")
