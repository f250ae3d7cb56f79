"""What a token costs as work grows: milliseconds against the context, tokens per second against the batch; threads.

    python benchmarks/growth.py && python benchmarks/report.py

A slice of gpt-oss (4 layers and 16 experts of the published widths, heads and windows; MXFP4 and bfloat16), the same
with a window in every layer, and 6 layers of Seed-OSS 1.5B; random weights, a head of 16,384 words. The context is
filled with random keys and values: speed does not depend on them. Threads take turns, round after round. Beside the
context stands the limit: the bytes of the weights and of the keys and values that a layer sees, over the read bandwidth
measured in the same run.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import common

WORDS = 16384
# By name: what it is called in tables, its family, its sizes.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt-oss": (
        "gpt-oss, 4 layers, every second one with a window",
        "gpt_oss",
        {"num_hidden_layers": 4, "num_local_experts": 16, "vocab_size": WORDS},
    ),
    "windows": ("gpt-oss, 4 layers, all with a window", "gpt_oss", {}),  # the same file
    "seed-oss": (
        "Seed-OSS, 6 layers",
        "seed_oss",
        {
            **{"hidden_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 16, "num_key_value_heads": 4},
            **{"head_dim": 128, "intermediate_size": 6144, "vocab_size": WORDS},
        },
    ),
    "pythia": (
        "Pythia-410m",
        "gpt_neox",
        {
            **{"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
            **{"vocab_size": 50304, "max_position_embeddings": 65536},
        },
    ),
    "gpt2": ("GPT-2 124M", "gpt2", {"vocab_size": 512, "n_positions": 4096}),  # for steps through its blocks
    "tiny": (
        "tiny",
        "gpt_oss",
        {
            **{"num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 512},
            **{"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
            **{"head_dim": 16, "sliding_window": 8},
        },
    ),
}
PARTS = ("context", "batch", "threads")


def build(name: str, work_dir: Path, packing: str, *, optimize: bool = True) -> Any:
    """Return a model with random weights, ready to decode."""
    import torch

    from quintet.auto import family_of
    from quintet.quant.config import IntegerConfig

    _, family, sizes = MODELS[name]
    record = family_of(family)
    if family == "gpt_oss":
        model = slice_of_gpt_oss(name, work_dir)
    else:
        with torch.device("meta"):
            model = record.classes["causal-lm"](record.config(**sizes))
        model = model.to(torch.bfloat16).to_empty(device="cpu")
        for module in model.modules():
            if hasattr(module, "rebuild_buffers"):
                module.rebuild_buffers(torch.device("cpu"))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.fill_(1) if "norm" in key and key.endswith("weight") else parameter.uniform_(-0.03, 0.03)
    if packing != "none":
        bits = int(packing.removeprefix("int"))
        model.quantize(IntegerConfig(bits, head_bits=bits))
    model.eval()
    if optimize:
        model.optimize()
    return model


def slice_of_gpt_oss(name: str, work_dir: Path) -> Any:
    """Return the model of a file of packed experts, which is made once."""
    import gpt_oss_20b

    from quintet.models.gpt_oss import GptOssConfig, GptOssForCausalLM

    source = "gpt-oss" if name == "windows" else name
    config = GptOssConfig(**MODELS[source][2], eos_token_id=None, pad_token_id=None)
    folder = work_dir / f"growth-{source}"
    if not (folder / "config.json").is_file():
        gpt_oss_20b.write(folder, config, gpt_oss_20b.planned(config))
    config = GptOssConfig.from_pretrained(folder)
    if name == "windows":
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    return GptOssForCausalLM.from_pretrained(folder, config=config)


def filled(model: Any, rows: int, length: int, kind: str = "DynamicCache") -> Any:
    """Return a cache that holds so many tokens of each row."""
    import torch

    from quintet import cache as caches

    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    some = torch.randn(1, heads, min(length, 512), size).to(model.dtype)
    repeats = -(-length // some.shape[2])
    cache = getattr(caches, kind)(config=config)
    for layer in range(config.num_hidden_layers):
        keys = some.repeat(rows, 1, repeats, 1)[:, :, :length]
        cache.update(keys, keys.roll(1, 2), layer)
    return cache


def decoder(model: Any, rows: int, length: int, kind: str = "DynamicCache") -> Callable[[], float]:
    """Return a function that decodes one token of every row behind such a context and returns its seconds."""
    import torch

    cache, tokens = filled(model, rows, length, kind), torch.full((rows, 1), 9)

    def step() -> float:
        began = time.perf_counter()
        model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax(-1)
        return time.perf_counter() - began

    return step


def reader(model: Any, length: int) -> Callable[[], float]:
    """Return a function that reads a prompt and returns its seconds."""
    import torch

    ids = torch.randint(400, (1, length))

    def read() -> float:
        began = time.perf_counter()
        model(ids, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - began

    return read


def in_turns(run: Callable[[], float], threads: Iterable[int], steps: int, rounds: int) -> dict[int, dict[str, Any]]:
    """Return median and range of the rounds' seconds for each number of threads; a round is the median of its steps."""
    import torch

    taken: dict[int, list[float]] = {count: [] for count in threads}
    for number in range(max(1, rounds)):
        for count in list(taken)[:: 1 if number % 2 else -1]:
            torch.set_num_threads(count)
            run()  # wakes the threads, makes room in the cache
            taken[count].append(statistics.median(run() for _ in range(steps)))
    return {count: {"median": statistics.median(v), "range": [min(v), max(v)]} for count, v in taken.items()}


