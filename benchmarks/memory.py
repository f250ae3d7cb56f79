"""Peak memory of a fresh process that loads a model and generates 64 tokens, quintet against transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import common


def child(peer: str, folder: str, dtype: str, tokens: str) -> None:
    """Load, generate, report."""
    import torch

    model = common.load_model(peer, Path(folder), dtype)
    loaded = common.peak_rss_mib()
    prompt = torch.zeros(1, 32, dtype=torch.long)
    model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=int(tokens), pad_token_id=0
    )
    print(json.dumps({"loaded_mib": loaded, "peak_rss_mib": common.peak_rss_mib()}), flush=True)


def main() -> None:
    """Measure every dtype."""
    if len(sys.argv) == 6 and sys.argv[1] == "--child":
        return child(*sys.argv[2:])
    parser = common.parser(__doc__)
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--tokens", type=int, default=64)
    parser.set_defaults(rounds=2)
    args = parser.parse_args()
    folder = common.checkpoint(args.work_dir, args.model_shape)
    for dtype in args.dtypes.split(","):
        loaded: dict[str, float] = {}

        def one(peer: str, dtype: str = dtype, loaded: dict[str, float] = loaded) -> float:
            argv = [__file__, "--child", peer, str(folder), dtype, str(args.tokens)]
            facts = common.run_child(argv, args.threads)[1]
            loaded[peer] = facts["loaded_mib"]
            return float(facts["peak_rss_mib"])

        values = common.alternate({peer: lambda peer=peer: one(peer) for peer in common.PEERS}, args.rounds)
        common.emit(
            "memory",
            {
                "model": args.model_shape,
                "dtype": dtype,
                "tokens": args.tokens,
                "file_mib": round((folder / "model.safetensors").stat().st_size / 2**20, 1),
                "rounds": len(values["quintet"]),
                "peak_rss_mib": common.summary(values, 1),
                "loaded_mib": loaded,
                "ratio": round(common.ratio(values, *common.PEERS), 3),
            },
            args.threads,
        )
    return None


if __name__ == "__main__":
    main()
