"""`quintet info`: what a model is, from its configuration and the headers of its weight files; no weights are read."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from quintet.cli.common import add_examples, add_json, positive_int, print_json, print_table
from quintet.cli.plan import BYTES, kv_cache, memory_plan
from quintet.errors import QuintetError

__all__ = ["add_arguments", "describe", "run"]

MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s MODEL [options]"
    add_examples(
        parser,
        "quintet info storyteller",
        "quintet info ./my-gpt2 --json",
        "quintet info openai-community/gpt2 --revision main",
        "quintet info ./gpt-oss-120b/config.json --length 8192",
    )
    parser.add_argument("model", metavar="MODEL", help="a folder, a config.json, a name on the hub, or storyteller")
    parser.add_argument(
        "--length", type=positive_int, metavar="N", help="tokens in the cache (default: as many as the model allows)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model that is loaded by name")
    add_json(parser, "everything")


def run(args: argparse.Namespace) -> int:
    """Describe the model and print it."""
    facts = describe(args.model, revision=args.revision, length=args.length)
    if args.json:
        print_json(facts)
    else:
        print_table(_rows(facts))
    return 0


def describe(model: str, *, revision: str | None = None, length: int | None = None) -> dict[str, Any]:
    """Return what `quintet info` prints. Imports torch.

    Args:
        model: A folder, a configuration file, or a name.
        revision: Of a model that is loaded by name.
        length: Tokens in the cache of the memory plan; None takes the most that the model allows.

    Raises:
        HubError: there is no such model.
        ConfigError: its configuration is not usable.
        CheckpointError: the header of a weight file is not sound.
    """
    from quintet.auto import AutoConfig, AutoModelForCausalLM
    from quintet.checkpoint.meta import without_memory
    from quintet.hub import resolve_folder

    alone = Path(model).is_file()
    folder = Path(model).parent if alone else resolve_folder(model, revision=revision, files=("config.json",))
    config = AutoConfig.from_pretrained(model if alone else folder)
    with without_memory():  # shapes only
        network = AutoModelForCausalLM.from_config(config)
    parameters = network.num_parameters()
    cache = kv_cache(config)
    context = getattr(config, "max_position_embeddings", None)
    return {
        "model": model,
        "folder": str(folder),
        "family": config.model_type,
        "architectures": config.architectures or [],
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "kv_heads": getattr(config, "num_key_value_heads", config.num_attention_heads),
        "width": config.hidden_size,
        "vocabulary": config.vocab_size,
        "context": context,
        "parameters": parameters,
        "parameters_without_embeddings": network.num_parameters(exclude_embeddings=True),
        "memory_mib": {name: round(parameters * size / MIB, 1) for name, size in BYTES.items()},
        "kv_cache_bytes_per_token": {name: cache.per_token * size for name, size in BYTES.items()},
        "kv_cache_bytes_per_token_beyond_window": {name: cache.beyond_window * size for name, size in BYTES.items()},
        "kv_cache_full_mib": {
            name: round(cache.numbers(context) * size / MIB, 1) if context else None for name, size in BYTES.items()
        },
        "layers_with_window": cache.sliding,
        "window": cache.window or None,
        "plan": memory_plan(network, config, length),
        "weights": None if alone else _weights(folder),
        "computed": None if alone else _computed(network, folder),
        "tokenizer": None if alone else _tokenizer(folder),
    }


def _weights(folder: Path) -> dict[str, Any] | None:
    """Files, bytes and number formats of the stored tensors; None where only the configuration is here."""
    from quintet.checkpoint import find_weights, read_header
    from quintet.quant.formats import stored_formats

    if not any(folder.glob("*.safetensors")):  # an index may be here without its shards, which are not fetched for this
        return None
    files = find_weights(folder)
    named = [(name, info) for path in files for name, info in read_header(path).tensors.items()]
    tensors = [info for _, info in named]
    formats = stored_formats((name, info.dtype, info.end - info.begin) for name, info in named)
    stored: dict[str, int] = {}
    for info in tensors:
        stored[info.dtype] = stored.get(info.dtype, 0) + info.end - info.begin
    return {
        "files": [path.name for path in files],
        "tensors": len(tensors),
        "mib": round(sum(stored.values()) / MIB, 1),
        "mib_by_dtype": {dtype: round(size / MIB, 1) for dtype, size in sorted(stored.items())},
        "mib_by_format": {name: round(size / MIB, 1) for name, size in formats.items()},
    }


def _computed(network: Any, folder: Path) -> list[dict[str, Any]] | str | None:
    """What computes the model on this machine's CPU, kind by kind; None without weights, the reason where it fails."""
    from quintet.checkpoint import find_weights
    from quintet.checkpoint.load import open_source, source_dtype
    from quintet.checkpoint.options import parse_dtype
    from quintet.fused.report import computed_by
    from quintet.quant.formats import fit_by_headers

    if not any(folder.glob("*.safetensors")):
        return None
    try:
        source = open_source(find_weights(folder))
        dtype = parse_dtype(network.config.dtype) or source_dtype(source) or network.dtype
        fit_by_headers(network, source)
        return [dataclasses.asdict(one) for one in computed_by(network, dtype, swapped=True)]
    except QuintetError as error:
        return str(error)


