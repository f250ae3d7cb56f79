"""The engine's post-processor: which special tokens go around a text, and how offsets are trimmed."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, models, processors

from quintet.errors import TokenizerError

__all__ = ["set_template", "set_trim_offsets"]

Named = tuple[str | None, int | None]


def set_template(engine: Tokenizer, *, bos: Named | None, eos: Named | None) -> None:
    """Make `engine` put `bos` before each text and `eos` after it, each given as (token, id) or None for not at all.

    What a byte-level post-processor does about offsets is kept.

    Raises:
        TokenizerError: A wanted token is not set, or not in the vocabulary.
    """
    for option, named in (("add_bos_token", bos), ("add_eos_token", eos)):
        if named is not None and (named[0] is None or named[1] is None):
            token = option[4:]
            raise TokenizerError(
                f"{option}=True needs a {token} in the vocabulary, but it is {named[0]!r}. "
                f"Set one, for example with add_special_tokens({{'{token}': '<|endoftext|>'}})."
            )
    parts: list[Any] = [part for part in [_byte_level(engine)] if part is not None]
    before = f"{bos[0]}:%d " if bos else ""
    after = f" {eos[0]}:%d" if eos else ""
    if bos or eos:
        single, second = f"{before}$A:%d{after}", f"{before}$B:%d{after}"
        parts.append(
            processors.TemplateProcessing(
                single=single.replace("%d", "0"),
                pair=f"{single.replace('%d', '0')} {second.replace('%d', '1')}",
                special_tokens=[named for named in dict.fromkeys((bos, eos)) if named],
            )
        )
    if not parts:
        parts = [processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])]
    engine.post_processor = parts[0] if len(parts) == 1 else processors.Sequence(parts)


def set_trim_offsets(engine: Tokenizer, value: bool) -> None:
    """Say whether the offsets of a byte-level engine leave out the space that belongs to a token.

    Raises:
        TokenizerError: The engine has no byte-level post-processor.
    """
    current = engine.post_processor
    processor: dict[str, Any] = {"type": ""} if current is None else json.loads(current.__getstate__())
    steps = processor["processors"] if processor["type"] == "Sequence" else [processor]
    found = [step for step in steps if step["type"] == "ByteLevel"]
    if not found:
        raise TokenizerError(
            f"trim_offsets={value} works only with a byte-level post-processor, which this tokenizer does not have. "
            "Leave trim_offsets out."
        )
    if found[0]["trim_offsets"] != value:
        found[0]["trim_offsets"] = value
        empty = json.loads(Tokenizer(models.BPE()).to_str())
        engine.post_processor = Tokenizer.from_str(json.dumps({**empty, "post_processor": processor})).post_processor


def _byte_level(engine: Tokenizer) -> Any | None:
    """A copy of the ByteLevel step in the engine's post-processor, or None."""
    if engine.post_processor is None:
        return None
    state = json.loads(engine.post_processor.__getstate__())
    steps = state["processors"] if state["type"] == "Sequence" else [state]
    for step in steps:
        if step["type"] == "ByteLevel":
            return processors.ByteLevel(
                add_prefix_space=step["add_prefix_space"],
                trim_offsets=step["trim_offsets"],
                use_regex=step.get("use_regex", True),
            )
    return None
