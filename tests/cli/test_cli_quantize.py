"""`quintet quantize`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from quintet.cli.main import main


def test_it_quantises_and_the_result_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["--format", "int4", "--group-size", "64", "--asymmetric", "--head", "int8", "--dtype", "fp16"]
    assert main(["quantize", "storyteller", *words, "--skip", "*.h.0.*", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    first, second = captured.out.splitlines()
    assert first.startswith(f"int4: {out}, ") and first.endswith("MB; the weights were 8.7 MB")
    assert second == "13 weights packed" and captured.err == ""
    said = json.loads((out / "config.json").read_text())["quantization_config"]
    weights = said["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["symmetric"]) == (4, 64, False)
    assert "transformer.h.0.mlp.c_fc" in said["ignore"]
    assert main(["generate", "--model", str(out), "--max-new-tokens", "3", "--seed", "1", "Once upon"]) == 0


@pytest.mark.parametrize(
    ("style", "choice"), [("int8", "int8"), ("int4", "bf16"), ("mxfp4", "int8"), ("mxfp4+int4", "int8"), ("int8", None)]
)
def test_activations_are_what_a_loaded_model_is_told(style: str, choice: str | None, tmp_path: Path) -> None:
    from quintet import AutoModelForCausalLM
    from quintet.models import gpt_oss, seed_oss

    source, out = tmp_path / "source", tmp_path / "out"
    if "mxfp4" in style:
        gpt_oss.GptOssForCausalLM(gpt_oss.tiny()).save_pretrained(source)
    else:
        seed_oss.SeedOssForCausalLM(seed_oss.tiny(intermediate_size=64)).save_pretrained(source)
    words = [] if choice is None else ["--activations", choice]
    assert main(["quantize", str(source), "--format", style, *words, "--out", str(out)]) == 0
    modules = AutoModelForCausalLM.from_pretrained(out).modules()
    told = [(type(module).__name__, module.activations) for module in modules if hasattr(module, "activations")]
    kinds = {"int8": "Int8Linear", "int4": "Int4Linear", "mxfp4": "PackedExperts"}
    assert set(told) == {(kinds[name], choice or "auto") for name in style.split("+")}


def test_json_and_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a king who had a great forest near his palace. " * 20)
    words = ["--format", "int4", "--calibrate", str(text), "--out", str(tmp_path / "out"), "--json"]
    assert main(["quantize", "storyteller", *words]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["calibrated"] is True and record["packed_weights"] == 16 and record["resumed"] is False
    assert record["format"] == "int4" and record["bytes"] < record["bytes_before"]
    assert set(record["files"]) == {path.name for path in (tmp_path / "out").iterdir()}


def test_bars_on_a_terminal(tmp_path: Path, monkeypatch: Any, capsys: Any, tiny_gpt2: Path) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    text = tmp_path / "text.txt"
    text.write_text("The cat said nothing. " * 9)
    words = ["--format", "int8", "--calibrate", str(text), "--out", str(tmp_path / "out")]
    assert main(["quantize", str(tiny_gpt2), *words]) == 0
    err = capsys.readouterr().err
    assert "8/8" in err and "layer/s" in err and "100%" in err and "B/s" in err


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, tiny_gpt2: Path, monkeypatch: Any, capsys: Any) -> None:
    from quintet.cli import quantize as command

    def interrupted(self: Any, done: int, total: int) -> None:
        raise KeyboardInterrupt

    words = ["quantize", str(tiny_gpt2), "--format", "int8", "--out", str(tmp_path / "out"), "--json"]
    with monkeypatch.context() as patch:
        patch.setattr(command.ByteBar, "__call__", interrupted)
        assert main(words) == 130
    assert "interrupted. Give the same command again to go on where it was." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["resumed"] is True


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--format", "int5"], 2, "invalid choice: 'int5'"),
        ([], 2, "the following arguments are required: --format"),
        (["--format", "mxfp4", "--head", "int8"], 2, "--head is for linear layers, and --format mxfp4 packs experts"),
        (["--format", "mxfp4", "--group-size", "32"], 2, "--group-size is for linear layers"),
        (["--format", "int8", "--activations", "fp8"], 2, "invalid choice: 'fp8'"),
        (["--format", "int8", "--asymmetric"], 2, "--asymmetric is for int4: 8 bits have no zero points"),
        (["--format", "int4", "--group-size", "48"], 1, "group_size is 48, but must be a multiple of 32"),
        (["--format", "int4", "--group-size", "0"], 2, "'0' is not a whole number of at least 1"),
        (["--format", "mxfp4"], 1, "has no experts to pack"),
        (["--format", "int8", "--skip", "*"], 1, "no linear layer to pack but those to skip"),
        (["--format", "int8", "--calibrate", "no-such-file"], 1, "there is no file 'no-such-file'"),
        (["--format", "int8", "--max-shard-size", "big"], 1, "max_shard_size='big' is not a size"),
    ],
)
def test_what_is_refused(
    words: list[str], code: int, message: str, tmp_path: Path, tiny_gpt2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(tiny_gpt2), *words, "--out", str(tmp_path / "out")]) == code
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(tmp_path / "no"), "--format", "int8", "--out", str(tmp_path / "out")]) == 1
    assert "no" in capsys.readouterr().err and not list(tmp_path.iterdir())
