"""`quintet quantize`: a checkpoint with plain weights into one with packed weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from quintet.cli.common import (
    DTYPES,
    ByteBar,
    add_examples,
    add_json,
    one_line,
    positive_int,
    print_json,
    set_threads,
)
from quintet.errors import UsageError

__all__ = ["add_arguments", "run"]

FORMATS = {
    "int8": "linear layers in 8 bits, a scale for each output (or --group-size)",
    "int4": "linear layers in 4 bits, a scale for each 32 inputs (or --group-size)",
    "mxfp4": "experts in MXFP4, as gpt-oss is published",
    "mxfp4+int8": "experts in MXFP4 (made, or kept as published), the rest in 8 bits",
    "mxfp4+int4": "the same, the rest in 4 bits",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_examples(
        parser,
        "quintet quantize storyteller --format int4 --out storyteller-int4",
        "quintet quantize ./seed-oss --format int4 --group-size 128 --head int8 --calibrate texts.txt --out seed-int4",
        "quintet quantize openai/gpt-oss-20b --format mxfp4+int8 --out gpt-oss-int8",
        "quintet quantize ./model --format int8 --skip 'model.layers.0.*' --out ./model-int8",
    )
    width = max(map(len, FORMATS))
    table = "\n".join(f"  {name:<{width}}  {words}" for name, words in FORMATS.items())
    parser.description = (
        f"{parser.description or ''}\n\nEmbeddings, norms, routers and, without --head, the output head stay as they "
        f"are. A run that was\ninterrupted goes on where it was when the same command is given again.\n\nformats:\n"
        f"{table}"
    )
    parser.add_argument("model", metavar="MODEL", help="a folder, a name on the hub, or storyteller; it is not changed")
    parser.add_argument("--format", choices=[*FORMATS], required=True, metavar="F", help="see above")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--group-size", type=positive_int, metavar="N", help="inputs that share a scale; 32, 64, 128 ..."
    )
    parser.add_argument("--asymmetric", action="store_true", help="int4 with zero points")
    parser.add_argument("--head", choices=["int8", "int4"], metavar="F", help="pack the output head too: int8 or int4")
    parser.add_argument(
        "--activations",
        choices=["auto", "bf16", "int8"],
        default="auto",
        metavar="A",
        help="what packed weights are multiplied with in prompts and batches: bf16 (left as it is), int8 (rounded), or "
        "auto (default: rounded where that is faster); config.json keeps it",
    )
    parser.add_argument(
        "--calibrate", metavar="FILE", help="a text: round so that results on it change least (32,768 tokens are used)"
    )
    parser.add_argument(
        "--skip", action="append", metavar="PATTERN", help="modules to leave alone, * for any text; may be repeated"
    )
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default="auto",
        metavar="T",
        help="of what stays plain: fp32, bf16, fp16 or auto",
    )
    parser.add_argument("--max-shard-size", default="2GB", metavar="SIZE", help="of one file (default: 2GB)")
    parser.add_argument("--force", action="store_true", help="replace files that are in DIR already")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: torch's choice)")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a model that is loaded by name")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Quantise, with progress bars on a terminal, and print what was made."""
    from quintet.convert.quantize import quantize_checkpoint
    from quintet.hub import resolve_folder

    asked = _asked(args)
    text = tokenizer = None
    folder = resolve_folder(args.model, revision=args.revision, files=("*.safetensors",))
    if args.calibrate is not None:
        from quintet.evaluate.data import read_text
        from quintet.tokenizers.auto import AutoTokenizer

        text = read_text(args.calibrate)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    set_threads(args.threads)
    try:
        with ByteBar("layer") as layers, ByteBar() as bar:
            done = quantize_checkpoint(
                folder,
                Path(args.out),
                asked,
                calibration=text,
                tokenizer=tokenizer,
                dtype=DTYPES[args.dtype],
                force=args.force,
                max_shard_size=args.max_shard_size,
                progress=bar,
                calibrating=layers,
            )
    except KeyboardInterrupt:
        print("quintet: interrupted. Give the same command again to go on where it was.", file=sys.stderr)
        raise
    size, plain = done.size / 1e6, done.plain_size / 1e6
    if args.json:
        print_json(
            {
                "model": args.model,
                "format": args.format,
                "output": str(args.out),
                "files": [file.name for file in done.files],
                "bytes": done.size,
                "bytes_before": done.plain_size,
                "packed_weights": done.packed,
                "calibrated": text is not None,
                "resumed": done.resumed,
            }
        )
        return 0
    print(f"{args.format}: {one_line(str(args.out))}, {size:,.1f} MB; the weights were {plain:,.1f} MB")
    print(f"{done.packed} weights packed{' by calibration' if text is not None else ''}")
    return 0


def _asked(args: argparse.Namespace) -> Any:
    """Return the quantisation that the options ask for.

    Raises:
        UsageError: options that do not go together.
    """
    from quintet.quant.config import IntegerConfig, Mxfp4Config, Quantization, parse_short

    named = parse_short(args.format, "--format")
    experts = None if named.experts is None else Mxfp4Config(args.skip, activations=args.activations)
    if named.linears is None:
        for name in ("group_size", "asymmetric", "head", "calibrate"):
            if getattr(args, name):
                raise UsageError(
                    f"--{name.replace('_', '-')} is for linear layers, and --format mxfp4 packs experts only. Use "
                    "mxfp4+int8 or mxfp4+int4, or leave it out."
                )
        return Quantization(experts)
    bits = named.linears.bits
    if args.asymmetric and bits != 4:
        raise UsageError("--asymmetric is for int4: 8 bits have no zero points. Leave it out.")
    head = None if args.head is None else int(args.head.removeprefix("int"))
    linears = IntegerConfig(bits, args.group_size, not args.asymmetric, head, args.skip, activations=args.activations)
    return Quantization(experts, linears)
