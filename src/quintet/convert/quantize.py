"""A checkpoint with plain weights into one with packed weights, tensor by tensor, in steps that can be interrupted.

Nothing is held but the tensor that is being packed; with a calibration also the packed model and what flows through it.
The work is done in a hidden folder beside the output, in files that get their names when they are complete: a run that
was interrupted is gone on with, and what is in the output is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from quintet.auto import AutoConfig, family_of
from quintet.checkpoint import find_weights
from quintet.checkpoint.load import open_source, source_dtype
from quintet.checkpoint.meta import without_memory
from quintet.checkpoint.options import parse_dtype
from quintet.checkpoint.save import parse_size, save_weights
from quintet.checkpoint.stream import PlannedTensor, plan_weights
from quintet.checkpoint.tensorfile import DTYPE_NAMES, TensorFile
from quintet.convert.base import Progress
from quintet.convert.run import check_output, check_space, move_files
from quintet.convert.shards import Planned, write_shards
from quintet.errors import CheckpointError, ConfigError, QuintetError
from quintet.quant.calibration import Parts, calibration_rows
from quintet.quant.config import Quantization, parse_quantization

__all__ = ["QuantizedCheckpoint", "quantize_checkpoint"]

JOB = "job.json"
# Files that stand beside the weights and are taken along, when they are no larger than this.
_COMPANIONS = ("*.json", "*.txt", "*.jinja", "LICENSE*", "USAGE_POLICY*")
_TEMPLATES = "additional_chat_templates"
_LARGEST_COMPANION = 64 << 20


class QuantizedCheckpoint(NamedTuple):
    """What was made.

    Attributes:
        files: The files.
        size: Their bytes.
        plain_size: Bytes of the weights before.
        packed: Number of packed weights.
        resumed: Whether an earlier run was gone on with.
    """

    files: list[Path]
    size: int
    plain_size: int
    packed: int
    resumed: bool


def quantize_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    quantization: Quantization | Any,
    *,
    calibration: Any = None,
    tokenizer: Any = None,
    dtype: torch.dtype | str | None = None,
    force: bool = False,
    max_shard_size: int | str = "2GB",
    progress: Progress = lambda done, total: None,
    calibrating: Progress = lambda done, total: None,
) -> QuantizedCheckpoint:
    """Pack the weights of a checkpoint.

    Args:
        source: Folder to read; it is never written to.
        output: Folder to make.
        quantization: "int8", "int4", "mxfp4", "mxfp4+int8", `IntegerConfig(...)`, or anything that `from_pretrained`
            takes.
        calibration: As `model.quantize`.
        tokenizer: For a calibration with texts.
        dtype: What stays plain is stored in this type, and the model computes in it; None as config.json says.
        force: Write into an `output` that holds files. Those of the same names, and weights, are replaced.
        max_shard_size: Larger weights are split into files of at most this size; a finished file is not made again
            when the run is interrupted and repeated.
        progress: Called with the bytes written and the bytes in all.
        calibrating: Called with the layers that are calibrated, and those in all.

    Raises:
        CheckpointError: The source is damaged or packed already, the output is in use, or space is short.
        ConfigError: Nothing in the model can be packed so.
        InputError: Sizes that do not fit the format, naming the weight.
    """
    source, output = Path(source), Path(output)
    if not source.is_dir():
        raise CheckpointError(f"'{source}' is not a folder. Give the folder that holds the checkpoint's files.")
    asked = parse_quantization(quantization, "quantize")
    limit = parse_size(max_shard_size)
    check_output(source, output, force)
    job = _Job(source, asked, parse_dtype(dtype))
    rows = None
    if calibration is not None:
        if asked.linears is None:
            raise ConfigError("calibration is for linear layers, and the format has none. Leave it out.")
        rows = calibration_rows(calibration, tokenizer, getattr(job.config, "max_position_embeddings", None))
    planned = job.plan()
    total = sum(tensor.nbytes for tensor in planned)
    packed = {t.name.rpartition(".")[0] for t in planned if t.name.endswith((".weight_scale", "_scales"))}
    with _workplace(output, job.identity(rows, limit), total * (1 if rows is None else 2)) as (work, resumed):
        if rows is not None:
            shelf = _Shelf(work)
            job.calibrate(rows, shelf, sum(t.name.endswith(".weight_scale") for t in planned), calibrating)
            planned = [shelf.in_place_of(tensor) for tensor in planned]
        write_shards(work, [_writable(tensor) for tensor in planned], limit=limit, progress=progress, resume=True)
        (work / "config.json").write_text(job.config_text(), encoding="utf-8")
        _copy_companions(source, work)
        for name in (JOB, *(file.name for file in work.glob("block-*.safetensors*"))):
            (work / name).unlink()
        size = sum(file.stat().st_size for file in work.iterdir() if file.is_file())
        files = move_files(work, output)
        _copy_templates(source, output)
    return QuantizedCheckpoint(files, size, job.plain_size, len(packed), resumed)


class _Job:
    """The model that is packed: its class and configuration, without memory."""

    def __init__(self, source: Path, asked: Quantization, dtype: torch.dtype | None) -> None:
        self.folder, self.asked, self.dtype = source, asked, dtype or torch.get_default_dtype()
        self._dtype_is_given = dtype is not None
        self.config = AutoConfig.from_pretrained(source)
        classes = family_of(self.config.model_type).classes
        named = {one.__name__: one for one in classes.values()}
        known = [named[name] for name in self.config.architectures or [] if name in named]
        self.model_class: Any = known[0] if known else classes["causal-lm"]
        said: Any = getattr(self.config, "quantization_config", None)
        declared = parse_quantization(said, f"The configuration of '{source}'")
        if declared.linears is not None or (declared.experts is not None and asked.linears is None):
            raise CheckpointError(
                f"The weights in '{source}' are packed already ({said['quant_method']}). "
                "Pack the checkpoint that they were made of."
            )
        self.files = find_weights(source)
        self.plain_size = sum(path.stat().st_size for path in self.files)

    def plan(self) -> list[PlannedTensor]:
        """Return the tensors of the packed checkpoint."""
        opened = open_source(self.files)
        if not self._dtype_is_given:
            self.dtype = parse_dtype(self.config.dtype) or source_dtype(opened) or self.dtype
        with without_memory():
            model = self.model_class(self.config)
        rules = self.model_class.key_rules
        fitted = model._fit_to_checkpoint(
            opened, asked=self.asked, rules=rules, dtype=self.dtype, device=torch.device("cpu")
        )
        self.config = model.config
        return plan_weights(model, fitted, rules=rules, prefix=model.base_model_prefix, dtype=self.dtype)

    def config_text(self) -> str:
        """Return the config.json of the packed checkpoint; valid after `plan`."""
        self.config.architectures = [self.model_class.__name__]
        self.config.dtype = str(self.dtype).removeprefix("torch.")
        return self.config.to_json_string()

    def calibrate(self, rows: list[torch.Tensor], shelf: _Shelf, total: int, calibrating: Progress) -> None:
        """Pack the linear layers of the model in memory, and keep the result block by block."""
        model = self.model_class.from_pretrained(self.folder, dtype=self.dtype, quantization_config=self.asked.experts)
        linears = replace(self.asked, experts=None)
        names: list[str] = []

        def count(path: str) -> None:
            names.append(path)
            calibrating(len(names), total)

        model.quantize(linears, calibration=rows, progress=count, store=shelf)

    def identity(self, rows: list[torch.Tensor] | None, limit: int) -> dict[str, Any]:
        """Return what must be the same for a run to be gone on with."""
        seen = hashlib.sha256()
        for row in rows or ():
            seen.update(row.numpy().tobytes() + b"|")
        stats = [path.stat() for path in self.files]
        return {
            "source": str(self.folder.resolve()),
            "files": [[path.name, one.st_size, one.st_mtime_ns] for path, one in zip(self.files, stats, strict=True)],
            "format": repr(self.asked.experts and self.asked.experts.to_dict()) + repr(self.asked.linears),
            "calibration": None if rows is None else seen.hexdigest(),
            "dtype": str(self.dtype),
            "shard": limit,
        }


class _Shelf:
    """Packed blocks in files; the store of a calibration."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: dict[int, TensorFile] = {}
        self._home: dict[str, TensorFile] = {}

    def load(self, number: int) -> Mapping[str, Parts] | None:
        """Return the packed tensors of a block, by the paths of its layers; None where there are none."""
        path = self._folder / f"block-{number:05d}.safetensors"
        if not path.is_file():
            return None
        file = TensorFile.open(path, mapped=True)
        self._home.update(dict.fromkeys(file, file))
        parts: dict[str, Parts] = {}
        for name in file:
            layer, _, part = name.rpartition(".")
            parts.setdefault(layer, {})[part] = file.get(name)
        return parts

    def save(self, number: int, parts: Mapping[str, Parts]) -> None:
        """Keep the packed tensors of a block."""
        tensors = {f"{path}.{part}": tensor for path, one in parts.items() for part, tensor in one.items()}
        folder = self._folder / f"block-{number:05d}"
        (made,) = save_weights(tensors, folder, max_shard_size=1 << 60)
        os.replace(made, folder.with_suffix(".safetensors"))
        folder.rmdir()
        self.load(number)

    def in_place_of(self, tensor: PlannedTensor) -> PlannedTensor:
        """Return a tensor that is read from here when it is a part of a calibrated layer, else the same."""
        home = self._home.get(tensor.name)
        return tensor if home is None else replace(tensor, make=lambda: home.get(tensor.name))


