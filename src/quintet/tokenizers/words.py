"""Words as GPT-1 was trained on them: text repaired by ftfy, evened out, and cut by spaCy's English rules.

Source: the published code of Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import Any

from quintet.errors import TokenizerError

__all__ = ["SEPARATOR", "check_installed", "prepare", "standardize"]

SEPARATOR = " "  # between prepared words, none of which holds one
_PLAIN = str.maketrans({"\u2014": "-", "\u2013": "-", "\u2015": "-", "\u2026": "...", "\u00b4": "'"})
# One run of the same kind of mark is one word: "--", "?!" is two.
_MARKS = re.compile("(" + "|".join(re.escape(mark) + "+" for mark in '-~!";?+,)(\\/*[]}{|_') + ")")
_LINE_END = re.compile(r"\s*\n\s*")
_SPACES = re.compile(r"[^\S\n]+")


def standardize(text: str) -> str:
    """Even out a text: plain dashes and quotes, spaces around marks and line ends, never two spaces in a row."""
    text = _MARKS.sub(r" \1 ", text.translate(_PLAIN))
    return _SPACES.sub(" ", _LINE_END.sub(" \n ", text)).strip()


def check_installed() -> None:
    """Raise TokenizerError when spaCy or ftfy is missing."""
    _tools()


def prepare(text: str, kept: Iterable[str]) -> str:
    """Return the lower-case words of a text with `SEPARATOR` between them; `kept` tokens stay as they are."""
    tokens = sorted(kept, key=len, reverse=True)
    if not tokens:
        return SEPARATOR.join(_words(text))
    parts = re.split("(" + "|".join(map(re.escape, tokens)) + ")", text)
    # Texts and tokens take turns.
    return "".join(part if number % 2 else SEPARATOR.join(_words(part)) for number, part in enumerate(parts))


def _words(text: str) -> list[str]:
    fix, cut = _tools()
    # Of a token of white space, only the line end is in the vocabulary.
    words = (token.text.lower().replace(SEPARATOR, "") for token in cut(standardize(fix(text))))
    return [word for word in words if word]


@cache
def _tools() -> tuple[Callable[[str], str], Callable[[str], Any]]:
    try:
        fix_text = import_module("ftfy").fix_text
        english = import_module("spacy.lang.en").English
    except ImportError as cause:
        raise TokenizerError(
            f"pretokenizer='spacy' needs the packages spacy and ftfy ({cause}). Install them with "
            'pip install "quintet[spacy]", or use pretokenizer="basic".'
        ) from cause
    return fix_text, english().tokenizer