def scaled(stat: dict[str, Any], change: Callable[[float], float]) -> dict[str, Any]:
    """Return a median and its range in another unit."""
    return {"median": round(change(stat["median"]), 3), "range": sorted(round(change(v), 3) for v in stat["range"])}


def context(model: Any, facts: dict[str, Any], args: Any) -> None:
    """Milliseconds of a token against the tokens before it."""
    label = facts["model"] + ("" if args.cache == "DynamicCache" else f", {args.cache}")
    # whole numbers of 8 bits, and a scale of 16 for each 32 of them
    share = 17 / 32 if args.cache == "Int8Cache" else 1
    ms: dict[int, dict[str, Any]] = {count: {} for count in args.threads_list}
    limits: dict[str, float] = {}
    weights = common.bytes_per_step(model)
    for length in args.lengths:
        found = in_turns(decoder(model, 1, length, args.cache), args.threads_list, args.steps, args.rounds)
        for count, stat in found.items():
            ms[count][str(length)] = scaled(stat, lambda seconds: seconds * 1e3)
        size = weights + share * (common.bytes_per_step(model, 1, length) - weights)
        limits[str(length)] = round(size / facts["read_gb_s"] / 1e6, 3)
    for count in args.threads_list:
        common.emit(
            "growth_context", {**facts, "model": label, "threads": count, "ms": ms[count], "limit_ms": limits}, count
        )


def batch(model: Any, facts: dict[str, Any], args: Any) -> None:
    """Tokens a second against the texts that are decoded together."""
    speeds: dict[int, dict[str, Any]] = {count: {} for count in args.threads_list}
    for rows in args.batches:
        found = in_turns(decoder(model, rows, args.past), args.threads_list, max(2, args.steps // 2), args.rounds)
        for count, stat in found.items():
            speeds[count][str(rows)] = scaled(stat, lambda seconds, rows=rows: rows / seconds)
    for count in args.threads_list:
        common.emit("growth_batch", {**facts, "threads": count, "past": args.past, "tok_s": speeds[count]}, count)


def threads(model: Any, facts: dict[str, Any], args: Any) -> None:
    """Tokens a second of one text, decoding and reading a prompt, against threads."""
    decode = in_turns(decoder(model, 1, args.past), args.threads_list, args.steps, args.rounds)
    prompt = in_turns(reader(model, args.prompt), args.threads_list, 1, args.rounds)
    common.emit(
        "growth_threads",
        {
            **{**facts, "past": args.past, "prompt": args.prompt},
            "decode_tok_s": {str(n): scaled(stat, lambda seconds: 1 / seconds) for n, stat in decode.items()},
            "prompt_tok_s": {str(n): scaled(stat, lambda seconds: args.prompt / seconds) for n, stat in prompt.items()},
        },
        max(args.threads_list),
    )


def main() -> None:
    """Measure every part of every model."""
    parser = common.parser(__doc__, shape=False)
    parser.add_argument("--models", default="gpt-oss,windows,seed-oss", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--packing", choices=("none", "int8", "int4"), default="none", help="of the linear layers")
    parser.add_argument("--cache", choices=("DynamicCache", "Int8Cache"), default="DynamicCache", help="of the context")
    parser.add_argument("--lengths", default="512,1024,2048,4096,8192,16384,32768", help="tokens of the context")
    parser.add_argument("--batches", default="1,2,4,8,16,32,64")
    parser.add_argument("--past", type=int, default=512, help="tokens before each row of a batch")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8, help="of a round")
    parser.add_argument("--work-dir", type=Path, default=Path("/tmp/quintet-benchmarks"))
    parser.set_defaults(rounds=3)
    args = parser.parse_args()
    for name, known in (("models", MODELS), ("parts", PARTS)):
        unknown = set(getattr(args, name).split(",")) - set(known)
        if unknown:
            parser.error(f"--{name} {sorted(unknown)[0]}: known are {', '.join(known)}")
    args.lengths, args.batches = ([int(n) for n in value.split(",")] for value in (args.lengths, args.batches))
    import torch

    from quintet.cli.machine import read_bandwidth

    args.threads_list = common.thread_counts(args.threads)
    with torch.inference_mode():
        for name in args.models.split(","):
            model = build(name, args.work_dir, args.packing)
            torch.set_num_threads(max(args.threads_list))
            label = MODELS[name][0] + ("" if args.packing == "none" else f", {args.packing}")
            facts = {"model": label, "read_gb_s": read_bandwidth(seconds=0.6)["gb_s"], "rounds": args.rounds}
            for part in args.parts.split(","):
                if part == "context" or name != "windows":
                    {"context": context, "batch": batch, "threads": threads}[part](model, facts, args)
            del model


if __name__ == "__main__":
    sys.exit(main())
