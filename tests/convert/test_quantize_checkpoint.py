"""Packing a checkpoint on disk: the result, what is taken along, interruptions, and what is refused."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quintet.auto import family_of
from quintet.checkpoint import TensorFile, find_weights
from quintet.convert import quantize, run
from quintet.convert.quantize import quantize_checkpoint
from quintet.errors import CheckpointError, ConfigError, InputError
from quintet.quant.config import IntegerConfig, Mxfp4Config, Quantization

IDS = torch.randint(0, 90, (20, 12), generator=torch.Generator().manual_seed(3))


def save(folder: Path, family: str, task: str = "causal-lm", **options: Any) -> Any:
    """Write a tiny model, and return its class."""
    record = family_of(family)
    torch.manual_seed(0)
    wide = {"intermediate_size": 64} if family in ("gpt_neox", "seed_oss") else {}
    model = record.classes[task](record.tiny(**{**wide, **options}))
    model.save_pretrained(folder, max_shard_size=60_000)
    return type(model)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = [TensorFile.open(path) for path in find_weights(folder)]
    return {name: file.get(name) for file in files for name in file}


def same(one: Path, other: Path) -> None:
    """Check that two folders hold the same weights and configuration."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert json.loads((one / "config.json").read_text()) == json.loads((other / "config.json").read_text())


CASES: list[tuple[str, str, Any]] = [
    ("gpt2", "causal-lm", "int8"),
    ("gpt2", "causal-lm", IntegerConfig(4, head_bits=8)),
    ("gpt2", "sequence-classification", "int4"),
    ("openai-gpt", "causal-lm", IntegerConfig(4, symmetric=False)),
    ("gpt_neox", "causal-lm", IntegerConfig(8, group_size=32, modules_to_not_convert=["*.attention"])),
    ("seed_oss", "causal-lm", IntegerConfig(4, head_bits=4)),
    ("gpt_oss", "causal-lm", "mxfp4"),
    ("gpt_oss", "causal-lm", Quantization(Mxfp4Config(), IntegerConfig(4))),
]


@pytest.mark.parametrize("limit", [20_000, "2GB"])
@pytest.mark.parametrize(("family", "task", "asked"), CASES)
def test_it_is_what_packing_while_loading_gives(
    family: str, task: str, asked: Any, limit: int | str, tmp_path: Path
) -> None:
    kind = save(tmp_path / "plain", family, task)
    kind.from_pretrained(tmp_path / "plain", quantization_config=asked).save_pretrained(tmp_path / "want")
    seen: list[tuple[int, int]] = []
    done = quantize_checkpoint(
        tmp_path / "plain",
        tmp_path / "out",
        asked,
        max_shard_size=limit,
        progress=lambda at, total: seen.append((at, total)),
    )
    same(tmp_path / "out", tmp_path / "want")
    assert (tmp_path / "out" / "generation_config.json").exists() == (
        tmp_path / "plain/generation_config.json"
    ).exists()
    assert seen[-1][0] == seen[-1][1] and [at for at, _ in seen] == sorted(at for at, _ in seen)
    assert done.packed > 0 and not done.resumed and done.size < done.plain_size
    assert len(find_weights(tmp_path / "out")) > 1 if limit == 20_000 else len(find_weights(tmp_path / "out")) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "plain", "want"]
    kind.from_pretrained(tmp_path / "out")


def test_another_type(tmp_path: Path) -> None:
    kind = save(tmp_path / "plain", "gpt2")
    loaded = kind.from_pretrained(tmp_path / "plain", dtype="bfloat16", quantization="int4")
    loaded.save_pretrained(tmp_path / "want")
    quantize_checkpoint(tmp_path / "plain", tmp_path / "out", "int4", dtype="bfloat16")
    same(tmp_path / "out", tmp_path / "want")


def test_published_experts_stay_as_they_are(tmp_path: Path) -> None:
    kind = save(tmp_path / "plain", "gpt_oss")
    quantize_checkpoint(tmp_path / "plain", tmp_path / "published", "mxfp4")
    kind.from_pretrained(tmp_path / "published", quantization="int8").save_pretrained(tmp_path / "want")
    quantize_checkpoint(tmp_path / "published", tmp_path / "out", "mxfp4+int8")
    same(tmp_path / "out", tmp_path / "want")


@pytest.mark.parametrize(
    ("family", "asked"),
    [("gpt2", IntegerConfig(4, head_bits=4)), ("gpt_oss", Quantization(Mxfp4Config(), IntegerConfig(4)))],
)
def test_a_calibration_is_that_of_the_model(family: str, asked: Any, tmp_path: Path) -> None:
    kind = save(tmp_path / "plain", family)
    model = kind.from_pretrained(tmp_path / "plain")
    model.quantize(asked, calibration=IDS)
    model.save_pretrained(tmp_path / "want")
    layers: list[tuple[int, int]] = []
    quantize_checkpoint(
        tmp_path / "plain",
        tmp_path / "out",
        asked,
        calibration=IDS,
        calibrating=lambda at, total: layers.append((at, total)),
    )
    same(tmp_path / "out", tmp_path / "want")
    assert layers == [(at + 1, len(layers)) for at in range(len(layers))]


