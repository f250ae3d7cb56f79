"""The base of every pipeline: where the model stands, and how items become batches and results in order."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from quintet.auto import family_of, model_types
from quintet.errors import ConfigError, InputError, QuintetError, TokenizerError, suggest
from quintet.generation.twins import use_twins
from quintet.pipelines.batches import Piece, collate, real_length
from quintet.pipelines.inputs import SizedResults, Source, compare_vocabularies, located, open_inputs, with_progress
from quintet.pipelines.tasks import TASKS, find_task

__all__ = ["Parameters", "Pipeline"]

logger = logging.getLogger("quintet.pipelines")

_SET_HERE = ("self", "text", "text_pair", "return_tensors", "return_overflowing_tokens")
LARGE = int(1e20)  # a tokenizer's model_max_length above this means none


@dataclass
class Parameters:
    """Options of a pipeline, by the step that they are for."""

    preprocess: dict[str, Any] = field(default_factory=dict)
    forward: dict[str, Any] = field(default_factory=dict)
    postprocess: dict[str, Any] = field(default_factory=dict)

    def updated(self, other: Parameters) -> Parameters:
        """Return these options with those of `other` on top."""
        return Parameters(
            {**self.preprocess, **other.preprocess},
            {**self.forward, **other.forward},
            {**self.postprocess, **other.postprocess},
        )


@dataclass
class _Open:
    """An item whose rows are not all back from the model."""

    number: int
    item: Any
    pieces: list[Piece]
    outputs: list[Any]


class Pipeline:
    """Text in, answer out. A subclass says how an item becomes rows, what the model does, and how its answer is read.

    Args:
        model: The model; it is put into evaluation mode.
        tokenizer: Its tokenizer.
        task: The task's name; None for that of the class.
        device: "cpu", "cuda:1", a torch.device, or a number: of a CUDA device, -1 for the CPU. None, and a number
            where there is no CUDA: the first CUDA device, else the CPU.
        batch_size: Rows that the model reads at once. Results do not depend on it.
        num_workers: Accepted; items are read in this process.
        progress: Draw a bar for data sets and generators; None draws one where stderr is a terminal.
        dtype, torch_dtype: Accepted; the model has its type already.
        **options: The options of a call, as defaults of all calls.

    Raises:
        ConfigError: a model without the head that the task needs, no tokenizer, an unknown device or option.
    """

    default_task: ClassVar[str] = ""
    padding_side: ClassVar[str] = "right"

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        task: str | None = None,
        device: Any = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        progress: bool | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        **options: Any,
    ) -> None:
        del num_workers, dtype, torch_dtype
        if tokenizer is None:
            raise ConfigError(
                f"{type(self).__name__} has no tokenizer. Pass tokenizer=AutoTokenizer.from_pretrained(...)."
            )
        self.task = task or self.default_task
        self.model = model
        self.tokenizer = tokenizer
        self._check_head()
        compare_vocabularies(model, tokenizer)
        self.device = _device(device)
        if model.device != self.device and getattr(model, "hf_device_map", None) is None:
            model.to(self.device)
        model.eval()
        self._progress = progress
        self._batch_size = _batch_size(1 if batch_size is None else batch_size)
        self._defaults = Parameters()
        self._defaults = self._sanitize_parameters(**options)

    # --- what a subclass defines --------------------------------------------------------------------------------------

    def _sanitize_parameters(self, **options: Any) -> Parameters:
        """Check options and say which step each is for; those that are not given stay out."""
        raise NotImplementedError(f"{type(self).__name__} must define _sanitize_parameters(**options).")

    def preprocess(self, item: Any, **parameters: Any) -> list[Piece]:
        """Turn an item into rows for the model."""
        raise NotImplementedError(f"{type(self).__name__} must define preprocess(item).")

    def _forward(self, pieces: Sequence[Piece], **parameters: Any) -> list[Any]:
        """Run the model on a batch; return one output for each row, on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} must define _forward(pieces).")

    def postprocess(self, pieces: Sequence[Piece], outputs: Sequence[Any], **parameters: Any) -> Any:
        """Turn the outputs of an item's rows into its result."""
        raise NotImplementedError(f"{type(self).__name__} must define postprocess(pieces, outputs).")

    def _is_item(self, inputs: Any) -> bool:
        """Whether something that is neither text nor dict is one item."""
        return False

    # --- running ------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        num_workers: int | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> Any:
        """Run on one item, a list, a data set or a generator.

        Args:
            inputs: What the task takes; see the class.
            batch_size, num_workers, progress: As for the class, for this call.
            **options: See the class.

        Returns:
            One result; for a list a list; for a data set or generator an iterator that works as it is read.

        Raises:
            InputError: an item that cannot be used; the message names it. Results before it are still given.
        """
        del num_workers
        source = open_inputs(inputs, self._is_item)
        return self._start(source, batch_size, progress, self._sanitize_parameters(**options))

    def _start(self, source: Source, batch_size: int | None, progress: bool | None, given: Parameters) -> Any:
        size = self._batch_size if batch_size is None else _batch_size(batch_size)
        results = self._run(source, size, self._defaults.updated(given))
        if source.form == "one":
            return next(results)
        shown = self._progress if progress is None else progress
        if shown or (shown is None and source.form in ("stream", "data") and sys.stderr.isatty()):
            results = with_progress(results, source.size, self.task)
        if source.form == "list":
            return list(results)
        return results if source.size is None else SizedResults(results, source.size)

    def _run(self, source: Source, batch_size: int, parameters: Parameters) -> Iterator[Any]:
        """Give the results in order; rows of neighbouring items share batches."""
        open_items: deque[_Open] = deque()
        waiting: deque[tuple[_Open, Piece]] = deque()
        failure: Exception | None = None

        def read() -> Iterator[Any]:
            rows = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
            for (owner, _), output in zip(rows, self._forward_rows(rows, source, parameters), strict=True):
                owner.outputs.append(output)
            while open_items and len(open_items[0].outputs) == len(open_items[0].pieces):
                done = open_items.popleft()
                yield self.postprocess(done.pieces, done.outputs, **parameters.postprocess)

        items = enumerate(source.items)
        while True:
            try:
                number, item = next(items)
            except StopIteration:
                break
            except Exception as error:  # of the caller's own stream: passed on as it is, after what came before it
                failure = error
                break
            try:
                pieces = self.preprocess(item, **parameters.preprocess)
                self._check_lengths(pieces)
            except (QuintetError, ValueError, TypeError, KeyError) as error:
                if source.form == "one":
                    raise
                failure = located(error, number)
                failure.__cause__ = error
                break
            entry = _Open(number, item, pieces, [])
            open_items.append(entry)
            waiting.extend((entry, piece) for piece in pieces)
            while len(waiting) >= batch_size:
                yield from read()
        while waiting:
            yield from read()
        if failure is not None:
            raise failure

    def _forward_rows(
        self, rows: Sequence[tuple[_Open, Piece]], source: Source, parameters: Parameters
    ) -> Sequence[Any]:
        try:
            return self.forward([piece for _, piece in rows], **parameters.forward)
        except QuintetError as error:
            if source.form == "one":
                raise
            raise located(error, self._culprit(rows, parameters)) from error

    def _culprit(self, rows: Sequence[tuple[_Open, Piece]], parameters: Parameters) -> int:
        """The number of the first item that fails alone too; else of the first in the batch."""
        for owner, piece in rows if len(rows) > 1 else ():
            try:
                self.forward([piece], **parameters.forward)
            except QuintetError:
                return owner.number
        return rows[0][0].number

    @torch.no_grad()
    def forward(self, pieces: Sequence[Piece], **parameters: Any) -> list[Any]:
        """Run the model on a batch, without gradients; one output for each row, on the CPU."""
        use_twins(self.model)
        return self._forward(pieces, **parameters)

    # --- help for subclasses ------------------------------------------------------------------------------------------

    def encode(self, *texts: Any, **options: Any) -> Any:
        """Call the tokenizer; `truncation=True` without a length cuts to what model and tokenizer can take."""
        if options.get("truncation") and options.get("max_length") is None and self.max_tokens is not None:
            options["max_length"] = self.max_tokens
        options.setdefault("verbose", False)
        return self.tokenizer(*texts, **options)

    def columns(self, encoded: Any, row: int | None = None) -> dict[str, list[int]]:
        """Take what the model reads out of what the tokenizer gave, of one row or of row number `row`."""
        names = [name for name in encoded if name in (*self.tokenizer.model_input_names, "input_ids")]
        accepted = inspect.signature(self.model.forward).parameters
        return {
            name: list(encoded[name] if row is None else encoded[name][row])
            for name in names
            if name in accepted or name == "input_ids"
        }

    def run_model(self, pieces: Sequence[Piece], **keywords: Any) -> Any:
        """Run the model on a batch that is padded on the right, so that every token stands where it stands alone."""
        tensors = collate(pieces, pad_id=self.pad_id, side=self.padding_side, device=self.device)
        if "use_cache" in inspect.signature(self.model.forward).parameters:
            keywords["use_cache"] = False
        return self.model(**tensors, **keywords)

    @property
    def max_tokens(self) -> int | None:
        """Tokens that model and tokenizer can take, or None where neither says."""
        limits = [getattr(self.tokenizer, "model_max_length", None), self._model_limit]
        known = [int(limit) for limit in limits if limit is not None and limit < LARGE]
        return min(known) if known else None

    @property
    def _model_limit(self) -> int | None:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return int(limit) if limit else None

    def _check_lengths(self, pieces: Sequence[Piece]) -> None:
        """Refuse rows without tokens, and rows that a model with a table of positions cannot read."""
        rotary = getattr(self.model.config, "rope_parameters", None) is not None
        for piece in pieces:
            if real_length(piece) == 0:
                raise InputError("the text has no tokens (it is empty). Give at least one word.")
            limit = self._model_limit
            if limit is not None and not rotary and len(piece.ids) > limit:
                raise InputError(
                    f"the text has {len(piece.ids)} tokens, and the model has {limit} positions. "
                    f"{self._advice_too_long()}"
                )

    def _advice_too_long(self) -> str:
        return "Shorten it, or pass truncation=True to read only its beginning."

    @property
    def pad_id(self) -> int:
        """An id to fill rows up with; the mask hides it, so any id that the model has will do."""
        rows = self.model.get_input_embeddings().num_embeddings
        candidates = (
            getattr(self.model.config, "pad_token_id", None),
            self.tokenizer.pad_token_id,
            self.tokenizer.eos_token_id,
        )
        return next((int(one) for one in candidates if isinstance(one, int) and 0 <= one < rows), 0)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's weights."""
        found: torch.dtype = self.model.dtype
        return found

    torch_dtype = dtype

    def _check_head(self) -> None:
        """Refuse a model of a known family that has another head than the task needs."""
        task = find_task(self.task) if self.default_task in TASKS else None
        kind = getattr(self.model.config, "model_type", None)
        if task is None or task.head == "base" or kind not in model_types():
            return
        try:
            classes = family_of(kind).classes
        except ConfigError:  # a configuration that was registered alone
            return
        wanted = classes.get(task.head)
        if (wanted is not None and isinstance(self.model, wanted)) or type(self.model) not in classes.values():
            return
        if task.head == "causal-lm" and hasattr(self.model, "generate"):
            return
        need = f"Use {wanted.__name__}" if wanted is not None else f"The family {kind!r} has no such head; use another"
        raise ConfigError(f"{type(self.model).__name__} cannot do {task.name}: it has no {task.head} head. {need}.")

    # --- the rest of the reference's interface ------------------------------------------------------------------------

    def predict(self, X: Any) -> Any:
        """The same as a call."""
        return self(X)

    transform = predict

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write the model and the tokenizer into a folder, from which `pipeline(task, folder)` makes them again."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.tokenizer.save_pretrained(save_directory)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(task={self.task!r}, model={type(self.model).__name__}, "
            f"dtype={str(self.dtype).removeprefix('torch.')}, device={str(self.device)!r})"
        )


