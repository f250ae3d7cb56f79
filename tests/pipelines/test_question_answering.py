"""Question answering: the answers of the last release of the reference that has the task, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import quintet
from quintet.errors import ConfigError, InputError
from quintet.pipelines import QuestionAnsweringPipeline

from .golden_question_answering import CASES, CONTEXT, FILE, LONG, MODELS, QUESTION, SENTENCES, model_of

GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def answers() -> Callable[..., Any]:
    """Makes a pipeline whose tokenizer pads on a side."""
    models = {name: model_of(quintet, name) for name in MODELS}

    def make(side: str = "right", name: str = "GPT2") -> QuestionAnsweringPipeline:
        tokenizer = quintet.AutoTokenizer.from_pretrained("storyteller", padding_side=side)
        return QuestionAnsweringPipeline(model=models[name], tokenizer=tokenizer, device="cpu")

    return make


@pytest.mark.parametrize("number", range(len(CASES)))
@pytest.mark.parametrize("name", MODELS)
def test_answers_of_the_reference(answers: Any, alike: Any, name: str, number: int) -> None:
    context, options = CASES[number]
    alike(answers(name=name)(question=QUESTION, context=context, **options), GOLDEN[name][number])


def test_a_tokenizer_that_pads_on_the_left_puts_the_question_last(answers: Any) -> None:
    pipe = answers("left")
    for context in (CONTEXT, LONG):
        for one in pipe(question=QUESTION, context=context, top_k=20, max_seq_len=64):
            assert one["answer"] == context[one["start"] : one["end"]]
            assert one["answer"]
    (piece,) = pipe.preprocess({"question": QUESTION, "context": SENTENCES[0]})
    assert pipe.tokenizer.decode(piece.ids) == SENTENCES[0] + QUESTION
    usable = [index for index, there in enumerate(piece.notes["usable"]) if there]
    assert usable == [*range(len(pipe.tokenizer(SENTENCES[0])["input_ids"]))]


def test_the_golden_answers_are_worth_comparing() -> None:
    assert GOLDEN["made_with"] == "transformers 4.56.2"
    for name in MODELS:
        flat = [one for case in GOLDEN[name] for one in (case if isinstance(case, list) else [case])]
        assert len({one["answer"] for one in flat}) > 20
        assert max(one["score"] for one in flat) > 0.01
        assert max(one["start"] for one in flat) > len(CONTEXT), "no answer from a later piece of a long context"


def test_every_way_to_ask(answers: Any, alike: Any) -> None:
    pipe = answers()
    one = pipe(question=QUESTION, context=CONTEXT)
    assert [*one] == ["score", "start", "end", "answer"]
    assert one["answer"] == CONTEXT[one["start"] : one["end"]]
    example = {"question": QUESTION, "context": CONTEXT}
    for asked in (example, [example], pipe.create_sample(QUESTION, CONTEXT)):
        alike(pipe(asked), one)
    alike(pipe(QUESTION, CONTEXT), one)
    other = pipe(question="What?", context=CONTEXT)
    alike(pipe(question=[QUESTION, "What?"], context=CONTEXT), [one, other])
    alike(pipe(question=[QUESTION, "What?"], context=[CONTEXT, CONTEXT]), [one, other])
    alike(pipe([example, example]), [one, one])
    alike(list(pipe(item for item in [example, example])), [one, one])


def test_batches_share_pieces_of_long_contexts(answers: Any, alike: Any) -> None:
    pipe = answers()
    items = [{"question": QUESTION, "context": context} for context in (LONG, SENTENCES[0], CONTEXT, LONG[:900])]
    options: dict[str, Any] = {"max_seq_len": 48, "doc_stride": 12, "top_k": 3}
    alone = [pipe(item, **options) for item in items]
    for size in (2, 3, 64):
        alike(pipe(items, batch_size=size, **options), alone)


def test_a_long_question_is_cut_when_asked(answers: Any, alike: Any) -> None:
    pipe = answers()
    with pytest.raises(InputError, match="the question leaves no room for the context: 32 tokens"):
        pipe(question=QUESTION * 20, context=CONTEXT, max_seq_len=32)
    got = pipe(question=QUESTION * 20, context=CONTEXT, max_seq_len=32, max_question_len=5, doc_stride=4)
    tokens = pipe.tokenizer(QUESTION)["input_ids"]
    assert len(tokens) > 5
    alike(got, pipe(question=pipe.tokenizer.decode(tokens[:5]), context=CONTEXT, max_seq_len=32, doc_stride=4))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ({}, InputError, "there is no question"),
        ({"question": QUESTION, "context": None}, InputError, "the context is None"),
        ({"question": b"who", "context": CONTEXT}, InputError, "the question is bytes"),
        ({"question": QUESTION, "context": ""}, InputError, "context is empty"),
        ({"question": [QUESTION, QUESTION], "context": [CONTEXT]}, InputError, "2 questions and 1 contexts"),
        ({"question": [], "context": CONTEXT}, InputError, "empty list"),
        ({"question": QUESTION, "context": CONTEXT, "top_k": 0}, ConfigError, "top_k is 0, but must be"),
        ({"question": QUESTION, "context": CONTEXT, "doc_strid": 4}, ConfigError, "Did you mean 'doc_stride'"),
        (
            {"question": QUESTION, "context": CONTEXT, "doc_stride": 90, "max_seq_len": 40},
            ConfigError,
            "doc_stride is 90, but must not be larger",
        ),
    ],
    ids=str,
)
def test_what_is_refused(answers: Any, call: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        answers()(**call)


def test_a_bad_example_is_named(answers: Any) -> None:
    with pytest.raises(InputError, match=r"item 1 \(counted from 0\): an item has the keys \['question'\]"):
        answers()([{"question": QUESTION, "context": CONTEXT}, {"question": QUESTION}])
    with pytest.raises(InputError, match="has no context"):
        answers()(QUESTION)
