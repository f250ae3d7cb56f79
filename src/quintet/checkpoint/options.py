"""The words that `from_pretrained` takes for types and devices, and those it refuses with a reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from quintet.errors import ConfigError, suggest

__all__ = ["check_keywords", "parse_device", "parse_dtype"]

_DTYPES = {
    "float32": torch.float32, "float": torch.float32, "fp32": torch.float32,
    "float16": torch.float16, "half": torch.float16, "fp16": torch.float16,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float64": torch.float64, "double": torch.float64, "fp64": torch.float64,
}  # fmt: skip

# keywords of the reference that change nothing here: what they ask for is always so, or they are about nothing we have
_WITHOUT_EFFECT = frozenset({
    "low_cpu_mem_usage", "weights_only", "code_revision", "proxies", "resume_download", "mirror",
    "_fast_init", "_from_auto", "_from_pipeline", "_commit_hash", "offload_state_dict", "offload_buffers", "tqdm_class",
    "allow_all_kernels",
})  # fmt: skip
# keywords of the reference that ask for something this loader does not do: better said than ignored
_REFUSED = {
    "trust_remote_code": "code from a checkpoint is never run",
    "gguf_file": "GGUF files are not read",
    "from_tf": "TensorFlow checkpoints are not read; convert them to safetensors first",
    "from_flax": "Flax checkpoints are not read; convert them to safetensors first",
    "max_memory": "a model is put on one device",
    "offload_folder": "a model is put on one device and nothing is offloaded; weights on the CPU are memory-mapped",
    "tp_plan": "a model is put on one device",
    "tp_size": "a model is put on one device",
    "device_mesh": "a model is put on one device",
    "distributed_config": "a model is put on one device",
    "adapter_kwargs": "adapters are not loaded here",
    "use_kernels": "kernels are never fetched from a hub",
    "kernel_config": "kernels are never fetched from a hub",
    "fusion_config": "fusions are made after loading",
}
# what is looked for under these names has another one here
_ELSEWHERE = {"mmap": " In place of mmap=False pass disable_mmap=True, which reads files into memory at once."}


def parse_dtype(value: Any) -> torch.dtype | None:
    """Return a floating torch dtype, or None for "auto" and None.

    Raises:
        ConfigError: Not a floating type.
    """
    if value is None or value == "auto":
        return None
    found = _DTYPES.get(value.removeprefix("torch.").lower()) if isinstance(value, str) else value
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        hint = suggest(value, [*_DTYPES, "auto"]) if isinstance(value, str) else ""
        raise ConfigError(
            f"dtype={value!r} is not a type that weights can have: 'auto' (as the file), 'float32', 'float16', "
            f"'bfloat16' or 'float64' are, as text or as torch.float32 and so on.{hint}"
        )
    return found


def parse_device(value: Any) -> torch.device:
    """Return the one device that a `device_map` names; None is the CPU (or torch's default device, when one is set).

    Raises:
        ConfigError: More than one device, an unknown one, or one that this machine does not have.
    """
    wanted = value
    if isinstance(wanted, Mapping):
        if len(set(wanted.values())) != 1:
            raise ConfigError(
                f"device_map={value!r} spreads a model over several devices (or none), which is not supported. "
                "Use one device: 'cpu', 'cuda', 'cuda:1', 'auto' or {'': device}."
            )
        wanted = next(iter(wanted.values()))
    if wanted is None:
        return torch.get_default_device()
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        wanted = f"cuda:{wanted}"
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device_map={value!r} is not a device. Use 'cpu', 'cuda', 'cuda:1', 'auto', a torch.device, "
            "or {'': device}; a model is put on one device."
        ) from error
    if device.type == "meta":
        raise ConfigError("device_map='meta' holds no weights. Build the model under torch.device('meta') instead.")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"device_map={value!r}: this machine has {count} CUDA devices that torch {torch.__version__} can use. "
            "Use 'cpu' or 'auto'."
        )
    return device


def check_keywords(owner: str, keywords: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse keywords that nothing takes.

    Args:
        owner: Named in the error.
        keywords: What is left over.
        known: Keywords that would have been taken, for the suggestion.

    Raises:
        ConfigError: One is refused, with its reason, or unknown, with the nearest name.
    """
    for name, value in keywords.items():
        if name in _WITHOUT_EFFECT:
            continue
        if name in _REFUSED:
            if value in (None, False) or value == {}:
                continue
            raise ConfigError(f"{owner}.from_pretrained({name}=...) is not supported: {_REFUSED[name]}. Leave it out.")
        raise ConfigError(
            f"{owner}.from_pretrained has no keyword '{name}' and its configuration no such field."
            f"{_ELSEWHERE.get(name) or suggest(name, known)} Remove it or correct it."
        )
