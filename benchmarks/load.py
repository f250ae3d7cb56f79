"""Seconds from the start of a process until a model from disk has run once, and its peak memory.

Fresh processes, quintet and transformers alternating; the first round, not counted, leaves the file in the page cache.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import common


def child(peer: str, folder: str, dtype: str) -> None:
    """Load, run one token, report."""
    import torch

    model = common.load_model(peer, Path(folder), dtype)
    with torch.inference_mode():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long))
    print(json.dumps({"peak_rss_mib": common.peak_rss_mib()}), flush=True)


def main() -> None:
    """Measure every dtype."""
    if len(sys.argv) == 5 and sys.argv[1] == "--child":
        return child(*sys.argv[2:])
    parser = common.parser(__doc__)
    parser.add_argument("--dtypes", default="fp32,bf16")
    args = parser.parse_args()
    folder = common.checkpoint(args.work_dir, args.model_shape)
    for dtype in args.dtypes.split(","):
        peaks: dict[str, list[float]] = {peer: [] for peer in common.PEERS}

        def one(peer: str, dtype: str = dtype, peaks: dict[str, list[float]] = peaks) -> float:
            seconds, facts = common.run_child([__file__, "--child", peer, str(folder), dtype], args.threads)
            peaks[peer].append(facts["peak_rss_mib"])
            return seconds

        values = common.alternate({peer: lambda peer=peer: one(peer) for peer in common.PEERS}, args.rounds)
        common.emit(
            "load",
            {
                "model": args.model_shape,
                "dtype": dtype,
                "file_mib": round((folder / "model.safetensors").stat().st_size / 2**20, 1),
                "rounds": len(values["quintet"]),
                "seconds": common.summary(values, 3),
                "ratio": round(common.ratio(values, *reversed(common.PEERS)), 3),
                "peak_rss_mib": {peer: max(peaks[peer]) for peer in peaks},
            },
            args.threads,
        )
    return None


if __name__ == "__main__":
    main()
