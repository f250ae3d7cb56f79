"""The record that describes a family to the rest of the library: data only, no torch, no code paths.

`auto`, the loader, the command line and the shared tests read it; nothing else needs to know that a family exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BlockMap", "Family", "KeyRules", "StepMap"]


@dataclass(frozen=True)
class KeyRules:
    """How the tensor names of published checkpoints become parameter names, as data.

    Args:
        drop: Regular expressions of names that hold no weights (mask buffers of old releases).
        rename: Pairs (regular expression, replacement), applied in order.
        keep_float32: Regular expressions of parameters that stay float32 when the model is loaded in a 16-bit type.
    """

    drop: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    keep_float32: tuple[str, ...] = ()


@dataclass(frozen=True)
class BlockMap:
    """How the blocks of a family are built, for code that computes a whole block at once. Paths are those in a block.

    Args:
        order: "pre" norms what a part reads, "post" what comes out of the addition, "parallel" lets both parts read the
            input.
        norms: The two norms.
        attention: The module with `head_dim`, and `scale` and `sinks` where it has them.
        projections: The linear layers of queries, keys and values: three, or one for all.
        layout: Of what they give: "separate"; of one layer "in turn", or "by head".
        out: The linear layer behind the attention.
        up, down: Linear layers of the feed-forward part.
        gate: That of a gated one, whose activation is multiplied with `up`.
        activation: Its activation, a function of `layers.activations`.
        experts, router: In place of these, experts and their router.
        parallel: Attribute of the block that says whether it is parallel; otherwise it is "pre".
    """

    order: str
    norms: tuple[str, str]
    attention: str
    projections: tuple[str, ...]
    layout: str
    out: str
    up: str = ""
    down: str = ""
    gate: str = ""
    activation: str = ""
    experts: str = ""
    router: str = ""
    parallel: str | None = None


@dataclass(frozen=True)
class StepMap:
    """What a base model does with tokens besides running its blocks, for code that computes a whole step at once.

    It looks tokens up, adds the embeddings of their positions or makes rotary angles, runs the blocks, and norms what
    comes out. Paths are those in the base model, "" for what there is not.

    Args:
        tokens: Table of the tokens.
        blocks: List of the blocks.
        norm: The last norm.
        positions: Table of the positions, `config.max_position_embeddings` of them.
        rotary: Module that makes cosines and sines of positions; layers have the windows that the configuration says.
        dropout: What drops parts of the embeddings in training.
    """

    tokens: str
    blocks: str
    norm: str = ""
    positions: str = ""
    rotary: str = ""
    dropout: str = ""


@dataclass(frozen=True)
class Family:
    """One family of models.

    Args:
        model_type: The `model_type` of its config.json.
        config: Its configuration class.
        classes: Model class by task: "base", "causal-lm", "sequence-classification", "token-classification",
            "question-answering", "double-heads".
        tokenizer: Name of its tokenizer class in `quintet.tokenizers`.
        tiny: Makes a configuration small enough for tests; keywords override.
        key_rules: How its published tensor names are read.
    """

    model_type: str
    config: type[Any]
    classes: Mapping[str, type[Any]]
    tokenizer: str
    tiny: Callable[..., Any]
    key_rules: KeyRules = field(default_factory=KeyRules)
