"""quintet beside llama.cpp at the same shapes and bits: decoding one text and eight, reading a prompt, start, memory.

    python benchmarks/beside_llama.py --llama-python VENV/bin/python --models pythia-410m --formats bf16,int8,int4

VENV is an environment with `llama-cpp-python` compiled for this machine and `gguf`. Both read files with random weights
(gguf_files.py makes llama.cpp's). Every figure comes from a fresh process; the two take turns, round after round, and
llama.cpp runs with flash attention on and off, of which the better counts. Where the files of both do not fit into
memory together, `--warm` brings each in again before its turn. `limit` is the bytes that one token must
read (the file, with of the experts those that are used, and of the embedding one row where it is not the head as well)
over the read bandwidth measured in the same run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common
import families
import gguf_files

# Of quintet: what llama.cpp calls it, and how the linear layers are packed.
FORMATS: dict[str, tuple[str, dict[str, int] | None]] = {
    "bf16": ("bf16", None),
    "int8": ("q8_0", {"bits": 8, "head_bits": 8}),
    "int4": ("q4_0", {"bits": 4, "head_bits": 4}),
}
ROWS = ("load_s", "first_token_s", "prompt_s", "decode_s", "batch_s", "peak_mb")
# Those that memory holds, and what they read.
LIMITED = {"decode_s": "bytes_per_step", "batch_s": "bytes_per_batch"}


def checkpoint(work_dir: Path, name: str, style: str) -> Path:
    """Return a folder with a checkpoint in that format, made once."""
    folder = work_dir / f"{name}-{style}-beside-llama"
    if (folder / "config.json").exists():
        return folder
    from quintet.auto import AutoModelForCausalLM
    from quintet.quant.config import IntegerConfig

    if name == "gpt2":
        plain = common.checkpoint(work_dir, "gpt2")
    elif name == "gpt-oss-20b":
        import gpt_oss_20b

        plain = work_dir / "gpt-oss-20b-mxfp4"
        if not (plain / "config.json").exists():
            config = gpt_oss_20b.config_of(name)
            gpt_oss_20b.write(plain, config, gpt_oss_20b.planned(config))
    elif name.startswith("gpt-oss"):
        plain = families.checkpoint(work_dir, name, "mxfp4")
    else:
        plain = families.checkpoint(work_dir, name, "bf16")
    settings = FORMATS[style][1]
    if settings is None and name != "gpt2":
        return plain
    packing = None if settings is None else IntegerConfig(**settings)
    model = AutoModelForCausalLM.from_pretrained(plain, dtype="bfloat16", quantization_config=packing)
    model.save_pretrained(folder)
    return folder


def child(folder: str, prompt: int, past: int, new: int, sequences: int, repeats: int, activations: str) -> None:
    """Measure quintet: what llama_peer.py measures of llama.cpp, in the same order."""
    started = time.perf_counter()
    import torch

    from quintet.auto import AutoModelForCausalLM
    from quintet.cli.machine import read_bandwidth
    from quintet.quant.packed_experts import PackedExperts
    from quintet.quant.packed_linear import PackedLinear

    common.set_threads(None)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.optimize()
    for module in model.modules():
        if isinstance(module, (PackedLinear, PackedExperts)):
            module.activations = activations
    loaded = time.perf_counter()
    ids = torch.tensor([[(7 * index) % 1000 + 5 for index in range(max(prompt, past))]])

    def step(tokens: Any, cache: Any) -> tuple[float, Any]:
        """Read tokens as `generate` does, up to the scores: neither chooses a token."""
        began = time.perf_counter()
        if cache is None or model.native_step(tokens, cache) is None:
            out = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
        return time.perf_counter() - began, cache

    result: dict[str, Any] = {}
    bandwidth, peaks = [], []
    with torch.inference_mode():
        step(ids[:, :8], None)
        result |= {"load_s": loaded - started, "first_token_s": time.perf_counter() - started}
        result["prompt_s"] = min(step(ids[:, :prompt], None)[0] for _ in range(repeats))
        for name, rows, count in (("decode_s", 1, new), ("batch_s", sequences, max(new // 2, 8))):
            cache = step(ids[:, :past].repeat(rows, 1), None)[1]
            peaks.append(common.peak_rss_mib())
            bandwidth.append(read_bandwidth(seconds=0.3)["gb_s"])  # just before: it changes from minute to minute
            common.forget_peak()  # of that
            steps = []
            for n in range(count):
                # other tokens in each text, as llama_peer.py has them: they ask other experts
                seconds, cache = step(torch.arange(9 + n, 9 + n + rows)[:, None], cache)
                steps.append(seconds)
            result[name] = sorted(steps)[len(steps) // 2]
    result["read_gb_s"] = statistics.mean(bandwidth)
    result["peak_mb"] = max(*peaks, common.peak_rss_mib())
    print(json.dumps(result), flush=True)


def llama(python: str, file: Path, flash: str, args: Any) -> dict[str, Any]:
    """Measure llama.cpp in a process of its own, and memory before and after it."""
    from quintet.cli.machine import read_bandwidth

    bandwidth = [read_bandwidth(seconds=0.3)["gb_s"]]
    command = [python, str(common.ROOT / "benchmarks" / "llama_peer.py"), str(file), "--flash", flash]
    command += ["--threads", str(args.threads or 2), "--prompt", str(args.prompt), "--past", str(args.past)]
    command += ["--new", str(args.new), "--sequences", str(args.sequences), "--repeats", str(args.repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"llama.cpp ended with {done.returncode}: {done.stderr[-300:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    bandwidth.append(read_bandwidth(seconds=0.3)["gb_s"])
    return {**result, "read_gb_s": statistics.mean(bandwidth)}


def warm_up(files: list[Path], others: list[Path]) -> None:
    """Take the others out of the page cache, and bring files into it as their program reads them."""
    import torch

    from quintet.checkpoint.tensorfile import TensorFile

    for file in others:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for file in files:
        if file.suffix == ".safetensors":
            mapped = TensorFile.open(file)
            for key in mapped:
                mapped.get(key).contiguous().view(-1).view(torch.uint8)[::4096].sum()
        else:
            with file.open("rb", buffering=0) as opened:
                while opened.read(1 << 24):
                    pass


def measure(name: str, style: str, args: Any) -> None:
    """Run the rounds of one model and format, and print the result."""
    argv = [__file__, "--make", name, style, str(args.work_dir), str(args.sequences), str(args.past)]
    made = common.run_child(argv)[1]
    folder = Path(made["folder"])
    theirs = FORMATS[style][0]
    file = args.work_dir / f"{name}-{theirs}.gguf"
    if not file.exists():
        script = str(common.ROOT / "benchmarks" / "gguf_files.py")
        command = [args.llama_python, script, "--shape", name, "--format", theirs, "--out", str(file)]
        subprocess.run(command, check=True, stdout=sys.stderr)  # results alone go to the standard output
    sizes = [str(n) for n in (args.prompt, args.past, args.new, args.sequences, args.repeats)]
    kinds = ["bf16", "int8"] if args.activations == "both" else [args.activations]
    runs: dict[str, Any] = {
        **{
            f"quintet-{kind}": lambda kind=kind: common.run_child(
                [__file__, "--child", str(folder), *sizes, kind], args.threads or 2
            )[1]
            for kind in kinds
        },
        **{
            f"llama-{flash}": lambda flash=flash: llama(args.llama_python, file, flash, args)
            for flash in (("on", "off") if args.flash == "both" else (args.flash,))
        },
    }
    found: dict[str, list[dict[str, Any]]] = {key: [] for key in runs}
    counted = args.warm or args.rounds == 0  # else the first fills the page cache and does not count
    for number in range(args.rounds or 1 if counted else args.rounds + 1):
        for key in list(runs)[:: 1 if number % 2 else -1]:
            if args.warm:
                files, others = sorted(folder.glob("*.safetensors")), [file]
                warm_up(*((others, files) if key.startswith("llama") else (files, others)))
            facts = runs[key]()
            print(f"{name} {style}, {key}: {json.dumps(facts)}", file=sys.stderr, flush=True)
            if number or counted:
                found[key].append(facts)
    record: dict[str, Any] = {"model": name, "format": style, "peer": f"llama.cpp {theirs}", "rounds": args.rounds}
    record |= {key: getattr(args, key) for key in ("prompt", "past", "sequences")}
    medians = {
        row: {key: statistics.median(facts[row] for facts in values) for key, values in found.items()}
        for row in (*ROWS, "read_gb_s")
    }
    record["read_gb_s"] = {key: round(value, 1) for key, value in medians["read_gb_s"].items()}
    record |= {"bytes_per_step": made["bytes"], "bytes_per_batch": made["batch_bytes"]}
    for row in ROWS:
        ours, who = common.best_of(medians[row], "quintet")
        ratio = common.ratio(
            {key: [facts[row] for facts in values] for key, values in found.items()},
            over=common.best_of(medians[row], "llama")[1],
            under=who,
        )
        record[row] = {**{k: round(v, 5) for k, v in medians[row].items()}, "ratio": round(ratio, 3)}
        if row in LIMITED:
            limit = record[LIMITED[row]] / medians["read_gb_s"][who] / 1e9
            record[row]["of_limit"] = round(limit / ours, 3)
    common.emit("beside_llama", record, args.threads)


def main() -> None:
    """Measure every model and format."""
    parser = common.parser(__doc__, shape=False)
    parser.add_argument("--llama-python", required=True, help="python of an environment with llama-cpp-python and gguf")
    parser.add_argument("--models", default="gpt2,pythia-410m,seed-oss-1.5b")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--activations", choices=("auto", "bf16", "int8", "both"), default="auto")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--past", type=int, default=64)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--flash", choices=("both", "on", "off"), default="both", help="flash attention of llama.cpp")
    parser.add_argument(
        "--warm", action="store_true", help="bring a file into memory before each process that maps it: both do not fit"
    )
    parser.add_argument("--work-dir", type=Path, default=Path("/tmp/quintet-benchmarks"))
    args = parser.parse_args()
    for name in args.models.split(","):
        if name not in gguf_files.SHAPES:
            parser.error(f"--models {name}: known are {', '.join(gguf_files.SHAPES)}")
        for style in args.formats.split(","):
            measure(name, style, args)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], *(int(n) for n in sys.argv[3:8]), sys.argv[8])
    elif sys.argv[1:2] == ["--make"]:
        from quintet.auto import AutoModelForCausalLM

        made_folder = checkpoint(Path(sys.argv[4]), sys.argv[2], sys.argv[3])
        made_model, (texts, before) = AutoModelForCausalLM.from_pretrained(made_folder), map(int, sys.argv[5:7])
        size, batch = (common.bytes_per_step(made_model, rows, before) for rows in (1, texts))
        print(json.dumps({"folder": str(made_folder), "bytes": size, "batch_bytes": batch}), flush=True)
    else:
        main()
