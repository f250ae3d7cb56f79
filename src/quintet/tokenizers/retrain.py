"""Training a new vocabulary for an existing tokenizer's pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers, trainers

from quintet.errors import TokenizerError
from quintet.tokenizers.engine import prefix_space

__all__ = ["retrain"]


def retrain(
    engine: Tokenizer,
    texts: Iterable[str] | Iterable[list[str]],
    vocab_size: int,
    length: int | None,
    new_special_tokens: Sequence[str | AddedToken],
    renamed: Mapping[str, str],
    **options: Any,
) -> Tokenizer:
    """Return an engine with the pipeline of `engine` and a BPE vocabulary learnt from `texts`.

    Special tokens come first in the new vocabulary, in their present order, `new_special_tokens` last.

    Raises:
        TokenizerError: The engine is no BPE, `vocab_size` is too small, or there is no text.
    """
    state = json.loads(engine.to_str())
    if state["model"].get("type", "BPE") != "BPE":
        raise TokenizerError(f"Only BPE tokenizers can be trained anew, and this one is a {state['model']['type']}.")
    added = [token for _, token in sorted(engine.get_added_tokens_decoder().items()) if token.special]
    special = [_renamed(token, renamed) for token in added] + [
        token if isinstance(token, AddedToken) else AddedToken(token, special=True) for token in new_special_tokens
    ]
    byte_level = prefix_space(engine) is not None
    least = len(special) + (256 if byte_level else 1)
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size < least:
        raise TokenizerError(
            f"vocab_size is {vocab_size!r}, but must be an integer of at least {least}: {len(special)} special tokens"
            f"{' and 256 bytes' if byte_level else ''}."
        )
    state_unknown = state["model"].get("unk_token")
    state["model"].update(vocab={}, merges=[], unk_token=None)
    state.update(added_tokens=[], post_processor=None, padding=None, truncation=None)
    new = Tokenizer.from_str(json.dumps(state))
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if state["model"].get(name):
            options.setdefault(name, state["model"][name])
    options.setdefault("show_progress", False)
    if byte_level:
        options.setdefault("initial_alphabet", pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, **options)
    counted = _Counted(texts)
    new.train_from_iterator(counted, trainer=trainer, length=length)
    if counted.characters == 0:
        raise TokenizerError("There is no text to train a tokenizer on: every text is empty. Give some text.")
    unknown = state_unknown if state_unknown is None else renamed.get(state_unknown, state_unknown)
    if unknown is not None and new.token_to_id(unknown) is not None:
        new.model.unk_token = unknown
    if engine.post_processor is not None:
        new.post_processor = _adapted_post_processor(engine, new, renamed)
    return new


class _Counted:
    """Passes texts on, checked, and counts their characters."""

    def __init__(self, texts: Iterable[str] | Iterable[list[str]]) -> None:
        self.texts = texts
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for item in self.texts:
            for text in [item] if isinstance(item, str) else item:
                if not isinstance(text, str):
                    raise TokenizerError(f"Training texts must be strings, not {type(text).__name__}.")
                self.characters += len(text)
                yield text


def _renamed(token: AddedToken, names: Mapping[str, str]) -> AddedToken:
    return AddedToken(
        names.get(str(token), str(token)),
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=True,
    )


def _adapted_post_processor(old: Tokenizer, new: Tokenizer, names: Mapping[str, str]) -> Any:
    """The old post-processor with the new names and ids of the special tokens that it inserts."""
    state = json.loads(old.to_str())["post_processor"]
    for step in state["processors"] if state["type"] == "Sequence" else [state]:
        for entry in (step.get("special_tokens") or {}).values():
            entry["tokens"] = [names.get(token, token) for token in entry["tokens"]]
            entry["ids"] = [new.token_to_id(token) for token in entry["tokens"]]
        for key in ("cls", "sep"):
            if key in step:
                token = names.get(step[key][0], step[key][0])
                step[key] = [token, new.token_to_id(token)]
    whole = json.loads(new.to_str())
    whole["post_processor"] = state
    return Tokenizer.from_str(json.dumps(whole)).post_processor