def _writable(tensor: PlannedTensor) -> Planned:
    def pieces() -> Iterator[memoryview]:
        made = tensor.make().contiguous()
        yield made.view(-1).view(torch.uint8).numpy().data

    return Planned(tensor.name, DTYPE_NAMES[tensor.dtype], tensor.shape, tensor.nbytes, pieces)


@contextmanager
def _workplace(output: Path, job: dict[str, Any], needed: int) -> Iterator[tuple[Path, bool]]:
    """Give the hidden folder of a job, and whether it holds what an earlier run of the same job has done.

    It is removed when the work is done and when it cannot be done; an interruption or a full disk leaves it.
    """
    work = output.parent / f".{output.name}.quantize"
    work.mkdir(parents=True, exist_ok=True)
    with _locked(work):
        resumed = _same_job(work, job)
        for rest in work.iterdir():  # of another job, or of a file that was being written when a run was killed
            if not resumed or rest.name.startswith(".") or rest.is_dir():
                shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
        try:
            check_space(output, max(0, needed - sum(file.stat().st_size for file in work.glob("*.safetensors"))))
            (work / JOB).write_text(json.dumps(job), encoding="utf-8")
            yield work, resumed
        except KeyboardInterrupt:
            raise
        except OSError as error:
            if isinstance(error, QuintetError):
                shutil.rmtree(work, ignore_errors=True)
                raise
            raise CheckpointError(
                f"Writing beside '{output}' failed: {error.strerror or error}. What is done is kept in '{work}': free "
                "some space and give the same command again, or remove that folder."
            ) from error
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)


def _same_job(work: Path, job: dict[str, Any]) -> bool:
    try:
        found = json.loads((work / JOB).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == job)


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Let no second run write into the same folder; the system takes the lock away from a run that was killed."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"Another run is at work in '{work}'. Wait for it, or choose another output."
            ) from None
        yield
    finally:
        os.close(descriptor)


def _copy_companions(source: Path, work: Path) -> None:
    """Take along tokenizer, generation_config.json, templates and licences, word for word."""
    for pattern in _COMPANIONS:
        for file in source.glob(pattern):
            weights = file.name.endswith(".index.json") or file.name == "config.json"
            if file.is_file() and not weights and file.stat().st_size <= _LARGEST_COMPANION:
                shutil.copyfile(file, work / file.name)


def _copy_templates(source: Path, output: Path) -> None:
    if (source / _TEMPLATES).is_dir():
        (output / _TEMPLATES).mkdir(exist_ok=True)
        for file in (source / _TEMPLATES).glob("*.jinja"):
            shutil.copyfile(file, output / _TEMPLATES / file.name)
