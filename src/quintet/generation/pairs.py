"""From texts to what is scored: the tokens of a context and those of what follows it. No torch here."""

from __future__ import annotations

from typing import Any

from quintet.errors import InputError

__all__ = ["encode_pair", "prefix_token"]


def prefix_token(tokenizer: Any) -> int | None:
    """Return the token that a text begins after: the tokenizer's bos, else its eos, else None."""
    token = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return None if token is None else int(token)


def encode_pair(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the token ids of a context and of its continuation, as lm-eval's models for text in one direction do.

    Blanks at the end of the context go to the continuation, whose first token usually holds them. The two are encoded
    together, and the continuation is what comes after as many tokens as the context alone has. An empty context
    becomes the token that begins a text, unless the continuation begins with it.

    Raises:
        InputError: there is nothing to predict, or nothing to predict it from.
    """
    kept = context.rstrip()
    if kept:
        whole = _ids(tokenizer, context + continuation)
        head = _ids(tokenizer, kept)
        pair = head, whole[len(head) :]
    else:
        target = _ids(tokenizer, context + continuation, add_special_tokens=False)
        prefix = prefix_token(tokenizer)
        if prefix is None or target[:1] == [prefix]:
            pair = target[:1], target[1:]
        else:
            pair = [prefix], target
    if not pair[0] or not pair[1]:
        raise InputError(
            f"{continuation!r} after {context[-40:]!r} has no token of its own to predict. Give a context and at least "
            "a word that follows it."
        )
    return pair


def _ids(tokenizer: Any, text: str, **options: Any) -> list[int]:
    return list(tokenizer(text, return_attention_mask=False, verbose=False, **options)["input_ids"])
