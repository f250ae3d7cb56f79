"""gpt-oss-20b at its published size, experts packed as MXFP4: seconds until ready, memory, seconds per token.

The checkpoint has random weights, is streamed to the disk without being held in memory, and takes 13.8 GB; where memory
or disk are short of that, one line says so and nothing is measured. Speed in plain PyTorch is reported, not promised:
unpacking four bits costs more than reading sixteen. What is measured are fresh processes, with the file in the page
cache; mapped pages of the file count as resident, so the peak is given whole and by kind.
"""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common

READY_S, ABOVE_FILE_GB = 3.0, 1.5  # what is wanted
PIECE = 16 << 20
SHARD = 5 * 10**9
# Published shapes; "tiny" is for trying the script out.
MODELS: dict[str, dict[str, Any]] = {
    "gpt-oss-20b": {"num_hidden_layers": 24, "num_local_experts": 32},
    "tiny": {
        "num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 512, "hidden_size": 64,
        "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    },
}  # fmt: skip


def planned(config: Any) -> list[Any]:
    """Every tensor of the checkpoint, with a way to make its bytes piece by piece."""
    import torch

    from quintet.checkpoint.meta import without_memory
    from quintet.convert.shards import Planned
    from quintet.models.gpt_oss import GptOssForCausalLM

    with without_memory():
        model = GptOssForCausalLM(config)
    torch.manual_seed(0)
    # A piece of each kind of numbers, from which every tensor takes its bytes, each from another place.
    floats = (torch.randn(PIECE // 2) * config.initializer_range).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    ones = torch.ones(1 << 16, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    nibbles = random.Random(0).randbytes(PIECE)
    scales = torch.randint(118, 122, (PIECE,), dtype=torch.uint8).numpy().tobytes()
    made: list[Any] = []

    def add(name: str, dtype: str, shape: tuple[int, ...], stock: bytes) -> None:
        length = math.prod(shape) * (2 if dtype == "BF16" else 1)
        start = random.Random(name).randrange(0, len(stock), 2)
        made.append(Planned(name, dtype, shape, length, lambda: pieces(stock, start, length)))

    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if len(shape) == 3:  # (experts, in, out) becomes (experts, out, in / 32)
            groups = (shape[0], shape[2], shape[1] // 32)
            add(f"{name}_blocks", "U8", (*groups, 16), nibbles)
            add(f"{name}_scales", "U8", groups, scales)
        else:
            add(name, "BF16", shape, ones if "norm" in name else floats)
    return made


def pieces(stock: bytes, start: int, length: int) -> Iterator[memoryview]:
    """So many bytes of an endless repetition of `stock`."""
    view = memoryview(stock)
    while length:
        piece = view[start : start + length]
        yield piece
        length, start = length - len(piece), 0


def write(folder: Path, config: Any, tensors: list[Any]) -> None:
    """Write the checkpoint into a folder."""
    from quintet.convert.shards import write_shards

    folder.mkdir(parents=True, exist_ok=True)
    write_shards(folder, tensors, limit=SHARD, progress=lambda done, total: None)
    config.quantization_config = {"quant_method": "mxfp4", "modules_to_not_convert": None}
    config.to_json_file(folder / "config.json")


def config_of(shape: str) -> Any:
    """The configuration of one of the MODELS."""
    from quintet.models.gpt_oss import GptOssConfig

    return GptOssConfig(**MODELS[shape], eos_token_id=None, pad_token_id=None)


def shortage(folder: Path, size: int, there: bool) -> str | None:
    """Why this machine cannot do it, or None."""
    from quintet.cli.machine import memory

    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if not there and free < size * 1.02:
        return f"the disk of {place} has {free / 1e9:.1f} GB free, and the checkpoint takes {size / 1e9:.1f}"
    available = memory()["available_mib"]
    needed = size + ABOVE_FILE_GB * 1e9
    if available is not None and available * 2**20 < needed:
        return f"{available * 2**20 / 1e9:.1f} GB of memory are available, and {needed / 1e9:.1f} are needed"
    return None


def resident() -> dict[str, int]:
    """Resident bytes of this process, whole and by kind."""
    text = Path("/proc/self/status").read_text()
    found = dict(re.findall(r"^(VmRSS|RssAnon|RssFile):\s+(\d+) kB$", text, re.MULTILINE))
    return {name: int(value) * 1024 for name, value in found.items()}


def child(folder: str, tokens: str, prompt: str) -> None:
    """Load, generate, report; the clock of the parent runs from the start of this process."""
    peak: dict[str, int] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            for name, value in resident().items():
                peak[name] = max(peak.get(name, 0), value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    import torch

    import quintet

    imported = time.perf_counter()
    model = quintet.AutoModelForCausalLM.from_pretrained(folder)
    ready = time.perf_counter()
    loaded = resident()
    model.generation_config.eos_token_id = None
    ids = torch.randint(0, model.config.vocab_size, (1, int(prompt)))
    times: list[float] = []

    class Clock:
        def put(self, value: Any) -> None:
            times.append(time.perf_counter())

        def end(self) -> None:
            pass

    start = time.perf_counter()
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=int(tokens), streamer=Clock(),
        pad_token_id=0,
    )  # fmt: skip
    over.set()
    watcher.join()
    assert out.shape[1] == int(prompt) + int(tokens), "a token for each step"
    print(
        json.dumps(
            {
                "import_s": imported - began,
                "load_s": ready - imported,
                "loaded": loaded,
                "peak": {**peak, "VmHWM": int(common.peak_rss_mib() * 2**20)},
                "prompt_s": times[1] - start,  # the streamer gets the prompt first, then token after token
                "token_s": [after - before for before, after in zip(times[1:], times[2:], strict=False)],
            }
        ),
        flush=True,
    )


def warm(folder: Path) -> None:
    """Read every file once, so that it is in the page cache."""
    buffer = bytearray(PIECE)
    for path in folder.glob("*.safetensors"):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def measure(folder: Path, args: Any, size: int) -> dict[str, Any]:
    """Run the measured processes, one after the other."""
    results = []
    for _ in range(max(1, args.rounds)):
        warm(folder)
        argv = [__file__, "--child", str(folder), str(args.tokens), str(args.prompt)]
        results.append(common.run_child(argv, args.threads)[1])

    def middle(name: str) -> float:
        return round(statistics.median(result[name] for result in results), 6)

    worst = max(results, key=lambda result: result["peak"]["VmHWM"])
    ready = round(statistics.median(result["import_s"] + result["load_s"] for result in results), 3)
    above = (worst["peak"]["VmHWM"] - size) / 1e9
    return {
        "rounds": len(results),
        "import_s": middle("import_s"),
        "load_s": middle("load_s"),
        "ready_s": ready,
        "ready_in_time": ready < READY_S,
        "loaded_gb": {name: round(value / 1e9, 2) for name, value in worst["loaded"].items()},
        "peak_gb": round(worst["peak"]["VmHWM"] / 1e9, 2),
        "peak_anonymous_gb": round(worst["peak"]["RssAnon"] / 1e9, 2),
        "peak_file_gb": round(worst["peak"]["RssFile"] / 1e9, 2),
        "peak_above_file_gb": round(above, 2),
        "peak_in_bounds": above <= ABOVE_FILE_GB,
        "prompt": args.prompt,
        "prompt_s": middle("prompt_s"),
        "tokens": args.tokens,
        "token_s": round(statistics.median(second for result in results for second in result["token_s"]), 6),
    }


def main() -> None:
    """Make the checkpoint, measure, remove it."""
    if len(sys.argv) == 5 and sys.argv[1] == "--child":
        return child(*sys.argv[2:])
    parser = common.parser(__doc__, shape=False)
    parser.add_argument("--model-shape", choices=tuple(MODELS), default="gpt-oss-20b")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the checkpoint is, or is made and stays (default: removed)"
    )
    parser.add_argument("--tokens", type=int, default=8, help="tokens to generate, at least 2")
    parser.add_argument("--prompt", type=int, default=16, help="tokens of the prompt")
    parser.set_defaults(rounds=1)
    args = parser.parse_args()

    config = config_of(args.model_shape)
    tensors = planned(config)
    size = sum(tensor.length for tensor in tensors)
    record: dict[str, Any] = {"model": args.model_shape, "file_gb": round(size / 1e9, 3)}
    parent = args.folder or Path(tempfile.gettempdir())
    there = args.folder is not None and (args.folder / "config.json").is_file()
    reason = shortage(parent, size, there)
    if reason:
        print(f"gpt_oss_20b is skipped: {reason}.", file=sys.stderr)
        return common.emit("gpt_oss_20b", {**record, "skipped": reason}, args.threads)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="quintet-gpt-oss-20b-"))
    try:
        if not there:
            began = time.perf_counter()
            write(folder, config, tensors)
            record["made_s"] = round(time.perf_counter() - began, 1)
        record |= measure(folder, args, size)
    finally:
        if args.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    return common.emit("gpt_oss_20b", record, args.threads)


if __name__ == "__main__":
    main()
