"""Checkpoints from and to the layouts in which models were first released, one file for each foreign layout.

The layout that everything else here reads and writes is called "hub": config.json beside model.safetensors. A foreign
layout is a module with a `LAYOUT` record (see `base.Layout`), and one line in the table below. No torch here.
"""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

from quintet.convert.base import HUB, Layout, Progress
from quintet.errors import UsageError, suggest

__all__ = ["HUB", "LAYOUTS", "Entry", "Layout", "Progress", "layout_of"]


class Entry(NamedTuple):
    """Where a layout lives, and the words that `quintet convert --help` prints for it."""

    module: str
    help: str
    attribute: str = "LAYOUT"


LAYOUTS: dict[str, Entry] = {
    "gpt1-original": Entry("quintet.convert.gpt1", "GPT-1 as released in 2018: params_shapes.json, params_0.npy ..."),
    "gpt-oss-original": Entry("quintet.convert.gpt_oss", "gpt-oss as in the folder `original` of the published models"),
    "mxfp4": Entry("quintet.convert.mxfp4", "to it: experts are packed as MXFP4; from it: unpacked to bfloat16"),
    "o200k-base": Entry("quintet.convert.tiktoken", "o200k_base.tiktoken as tokenizer.json", "BASE"),
    "o200k-harmony": Entry("quintet.convert.tiktoken", "the same file with gpt-oss' special tokens", "HARMONY"),
}


def layout_of(name: str) -> Layout:
    """Return the record of a foreign layout.

    Raises:
        UsageError: there is none of that name; the message lists them.
    """
    if name not in LAYOUTS:
        raise UsageError(
            f"unknown layout {name!r}; known are {', '.join([HUB, *LAYOUTS])}.{suggest(name, [HUB, *LAYOUTS])}"
        )
    entry = LAYOUTS[name]
    layout: Layout = getattr(import_module(entry.module), entry.attribute)
    return layout