def test_what_stands_beside_the_weights_is_taken_along(tiny_gpt2: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_gpt2, source)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("{{ rag }}")
    (source / "LICENSE").write_text("free")
    (source / "pytorch_model.bin").write_text("a pickle")
    (source / "model.safetensors.index.json.old").write_text("")
    quantize_checkpoint(source, tmp_path / "out", "int8")
    names = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    copied = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert copied == names - {"pytorch_model.bin", "model.safetensors.index.json.old"}
    for name in copied - {"config.json", "model.safetensors"}:
        assert (source / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


# --- interruptions ---


class Stop:
    """Interrupts at the n-th call."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.left, self.error = at, error

    def __call__(self, done: int, total: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    kind = save(tmp_path / "plain", "gpt2")
    options: dict[str, Any] = {"max_shard_size": 20_000}
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(
            tmp_path / "plain", tmp_path / "out", "int8", progress=Stop(12, KeyboardInterrupt()), **options
        )
    assert not (tmp_path / "out").exists()
    work = tmp_path / ".out.quantize"
    made = {path.name: path.stat().st_ino for path in work.glob("model-*.safetensors")}
    assert made and not list(work.glob(".*.tmp"))
    done = quantize_checkpoint(tmp_path / "plain", tmp_path / "out", "int8", **options)
    assert done.resumed and not work.exists()
    assert {name: (tmp_path / "out" / name).stat().st_ino for name in made} == made
    kind.from_pretrained(tmp_path / "plain", quantization="int8").save_pretrained(tmp_path / "want")
    same(tmp_path / "out", tmp_path / "want")


KILLED = """
import os, signal, sys
from quintet.convert.quantize import quantize_checkpoint
seen = []
def kill(done, total):
    seen.append(done)
    if len(seen) == 12:
        os.kill(os.getpid(), signal.SIGKILL)
quantize_checkpoint(sys.argv[1], sys.argv[2], "int4", max_shard_size=8_000, progress=kill)
"""


def test_a_killed_run_too(tmp_path: Path) -> None:
    kind = save(tmp_path / "plain", "gpt2")
    words = [sys.executable, "-c", KILLED, str(tmp_path / "plain"), str(tmp_path / "out")]
    assert subprocess.run(words, check=False).returncode == -9
    work = tmp_path / ".out.quantize"
    assert list(work.glob("model-*.safetensors")) and list(work.glob(".*.tmp"))
    assert quantize_checkpoint(tmp_path / "plain", tmp_path / "out", "int4", max_shard_size=8_000).resumed
    kind.from_pretrained(tmp_path / "plain", quantization="int4").save_pretrained(tmp_path / "want")
    same(tmp_path / "out", tmp_path / "want")


def test_a_calibration_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quintet.quant import calibration

    save(tmp_path / "plain", "gpt2")
    quantize_checkpoint(tmp_path / "plain", tmp_path / "want", "int4", calibration=IDS)
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(
            tmp_path / "plain", tmp_path / "out", "int4", calibration=IDS, calibrating=Stop(5, KeyboardInterrupt())
        )
    assert [path.name for path in (tmp_path / ".out.quantize").glob("block-*")] == ["block-00000.safetensors"]
    rounded: list[str] = []
    plain = calibration.round_compensating

    def watched(*args: Any, name: str, **kwargs: Any) -> Any:
        rounded.append(name)
        return plain(*args, name=name, **kwargs)

    monkeypatch.setattr(calibration, "round_compensating", watched)
    assert quantize_checkpoint(tmp_path / "plain", tmp_path / "out", "int4", calibration=IDS).resumed
    assert rounded and all(name.startswith("transformer.h.1.") for name in rounded)
    same(tmp_path / "out", tmp_path / "want")


@pytest.mark.parametrize("change", ["format", "file", "calibration"])
def test_another_job_begins_anew(change: str, tmp_path: Path) -> None:
    save(tmp_path / "plain", "gpt2")
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(
            *(tmp_path / "plain", tmp_path / "out", "int8"),
            max_shard_size=20_000,
            progress=Stop(12, KeyboardInterrupt()),
        )
    if change == "file":
        save(tmp_path / "plain", "gpt2", initializer_range=0.3)
    asked = "int4" if change == "format" else "int8"
    options: dict[str, Any] = {"calibration": IDS} if change == "calibration" else {}
    done = quantize_checkpoint(tmp_path / "plain", tmp_path / "out", asked, max_shard_size=20_000, **options)
    assert not done.resumed
    quantize_checkpoint(tmp_path / "plain", tmp_path / "want", asked, max_shard_size=20_000, **options)
    same(tmp_path / "out", tmp_path / "want")


def test_a_full_disk_keeps_what_is_done(tmp_path: Path) -> None:
    save(tmp_path / "plain", "gpt2")
    full = Stop(12, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(CheckpointError, match=r"No space left on device. What is done is kept in '.*\.out\.quantize'"):
        quantize_checkpoint(tmp_path / "plain", tmp_path / "out", "int8", max_shard_size=20_000, progress=full)
    assert not (tmp_path / "out").exists()
    assert quantize_checkpoint(tmp_path / "plain", tmp_path / "out", "int8", max_shard_size=20_000).resumed


def test_only_one_run_at_a_time(tmp_path: Path) -> None:
    save(tmp_path / "plain", "gpt2")

    def second(done: int, total: int) -> None:
        with pytest.raises(CheckpointError, match="Another run is at work in"):
            quantize_checkpoint(tmp_path / "plain", tmp_path / "out", "int8")

    quantize_checkpoint(tmp_path / "plain", tmp_path / "out", "int8", progress=second)


# --- what is refused ---


def short_of_space(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(run.shutil, "disk_usage", lambda _: usage._replace(free=(16 << 20) + 1000))


@pytest.mark.parametrize(
    ("asked", "error", "match"),
    [
        ("mxfp4", ConfigError, "has no experts to pack"),
        ("int3", ConfigError, "quantization='int3' is not known. Use one of mxfp4, int8, int4"),
        (IntegerConfig(4, group_size=96), InputError, "which groups of 96 do not divide"),
        (IntegerConfig(8, modules_to_not_convert=["*"]), ConfigError, "no linear layer to pack but those to skip"),
    ],
)
def test_formats_that_do_not_fit(asked: Any, error: type[Exception], match: str, tmp_path: Path) -> None:
    save(tmp_path / "plain", "gpt2")
    with pytest.raises(error, match=match):
        quantize_checkpoint(tmp_path / "plain", tmp_path / "out", asked)
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_folders_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, out = tmp_path / "plain", tmp_path / "out"
    save(plain, "gpt2")
    with pytest.raises(CheckpointError, match="'.*nothing' is not a folder"):
        quantize_checkpoint(tmp_path / "nothing", out, "int8")
    with pytest.raises(CheckpointError, match="is the source too. Give another folder"):
        quantize_checkpoint(plain, plain, "int8", force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="'.*file' is a file, and a folder is needed"):
        quantize_checkpoint(plain, tmp_path / "file", "int8")
    out.mkdir()
    (out / "model-00001-of-00002.safetensors").write_text("old")
    with pytest.raises(CheckpointError, match="holds files already"):
        quantize_checkpoint(plain, out, "int8")
    with monkeypatch.context() as patch:
        short_of_space(patch)
        with pytest.raises(CheckpointError, match="takes about 0.00 GB, and '.*' has 0.02 GB free"):
            quantize_checkpoint(plain, out, "int8", force=True)
    quantize_checkpoint(plain, out, "int8", force=True)
    assert [path.name for path in find_weights(out)] == ["model.safetensors"]
    with pytest.raises(CheckpointError, match=r"packed already \(compressed-tensors\). Pack the checkpoint that"):
        quantize_checkpoint(out, tmp_path / "twice", "int4")
    with pytest.raises(ConfigError, match="calibration is for linear layers"):
        quantize_checkpoint(plain, tmp_path / "more", "mxfp4", calibration=IDS)


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop(folder: Path) -> None:
    state = tensors(folder)
    state = {name: tensor.clone() for name, tensor in state.items() if not name.endswith("ln_f.weight")}
    quantize.save_weights(state, folder)


def poison(folder: Path) -> None:
    state = {name: tensor.clone() for name, tensor in tensors(folder).items()}
    state["transformer.h.1.mlp.c_fc.weight"][3, 4] = float("nan")
    quantize.save_weights(state, folder)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (cut, "model.safetensors"),
        (drop, "lacks 1 tensors of GPT2LMHeadModel: transformer.ln_f.weight. Get it again"),
        (poison, "'transformer.h.1.mlp.c_fc.weight' has numbers that are not finite"),
    ],
)
def test_damaged_checkpoints(damage: Callable[[Path], None], match: str, tmp_path: Path) -> None:
    kind = save(tmp_path / "plain", "gpt2")
    kind.from_pretrained(tmp_path / "plain").save_pretrained(tmp_path / "plain")  # in one file
    damage(tmp_path / "plain")
    with pytest.raises((CheckpointError, InputError), match=match):
        quantize_checkpoint(tmp_path / "plain", tmp_path / "out", "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]
