"""Special tokens: their names, their ids, and adding tokens to a vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from tokenizers import AddedToken, Tokenizer

from quintet.errors import TokenizerError, suggest
from quintet.tokenizers.engine import EngineGuard

__all__ = ["SpecialTokens", "token_property"]

Token = str | AddedToken


def token_property(name: str) -> property:
    """A property for the special token `name`: reads as str or None, may be set to a str, an AddedToken or None."""

    def get(self: SpecialTokens) -> str | None:
        value = self._special_tokens_map.get(name)
        return None if value is None else str(value)

    def put(self: SpecialTokens, value: Token | None) -> None:
        self._set_special(name, value)

    return property(get, put, doc=f"The {name.replace('_', ' ')}, or None.")


def _id_property(name: str) -> property:
    def get(self: SpecialTokens) -> int | None:
        token = self._special_tokens_map.get(name)
        return None if token is None else self._tokenizer.token_to_id(str(token))

    def put(self: SpecialTokens, value: int | None) -> None:
        self._set_special(name, None if value is None else self._token_of_id(value))

    return property(get, put, doc=f"The id of `{name}`; None where it is not set or not in the vocabulary.")


class SpecialTokens:
    """The part of a tokenizer that knows its special and its added tokens."""

    SPECIAL_TOKENS_ATTRIBUTES: ClassVar[tuple[str, ...]] = (
        "bos_token",
        "eos_token",
        "unk_token",
        "sep_token",
        "pad_token",
        "cls_token",
        "mask_token",
    )

    _tokenizer: Tokenizer
    _guard: EngineGuard
    _special_tokens_map: dict[str, Token | None]
    _extra_special_tokens: list[Token]

    bos_token = token_property("bos_token")
    eos_token = token_property("eos_token")
    unk_token = token_property("unk_token")
    sep_token = token_property("sep_token")
    pad_token = token_property("pad_token")
    cls_token = token_property("cls_token")
    mask_token = token_property("mask_token")
    bos_token_id = _id_property("bos_token")
    eos_token_id = _id_property("eos_token")
    unk_token_id = _id_property("unk_token")
    sep_token_id = _id_property("sep_token")
    pad_token_id = _id_property("pad_token")
    cls_token_id = _id_property("cls_token")
    mask_token_id = _id_property("mask_token")

    # --- reading ------------------------------------------------------------------------------------------------------

    @property
    def extra_special_tokens(self) -> list[str]:
        """Special tokens that have no name of their own."""
        return [str(token) for token in self._extra_special_tokens]

    @extra_special_tokens.setter
    def extra_special_tokens(self, value: Sequence[Token] | None) -> None:
        self._extra_special_tokens = _token_list("extra_special_tokens", value or [])

    @property
    def extra_special_tokens_ids(self) -> list[int | None]:
        """Ids of `extra_special_tokens`."""
        return [self._tokenizer.token_to_id(token) for token in self.extra_special_tokens]

    # The name of the same thing in older releases of the published files.
    additional_special_tokens = extra_special_tokens
    additional_special_tokens_ids = extra_special_tokens_ids

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The named special tokens that are set: {"eos_token": "<|endoftext|>", ...}."""
        return {
            name: str(token)
            for name in self.SPECIAL_TOKENS_ATTRIBUTES
            if (token := self._special_tokens_map.get(name)) is not None
        }

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once, named ones first."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of `all_special_tokens`, without those that are not in the vocabulary."""
        ids = (self._tokenizer.token_to_id(token) for token in self.all_special_tokens)
        return [index for index in ids if index is not None]

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Added tokens by id, special ones among them."""
        return dict(sorted(self._tokenizer.get_added_tokens_decoder().items()))

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Ids of the added tokens."""
        return {str(token): index for index, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """Return the added tokens and their ids."""
        return self.added_tokens_encoder

    # --- changing -----------------------------------------------------------------------------------------------------

    def add_tokens(self, new_tokens: Token | Sequence[Token], special_tokens: bool = False) -> int:
        """Add tokens behind the vocabulary; those already in it keep their ids. Resize the model's embeddings after.

        Args:
            new_tokens: A string or AddedToken, or a list of them.
            special_tokens: Whether `skip_special_tokens` leaves them out and normalisation leaves them alone.

        Returns:
            How many were really new.

        Raises:
            TokenizerError: A token is empty or not a string.
        """
        tokens = [new_tokens] if isinstance(new_tokens, (str, AddedToken)) else new_tokens
        added = _token_list("new_tokens", tokens)
        if not added:
            return 0
        with self._guard.changing():
            add = self._tokenizer.add_special_tokens if special_tokens else self._tokenizer.add_tokens
            count = int(add(added))
            self._vocabulary_changed()
        return count

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, Token | Sequence[Token]],
        replace_extra_special_tokens: bool = True,
        replace_additional_special_tokens: bool | None = None,
    ) -> int:
        """Set special tokens by name, and add those that the vocabulary does not have.

        Args:
            special_tokens_dict: {"pad_token": "<|pad|>", "extra_special_tokens": ["<a>", "<b>"]}.
            replace_extra_special_tokens: Whether the given extra tokens replace the present ones or join them.
            replace_additional_special_tokens: Older name of the same option.

        Returns:
            How many tokens were added to the vocabulary; resize the model's embeddings when it is not 0.

        Raises:
            TokenizerError: An unknown name, or a value that is no token.
        """
        replace = replace_extra_special_tokens
        if replace_additional_special_tokens is not None:
            replace = replace_additional_special_tokens
        to_add: list[Token] = []
        named: dict[str, AddedToken] = {}
        for key, value in special_tokens_dict.items():
            if key in ("extra_special_tokens", "additional_special_tokens"):
                tokens = [_as_special(token) for token in _token_list(key, value)]
                known = [] if replace else self.extra_special_tokens
                kept = [] if replace else self._extra_special_tokens
                self._extra_special_tokens = [*kept, *(token for token in tokens if str(token) not in known)]
                to_add.extend(tokens)
            elif key in self.SPECIAL_TOKENS_ATTRIBUTES:
                (token,) = _token_list(key, [value])
                named[key] = _as_special(token)
                to_add.append(named[key])
            else:
                options = [*self.SPECIAL_TOKENS_ATTRIBUTES, "extra_special_tokens"]
                raise TokenizerError(f"{key!r} is not a special token; the names are {options}.{suggest(key, options)}")
        count = self.add_tokens(to_add, special_tokens=True)
        for key, token in named.items():
            self._set_special(key, token)
        return count

    def _set_special(self, name: str, value: Token | None) -> None:
        if value is not None:
            _token_list(name, [value])
        before = self._special_tokens_map.get(name)
        self._special_tokens_map[name] = value
        try:
            self._special_tokens_changed()
        except TokenizerError:
            self._special_tokens_map[name] = before
            raise

    def _token_of_id(self, index: int) -> str:
        token = None if isinstance(index, bool) or index < 0 else self._tokenizer.id_to_token(int(index))
        if token is None:
            size = self._tokenizer.get_vocab_size(with_added_tokens=True)
            raise TokenizerError(f"There is no token with the id {index}: the vocabulary has {size} tokens.")
        return str(token)

    def _add_missing_tokens(self, declared: Mapping[int, AddedToken]) -> None:
        """Add the tokens that the files or the constructor name and that the engine does not have yet.

        Args:
            declared: `added_tokens_decoder` of a tokenizer_config.json: the id that each added token must get.

        Raises:
            TokenizerError: A declared id is not the one that the token really gets.
        """
        present = {str(token) for token in self._tokenizer.get_added_tokens_decoder().values()}
        for index, token in sorted(declared.items()):
            if str(token) in present:
                continue
            self.add_tokens([token], special_tokens=token.special)
            present.add(str(token))
            got = self._tokenizer.token_to_id(str(token))
            if got != index:
                raise TokenizerError(
                    f"tokenizer_config.json gives the added token {str(token)!r} the id {index}, but with this "
                    f"vocabulary it gets {got}. The files do not belong together; get all of them from one place."
                )
        named: Iterable[Token | None] = [*self._special_tokens_map.values(), *self._extra_special_tokens]
        missing = {str(token): _as_special(token) for token in named if token is not None and str(token) not in present}
        self.add_tokens(list(missing.values()), special_tokens=True)

    def _special_tokens_changed(self) -> None:
        """Called when the first or last token of a sequence may have changed."""

    def _vocabulary_changed(self) -> None:
        """Called after tokens were added."""


def _as_special(token: Token) -> AddedToken:
    """A copy of `token` that counts as special; a plain string is not normalised, as the published ones are not."""
    if isinstance(token, str):
        return AddedToken(token, special=True, normalized=False)
    return AddedToken(
        str(token),
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=True,
    )


def _token_list(name: str, tokens: Any) -> list[Token]:
    """Return `tokens` as a list of non-empty strings and AddedTokens."""
    if isinstance(tokens, (str, bytes)) or not isinstance(tokens, Iterable):
        raise TokenizerError(f"{name} must be a list of strings or AddedTokens, not {tokens!r}.")
    result = list(tokens)
    for token in result:
        if not isinstance(token, (str, AddedToken)) or not str(token):
            raise TokenizerError(f"{name}: {token!r} is not a token; give a non-empty string or an AddedToken.")
        if any(0xD800 <= ord(char) < 0xE000 for char in str(token)):
            raise TokenizerError(f"{name}: {token!r} holds a lone surrogate, which is no character of any text.")
    return result
