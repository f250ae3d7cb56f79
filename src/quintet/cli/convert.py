"""`quintet convert`: a checkpoint from the layout it was released in to ours, or back."""

from __future__ import annotations

import argparse
from pathlib import Path

from quintet.cli.common import ByteBar, add_examples, add_json, one_line, print_json
from quintet.convert import HUB, LAYOUTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    names = [HUB, *LAYOUTS]
    rows = [(HUB, "config.json and model.safetensors, which every other command reads")]
    rows += [(name, entry.help) for name, entry in LAYOUTS.items()]
    add_examples(
        parser,
        "quintet convert finetune-transformer-lm/model gpt1",
        "quintet convert finetune-transformer-lm/model gpt1 --from gpt1-original --force",
    )
    width = max(map(len, names))
    table = "\n".join(f"  {name:<{width}}  {words}" for name, words in rows)
    parser.description = f"{parser.description or ''}\n\nlayouts:\n{table}"
    parser.add_argument("source", metavar="SOURCE", help="folder of the checkpoint; it is not changed")
    parser.add_argument("output", metavar="OUTPUT", help="folder to make")
    parser.add_argument(
        "--from", dest="source_layout", choices=names, metavar="LAYOUT", help="layout of SOURCE (default: found)"
    )
    parser.add_argument(
        "--to",
        dest="target_layout",
        choices=names,
        default=HUB,
        metavar="LAYOUT",
        help="layout of OUTPUT (default: hub)",
    )
    parser.add_argument("--force", action="store_true", help="replace files that are in OUTPUT already")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Convert, with a progress bar on a terminal, and print what was made."""
    from quintet.convert.run import convert

    with ByteBar() as bar:
        done = convert(
            Path(args.source),
            Path(args.output),
            source_layout=args.source_layout,
            target_layout=args.target_layout,
            force=args.force,
            progress=bar,
        )
    if args.json:
        names = [file.name for file in done.files]
        print_json(
            {
                "from": done.source_layout,
                "to": done.target_layout,
                "output": str(args.output),
                "files": names,
                "bytes": done.size,
                "note": done.note,
            }
        )
        return 0
    print(f"{done.source_layout} -> {done.target_layout}: {one_line(str(args.output))}, {done.size / 1e6:,.1f} MB")
    for file in done.files:
        print(f"  {one_line(file.name)}")
    if done.note:
        print(one_line(done.note))
    return 0
