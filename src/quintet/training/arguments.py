"""Everything a training run is told, as one record that a JSON file and command-line flags fill. No torch here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from quintet.errors import TrainingError, suggest
from quintet.hub import read_json

__all__ = ["SCHEDULES", "TrainingArguments"]

SCHEDULES = ("cosine", "trapezoid", "linear", "constant")
DTYPES = ("float32", "float16", "bfloat16")


def option(default: Any, text: str) -> Any:
    """A field with its help text, which the command line prints."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class TrainingArguments:
    """Options of a run; the names are those of the reference's TrainingArguments where it has them.

    Raises:
        TrainingError: an option is out of range, or two contradict each other.
    """

    output_dir: str = option("", "folder of the run: checkpoints, log and plot")
    train_files: list[str] = option([], "text files (UTF-8) to learn from")
    validation_files: list[str] = option([], "text files to measure on; never learned from")
    tokenizer: str = option("", "folder of the tokenizer, see `quintet train-tokenizer`")
    init_from: str = option("", "folder or name of a model to go on from; else `model` makes a new one")
    model: dict[str, Any] = option({}, "configuration of a new model: model_type and its fields")
    block_size: int = option(512, "tokens in one training sequence")
    per_device_train_batch_size: int = option(16, "sequences in one forward pass")
    gradient_accumulation_steps: int = option(1, "forward passes in one optimiser step")
    max_steps: int = option(1000, "optimiser steps of the whole run")
    learning_rate: float = option(1e-3, "highest learning rate")
    lr_scheduler_type: str = option("cosine", f"shape of the learning rate: {', '.join(SCHEDULES)}")
    warmup_steps: int = option(100, "steps in which the learning rate rises from 0")
    min_lr_ratio: float = option(0.0, "lowest learning rate at the end, as a part of the highest")
    decay_ratio: float = option(0.3, "part of the run in which a trapezoid falls")
    weight_decay: float = option(0.1, "decoupled weight decay, of matrices only")
    adam_beta1: float = option(0.9, "AdamW's first beta")
    adam_beta2: float = option(0.95, "AdamW's second beta")
    adam_epsilon: float = option(1e-8, "AdamW's epsilon")
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm; 0 for never")
    bf16: bool = option(False, "multiply matrices in bfloat16 (autocast); weights stay float32")
    torch_compile: bool = option(False, "compile the model (needs a C++ compiler on a CPU)")
    gradient_checkpointing: bool = option(False, "save memory by computing activations twice")
    seed: int = option(0, "seed of the weights, the order of the data and the dropout")
    device: str = option("cpu", "cpu, or cuda")
    num_threads: int = option(0, "CPU threads; 0 leaves torch's choice")
    logging_steps: int = option(20, "steps between lines of the log")
    eval_steps: int = option(250, "steps between validations; 0 for only at the end")
    save_steps: int = option(250, "steps between checkpoints; 0 for only at the end")
    resume: bool = option(True, "go on from the last checkpoint in output_dir when there is one")
    save_dtype: str = option("float32", f"type of the best model's file ({', '.join(DTYPES)}); it loads as float32")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            setattr(self, name, _converted(name, getattr(self, name), kind))
        for name in ("output_dir", "tokenizer"):
            if not getattr(self, name):
                raise TrainingError(f"{name} is not given. Say it with --{name.replace('_', '-')} or in the JSON file.")
        if not self.train_files:
            raise TrainingError("train_files is empty: there is nothing to learn from. Give text files.")
        if bool(self.init_from) == bool(self.model):
            raise TrainingError(
                "give either init_from (a model to go on from) or model (the configuration of a new one, such as "
                f'{{"model_type": "gpt2", "n_embd": 256}}); got {"both" if self.model else "neither"}.'
            )
        self._check_ranges()

    def _check_ranges(self) -> None:
        at_least = {"block_size": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 1}
        at_least |= {"warmup_steps": 0, "num_threads": 0, "logging_steps": 1, "eval_steps": 0, "save_steps": 0}
        for name, minimum in at_least.items():
            if getattr(self, name) < minimum:
                raise TrainingError(f"{name} is {getattr(self, name)}, but must be at least {minimum}.")
        for name in ("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise TrainingError(f"{name} is {getattr(self, name)}, but must be a finite number of at least 0.")
        for name in ("min_lr_ratio", "decay_ratio", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name} is {getattr(self, name)}, but must be from 0 to 1.")
        for name, options in {"lr_scheduler_type": SCHEDULES, "save_dtype": DTYPES}.items():
            value = getattr(self, name)
            if value not in options:
                raise TrainingError(f"{name} is {value!r}, but must be {', '.join(options)}.{suggest(value, options)}")
        if self.warmup_steps > self.max_steps:
            raise TrainingError(f"warmup_steps ({self.warmup_steps}) is more than max_steps ({self.max_steps}).")

    def to_dict(self) -> dict[str, Any]:
        """Every option as JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_sources(cls, file: str | None, flags: dict[str, Any]) -> TrainingArguments:
        """Read a JSON file, if any, and let the flags override it.

        Raises:
            TrainingError: a key that does not exist (the nearest is suggested), or a wrong value.
        """
        values: dict[str, Any] = {}
        if file:
            path = Path(file)
            if not path.is_file():
                raise TrainingError(f"{file} is not there. Give a JSON file of training options, or only flags.")
            values = read_json(path)
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise TrainingError(f"{file}: there is no training option {key!r}.{suggest(key, names)}")
        return cls(**{**values, **flags})


def _converted(name: str, value: Any, kind: Any) -> Any:
    """Check the type; whole floats become ints and ints floats, as JSON writers mix them."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted: Any = {list[str]: list, dict[str, Any]: dict}.get(kind, kind)
    right = isinstance(value, wanted) and not (wanted is int and isinstance(value, bool))
    if wanted is list and right:
        right = all(isinstance(item, str) for item in value)
    if not right:
        raise TrainingError(f"{name} is {value!r}, but must be a {getattr(wanted, '__name__', wanted)}.")
    return value
