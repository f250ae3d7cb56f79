"""`quintet bench`: how fast a model is on this machine, and how much memory it takes.

Loads no torch itself: every figure comes from a fresh process (`bench_worker`), as a user's own would be.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from quintet.cli.common import (
    DTYPES,
    add_examples,
    add_json,
    add_machine_options,
    positive_int,
    print_json,
    print_table,
)
from quintet.errors import QuintetError, UsageError, suggest

__all__ = ["add_arguments", "run"]

PRECISIONS = ("fp32", "bf16", "fp16")
# Of weights that are packed while they are loaded: linear layers, experts, or both; what stays plain is as stored.
PACKED = ("int8", "int4", "mxfp4", "mxfp4+int8", "mxfp4+int4")
PROMPT, DECODE, PREFILL, BATCH = 32, 128, 512, 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s MODEL [options]"
    add_examples(
        parser,
        "quintet bench storyteller",
        "quintet bench ./my-gpt2 --precision bf16 --threads 4",
        "quintet bench ./my-gpt2 --precision int8",
        "quintet bench ./my-gpt2 --json >> results.jsonl",
    )
    parser.add_argument("model", metavar="MODEL", help="a folder, a name on the hub, or storyteller")
    parser.add_argument(
        "--precision",
        metavar="P",
        help=f"number format of the weights: {', '.join(PRECISIONS + PACKED)} (default: as stored)",
    )
    parser.add_argument("--runs", type=positive_int, default=5, metavar="N", help="medians of so many (default: 5)")
    add_machine_options(parser)
    add_json(parser, "decode_tok_s, prefill_tok_s, batch8_tok_s, load_s, peak_rss_mib and what was run")


def run(args: argparse.Namespace) -> int:
    """Measure in fresh processes and print the medians."""
    task = {
        "model": args.model,
        "revision": args.revision,
        **_precision(args.precision),
        "device": args.device,
        "threads": args.threads,
        "runs": args.runs,
        "batch": BATCH,
        "prompt_tokens": PROMPT,
        "decode_tokens": DECODE,
        "prefill_tokens": PREFILL,
    }
    loads = [_worker({**task, "load_only": True})[0] for _ in range(args.runs)]
    _, facts = _worker({**task, "load_only": False})
    record = _record(args.model, loads, facts)
    if args.json:
        print_json(record)
    else:
        print_table(_rows(record))
    return 0


def _precision(name: str | None) -> dict[str, str | None]:
    """Return what the model is loaded with for `--precision name`.

    Raises:
        UsageError: there is no such precision.
    """
    if name in PACKED:
        return {"dtype": "auto", "quantization": name}
    if name is not None and name not in PRECISIONS:
        allowed = PRECISIONS + PACKED
        raise UsageError(
            f"unknown --precision {name!r}.{suggest(name, allowed)} The precisions are {', '.join(allowed)}."
        )
    return {"dtype": DTYPES[name or "auto"], "quantization": None}


def _worker(task: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Run one worker; return the seconds from its start until its model can run, and what it measured.

    Raises:
        QuintetError: the worker failed; its own message.
    """
    command = [sys.executable, "-m", "quintet.cli.bench_worker", json.dumps(task)]
    ready, result = 0.0, None
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout or ():
                answer = json.loads(line)
                if "error" in answer:
                    raise QuintetError(answer["error"])
                if "ready" in answer:
                    ready = time.perf_counter() - began
                result = answer.get("result")
        except BaseException:
            process.terminate()
            raise
    if result is None:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        raise QuintetError(
            f"the measuring process ended early ({how}); signal 9 mostly means that the memory did not suffice. "
            "Take a smaller model or a smaller --precision."
        )
    return ready, result


def _record(model: str, loads: list[float], facts: dict[str, Any]) -> dict[str, Any]:
    """The medians, and everything that says what was run."""
    short = {long: name for name, long in DTYPES.items()}
    plain = short.get(facts["dtype"], facts["dtype"])
    runs = facts["runs"]
    record: dict[str, Any] = {
        "model": model,
        "precision": "+".join(facts["packed"]) or plain,
        "dtype": plain,
        "device": facts["device"],
        "threads": facts["threads"],
        "parameters": facts["parameters"],
        "decode_tok_s": _median(runs["decode"]),
        "prefill_tok_s": _median(runs["prefill"]),
        "batch8_tok_s": _median(runs["batch"]),
        "load_s": round(statistics.median(loads), 3),
        "peak_rss_mib": facts["peak_rss_mib"],
        "load_peak_rss_mib": facts["load_peak_rss_mib"],
        "runs": len(loads),
        "range": {
            "decode_tok_s": _range(runs["decode"]),
            "prefill_tok_s": _range(runs["prefill"]),
            "batch8_tok_s": _range(runs["batch"]),
            "load_s": _range(loads),
        },
        "batch": BATCH,
        **{name: facts[name] for name in ("prompt_tokens", "decode_tokens", "prefill_tokens")},
    }
    if "peak_device_mib" in facts:
        record["peak_device_mib"] = facts["peak_device_mib"]
    return record


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 2)


def _range(values: list[float]) -> list[float]:
    return [round(min(values), 3), round(max(values), 3)]


def _rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The record as lines of a table."""

    def speed(name: str, how: str) -> str:
        low, high = record["range"][name]
        return f"{record[name]:,.1f} tokens/s ({how}; {low:,.1f} to {high:,.1f})"

    after = f"{record['decode_tokens']} tokens after a prompt of {record['prompt_tokens']}"
    packed = f", the rest in {record['dtype']}" if record["precision"] != record["dtype"] else ""
    rows = [
        ("model", f"{record['model']}, {record['parameters']:,} parameters in {record['precision']}{packed}"),
        ("machine", f"{record['device']}, {record['threads']} threads; medians of {record['runs']} runs"),
        ("decode", speed("decode_tok_s", after)),
        ("prefill", speed("prefill_tok_s", f"a prompt of {record['prefill_tokens']}")),
        (f"batch of {record['batch']}", speed("batch8_tok_s", f"each {after}")),
        ("load", f"{record['load_s']:.2f} s from the start of the process until the model has run once"),
    ]
    if record["peak_rss_mib"] is not None:
        loaded = f"{record['load_peak_rss_mib']:,.0f} MiB once loaded"
        rows.append(("peak memory", f"{record['peak_rss_mib']:,.0f} MiB ({loaded})"))
    if "peak_device_mib" in record:
        rows.append(("peak on GPU", f"{record['peak_device_mib']:,.0f} MiB"))
    return rows
