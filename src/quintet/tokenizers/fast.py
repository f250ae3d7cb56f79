"""The two general tokenizer classes. Both sit on the `tokenizers` library; they differ in the arguments they know."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken, Tokenizer

from quintet.errors import TokenizerError
from quintet.tokenizers.base import PreTrainedTokenizerBase
from quintet.tokenizers.engine import load_tokenizer_json, prefix_space, set_prefix_space
from quintet.tokenizers.retrain import retrain
from quintet.tokenizers.stream import check_error_mode

__all__ = ["PreTrainedTokenizer", "PreTrainedTokenizerFast"]

FastT = TypeVar("FastT", bound="PreTrainedTokenizerFast")


class PreTrainedTokenizerFast(PreTrainedTokenizerBase):
    """A tokenizer from a `tokenizer.json`, or around a `tokenizers.Tokenizer`.

    Args:
        tokenizer_object: The engine; it is copied.
        tokenizer_file: Path of a `tokenizer.json`, when there is no `tokenizer_object`.
        **kwargs: As for `PreTrainedTokenizerBase`, and `add_prefix_space` for a byte-level engine.

    Raises:
        TokenizerError: Neither is given, or the file cannot be used.
    """

    def __init__(
        self, *, tokenizer_object: Tokenizer | None = None, tokenizer_file: str | None = None, **kwargs: Any
    ) -> None:
        if tokenizer_object is not None:
            engine = copy.deepcopy(tokenizer_object)
        elif tokenizer_file is not None:
            engine = load_tokenizer_json(Path(tokenizer_file))
        else:
            raise TokenizerError(
                f"{type(self).__name__} needs tokenizer_file (a tokenizer.json) or tokenizer_object. "
                "To load a folder, use from_pretrained."
            )
        self._finish(engine, kwargs)

    def _finish(self, engine: Tokenizer, kwargs: dict[str, Any]) -> None:
        """Set up everything around an engine that nobody else holds."""
        if kwargs.get("add_prefix_space") is None:
            kwargs.pop("add_prefix_space", None)
        else:
            set_prefix_space(engine, bool(kwargs["add_prefix_space"]))
        super().__init__(tokenizer_object=engine, **kwargs)

    @classmethod
    def _adapt_init(cls, folder: Path, init: dict[str, Any]) -> dict[str, Any]:
        # None leaves what tokenizer.json says, where a constructor's default of False would overrule it.
        return {"add_prefix_space": None, **init} if (folder / "tokenizer.json").exists() else init

    @property
    def add_prefix_space(self) -> bool:
        """Whether a text that does not begin with a space gets one; may be set."""
        return bool(prefix_space(self._tokenizer))

    @add_prefix_space.setter
    def add_prefix_space(self, value: bool) -> None:
        with self._guard.changing():
            set_prefix_space(self._tokenizer, bool(value))

    def train_new_from_iterator(
        self: FastT,
        text_iterator: Iterable[str] | Iterable[list[str]],
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: list[str | AddedToken] | None = None,
        special_tokens_map: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> FastT:
        """Train a tokenizer of the same kind, with the same pre-tokenisation and settings, on other texts.

        Args:
            text_iterator: Texts, or lists of texts.
            vocab_size: Tokens in all, special ones included.
            length: How many texts there are, for the progress bar.
            new_special_tokens: Special tokens to add to the present ones.
            special_tokens_map: New names for present special tokens: {"<|endoftext|>": "<|end|>"}.
            **kwargs: Passed to the trainer of the `tokenizers` library (`min_frequency`, `show_progress`, ...).

        Raises:
            TokenizerError: The vocabulary is too small, there is no text, or the tokenizer is no BPE.
        """
        renamed = special_tokens_map or {}
        texts = self._training_texts(text_iterator)
        engine = retrain(self._tokenizer, texts, vocab_size, length, list(new_special_tokens or []), renamed, **kwargs)
        new = copy.copy(self)
        settings = dict(self.init_kwargs)
        for name in self.SPECIAL_TOKENS_ATTRIBUTES:
            token = self._special_tokens_map.get(name)
            settings[name] = None if token is None else renamed.get(str(token), str(token))
        extra = [renamed.get(token, token) for token in self.extra_special_tokens] + list(new_special_tokens or [])
        settings.update(extra_special_tokens=extra, added_tokens_decoder=None)
        for name in ("padding_side", "truncation_side", "model_max_length", "clean_up_tokenization_spaces"):
            settings[name] = getattr(self, name)
        new._finish(engine, settings)
        return new

    def _training_texts(self, texts: Iterable[str] | Iterable[list[str]]) -> Iterable[str] | Iterable[list[str]]:
        """Change the texts of `train_new_from_iterator` as those of a call are changed."""
        return texts


class PreTrainedTokenizer(PreTrainedTokenizerFast):
    """The class of tokenizers with the arguments of the older, pure Python ones; the engine is the same.

    Args:
        errors: What to do about bytes that are not UTF-8 when decoding: "replace", "ignore", "strict".
        **kwargs: As for `PreTrainedTokenizerFast`.
    """

    def __init__(self, *, errors: str = "replace", **kwargs: Any) -> None:
        self.errors = check_error_mode(errors)
        if errors != "replace":
            kwargs["errors"] = errors
        super().__init__(**kwargs)
