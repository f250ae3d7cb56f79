"""From a form to a matcher: llguidance is asked here, and nowhere else."""

from __future__ import annotations

import json
import threading
from functools import lru_cache
from typing import Any
from weakref import ref

import numpy as np

from quintet.errors import GenerationError
from quintet.generation.structured.formats import Form, StructuredLimits, read_format
from quintet.generation.structured.vocabulary import Vocabulary, vocabulary_of

__all__ = ["CompiledForm", "compile_form"]

# Between the parts of JSON: nothing, a space, or a new line with its indentation. Without a bound, a model could write
# spaces for ever.
WHITESPACE = r"(\n {0,40})| "
# How llguidance says that no token can follow.
NO_TOKEN = "NoExtension"


class CompiledForm:
    """A form, ready for any number of rows and calls of one tokenizer.

    Args:
        form: What it was made of.
        vocabulary: The tokens.
        matcher: llguidance's, at the beginning; rows get copies of it.
    """

    def __init__(self, form: Form, vocabulary: Vocabulary, matcher: Any) -> None:
        self.form, self.vocabulary, self._matcher = form, vocabulary, matcher

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledForm:
        return self  # nothing in it changes

    def matcher(self) -> Any:
        """Return a matcher at the beginning of an answer."""
        return self._matcher.deep_copy()


def allowed_tokens(matcher: Any, vocabulary: Vocabulary) -> Any:
    """Return which tokens a matcher allows next, (V,) bool; the GIL is free while it is computed."""
    packed = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    return np.unpackbits(packed, count=vocabulary.size, bitorder="little").view(np.bool_)


def compile_form(given: Any, tokenizer: Any, limits: StructuredLimits | None = None) -> CompiledForm | None:
    """Compile a `response_format`.

    The result can be given to `generate` in place of the dict, which saves the time of compiling, and is how other
    limits than the usual ones are set.

    Args:
        given: A dict; see `read_format`.
        tokenizer: The tokenizer of the model.
        limits: How large the form may be.

    Returns:
        The form; None for text as it comes.

    Raises:
        GenerationError: llguidance is not installed; the form is wrong, too large, or uses what cannot be held to.
    """
    limits = limits or StructuredLimits()
    form = read_format(given, limits)
    if form is None:
        return None
    engine = _engine()
    vocabulary = vocabulary_of(tokenizer)
    words = _words(engine, vocabulary)
    found: list[Any] = []

    def work() -> None:
        try:
            matcher = engine.LLMatcher(words, _grammar(engine, form), log_level=0, limits=_limits(engine, limits))
            found.append((matcher, None if matcher.is_error() else allowed_tokens(matcher, vocabulary)))
        except Exception as error:  # raised again below, in the thread that asked
            found.append((error, None))

    thread = threading.Thread(target=work, daemon=True, name="quintet-compile-form")
    thread.start()
    thread.join(limits.max_seconds)
    if not found:
        raise GenerationError(
            f"compiling response_format took more than {limits.max_seconds} seconds. Give a simpler form."
        )
    matcher, first = found[0]
    _check(form, matcher, first)
    return CompiledForm(form, vocabulary, matcher)


def _check(form: Form, matcher: Any, first: Any) -> None:
    what = {"json_schema": "the schema", "regex": "the regular expression", "choice": "the choice"}.get(
        form.kind, "the grammar"
    )
    if isinstance(matcher, Exception):
        raise GenerationError(f"{what} of response_format cannot be read: {matcher}") from matcher
    error = str(matcher.get_error()).replace("<non-verbose/>", "")
    empty = error.startswith(NO_TOKEN) or (not error and not first.any() and not matcher.is_accepting())
    if error and not empty:
        raise GenerationError(
            f"{what} of response_format cannot be held to: {error.strip()[:1000]}. Leave that part out, or say it "
            "another way."
        )
    if empty:
        raise GenerationError(
            f"{what} of response_format allows no answer at all that this tokenizer can write. Check it for parts that "
            "contradict each other, or that refer to themselves without an end."
        )


def _grammar(engine: Any, form: Form) -> str:
    if form.kind == "json_schema":
        overrides = {"whitespace_pattern": WHITESPACE}
        return str(engine.LLMatcher.grammar_from_json_schema(form.text, overrides=overrides))
    if form.kind == "regex":
        # \d stands for the ten digits, as everybody expects, and not for those of every script.
        return str(engine.LLMatcher.grammar_from_lark(f"start: /{engine.regex_to_lark(form.text, 'd')}/"))
    if form.kind == "choice":
        texts = " | ".join(json.dumps(one) for one in json.loads(form.text))
        return str(engine.LLMatcher.grammar_from_lark(f"start: {texts}"))
    return form.text if form.kind == "llguidance" else str(engine.LLMatcher.grammar_from_lark(form.text))


def _limits(engine: Any, limits: StructuredLimits) -> Any:
    return engine.LLParserLimits(
        max_grammar_size=limits.max_grammar,
        step_max_items=limits.max_items,
        max_lexer_states=limits.max_states,
        verbose_errors=False,  # which would put the whole grammar into the message
    )


def _words(engine: Any, vocabulary: Vocabulary) -> Any:
    """llguidance's own form of a vocabulary, made once; the token behind the last one ends the text."""
    if vocabulary.compiled is None:
        known = ref(vocabulary)  # the engine keeps what it is given where Python cannot find it to free it

        class Source:
            """What llguidance reads."""

            tokens = [*vocabulary.tokens, b"\xff<end>"]
            special_token_ids = [*vocabulary.special_token_ids, vocabulary.size]
            bos_token_id = None
            eos_token_id = vocabulary.size

            def __call__(self, text: str | bytes) -> list[int]:
                found = known()
                return [] if found is None else found(text)

        wrapper = engine.TokenizerWrapper(Source())
        vocabulary.compiled = engine.LLTokenizer(wrapper, n_vocab=vocabulary.size + 1)
    return vocabulary.compiled


@lru_cache(maxsize=1)
def _engine() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise GenerationError(
            'response_format needs the package llguidance. Install it with: pip install "quintet[structured]"'
        ) from error
    return llguidance
