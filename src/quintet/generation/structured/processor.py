"""Holding every row to a form: only tokens that the form allows keep their scores.

The form is in force where the answer is: from the first token, behind the thoughts of Seed-OSS, in the final channel of
gpt-oss. The masks of the next step are made by a thread of their own while the model runs, since they depend on the
chosen tokens alone.

Letters: B rows, V tokens of the vocabulary, S tokens so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from quintet.errors import GenerationError
from quintet.generation.given import Prompt
from quintet.generation.rows import RowFollower
from quintet.generation.structured.compile import NO_TOKEN, CompiledForm, allowed_tokens, compile_form
from quintet.generation.structured.formats import read_format
from quintet.generation.structured.vocabulary import vocabulary_of
from quintet.generation.thinking import prompt_tokens
from quintet.generation.thinking_formats import Rules, State, ThinkingFormat, thinking_format

__all__ = ["FormLogitsProcessor", "FormRow", "form_processor"]

# What a row is doing: the form is to come or in force; the answer is complete; the row has left the form, as rows do
# that are finished for another reason and are filled up with padding.
ON, DONE, OFF = "on", "done", "off"

Masks = list[Any]
"""By row which tokens may come next, (V,) bool each; None for all of them."""


class FormRow:
    """One row's place in the form, with the way back.

    Args:
        compiled: The form.
        thinking: The format of the model's thoughts, or None.
        prompt: Tokens of the prompt, without padding.
        eos: Tokens that end an answer.
    """

    def __init__(
        self, compiled: CompiledForm, thinking: ThinkingFormat | None, prompt: Sequence[int], eos: Sequence[int]
    ) -> None:
        self._compiled, self._thinking = compiled, thinking
        self._eos = frozenset(eos)
        size = compiled.vocabulary.size
        marks = () if thinking is None else thinking.marks.values()
        self._never = [one for one in {*eos, *marks} if one < size]  # but where the rules say so
        self._ends = [one for one in eos if one < size and one not in (() if thinking is None else thinking.calls)]
        self._matcher = compiled.matcher()
        self._states: list[State | None] = [None if thinking is None else thinking.begin(prompt)]
        self._doing = [ON]
        self._fed = [False]  # whether the matcher took the token
        self._tokens: list[int] = []

    @property
    def rules(self) -> Rules:
        """What may come next."""
        state = self._states[-1]
        return Rules(form=True) if self._thinking is None or state is None else self._thinking.rules(state)

    def advance(self, token: int) -> None:
        """See FollowedRow."""
        doing, fed = self._doing[-1], False
        if doing == ON:
            rules = self.rules
            if not rules.form:
                doing = OFF if token in self._eos and token not in rules.ids else ON
            elif token in self._eos:
                doing = DONE if self._matcher.is_accepting() else OFF
            elif token < self._compiled.vocabulary.size and self._matcher.validate_tokens([token]):
                fed = bool(self._matcher.consume_token(token))
            elif token not in rules.ids:
                doing = OFF
        self._doing.append(doing)
        self._fed.append(fed)
        self._tokens.append(token)
        state = self._states[-1]
        self._states.append(None if self._thinking is None or state is None else self._thinking.step(state, token))

    def back(self, count: int) -> None:
        """See FollowedRow."""
        keep = len(self._states) - count
        if count:
            if any(self._fed[keep:]):
                self._matcher.rollback(sum(self._fed[keep:]))
            del self._states[keep:], self._doing[keep:], self._fed[keep:], self._tokens[keep - 1 :]

    def copy(self) -> FormRow:
        """See FollowedRow."""
        new = object.__new__(FormRow)
        new.__dict__.update(self.__dict__)
        new._matcher = self._matcher.deep_copy()
        for name in ("_states", "_doing", "_fed", "_tokens"):
            setattr(new, name, list(getattr(self, name)))
        return new

    def allowed(self) -> Any:
        """Return which tokens may come next, (V,) bool; None for all of them.

        Raises:
            GenerationError: the form has become more than the engine can follow.
        """
        if self._doing[-1] != ON:
            return None
        rules, vocabulary = self.rules, self._compiled.vocabulary
        if rules.form:
            mask = allowed_tokens(self._matcher, vocabulary)
            error = str(self._matcher.get_error()).replace("<non-verbose/>", "").strip()
            if error and not error.startswith(NO_TOKEN):
                raise GenerationError(
                    f"the form of response_format cannot be followed any further: {error[:500]}. "
                    f"The answer so far is {self.answer()!r}. Give a simpler form."
                )
            mask[self._never] = False
            mask[self._ends] = self._matcher.is_accepting()
        else:
            mask = vocabulary.text.copy() if rules.text else np.zeros(vocabulary.size, dtype=np.bool_)
            mask[self._never] = False
        mask[list(rules.ids)] = True
        return mask

    def answer(self) -> str:
        """Return what the form has taken so far, for messages."""
        taken = [token for token, fed in zip(self._tokens, self._fed[1:], strict=True) if fed]
        text = self._compiled.vocabulary.spell(taken).decode("utf-8", "replace")
        return text if len(text) <= 200 else f"...{text[-200:]}"


class FormLogitsProcessor(RowFollower[FormRow]):
    """Rules out every token that an answer in the form cannot go on with.

    Args:
        rows: One for each row of the result.
        start: Tokens of the prompt in `input_ids`.
        copies: How many rows belong to one prompt.
    """

    def __init__(self, rows: Sequence[FormRow], start: int, copies: int = 1) -> None:
        super().__init__(rows, start, copies)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="quintet-form")
        self._masks: Masks | None = None  # of the next step, where they are known
        self._coming: Future[Masks] | None = None  # the same, still being made
        self._advance([])  # the first ones, while the prompt is read

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor.

        Raises:
            GenerationError: no token is left; the message says why.
        """
        self._settle()
        rows = self.follow(input_ids)
        self._settle()
        if self._masks is None:
            self._masks = [row.allowed() for row in rows]
        forbidden = np.ones(tuple(scores.shape), dtype=np.bool_)
        for row, mask in enumerate(self._masks):
            size = scores.shape[1] if mask is None else min(len(mask), scores.shape[1])
            forbidden[row, :size] = False if mask is None else ~mask[:size]
        held = scores.masked_fill(torch.from_numpy(forbidden).to(scores.device), -math.inf)
        for row, best in enumerate(held.amax(dim=-1).tolist()):
            if best == -math.inf and self._masks[row] is not None:
                raise GenerationError(_dead_end(row, rows[row], forbidden[row]))
        return held

    def chosen(self, tokens: list[int]) -> None:
        """See LogitsProcessor: the masks of the next step are begun."""
        self._settle()
        super().chosen(tokens)

    def select(self, rows: torch.Tensor) -> None:
        """See LogitsProcessor."""
        self._settle()
        super().select(rows)
        if self._masks is not None:
            self._masks = [self._masks[row] for row in rows.tolist()]

    def _advance(self, tokens: list[int]) -> None:
        rows = list(self._rows)

        def work() -> Masks:
            for row, token in zip(rows, tokens, strict=False):  # at the beginning there are no tokens
                row.advance(token)
            return [row.allowed() for row in rows]

        self._masks, self._coming = None, self._worker.submit(work)

    def _align(self, before: list[list[int]], now: list[list[int]]) -> None:
        super()._align(before, now)
        self._masks = None

    def _settle(self) -> None:
        """Wait for the masks that are being made: the rows must not change meanwhile."""
        coming, self._coming = self._coming, None
        if coming is not None:
            self._masks = coming.result()


