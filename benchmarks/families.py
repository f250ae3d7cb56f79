"""Decoding, reading a prompt, and memory of the families beside GPT-2, quintet against transformers.

Shapes: Pythia-410m, a Seed-OSS of 1.5B, and 6 layers of gpt-oss-20b, with random weights, in a file. Every figure comes
from a fresh process that loads the file and runs alone; the two libraries take turns, round after round, so that what
else the machine does hits both alike. The slice of gpt-oss is measured in bfloat16 in both, and in quintet alone packed
as MXFP4, as it is published (the reference unpacks it on a CPU).
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import common

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "pythia-410m": (
        "gpt_neox",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "vocab_size": 50304,
        },
    ),
    "seed-oss-1.5b": (
        "seed_oss",
        {
            "hidden_size": 2048,
            "num_hidden_layers": 18,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "intermediate_size": 6144,
        },
    ),
    "gpt-oss-20b-6-layers": (
        "gpt_oss",
        {"num_hidden_layers": 6, "num_local_experts": 32, "eos_token_id": 200002, "pad_token_id": 199999},
    ),
    "tiny-gpt-oss": (
        "gpt_oss",
        {
            "num_hidden_layers": 2,
            "num_local_experts": 4,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 512,
        },
    ),
}
# Name: the types it is measured in. A published Pythia is float16, Seed-OSS and gpt-oss are bfloat16.
DTYPES = {
    "pythia-410m": "fp32,bf16,fp16",
    "seed-oss-1.5b": "fp32,bf16",
    "gpt-oss-20b-6-layers": "bf16,mxfp4",
    "tiny-gpt-oss": "bf16,mxfp4",
}


def checkpoint(work_dir: Path, shape: str, dtype: str) -> Path:
    """Return a folder with random weights of that shape in that type, made once."""
    folder = work_dir / f"{shape}-{dtype}"
    if (folder / "config.json").exists():
        return folder
    import torch

    from quintet.auto import family_of

    family, fields = SHAPES[shape]
    record = family_of(family)
    stored = "bf16" if dtype == "mxfp4" else dtype
    with torch.device("meta"):
        model = record.classes["causal-lm"](record.config(**fields))
    model = model.to(getattr(torch, common.DTYPES[stored])).to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1)
            else:
                parameter.uniform_(-0.03, 0.03)
    if dtype == "mxfp4":
        model.quantize("mxfp4")
    model.save_pretrained(folder)
    return folder


def child(peer: str, folder: str, dtype: str, prompt: str, tokens: str, long: str) -> None:
    """Load, decode, read a long prompt; report."""
    import torch
    from decode import tokens_per_second

    common.set_threads(None)
    began = time.perf_counter()
    if dtype == "mxfp4":
        from quintet.auto import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder)
        model.generation_config.eos_token_id = None
    else:
        model = common.load_model(peer, Path(folder), dtype)
    loaded = time.perf_counter() - began
    torch.manual_seed(1)
    prompts = torch.randint(400, (1, int(prompt)))
    tokens_per_second(model, prompts, 4)
    speeds = [tokens_per_second(model, prompts, int(tokens)) for _ in range(3)]
    decoded = common.peak_rss_mib()
    text = torch.randint(400, (1, int(long)))
    seconds = []
    with torch.no_grad():
        for _ in range(3 if dtype != "mxfp4" else 2):
            began = time.perf_counter()
            model(text, logits_to_keep=1, use_cache=True)
            seconds.append(time.perf_counter() - began)
    print(
        json.dumps(
            {
                "load_s": loaded,
                "decode_tok_s": statistics.median(speeds),
                "prefill_tok_s": int(long) / min(seconds),
                "decode_peak_mib": decoded,
                "peak_mib": common.peak_rss_mib(),
            }
        ),
        flush=True,
    )


def main() -> None:
    """Measure every shape and type."""
    if len(sys.argv) == 8 and sys.argv[1] == "--child":
        return child(*sys.argv[2:])
    parser = common.parser(__doc__, shape=False)
    parser.add_argument("--models", default="pythia-410m,seed-oss-1.5b,gpt-oss-20b-6-layers")
    parser.add_argument("--dtypes", default=None, help="default: those that the model is published or used in")
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--long", type=int, default=512, help="tokens of the long prompt")
    parser.add_argument("--work-dir", type=Path, default=Path("/tmp/quintet-benchmarks"))
    parser.set_defaults(rounds=3)
    args = parser.parse_args()
    for name in args.models.split(","):
        for dtype in (args.dtypes or DTYPES[name]).split(","):
            measure(name, dtype, args)
    return None


def measure(name: str, dtype: str, args: Any) -> None:
    """Run the rounds of one shape and type and print the result."""
    argv = [__file__, "--make", name, dtype, str(args.work_dir)]
    folder = Path(common.run_child(argv)[1]["folder"])  # in a process of its own, so that its memory is given back
    peers = ("quintet",) if dtype == "mxfp4" else common.PEERS
    found: dict[str, dict[str, list[float]]] = {}

    def one(peer: str) -> float:
        sizes = (str(args.prompt), str(args.tokens), str(args.long))
        facts = common.run_child([__file__, "--child", peer, str(folder), dtype, *sizes], args.threads)[1]
        for key, value in facts.items():
            found.setdefault(key, {}).setdefault(peer, []).append(value)
        return float(facts["decode_tok_s"])

    # The first round warms the page cache and does not count.
    common.alternate({peer: lambda peer=peer: one(peer) for peer in peers}, args.rounds)
    counted = {key: {peer: v[1:] or v for peer, v in values.items()} for key, values in found.items()}
    record: dict[str, Any] = {
        "model": name,
        "dtype": dtype,
        "prompt": args.prompt,
        "tokens": args.tokens,
        "long": args.long,
        "rounds": len(counted["load_s"]["quintet"]),
        "file_mib": round(sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 2**20, 1),
        **{key: common.summary(values, 2) for key, values in counted.items()},
    }
    if len(peers) > 1:
        record["ratio"] = {key: round(common.ratio(values, *common.PEERS), 3) for key, values in counted.items()}
    common.emit("families", record, args.threads)


def make(name: str, dtype: str, work_dir: str) -> None:
    """Make a checkpoint and print where it is."""
    print(json.dumps({"folder": str(checkpoint(Path(work_dir), name, dtype))}), flush=True)


if __name__ == "__main__":
    make(*sys.argv[2:]) if len(sys.argv) == 5 and sys.argv[1] == "--make" else main()
