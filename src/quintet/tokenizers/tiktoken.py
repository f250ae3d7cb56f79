"""Vocabularies in tiktoken's form, `o200k_base.tiktoken`, as engines and as `tokenizer.json`.

Such a file has one line per token: its bytes in base 64 and its rank. The rank is the id, and the order of merging: of
all neighbours whose bytes together are a token, those of the lowest rank are merged first. What is not in the file
belongs to the encoding's name: the pattern that cuts a text into words, and the special tokens.

Sources: the encodings o200k_base and o200k_harmony as tiktoken (github.com/openai/tiktoken) defines them.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from quintet.errors import TokenizerError, suggest
from quintet.hub import open_regular
from quintet.tokenizers.engine import byte_values

__all__ = ["ENCODINGS", "Encoding", "engine_from_ranks", "read_ranks", "recover_merges", "write_tokenizer"]

FILE_LIMIT = 64 << 20  # the largest published file, that of o200k_base, has 3.6 MB
LONGEST_TOKEN = 1024  # bytes; o200k_base's has 128
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FRONT, _ENDING = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K_PATTERN = "|".join(
    [
        f"{_FRONT}{_UPPER}*{_LOWER}+{_ENDING}",  # a word, one mark before it, an English ending behind it
        f"{_FRONT}{_UPPER}+{_LOWER}*{_ENDING}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
O200K_SPECIAL = {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}
_HARMONY = {
    **O200K_SPECIAL,
    "<|startoftext|>": 199998,
    "<|return|>": 200002,
    "<|constrain|>": 200003,
    "<|channel|>": 200005,
    "<|start|>": 200006,
    "<|end|>": 200007,
    "<|message|>": 200008,
    "<|call|>": 200012,
}
# Every other id up to the size of gpt-oss' embedding is reserved.
_RESERVED = sorted(set(range(199998, 201088)) - set(_HARMONY.values()))
HARMONY_SPECIAL = {**_HARMONY, **{f"<|reserved_{index}|>": index for index in _RESERVED}}


@dataclass(frozen=True)
class Encoding:
    """What the name of an encoding says.

    Args:
        pattern: Cuts a text into words.
        special_tokens: Ids of the special tokens.
        roles: `bos_token` and the like, for tokenizer_config.json.
    """

    pattern: str
    special_tokens: Mapping[str, int]
    roles: Mapping[str, str]


ENCODINGS: dict[str, Encoding] = {
    "o200k_base": Encoding(O200K_PATTERN, O200K_SPECIAL, {"eos_token": "<|endoftext|>"}),
    # tiktoken knows <|endofprompt|> as <|reserved_200018|> too; here an id has one name.
    "o200k_harmony": Encoding(
        O200K_PATTERN,
        HARMONY_SPECIAL,
        {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"},
    ),
}


def read_ranks(path: str | os.PathLike[str]) -> dict[bytes, int]:
    """Read a `.tiktoken` file.

    Raises:
        TokenizerError: It is missing, too large or damaged; a token or a rank occurs twice; one of the 256 bytes is
            missing. The message says where.
    """
    with os.fdopen(open_regular(Path(path), TokenizerError), "rb") as file:
        data = file.read(FILE_LIMIT + 1)
    if len(data) > FILE_LIMIT:
        raise TokenizerError(f"'{path}' has more than {FILE_LIMIT:,} bytes. Is it a .tiktoken file?")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line:
            continue
        token, rank = _read_line(line, f"'{path}', line {number}")
        if token in ranks:
            raise TokenizerError(f"'{path}', line {number}: the token {token!r} occurs twice. Get the file again.")
        ranks[token] = rank
    if len(set(ranks.values())) != len(ranks):
        raise TokenizerError(f"'{path}' gives one rank to two tokens. The file is damaged; get it again.")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise TokenizerError(
            f"'{path}' has no token for {len(missing)} of the 256 bytes (the first is 0x{missing[0]:02x}), so some "
            "texts could not be encoded. The file is cut off or of another kind; get it again."
        )
    return ranks


def _read_line(line: bytes, where: str) -> tuple[bytes, int]:
    parts = line.split()
    try:
        token, rank = base64.b64decode(parts[0], validate=True), int(parts[1])
    except (IndexError, ValueError, binascii.Error):
        token, rank = b"", -1
    if len(parts) != 2 or not 0 < len(token) <= LONGEST_TOKEN or not 0 <= rank < 2**31:
        raise TokenizerError(f"{where}: {line[:60]!r} is not a token in base 64 and its rank. Get the file again.")
    return token, rank


def recover_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return the one merge that makes each token of more than one byte, in the order of merging.

    A token's own bytes, merged as in any text but only with lower ranks, end as two parts: its merge. One merge per
    token is enough for the same ids: while a text is merged, nothing has crossed the borders of the two neighbours that
    would make a token, so within these borders everything went as for the token alone, and they are those two parts.

    Raises:
        TokenizerError: The parts of a token are not two, so that no list of merges describes the vocabulary.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda entry: entry[1]):
        if len(token) == 1:
            continue
        parts = [token[index : index + 1] for index in range(len(token))]
        pairs = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
        while len(parts) > 2 and (lowest := min(pairs)) < rank:
            place = pairs.index(lowest)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
            del pairs[place]
            if place:
                pairs[place - 1] = ranks.get(parts[place - 1] + parts[place], rank)
            if place < len(pairs):
                pairs[place] = ranks.get(parts[place] + parts[place + 1], rank)
        if len(parts) != 2:
            raise TokenizerError(
                f"The token {token!r} of rank {rank} is not made of two tokens of lower ranks, so a tokenizer.json "
                "cannot describe this vocabulary. Is the file complete?"
            )
        merges.append((parts[0], parts[1]))
    return merges


def engine_from_ranks(ranks: Mapping[bytes, int], encoding: Encoding) -> Tokenizer:
    """Make the engine of an encoding.

    Raises:
        TokenizerError: The vocabulary cannot be described by merges, or a special token has the id of another token.
    """
    names = {byte: char for char, byte in byte_values().items()}

    def written(token: bytes) -> str:
        return "".join(names[byte] for byte in token)

    vocabulary = {written(token): rank for token, rank in ranks.items()}
    merges = [(written(left), written(right)) for left, right in recover_merges(ranks)]
    taken = set(vocabulary.values())
    for token, index in encoding.special_tokens.items():
        if index in taken or token in vocabulary:
            raise TokenizerError(
                f"The special token {token!r} must have the id {index}, but the file has a token of that id or name "
                "already. It is the file of another encoding."
            )
        taken.add(index)
    # In the vocabulary itself, not only behind it, because their ids leave gaps.
    vocabulary.update(encoding.special_tokens)
    engine = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(encoding.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    engine.post_processor = processors.ByteLevel(trim_offsets=False)
    special = sorted(encoding.special_tokens.items(), key=lambda entry: entry[1])
    engine.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, _ in special])
    return engine


def write_tokenizer(path: str | os.PathLike[str], folder: str | os.PathLike[str], encoding: str) -> list[Path]:
    """Write the `.tiktoken` file at `path` as `tokenizer.json` and `tokenizer_config.json` into a folder.

    Args:
        path: The file.
        folder: Where to write; it must exist.
        encoding: The name of its encoding, of `ENCODINGS`.

    Raises:
        TokenizerError: An unknown encoding, or a file that cannot be used.
    """
    if encoding not in ENCODINGS:
        hint = suggest(encoding, ENCODINGS)
        raise TokenizerError(f"encoding is {encoding!r}, but must be one of {list(ENCODINGS)}.{hint}")
    found = ENCODINGS[encoding]
    engine = engine_from_ranks(read_ranks(path), found)
    config: dict[str, Any] = {
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **found.roles,
    }
    target = Path(folder)
    (target / "tokenizer.json").write_text(_quick_to_read(engine), encoding="utf-8", newline="\n")
    text = json.dumps(dict(sorted(config.items())), indent=2) + "\n"
    (target / "tokenizer_config.json").write_text(text, encoding="utf-8", newline="\n")
    return [target / "tokenizer.json", target / "tokenizer_config.json"]


def _quick_to_read(engine: Tokenizer) -> str:
    """Return the engine as a tokenizer.json that the library reads a third faster than what it writes itself.

    Measured: merges as "left right" strings, the older of their two forms (no byte-level token holds a space), save an
    eighth; tokens in the order of their characters, in which the library's parser keeps them, another eighth.
    """
    state = json.loads(engine.to_str())
    model = state["model"]
    model["merges"] = [" ".join(pair) for pair in model["merges"]]
    model["vocab"] = dict(sorted(model["vocab"].items()))
    return json.dumps(state, ensure_ascii=False, separators=(",", ":")) + "\n"
