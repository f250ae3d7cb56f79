"""Whose a cache is: a fingerprint of models, cheap enough to take at every save and load, and checks made with it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from quintet.cache.base import Cache
from quintet.cache.record import other_tokens
from quintet.errors import CheckpointError

__all__ = ["check_use", "fingerprint", "other_model", "other_type"]

# Numbers looked at of each weight, spread over it: training or another seed changes nearly every one of them.
SAMPLES = 64
# Fields of a configuration on which keys and values do not depend.
APART = (
    *("_name_or_path", "name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype"),
    *("attn_implementation", "_attn_implementation", "quantization_config", "use_cache", "return_dict"),
    *("output_attentions", "output_hidden_states", "output_router_logits", "id2label", "label2id", "num_labels"),
    *("problem_type", "task_specific_params", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range"),
    *("tie_word_embeddings", "summary_type", "summary_use_proj", "summary_proj_to_labels", "summary_activation"),
    *("summary_first_dropout", "summary_last_dropout", "classifier_dropout"),
)


@torch.no_grad()
def fingerprint(model: Any) -> dict[str, str] | None:
    """Return what tells a model from others: its type, and digests of its configuration and of its weights.

    Of every weight below the head the name, the shape and 64 of its numbers count, as they are stored; so a file of the
    same model in another data type has another digest. Nothing is read but those numbers.

    Returns:
        The keys "model_type", "config" and "weights"; None for an object without configuration or weights.
    """
    base = getattr(model, "base_model", model)
    config = getattr(model, "config", None)
    if not isinstance(base, torch.nn.Module) or config is None or not hasattr(config, "to_dict"):
        return None
    fields = {key: value for key, value in config.to_dict().items() if key not in APART}
    text = json.dumps(fields, sort_keys=True, default=str)
    digest = hashlib.sha256()
    parts = []
    for name, tensor in sorted(base.named_parameters()):
        if tensor.device.type == "meta":
            return None
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        parts.append(_sample(tensor))
    for part in _on_the_host(parts):
        digest.update(part.numpy().tobytes())
    return {
        "model_type": str(getattr(config, "model_type", "")),
        "config": hashlib.sha256(text.encode()).hexdigest()[:32],
        "weights": digest.hexdigest()[:32],
    }


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of at most SAMPLES numbers, spread over a tensor of any layout."""
    count = tensor.numel()
    number = torch.arange(min(count, SAMPLES), device=tensor.device)
    number = number * count // max(min(count, SAMPLES), 1)
    places = []
    for size in reversed(tensor.shape):
        places.append(number % size)
        number = number // size
    picked = tensor.detach()[tuple(reversed(places))] if places else tensor.detach()
    return picked.reshape(-1).contiguous().view(torch.uint8)


def _on_the_host(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Bring many short tensors to the CPU, those of one device in one go."""
    devices = {part.device for part in parts}
    return [torch.cat([part for part in parts if part.device == device]).cpu() for device in sorted(devices, key=str)]


def other_model(saved: dict[str, str], model: Any) -> str | None:
    """Say in what a model is another than the one that a cache is of; None when it is the same or cannot be told."""
    mine = fingerprint(model)
    if mine is None or mine == saved:
        return None
    if mine["model_type"] != saved["model_type"]:
        return f"it is of the type {saved['model_type']!r}, and this one of the type {mine['model_type']!r}"
    if mine["config"] != saved["config"]:
        return "its configuration is another one"
    return "its weights are others (another checkpoint, a step of training, or another data type)"


def check_use(path: Path, cache: Cache, model: Any, tokens: torch.Tensor | None) -> None:
    """Raise CheckpointError when a cache is of another model, or of other tokens, or does not say of which."""
    record = cache.record
    if model is not None:
        saved = None if record is None else record.fingerprint
        if saved is None:
            raise CheckpointError(
                f"'{path}' does not say which model made it, so it cannot be compared with this one. Save it with "
                "save(path, model=model), or load it with config=model.config to compare the layers alone."
            )
        what = other_type(cache, model) or other_model(saved, model)
        if what is not None:
            raise CheckpointError(f"'{path}' was made by another model: {what}. Load it with the model it is of.")
        if record is not None:
            record.model, record.fingerprint = model, None
    if tokens is None:
        return
    read = cache.tokens
    if read is None or read.shape[1] < cache.get_seq_length():
        known = 0 if read is None else read.shape[1]
        raise CheckpointError(
            f"'{path}' holds {cache.get_seq_length()} tokens and says of {known} which they are, so they cannot be "
            "compared. Save it with save(path, tokens=ids)."
        )
    what = other_tokens(read, tokens)
    if what is None and tokens.shape[1] < read.shape[1]:
        what = f"it has read {read.shape[1]} tokens, and these are {tokens.shape[1]}"
    if what is not None:
        raise CheckpointError(
            f"'{path}' was read from another text: {what}. Load it without tokens and crop() it to what is the same, "
            "or read the text again."
        )


def other_type(cache: Cache, model: Any) -> str | None:
    """Say that a cache holds numbers of another type than the model computes with; None when it does not."""
    layers = getattr(cache, "layers", ())
    sample = layers[0].sample if layers else None
    dtype = getattr(model, "dtype", None)
    if sample is None or dtype is None or sample.dtype == dtype:
        return None
    return f"its keys are {sample.dtype}, and this model computes in {dtype}"
