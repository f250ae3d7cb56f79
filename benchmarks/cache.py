"""Microseconds to append one token to a long cache: the growing slab against a concatenation per token."""

from __future__ import annotations

import time

import common


def main() -> None:
    """Measure every length."""
    parser = common.parser(__doc__, shape=False)
    parser.add_argument("--lengths", default="128,1024,4096")
    parser.add_argument("--steps", type=int, default=64)
    args = parser.parse_args()

    import torch

    from quintet.cache import DynamicCache

    threads = common.set_threads(args.threads)
    new = torch.randn(1, 12, 1, 64)
    for length in map(int, args.lengths.split(",")):
        old = torch.randn(1, 12, length, 64)

        def slab(old: torch.Tensor = old) -> float:
            cache = DynamicCache()
            cache.update(old, old, 0)
            began = time.perf_counter()
            for _ in range(args.steps):
                cache.update(new, new, 0)
            return (time.perf_counter() - began) / args.steps * 1e6

        def concatenation(old: torch.Tensor = old) -> float:
            keys = values = old
            began = time.perf_counter()
            for _ in range(args.steps):
                keys, values = torch.cat([keys, new], dim=2), torch.cat([values, new], dim=2)
            return (time.perf_counter() - began) / args.steps * 1e6

        with torch.inference_mode():
            timed = common.alternate({"slab": slab, "concatenation": concatenation}, args.rounds)
        common.emit(
            "cache",
            {
                "length": length,
                "steps": args.steps,
                "us": common.summary(timed, 2),
                "ratio": round(common.ratio(timed, "concatenation", "slab"), 2),
            },
            threads,
        )


if __name__ == "__main__":
    main()
