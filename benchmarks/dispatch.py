"""Which part of a decoding step of GPT-2 124M is native kernels, and which is Python and what it calls between them.

Greedy, one text. Native calls are timed one by one; everything else of a step counts as between them: the loop of
`generate`, the choice of the token, checks, and the timing itself. A fifth of a step or less is wanted.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import common
from decode import Clock

FORMATS: dict[str, tuple[str, dict[str, int] | None]] = {
    "fp32": ("fp32", None),
    "bf16": ("bf16", None),
    "int8": ("bf16", {"bits": 8, "head_bits": 8}),
    "int4": ("bf16", {"bits": 4, "head_bits": 4}),
}


class Timed:
    """In the place of the library with the kernels: adds up the seconds of its calls."""

    def __init__(self, native: Any) -> None:
        self._native = native
        self.seconds, self.calls = 0.0, 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._native, name)

        def timed(*given: Any) -> Any:
            began = time.perf_counter()
            code = function(*given)
            self.seconds += time.perf_counter() - began
            self.calls += 1
            return code

        setattr(self, name, timed)
        return timed


class Watch(Clock):
    """A streamer that keeps, for every token, the time and the seconds of native calls so far."""

    def __init__(self, native: Timed) -> None:
        super().__init__()
        self.native = native
        self.seconds: list[float] = []

    def put(self, value: object) -> None:
        """Note both."""
        super().put(value)
        self.seconds.append(self.native.seconds)


def measure(model: Any, prompt: Any, tokens: int) -> dict[str, Any]:
    """Decode and return the medians of a step: whole, native, and the part between native calls."""
    import torch

    from quintet.kernels import loader

    kept = loader._loaded
    native, said = kept()
    timed = Timed(native)
    watch = Watch(timed)
    loader._loaded = lambda: (timed, said)  # type: ignore[assignment]
    try:
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=tokens + 2,
            pad_token_id=0,
            streamer=watch,
        )
    finally:
        loader._loaded = kept
    # the first is the prompt, the second comes of it, and the third has made room in the cache
    steps = [
        (whole - before, inside - earlier)
        for before, whole, earlier, inside in zip(
            watch.times[2:], watch.times[3:], watch.seconds[2:], watch.seconds[3:], strict=False
        )
    ]
    return {
        "step_us": round(statistics.median(whole for whole, _ in steps) * 1e6, 1),
        "native_us": round(statistics.median(inside for _, inside in steps) * 1e6, 1),
        "between": round(statistics.median(1 - inside / whole for whole, inside in steps), 4),
        "native_calls": round(timed.calls / (tokens + 1), 2),
    }


def main() -> int:
    """Measure every format."""
    parser = common.parser(__doc__)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    import torch

    from quintet.kernels.loader import status
    from quintet.quant.config import IntegerConfig

    if not status().native:
        print(f"dispatch.py: there are no native kernels: {status().reason}", file=sys.stderr)
        return 0
    threads = common.set_threads(args.threads)
    folder = common.checkpoint(args.work_dir, args.model_shape)
    torch.manual_seed(1)
    prompt = torch.randint(400, (1, args.prompt))
    for name in args.formats.split(","):
        dtype, packing = FORMATS[name]
        model = common.load_model("quintet", folder, dtype)
        if packing is not None:
            model.quantize(IntegerConfig(**packing))
        rounds = [measure(model, prompt, args.tokens) for _ in range(args.rounds + 1)][1 if args.rounds else 0 :]
        record = {"model": args.model_shape, "format": name, "level": status().level, "rounds": len(rounds)}
        for field in ("step_us", "native_us", "between"):
            record |= common.summary({field: [one[field] for one in rounds]})
        record |= {"native_calls": rounds[-1]["native_calls"], "tokens": args.tokens}
        common.emit("dispatch", record, threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