def _tokenizer(folder: Path) -> dict[str, Any] | None:
    """Class and size of the tokenizer; None where there is none, the reason where it cannot be read."""
    from quintet.tokenizers.auto import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer_config.json")):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except QuintetError as error:
        return {"error": str(error)}
    return {"class": type(tokenizer).__name__, "tokens": len(tokenizer)}


def _plan_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """The memory plan as lines: each part, then each format beside what this machine has."""
    rows = []
    for name, part in plan["parts"].items():
        sizes: dict[str, float] = {}
        for key, size in part["mib"].items():
            if size not in sizes.values():  # each size once, by the first of the formats that have it
                sizes[key.rpartition("+")[2]] = size
        words = ", ".join(f"{key} {size:,.1f} MiB" for key, size in sizes.items())
        rows.append((f"  {name}", f"{part['parameters']:,} parameters: {words}"))
    head = plan["packed_head"]
    if head is not None and head["mib"]:
        words = ", ".join(f"{key} {size:,.1f} MiB" for key, size in head["mib"].items())
        rows.append(
            ("  head", f"tied; packed beside the embedding: {words}") if head["tied"] else ("", f"packed: {words}")
        )
    machine = plan["machine"]
    if machine["available_mib"] is not None:
        rows.append(("this machine", f"{machine['available_mib']:,} of {machine['total_mib']:,} MiB available"))
    for name, entry in plan["formats"].items():
        if name == "fp16":  # as bf16
            continue
        words = f"{entry['weights_mib']:,.1f} MiB, {entry['kv_cache_mib']:,.1f} MiB for {plan['length']:,} tokens"
        if entry["fits"] is not None:
            room = entry["tokens_that_fit"]
            most = "any number" if room < 0 else f"{room:,}"
            words += ": fits" if entry["fits"] else f": does not fit, room for {most} tokens" if room else ": no room"
        rows.append((f"  {name}", words))
    return rows


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as lines of a table."""
    weights, tokenizer, context = facts["weights"], facts["tokenizer"], facts["context"]
    heads = f"{facts['heads']} heads"
    if facts["kv_heads"] != facts["heads"]:
        heads += f" ({facts['kv_heads']} of keys and values)"
    per_token, full = facts["kv_cache_bytes_per_token"], facts["kv_cache_full_mib"]
    rows = [
        ("model", facts["model"]),
        ("folder", facts["folder"]),
        ("family", " ".join([facts["family"], *(f"({name})" for name in facts["architectures"][:1])])),
        ("shape", f"{facts['layers']} layers, {heads}, width {facts['width']}"),
        ("context", f"{context:,} tokens" if context else "not bounded by the configuration"),
        ("vocabulary", f"{facts['vocabulary']:,} tokens"),
        (
            "parameters",
            f"{facts['parameters']:,} ({facts['parameters_without_embeddings']:,} without the embeddings)",
        ),
        ("memory", ", ".join(f"{name} {size:,.1f} MiB" for name, size in facts["memory_mib"].items())),
        ("KV cache", ", ".join(f"{name} {size / 1024:,.1f} KiB a token" for name, size in per_token.items())),
    ]
    if facts["layers_with_window"]:
        beyond = facts["kv_cache_bytes_per_token_beyond_window"]["bf16"] / 1024
        rows.append(
            (
                "",
                f"{facts['layers_with_window']} of {facts['layers']} layers hold {facts['window']:,} tokens: "
                f"beyond them bf16 {beyond:,.1f} KiB a token",
            )
        )
    if context:
        rows.append(("  full", ", ".join(f"{name} {size:,.1f} MiB" for name, size in full.items())))
    rows += _plan_rows(facts["plan"])
    if weights:
        by_dtype = ", ".join(f"{dtype} {size:,.1f} MiB" for dtype, size in weights["mib_by_dtype"].items())
        files = weights["files"][0] if len(weights["files"]) == 1 else f"{len(weights['files'])} files"
        rows.append(("weights", f"{weights['tensors']} tensors in {files}: {by_dtype}"))
        by_format = {name: size for name, size in weights["mib_by_format"].items() if name not in ("fp64", *BYTES)}
        if by_format:
            rows.append(("  packed", ", ".join(f"{name} {size:,.1f} MiB" for name, size in by_format.items())))
    else:
        rows.append(("weights", "not here, only the configuration"))
    if isinstance(facts["computed"], str):
        rows.append(("on the CPU", f"cannot run: {facts['computed']}"))
    else:
        rows += [
            ("" if number else "on the CPU", f"{one['modules']} {one['what']}: {one['how']}")
            for number, one in enumerate(facts["computed"] or ())
        ]
    if tokenizer is None:
        rows.append(("tokenizer", "none"))
    elif "error" in tokenizer:
        rows.append(("tokenizer", f"cannot be read: {tokenizer['error']}"))
    else:
        rows.append(("tokenizer", f"{tokenizer['class']}, {tokenizer['tokens']:,} tokens"))
    return rows
