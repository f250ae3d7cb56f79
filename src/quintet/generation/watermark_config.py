"""Settings of the watermarks, as `generate(watermarking_config=...)` and generation_config.json hold them.

No torch here: the processors are imported when they are made.
"""

from __future__ import annotations

import copy
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from quintet.errors import GenerationError, suggest
from quintet.generation import checks
from quintet.hub import write_text_atomic

if TYPE_CHECKING:
    from quintet.generation.processors import SynthIDTextWatermarkLogitsProcessor, WatermarkLogitsProcessor

__all__ = [
    "SEEDING_SCHEMES",
    "BaseWatermarkingConfig",
    "SynthIDTextWatermarkingConfig",
    "WatermarkingConfig",
    "as_watermarking_config",
]

ConfigT = TypeVar("ConfigT", bound="BaseWatermarkingConfig")

SEEDING_SCHEMES = ("lefthash", "selfhash")
LARGEST_TABLE = 2**24


@dataclass(repr=False)
class BaseWatermarkingConfig(ABC):
    """What both kinds of settings can do."""

    @classmethod
    def from_dict(cls: type[ConfigT], config_dict: Mapping[str, Any], **kwargs: Any) -> ConfigT:
        """Make the settings from a dict.

        Args:
            config_dict: Settings by name.
            **kwargs: Settings that override those of the dict.

        Raises:
            GenerationError: a name is unknown, or one without a default is missing.
        """
        values = {**config_dict, **kwargs}
        names = [one.name for one in fields(cls)]
        for name in values:
            if name not in names:
                raise GenerationError(
                    f"{name!r} is not a setting of {cls.__name__}.{suggest(str(name), names)} "
                    f"Settings: {', '.join(names)}."
                )
        try:
            return cls(**values)
        except TypeError as error:
            raise GenerationError(f"watermarking_config: {error}. Settings: {', '.join(names)}.") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        return asdict(self)

    def to_json_string(self) -> str:
        """Return the settings as indented JSON text ending with a newline."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write the settings, names in order, to a file."""
        write_text_atomic(Path(json_file_path), json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n")

    def update(self, **kwargs: Any) -> None:
        """Set the settings among `kwargs`; other names are left alone, as in the reference."""
        for name, value in kwargs.items():
            if name in self.__dict__:
                setattr(self, name, value)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from copy.deepcopy(self.__dict__).items()

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    @abstractmethod
    def validate(self) -> None:
        """Check every setting.

        Raises:
            GenerationError: naming the setting, its value and what is allowed.
        """

    @abstractmethod
    def construct_processor(self, vocab_size: int, device: Any = "cpu") -> Any:
        """Return the processor that marks text with these settings."""


@dataclass(repr=False)
class WatermarkingConfig(BaseWatermarkingConfig):
    """Settings of the green-list watermark (Kirchenbauer et al. 2023).

    Args:
        greenlist_ratio: Share of the vocabulary that is green at each step.
        bias: What green tokens' scores gain.
        hashing_key: The secret.
        seeding_scheme: "lefthash": the last token decides which tokens are green; "selfhash": the candidate too.
        context_width: Number of tokens that decide.
    """

    greenlist_ratio: float = 0.25
    bias: float = 2.0
    hashing_key: int = 15485863
    seeding_scheme: str = "lefthash"
    context_width: int = 1

    def validate(self) -> None:
        """See BaseWatermarkingConfig."""
        where = "watermarking_config."
        share = checks.number("a number above 0 and below 1", lambda value: 0 < value < 1)
        checks.require(where + "greenlist_ratio", self.greenlist_ratio, share)
        checks.require(where + "bias", self.bias, checks.number("a finite number"))
        checks.require(where + "hashing_key", self.hashing_key, checks.integer(1))
        checks.require(where + "seeding_scheme", self.seeding_scheme, checks.one_of(*SEEDING_SCHEMES))
        checks.require(where + "context_width", self.context_width, checks.integer(1))

    def construct_processor(self, vocab_size: int, device: Any = "cpu") -> WatermarkLogitsProcessor:
        """See BaseWatermarkingConfig."""
        from quintet.generation.processors import WatermarkLogitsProcessor

        return WatermarkLogitsProcessor(vocab_size, device, **self.to_dict())


@dataclass(repr=False)
class SynthIDTextWatermarkingConfig(BaseWatermarkingConfig):
    """Settings of the SynthID watermark (Dathathri et al. 2024).

    Args:
        ngram_len: Tokens of a group that is hashed, the candidate included.
        keys: The secret: one number for each round of the tournament.
        context_history_size: Number of past contexts that are marked once only.
        sampling_table_seed: Seed of the table of coin flips.
        sampling_table_size: Its size.
        skip_first_ngram_calls: Leave the first `ngram_len - 1` tokens alone.
        debug_mode: Mark a uniform distribution instead of the model's.
    """

    ngram_len: int
    keys: list[int]
    context_history_size: int = 1024
    sampling_table_seed: int = 0
    sampling_table_size: int = 2**16
    skip_first_ngram_calls: bool = False
    debug_mode: bool = False

    def validate(self) -> None:
        """See BaseWatermarkingConfig."""
        where = "watermarking_config."
        checks.require(where + "ngram_len", self.ngram_len, checks.integer(2))
        checks.require(where + "keys", self.keys, _keys)
        checks.require(where + "context_history_size", self.context_history_size, checks.integer(1))
        checks.require(where + "sampling_table_seed", self.sampling_table_seed, checks.integer(0))
        checks.require(where + "sampling_table_size", self.sampling_table_size, _table_size)
        checks.require(where + "skip_first_ngram_calls", self.skip_first_ngram_calls, checks.flag)
        checks.require(where + "debug_mode", self.debug_mode, checks.flag)

    def construct_processor(self, vocab_size: int, device: Any = "cpu") -> SynthIDTextWatermarkLogitsProcessor:
        """See BaseWatermarkingConfig."""
        from quintet.generation.processors import SynthIDTextWatermarkLogitsProcessor

        return SynthIDTextWatermarkLogitsProcessor(**self.to_dict(), device=device)


def _table_size(value: Any) -> str | None:
    return None if checks.is_id(value) and 1 <= value <= LARGEST_TABLE else f"an integer from 1 to {LARGEST_TABLE}"


def _keys(value: Any) -> str | None:
    if isinstance(value, (list, tuple)) and value and all(checks.is_id(one) for one in value):
        return None
    return "a list of integers, one for each round"


def as_watermarking_config(value: Any) -> Any:
    """Return watermark settings as an object; a dict with `ngram_len` or `keys` is SynthID's.

    Args:
        value: An object that makes a processor, the dict of one, or None.

    Raises:
        GenerationError: it is something else, or a setting is unknown.
    """
    if value is None or callable(getattr(value, "construct_processor", None)):
        return value
    if not isinstance(value, Mapping):
        raise GenerationError(
            f"watermarking_config is {checks.shown(value)}, but must be a WatermarkingConfig, a "
            "SynthIDTextWatermarkingConfig, or a dict with the settings of one."
        )
    kind = SynthIDTextWatermarkingConfig if {"ngram_len", "keys"} & set(value) else WatermarkingConfig
    return kind.from_dict(value)
