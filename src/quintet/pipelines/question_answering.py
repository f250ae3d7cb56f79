"""Question answering: the part of a context that answers a question.

Letters: B rows, T tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from quintet.errors import ConfigError, InputError, TokenizerError
from quintet.pipelines.base import Parameters, Pipeline, unknown_option
from quintet.pipelines.batches import Piece
from quintet.pipelines.inputs import checked_text
from quintet.pipelines.spans import best_spans, merge_answers, no_answer_score, probabilities

__all__ = ["Example", "QuestionAnsweringPipeline"]

MAX_TOKENS, MAX_STRIDE = 384, 128

BEFORE = ("padding", "doc_stride", "max_question_len", "max_seq_len")
AFTER = ("top_k", "max_answer_len", "handle_impossible_answer", "align_to_words")


class Example(NamedTuple):
    """A question and the text that may answer it."""

    question: str
    context: str


class QuestionAnsweringPipeline(Pipeline):
    """Finds answers to questions in contexts with a question answering model.

    Options, of the pipeline or of a call:
        top_k: How many answers to give, best first; fewer where the context has fewer.
        doc_stride: Tokens that neighbouring pieces of a long context share; half a piece by default, at most 128.
        max_seq_len: Tokens of question and piece together; 384 by default, or what the model holds.
        max_question_len: Cut the question to so many tokens; None reads all of it.
        max_answer_len: Tokens of an answer at most; 15 by default.
        handle_impossible_answer: Also give the answer "" with the score that the model has for none.
        align_to_words: Make answers begin and end with words (the default).
        padding: Of the tokenizer.

    A call with `question` and `context`, or with a dict of both, gives `{"score", "start", "end", "answer"}` with the
    characters in the context, or a list of them with `top_k`. A list of questions gives a list.
    """

    default_task: ClassVar[str] = "question-answering"

    @staticmethod
    def create_sample(question: Any, context: Any) -> Any:
        """Make an example, or a list of them from lists."""
        if isinstance(question, (list, tuple)):
            return [Example(one, other) for one, other in zip(question, context, strict=True)]
        return Example(question, context)

    def _sanitize_parameters(self, topk: int | None = None, **options: Any) -> Parameters:
        if topk is not None:
            warnings.warn("topk is an old name; use top_k.", UserWarning, stacklevel=4)
            options.setdefault("top_k", topk)
        given = {name: value for name, value in options.items() if value is not None}
        for name in options:
            if name not in (*BEFORE, *AFTER):
                raise unknown_option(self, name, (*BEFORE, *AFTER))
        for name in ("top_k", "max_answer_len", "max_seq_len", "max_question_len"):
            value = given.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}, but must be an integer of at least 1.")
        return Parameters(
            {name: given[name] for name in BEFORE if name in given},
            {},
            {name: given[name] for name in AFTER if name in given},
        )

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Answer `question` from `context`, a dict or Example of both, a list, a data set or a generator of them."""
        source = _read_inputs(inputs, options)
        if isinstance(source, list) and len(source) == 1:
            source = source[0]  # as the reference: a list of one gives one result
        return super().__call__(source, **options)

    def _is_item(self, inputs: Any) -> bool:
        return isinstance(inputs, Example)

    def preprocess(  # type: ignore[override]
        self,
        item: Any,
        padding: Any = False,
        doc_stride: int | None = None,
        max_question_len: int | None = None,
        max_seq_len: int | None = None,
    ) -> list[Piece]:
        """Encode a question with each piece of its context."""
        question, context = _example(item)
        if max_question_len is not None:
            question = self._shortened(question, max_question_len)
        length = max_seq_len or min(self.max_tokens or MAX_TOKENS, MAX_TOKENS)
        stride = min(length // 2, MAX_STRIDE) if doc_stride is None else doc_stride
        if stride > length:
            raise ConfigError(f"doc_stride is {stride}, but must not be larger than max_seq_len ({length}).")
        first = self.tokenizer.padding_side == "right"  # the side that stays where it is holds the question
        try:
            encoded = self.encode(
                *((question, context) if first else (context, question)),
                padding=False if padding == "do_not_pad" else padding,
                truncation="only_second" if first else "only_first",
                max_length=length,
                stride=stride,
                return_overflowing_tokens=True,
            )
        except TokenizerError as error:
            if "Truncation" not in str(error) and "room" not in str(error):
                raise
            raise InputError(
                f"the question leaves no room for the context: {length} tokens fit at once, with {stride} of them "
                "shared (doc_stride). Shorten the question, pass max_question_len, a smaller doc_stride or a larger "
                "max_seq_len."
            ) from error
        pieces = []
        for row, encoding in enumerate(encoded.encodings):
            usable = [number == int(first) for number in encoding.sequence_ids]
            for index, token in enumerate(encoding.ids):
                # Some models put their score for no answer on this token.
                usable[index] |= self.tokenizer.cls_token_id is not None and token == self.tokenizer.cls_token_id
            real = [ok and bool(mask) for ok, mask in zip(usable, encoding.attention_mask, strict=True)]
            notes = {"context": context, "encoding": encoding, "usable": real, "sequence": int(first)}
            pieces.append(Piece(self.columns(encoded, row), notes))
        return pieces

    def _shortened(self, question: str, tokens: int) -> str:
        """The characters of a question's first tokens."""
        spans = self.encode(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return question if len(spans) <= tokens else question[: spans[tokens - 1][1]]

    def _advice_too_long(self) -> str:
        return "Pass a smaller max_seq_len: a longer context is then read in pieces."

    def _forward(self, pieces: Sequence[Piece], **parameters: Any) -> list[Any]:
        made = self.run_model(pieces)
        starts, ends = made.start_logits.float().cpu(), made.end_logits.float().cpu()  # each (B, T)
        return [
            (starts[row, : len(piece.ids)].numpy(), ends[row, : len(piece.ids)].numpy())
            for row, piece in enumerate(pieces)
        ]

    def postprocess(  # type: ignore[override]
        self,
        pieces: Sequence[Piece],
        outputs: Sequence[Any],
        top_k: int = 1,
        max_answer_len: int = 15,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> Any:
        """Turn scores of tokens into answers."""
        found: list[dict[str, Any]] = []
        nothing: list[float] = []
        # Of spans that begin or end inside a word, several may become one answer.
        count = top_k * 2 + 10 if align_to_words else top_k
        for piece, (starts, ends) in zip(pieces, outputs, strict=True):
            start, end = (probabilities(one, piece.notes["usable"]) for one in (starts, ends))
            nothing.append(no_answer_score(start, end))
            for first, last, score in best_spans(start, end, piece.notes["usable"], count, max_answer_len):
                begin, stop = _characters(piece, first, last, align_to_words)
                text = piece.notes["context"][begin:stop]
                merge_answers(found, {"score": score, "start": begin, "end": stop, "answer": text})
        if handle_impossible_answer:
            found.append({"score": min(nothing), "start": 0, "end": 0, "answer": ""})
        found.sort(key=lambda answer: answer["score"], reverse=True)
        best = found[:top_k]
        return best[0] if len(best) == 1 else best


def _characters(piece: Piece, first: int, last: int, align: bool) -> tuple[int, int]:
    """The characters of a span of tokens, or of the words that it lies in."""
    encoding, sequence = piece.notes["encoding"], piece.notes["sequence"]
    if align:
        words = encoding.token_to_word(first), encoding.token_to_word(last)
        if None not in words:
            spans = [encoding.word_to_chars(word, sequence) for word in words]
            if None not in spans:
                return spans[0][0], spans[1][1]
    return encoding.offsets[first][0], encoding.offsets[last][1]


def _read_inputs(inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Find the examples among the arguments of a call.

    Raises:
        InputError: there are none, or questions and contexts do not go together.
    """
    if inputs:
        if len(inputs) == 2 and all(isinstance(one, str) for one in inputs):
            return [Example(*inputs)]
        source = inputs[0] if len(inputs) == 1 else list(inputs)
    elif "X" in options or "data" in options:
        source = options.pop("X", None) or options.pop("data", None)
    elif "question" in options and "context" in options:
        source = _paired(options.pop("question"), options.pop("context"))
    else:
        raise InputError("there is no question. Pass question=... and context=..., or a dict with both.")
    if isinstance(source, str):
        raise InputError(f"the question {source!r:.60} has no context. Pass question=... and context=....")
    return [*source] if isinstance(source, tuple) and not isinstance(source, Example) else source


def _paired(question: Any, context: Any) -> list[Example]:
    if isinstance(question, (list, tuple)):
        contexts = [context] * len(question) if isinstance(context, str) else context
        if not isinstance(contexts, (list, tuple)) or len(contexts) != len(question):
            many = len(contexts) if isinstance(contexts, (list, tuple)) else 0
            raise InputError(f"there are {len(question)} questions and {many} contexts. Give one context, or as many.")
        return [Example(one, other) for one, other in zip(question, contexts, strict=True)]
    return [Example(checked_text(question, "the question"), checked_text(context, "the context"))]


def _example(item: Any) -> Example:
    """Return an item as an example.

    Raises:
        InputError: a part is missing, empty or no text.
    """
    if isinstance(item, Mapping):
        missing = [name for name in Example._fields if name not in item]
        if missing:
            raise InputError(f"an item has the keys {[*item]}, but must have 'question' and 'context'.")
        item = Example(item["question"], item["context"])
    if not isinstance(item, Example):
        raise InputError(f"an item is {item!r:.80}, but must be a dict with 'question' and 'context'.")
    for name, value in zip(Example._fields, item, strict=True):
        if not checked_text(value, name):
            raise InputError(f"{name} is empty. Give a text.")
    return item