def unknown_option(owner: Any, name: str, known: Sequence[str]) -> ConfigError:
    """The error about an option that a pipeline does not have."""
    return ConfigError(
        f"{type(owner).__name__} has no option {name!r}.{suggest(name, known)} The options are {', '.join(known)}."
    )


def check_tokenizer_options(tokenizer: Any, options: dict[str, Any]) -> None:
    """Refuse options that the tokenizer does not have, or that the pipeline sets itself."""
    known = [name for name in inspect.signature(tokenizer.__call__).parameters if name not in _SET_HERE]
    for name in options:
        if name in _SET_HERE:
            raise TokenizerError(f"{name} is set by the pipeline. Leave it out.")
        hint = "" if name in known else suggest(name, known)
        if hint:
            raise TokenizerError(f"neither the pipeline nor its tokenizer has an option {name!r}.{hint}")


def _batch_size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"batch_size is {value!r}, but must be an integer of at least 1.")
    return value


def _device(value: Any) -> torch.device:
    """Return the device that `value` means; see Pipeline."""
    if isinstance(value, torch.device):
        return value
    there = torch.cuda.is_available()
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        number = 0 if value is None else int(value)
        if number < 0 or not there:
            return torch.device("cpu")
        return torch.device("cuda", number)
    try:
        return torch.device(value)
    except (RuntimeError, TypeError):
        raise ConfigError(
            f"device is {value!r}, but must be 'cpu', 'cuda', 'cuda:0', a number or a torch.device."
        ) from None
