"""`quintet train-tokenizer`: train a byte-level BPE on text files."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from quintet.cli.common import add_examples, show_progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_examples(
        parser,
        "quintet train-tokenizer book.txt --vocab-size 4096 --output my-tokenizer",
        "quintet train-tokenizer books/*.txt --vocab-size 8192 --special-token '<|end|>' --output out",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="UTF-8 text files to learn from")
    parser.add_argument("--vocab-size", type=int, default=4096, metavar="N", help="tokens in all (default: 4096)")
    parser.add_argument("--output", "-o", required=True, metavar="DIR", help="folder for tokenizer.json and its config")
    parser.add_argument(
        "--special-token",
        action="append",
        metavar="TOKEN",
        help="may be given several times; the first one begins and ends texts (default: <|endoftext|>)",
    )
    parser.add_argument(
        "--min-frequency", type=int, default=2, metavar="N", help="pairs seen less often are not merged (default: 2)"
    )
    parser.add_argument(
        "--model-max-length", type=int, default=None, metavar="N", help="longest sequence, for tokenizer_config.json"
    )


def run(args: argparse.Namespace) -> int:
    """Train, save, and print one line about what was made."""
    from quintet.tokenizers.trainer import DEFAULT_SPECIAL_TOKENS, train_bpe

    special_tokens = tuple(args.special_token) if args.special_token else DEFAULT_SPECIAL_TOKENS
    began = time.perf_counter()
    tokenizer = train_bpe(
        args.files,
        vocab_size=args.vocab_size,
        special_tokens=special_tokens,
        min_frequency=args.min_frequency,
        model_max_length=args.model_max_length,
        show_progress=show_progress(),
        output=args.output,
    )
    size = tokenizer.get_vocab_size()
    took = time.perf_counter() - began
    print(f"{size} tokens from {len(args.files)} file(s) in {took:.1f} s: {Path(args.output) / 'tokenizer.json'}")
    if size < args.vocab_size:
        print(
            f"note: {args.vocab_size} tokens were asked for, but the text has no more pairs that occur "
            f"{args.min_frequency} times or more",
            file=sys.stderr,
        )
    return 0
