"""The process that `quintet bench` measures: it loads a model, says so, measures, and prints what it found.

A process of its own, because the time from its start until the model can run and its peak memory are two of the
figures. Talks in lines of JSON: `{"ready": true}` and then the record, or `{"error": ...}`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from quintet.errors import QuintetError

__all__ = ["main"]


def main(task: dict[str, Any]) -> int:
    """Load `task["model"]`, run it once, then measure unless `task["load_only"]`; see `bench.run` for the fields."""
    try:
        _say({"result": _measure(task)})
    except QuintetError as error:
        _say({"error": str(error)})
        return 1
    except KeyboardInterrupt:  # the process that started this one was interrupted too, and reports it
        return 130
    return 0


def _say(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


def _measure(task: dict[str, Any]) -> dict[str, Any]:
    import torch

    from quintet.auto import AutoModelForCausalLM
    from quintet.cli.common import choose_device, set_threads
    from quintet.cli.machine import peak_rss_mib
    from quintet.quant.formats import packed_formats

    set_threads(task["threads"])
    device = choose_device(task["device"])
    model = AutoModelForCausalLM.from_pretrained(
        task["model"],
        revision=task["revision"],
        dtype=task["dtype"],
        quantization=task["quantization"],
        device_map=device,
    ).eval()
    with torch.inference_mode():  # the weights are mapped: only a first run shows that they are really there
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))
        _wait(device)
    _say({"ready": True})
    facts: dict[str, Any] = {
        "device": device,
        "dtype": str(model.dtype).removeprefix("torch."),
        "packed": packed_formats(model),
        "threads": torch.get_num_threads(),
        "parameters": model.num_parameters(),
        "load_peak_rss_mib": peak_rss_mib(),
    }
    if not task["load_only"]:
        facts |= _speeds(model, device, task)
        facts["peak_rss_mib"] = peak_rss_mib()
        if device != "cpu":
            facts["peak_device_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return facts


def _speeds(model: Any, device: str, task: dict[str, Any]) -> dict[str, Any]:
    """Tokens per second of every run, after one that is not counted."""
    import torch

    sizes = _sizes(getattr(model.config, "max_position_embeddings", None), task)
    torch.manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (task["batch"], max(sizes.values())), device=device)  # (B, T)
    prompts = ids[:, : sizes["prompt_tokens"]]
    model.generation_config.eos_token_id = None  # exactly so many tokens, whatever the model would like to say
    runs: dict[str, list[float]] = {"decode": [], "prefill": [], "batch": []}
    for number in range(task["runs"] + 1):
        speeds = {
            "decode": _decode(model, prompts[:1], sizes["decode_tokens"]),
            "prefill": _prefill(model, ids[:1, : sizes["prefill_tokens"]], device),
            "batch": _decode(model, prompts, sizes["decode_tokens"]),
        }
        if number:
            for name, speed in speeds.items():
                runs[name].append(speed)
    return {**sizes, "runs": runs}


def _sizes(limit: int | None, task: dict[str, Any]) -> dict[str, int]:
    """The lengths asked for, bounded by what the model holds (prompt, first token and decoded tokens together)."""
    wanted = {name: task[name] for name in ("prompt_tokens", "decode_tokens", "prefill_tokens")}
    if limit is None:
        return wanted
    prompt = min(wanted["prompt_tokens"], max(1, limit // 2))
    decode = min(wanted["decode_tokens"], limit - prompt - 1)
    if decode < 1:
        raise QuintetError(f"this model holds {limit} tokens, too few to measure: 4 are needed.")
    return {"prompt_tokens": prompt, "decode_tokens": decode, "prefill_tokens": min(wanted["prefill_tokens"], limit)}


class _Clock:
    """A streamer that keeps the time of every column of tokens; the first is that of the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: object) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""


def _decode(model: Any, prompts: Any, tokens: int) -> float:
    """Tokens per second of all rows while decoding, from the first new token (which the prefill gives) to the last."""
    import torch

    clock = _Clock()
    model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        max_new_tokens=tokens + 1,
        pad_token_id=0,
        streamer=clock,
    )
    return float(prompts.shape[0] * tokens / (clock.times[-1] - clock.times[1]))


def _prefill(model: Any, ids: Any, device: str) -> float:
    """Tokens per second of reading a prompt, (1, T)."""
    import torch

    with torch.inference_mode():
        began = time.perf_counter()
        model(input_ids=ids, use_cache=True, logits_to_keep=1)
        _wait(device)
        return float(ids.shape[1] / (time.perf_counter() - began))


def _wait(device: str) -> None:
    """Let the work that was queued on a GPU finish."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
