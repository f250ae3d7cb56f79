"""The training loop.

Data order, dropout and learning rate are functions of (seed, step), so a run that was killed and resumed ends with the
same weights, bit for bit, as one that was not (on the same machine with the same number of threads).
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quintet.errors import TrainingError
from quintet.training.arguments import TrainingArguments
from quintet.training.data import TokenStream, windows
from quintet.training.optim import learning_rate, make_optimizer
from quintet.training.state import find_last, load_state, replace_folder, save_state

__all__ = ["Trainer", "evaluate"]


def evaluate(model: Any, tokens: np.ndarray, block_size: int, rows: int = 8, autocast: bool = False) -> float:
    """Return the mean loss in nats per token of a text (N,), read once in blocks; its first token is not predicted."""
    training = model.training
    model.eval()
    total, count = 0.0, 0
    device = next(model.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        for block in windows(tokens, block_size, rows):
            ids = torch.from_numpy(block).to(device)
            predicted = ids.numel() - ids.shape[0]
            total += float(model(input_ids=ids, labels=ids, use_cache=False).loss) * predicted
            count += predicted
    model.train(training)
    return total / max(count, 1)


class Trainer:
    """Trains one model on one token stream.

    Args:
        model: A causal language model.
        args: The options.
        train_tokens: (N,) ids to learn from.
        valid_tokens: (N,) ids to measure on, or None.
        valid_bytes: UTF-8 bytes of the validation text, for bits per byte; 0 when unknown.
        save_model: Writes a loadable model folder; called as `save_model(model, folder)` for the best one.
        progress: Called with each log record; the command line draws its bar with it.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        train_tokens: np.ndarray,
        valid_tokens: np.ndarray | None = None,
        valid_bytes: int = 0,
        save_model: Callable[[Any, Path], None] | None = None,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.model = model
        self.args = args
        self.run = Path(args.output_dir)
        self.stream = TokenStream(train_tokens, args.block_size, args.seed)
        self.valid_tokens = valid_tokens
        self.valid_bytes = valid_bytes
        self.save_model = save_model or (lambda model, folder: model.save_pretrained(folder))
        self.progress = progress or (lambda record: None)
        self.optimizer = make_optimizer(model, args)
        self.step = 0
        self.best: float | None = None
        self.seconds = 0.0
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable()

    def train(self) -> dict[str, Any]:
        """Run to `max_steps`, from the last checkpoint when there is one; return the summary.

        Raises:
            TrainingError: the loss is not a number; the last checkpoint stays.
        """
        self.run.mkdir(parents=True, exist_ok=True)
        self._resume()
        forward = torch.compile(self.model) if self.args.torch_compile else self.model
        self.model.train()
        with open(self.run / "log.jsonl", "a", encoding="utf-8") as log:
            losses: list[float] = []
            mark = time.perf_counter()
            while self.step < self.args.max_steps:
                loss, norm, rate = self._one_step(forward)
                losses.append(loss)
                self.step += 1
                last = self.step == self.args.max_steps
                if self.step % self.args.logging_steps == 0 or last:
                    now = time.perf_counter()
                    self.seconds, elapsed, mark = self.seconds + now - mark, now - mark, now
                    record = {
                        "step": self.step,
                        "loss": sum(losses) / len(losses),
                        "grad_norm": norm,
                        "learning_rate": rate,
                        "tokens": self.step * self._tokens_per_step(),
                        "tokens_per_second": len(losses) * self._tokens_per_step() / elapsed,
                        "seconds": self.seconds,
                    }
                    losses = []
                    self._log(log, record)
                if self.valid_tokens is not None and (last or _due(self.step, self.args.eval_steps)):
                    self._validate(log)
                if last or _due(self.step, self.args.save_steps):
                    self._save()
        return {"step": self.step, "best_eval_loss": self.best, "seconds": self.seconds}

    def _tokens_per_step(self) -> int:
        args = self.args
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.block_size

    def _one_step(self, forward: Any) -> tuple[float, float, float]:
        """One optimiser step; returns loss, gradient norm before clipping, learning rate."""
        args = self.args
        device = torch.device(args.device)
        rate = learning_rate(args, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = 0.0
        for part in range(args.gradient_accumulation_steps):
            index = self.step * args.gradient_accumulation_steps + part
            ids = torch.from_numpy(self.stream.batch(index, args.per_device_train_batch_size)).to(device)
            torch.manual_seed((args.seed << 40) ^ index)  # dropout depends on (seed, batch) alone
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.bf16):
                loss = forward(input_ids=ids, labels=ids, use_cache=False).loss / args.gradient_accumulation_steps
            loss.backward()
            total += float(loss.detach())
        limit = args.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        if not math.isfinite(total) or not math.isfinite(norm):
            raise TrainingError(
                f"step {self.step}: the loss is {total} and the gradient norm {norm}. The checkpoint of an earlier "
                "step is kept; try a lower learning_rate or a longer warm-up."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm, rate

    def _validate(self, log: Any) -> None:
        assert self.valid_tokens is not None, "called only with validation text"
        start = time.perf_counter()
        loss = evaluate(self.model, self.valid_tokens, self.args.block_size, autocast=self.args.bf16)
        record: dict[str, Any] = {"step": self.step, "eval_loss": loss, "eval_seconds": time.perf_counter() - start}
        if self.valid_bytes:
            record["bits_per_byte"] = loss * (len(self.valid_tokens) - 1) / math.log(2) / self.valid_bytes
        self._log(log, record)
        if self.best is None or loss < self.best:
            self.best = loss
            new = self.run / "best.new"
            shutil.rmtree(new, ignore_errors=True)
            self.save_model(self.model, new)
            replace_folder(new, self.run / "best")

    def _log(self, log: Any, record: dict[str, Any]) -> None:
        log.write(json.dumps(record) + "\n")
        log.flush()
        self.progress(record)

    def _save(self) -> None:
        state = {"step": self.step, "best": self.best, "seconds": self.seconds, "args": self.args.to_dict()}
        save_state(self.run, self.model, self.optimizer, state)

    def _resume(self) -> None:
        log = self.run / "log.jsonl"
        found = find_last(self.run)
        if not self.args.resume or found is None:
            if found is not None:
                raise TrainingError(f"{self.run} holds a run already. Give another output_dir, or let it resume.")
            log.unlink(missing_ok=True)
            return
        state = load_state(found, self.model, self.optimizer)
        for name in ("seed", "block_size", "per_device_train_batch_size", "gradient_accumulation_steps"):
            if state["args"][name] != getattr(self.args, name):
                raise TrainingError(
                    f"{self.run} was begun with {name}={state['args'][name]!r} and is asked to go on with "
                    f"{getattr(self.args, name)!r}. Use the same value, or another output_dir."
                )
        self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]
        if log.is_file():  # what was logged after the checkpoint will happen again
            lines = [line for line in log.read_text(encoding="utf-8").splitlines() if _step(line) <= self.step]
            log.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _step(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut off by the kill
        return math.inf
