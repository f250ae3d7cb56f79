"""A rendered conversation: pieces of text and special tokens, and their token ids.

A piece says whether it is a special token or text. Text is encoded as text even when it spells a special token, so
that nobody can end a turn, or open a tool's, by writing its marker into a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quintet.errors import ChatError

__all__ = ["Piece", "Rendered", "joined", "token_id"]


@dataclass(frozen=True)
class Piece:
    """A special token, or text that is encoded by itself.

    Args:
        text: The text, or the name of the token.
        special: It is a special token.
        generated: The model wrote it, or should learn to (the part of an assistant's message that is not its prompt).
    """

    text: str
    special: bool = False
    generated: bool = False


@dataclass(frozen=True)
class Rendered:
    """A conversation in a model's format.

    Args:
        pieces: The pieces, in order.
        opened: How many of the last pieces belong to the message that the model is to go on with; 0 when the last
            message is complete.
    """

    pieces: tuple[Piece, ...]
    opened: int = 0

    @property
    def text(self) -> str:
        """The prompt as text, special tokens by their names."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def open_pieces(self) -> tuple[Piece, ...]:
        """The pieces of the message that the model is to go on with."""
        return self.pieces[len(self.pieces) - self.opened :]

    def ids(self, tokenizer: Any) -> list[int]:
        """Return the token ids of the prompt.

        Raises:
            ChatError: The tokenizer does not have a special token of the format.
            TokenizerError: A text that cannot be encoded (lone surrogates).
        """
        return self.ids_and_mask(tokenizer)[0]

    def ids_and_mask(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        """Return the ids, and for each a 1 where the assistant wrote it: the tokens that a loss should count.

        Raises:
            ChatError, TokenizerError: As `ids`.
        """
        ids: list[int] = []
        mask: list[int] = []
        for piece in self.pieces:
            found = _encode(tokenizer, piece)
            ids += found
            mask += [int(piece.generated)] * len(found)
        return ids, mask


def joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Join neighbouring texts of one kind: a template's text is encoded in one piece between two special tokens."""
    result: list[Piece] = []
    for piece in pieces:
        before = result[-1] if result else None
        if before and not before.special and not piece.special and before.generated == piece.generated:
            result[-1] = Piece(before.text + piece.text, False, piece.generated)
        elif piece.text:
            result.append(piece)
    return tuple(result)


def token_id(tokenizer: Any, token: str) -> int | None:
    """Return the id of a token that is in the vocabulary as a whole, else None."""
    index = tokenizer.convert_tokens_to_ids(token)
    # An unknown token may get the id of the unknown token, which is another token.
    if index is None or tokenizer.convert_ids_to_tokens(index) != token:
        return None
    return int(index)


def _encode(tokenizer: Any, piece: Piece) -> Sequence[int]:
    if not piece.special:
        if not piece.text:
            return []
        found: Sequence[int] = tokenizer(piece.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return found
    index = token_id(tokenizer, piece.text)
    if index is None:
        raise ChatError(
            f"This tokenizer has no token {piece.text!r}, which the chat format needs. Load the tokenizer of the model "
            "that the format belongs to."
        )
    return [index]
