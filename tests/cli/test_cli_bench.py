"""`quintet bench`: what it measures and says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quintet.cli import bench, bench_worker
from quintet.cli.main import main

FIGURES = ("decode_tok_s", "prefill_tok_s", "batch8_tok_s", "load_s", "peak_rss_mib")


def test_json_is_one_line_with_the_figures_and_what_was_run(tiny_gpt2: Path, capsys):
    argv = [
        "bench",
        str(tiny_gpt2),
        "--runs",
        "1",
        "--threads",
        "1",
        "--precision",
        "bf16",
        "--device",
        "cpu",
        "--json",
    ]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    record = json.loads(out)
    assert all(record[name] > 0 for name in FIGURES)
    assert record["model"] == str(tiny_gpt2) and record["precision"] == "bf16"
    assert record["device"] == "cpu" and record["threads"] == 1 and record["runs"] == 1
    # The model holds 128 tokens: a prompt of 32, the token that its prefill gives, and 95 more.
    assert (record["prompt_tokens"], record["decode_tokens"], record["prefill_tokens"]) == (32, 95, 128)
    assert record["batch"] == 8
    for name in FIGURES[:4]:
        low, high = record["range"][name]
        assert low - 0.01 <= record[name] <= high + 0.01
    assert record["peak_rss_mib"] >= record["load_peak_rss_mib"] > 10


def test_the_table_for_people(capsys, monkeypatch, tiny_gpt2):
    facts = {
        "dtype": "float32", "device": "cpu", "threads": 2, "parameters": 1234567, "load_peak_rss_mib": 200.0,
        "peak_rss_mib": 300.0, "prompt_tokens": 32, "decode_tokens": 128, "prefill_tokens": 512,
        "packed": [],
        "runs": {"decode": [10.0, 30.0, 20.0], "prefill": [1000.0, 1000.0, 4000.0], "batch": [80.0, 90.0, 100.0]},
    }  # fmt: skip
    monkeypatch.setattr(bench, "_worker", lambda task: (1.5, facts))
    assert main(["bench", str(tiny_gpt2), "--runs", "3"]) == 0
    out = capsys.readouterr().out
    assert "1,234,567 parameters in fp32\n" in out and "cpu, 2 threads; medians of 3 runs" in out
    assert "20.0 tokens/s (128 tokens after a prompt of 32; 10.0 to 30.0)" in out
    assert "1,000.0 tokens/s (a prompt of 512; " in out and "batch of 8" in out
    assert "1.50 s from the start of the process" in out and "300 MiB (200 MiB once loaded)" in out
    facts["packed"] = ["mxfp4", "int8"]
    assert main(["bench", str(tiny_gpt2), "--runs", "3"]) == 0
    assert "1,234,567 parameters in mxfp4+int8, the rest in fp32" in capsys.readouterr().out


def test_a_packed_precision(tiny_gpt2, capsys):
    assert main(["bench", str(tiny_gpt2), "--runs", "1", "--threads", "1", "--precision", "int4", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["precision"], record["dtype"]) == ("int4", "fp32") and all(record[figure] > 0 for figure in FIGURES)


@pytest.mark.parametrize("precision", [None, "mxfp4+int8"])
def test_a_published_gpt_oss_and_the_rest_in_8_bits(precision, tmp_path, capsys, monkeypatch):
    from quintet import GptOssForCausalLM
    from quintet.models.gpt_oss import tiny

    model = GptOssForCausalLM(tiny()).bfloat16()
    model.quantize("mxfp4")
    model.save_pretrained(tmp_path)
    seen = []
    monkeypatch.setattr(bench_worker, "_say", seen.append)
    monkeypatch.setattr(bench_worker, "_speeds", lambda *args: {})
    task = {"model": str(tmp_path), "revision": None, "device": "cpu", "threads": 1, "load_only": False}
    assert bench_worker.main({**task, **bench._precision(precision)}) == 0
    result = seen[-1]["result"]
    assert (result["packed"], result["dtype"]) == (["mxfp4", "int8"] if precision else ["mxfp4"], "bfloat16")


def test_an_unknown_precision_suggests_the_nearest(capsys):
    assert main(["bench", "storyteller", "--precision", "pf16"]) == 2
    err = capsys.readouterr().err
    assert "unknown --precision 'pf16'." in err and "Did you mean" in err
    assert "fp32, bf16, fp16, int8, int4, mxfp4, mxfp4+int8, mxfp4+int4." in err


def test_the_error_of_the_measuring_process_is_told(capsys):
    assert main(["bench", "no-such/model", "--runs", "1"]) == 1
    err = capsys.readouterr().err
    assert "no-such/model" in err and err.startswith("quintet: error: ") and err.count("\n") == 1


def test_a_killed_measuring_process_is_told(monkeypatch, capsys):
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    popen = bench.subprocess.Popen
    monkeypatch.setattr(
        bench.subprocess, "Popen", lambda command, **kwargs: popen([command[0], "-c", killed], **kwargs)
    )
    assert main(["bench", "storyteller", "--runs", "1"]) == 1
    assert "ended early (signal 9)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [
        (None, (32, 128, 512)),
        (1024, (32, 128, 512)),
        (512, (32, 128, 512)),
        (160, (32, 127, 160)),
        (40, (20, 19, 40)),
        (4, (2, 1, 4)),
    ],
)
def test_sizes_never_pass_the_limit_of_the_model(limit, sizes):
    task = {"prompt_tokens": 32, "decode_tokens": 128, "prefill_tokens": 512}
    assert tuple(bench_worker._sizes(limit, task).values()) == sizes


def test_a_model_too_short_to_measure_is_refused():
    from quintet.errors import QuintetError

    with pytest.raises(QuintetError, match="holds 2 tokens, too few to measure"):
        bench_worker._sizes(2, {"prompt_tokens": 32, "decode_tokens": 128, "prefill_tokens": 512})
