"""From options to a trained model: reads the texts and the tokenizer, makes or loads the model, runs the Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from quintet.auto import AutoConfig, AutoModelForCausalLM
from quintet.errors import TrainingError
from quintet.tokenizers import AutoTokenizer
from quintet.training.arguments import TrainingArguments
from quintet.training.data import read_texts, tokenize_texts
from quintet.training.report import plot_run
from quintet.training.trainer import Trainer

__all__ = ["train"]


def train(args: TrainingArguments, progress: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Train as the options say.

    Args:
        args: The options.
        progress: Called with each record of the log.

    Returns:
        The summary: steps, best validation loss, bits per byte, folder of the best model, plot.

    Raises:
        TrainingError: texts, tokenizer, model and options do not fit together; nothing has been written then.
    """
    if args.device != "cpu" and not torch.cuda.is_available():
        raise TrainingError(f"device is {args.device!r}, but this machine has no CUDA device. Use cpu.")
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    texts, valid_texts = read_texts(args.train_files), read_texts(args.validation_files)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    model = make_model(args, tokenizer).to(args.device)
    trainer = Trainer(
        model,
        args,
        tokenize_texts(tokenizer, texts),
        tokenize_texts(tokenizer, valid_texts) if valid_texts else None,
        sum(len(text.encode()) for text in valid_texts),
        save_model=lambda trained, folder: save_model(trained, tokenizer, args.save_dtype, folder),
        progress=progress,
    )
    summary = trainer.train()
    best = trainer.run / "best"
    if not valid_texts:  # nothing to choose by: the last model is the best known
        save_model(model, tokenizer, args.save_dtype, best)
    elif trainer.valid_tokens is not None and trainer.best is not None:
        tokens = len(trainer.valid_tokens) - 1
        summary["bits_per_byte"] = trainer.best * tokens / math.log(2) / trainer.valid_bytes
    summary["best_model"] = str(best)
    try:
        summary["plot"], summary["plot_problem"] = str(plot_run(trainer.run)), None
    except TrainingError as error:  # a missing plotting library must not lose a finished run
        summary["plot"], summary["plot_problem"] = None, str(error)
    return summary


def make_model(args: TrainingArguments, tokenizer: Any) -> Any:
    """Load the model to go on from, or make a new one whose weights depend on the seed alone."""
    if args.init_from:
        model = AutoModelForCausalLM.from_pretrained(args.init_from, dtype="float32")
    else:
        end = tokenizer.eos_token_id
        defaults = {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end}
        config = AutoConfig.for_model(**{**defaults, **args.model})
        torch.manual_seed(args.seed)
        model = AutoModelForCausalLM.from_config(config)
    size, limit = model.config.vocab_size, model.config.max_position_embeddings
    if len(tokenizer) > size:
        raise TrainingError(f"the tokenizer has {len(tokenizer)} tokens and the model only {size}. Raise vocab_size.")
    if args.block_size > limit:
        raise TrainingError(f"block_size is {args.block_size}, but the model has only {limit} positions.")
    return model


def save_model(model: Any, tokenizer: Any, dtype: str, folder: Path) -> None:
    """Write the model, in `dtype`, and its tokenizer as a published checkpoint is written."""
    wanted = getattr(torch, dtype)
    model.save_pretrained(folder, state_dict={name: t.detach().to(wanted) for name, t in model.state_dict().items()})
    tokenizer.save_pretrained(folder)
