"""One measurement of llama.cpp in a process of its own: `python llama_peer.py FILE` prints one JSON line.

Runs with the packages of `llama-cpp-python` alone, through its C functions, with token ids and no vocabulary.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from typing import Any

import common


def _batch(llama: Any, ids: list[list[int]], position: int, sequences: list[int]) -> Any:
    """Return a batch of tokens: for each sequence its ids from `position` on; scores of the last of each."""
    total = sum(len(one) for one in ids)
    batch = llama.llama_batch_init(total, 0, 1)
    batch.n_tokens = total
    place = 0
    for sequence, tokens in zip(sequences, ids, strict=True):
        for index, token in enumerate(tokens):
            batch.token[place] = token
            batch.pos[place] = position + index
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = sequence
            batch.logits[place] = index == len(tokens) - 1
            place += 1
    return batch


def _decode(llama: Any, context: Any, batch: Any) -> float:
    began = time.perf_counter()
    status = llama.llama_decode(context, batch)
    llama.llama_synchronize(context)
    seconds = time.perf_counter() - began
    llama.llama_batch_free(batch)
    if status != 0:
        raise SystemExit(f"llama_decode returned {status}")
    return seconds


def main() -> None:
    """Measure and print."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--flash", choices=("on", "off"), default="on")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--past", type=int, default=64, help="tokens before the decoding that is measured")
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2, help="times the prompt is read")
    args = parser.parse_args()
    import llama_cpp as llama

    quiet = llama.llama_log_callback(lambda level, text, data: None)  # a name, so that it lives as long as it is called
    llama.llama_log_set(quiet, ctypes.c_void_p(0))
    llama.llama_backend_init()
    options = llama.llama_model_default_params()
    options.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(args.file.encode(), options)
    if not model:
        raise SystemExit(f"llama.cpp does not read {args.file}")
    loaded = time.perf_counter()
    params = llama.llama_context_default_params()
    params.n_ctx = (max(args.prompt, args.past) + args.new + 32) * max(args.sequences, 1)
    params.n_batch = params.n_ubatch = max(args.prompt, args.past, 512)
    params.n_seq_max = max(args.sequences, 1)
    params.n_threads = params.n_threads_batch = args.threads
    if hasattr(params, "flash_attn_type"):
        params.flash_attn_type = 1 if args.flash == "on" else 0
    else:
        params.flash_attn = args.flash == "on"
    if hasattr(params, "kv_unified"):
        params.kv_unified = False
    context = llama.llama_init_from_model(model, params)
    memory = llama.llama_get_memory(context)
    ids = [(7 * index) % 1000 + 5 for index in range(max(args.prompt, args.past))]
    _decode(llama, context, _batch(llama, [ids[:8]], 0, [0]))
    first = time.perf_counter()
    llama.llama_memory_clear(memory, True)
    result: dict[str, Any] = {"load_s": loaded - started, "first_token_s": first - started}
    if args.prompt:
        seconds = []
        for _ in range(args.repeats):
            llama.llama_memory_clear(memory, True)
            seconds.append(_decode(llama, context, _batch(llama, [ids[: args.prompt]], 0, [0])))
        result["prompt_s"] = min(seconds)
    llama.llama_memory_clear(memory, True)
    _decode(llama, context, _batch(llama, [ids[: args.past]], 0, [0]))
    steps = [_decode(llama, context, _batch(llama, [[9 + n]], args.past + n, [0])) for n in range(args.new)]
    result["decode_s"] = sorted(steps)[len(steps) // 2]
    if args.sequences > 1:
        llama.llama_memory_clear(memory, True)
        every = list(range(args.sequences))
        for one in every:
            _decode(llama, context, _batch(llama, [ids[: args.past]], 0, [one]))
        steps = []
        for n in range(max(args.new // 2, 8)):
            steps.append(_decode(llama, context, _batch(llama, [[9 + n + one] for one in every], args.past + n, every)))
        result["batch_s"] = sorted(steps)[len(steps) // 2]
    result["peak_mb"] = common.peak_rss_mib()
    result["version"] = llama.__version__
    print(json.dumps(result))


if __name__ == "__main__":
    main()