def _dead_end(row: int, held: FormRow, forbidden: Any) -> str:
    if forbidden.all():
        why = "the vocabulary has no token that the form allows there"
    else:
        why = (
            f"{int((~forbidden).sum())} tokens would go on with it, and the other processors rule out each of them "
            "(min_new_tokens, bad_words_ids, suppress_tokens and the like). Loosen one of those"
        )
    return f"response_format: the answer of row {row} cannot go on behind {held.answer()!r}: {why}."


def form_processor(
    given: Any, tokenizer: Any, prompt: Prompt, eos: Sequence[int], *, copies: int = 1
) -> FormLogitsProcessor | None:
    """Return the processor of a call; None for text as it comes.

    Args:
        given: A `response_format`, or what `compile_form` made of one.
        tokenizer: The tokenizer of the model.
        prompt: What is continued.
        eos: Tokens that end a text.
        copies: Rows that each prompt has while decoding.

    Raises:
        GenerationError: no tokenizer, no token that ends a text, or a form that cannot be held to.
    """
    if not isinstance(given, CompiledForm) and read_format(given) is None:
        return None
    if tokenizer is None:
        raise GenerationError(
            "response_format needs the tokenizer, to know which tokens spell an answer. Pass "
            "generate(..., tokenizer=tokenizer)."
        )
    if not eos:
        raise GenerationError(
            "response_format needs a token that ends the answer, and eos_token_id is None. Pass "
            "eos_token_id=tokenizer.eos_token_id."
        )
    compiled = given if isinstance(given, CompiledForm) else compile_form(given, tokenizer)
    if compiled is None or compiled.vocabulary is not vocabulary_of(tokenizer):
        raise GenerationError(
            "response_format was compiled for another tokenizer. Compile it again: "
            "compile_form(response_format, tokenizer)."
        )
    thinking = thinking_format(tokenizer)
    rows = [FormRow(compiled, thinking, tokens, eos) for tokens in prompt_tokens(prompt) for _ in range(copies)]
    return FormLogitsProcessor(rows, prompt.ids.shape[1], copies)
