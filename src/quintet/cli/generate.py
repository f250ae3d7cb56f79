"""`quintet generate`: continue a text, streamed token by token as it is written."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from quintet.cli.answers import add_answer_options, answer_options
from quintet.cli.common import (
    BUNDLED_MODEL,
    DTYPES,
    add_examples,
    add_json,
    add_machine_options,
    choose_device,
    fraction,
    positive_float,
    positive_int,
    print_json,
    printable,
    read_input,
    set_threads,
    style,
    whole_number,
)
from quintet.errors import InputError, UsageError

__all__ = [
    "StopFilter",
    "add_arguments",
    "add_sampling_options",
    "check_sampling",
    "check_vocabulary",
    "run",
    "sampling_options",
]

DEFAULT_OPENING = "Once upon a time"
DEFAULT_NEW_TOKENS = 256
# A text of this size is longer than any model's context; it keeps `--file /dev/zero` from filling the memory.
MAX_PROMPT_BYTES = 64 * 2**20

# Options of the command that are options of `model.generate` under the same name.
SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [PROMPT] [options]"
    add_examples(
        parser,
        'quintet generate "Once upon a time"                      # the bundled storyteller',
        'quintet generate "The cat" --seed 7 --temperature 0.7    # the same story every time',
        "quintet generate --model ./my-gpt2 --greedy --file opening.txt",
        'echo "Dear diary," | quintet generate --json --max-new-tokens 40',
        'quintet generate "Tom said" --stop "." --num 3',
        'quintet generate "The cat, as JSON: " --response-format schema.json',
    )
    parser.add_argument("prompt", nargs="?", help="the text to continue; '-' or nothing reads it from stdin")
    parser.add_argument("--file", "-f", metavar="FILE", help="read the prompt from a UTF-8 file ('-': stdin)")
    parser.add_argument(
        "--model",
        "-m",
        default=BUNDLED_MODEL,
        metavar="MODEL",
        help="folder or name (default: the bundled storyteller)",
    )
    length = parser.add_argument_group("length")
    length.add_argument(
        "--max-new-tokens",
        "-n",
        type=positive_int,
        metavar="N",
        help=f"tokens to write at most (default: {DEFAULT_NEW_TOKENS}, or what the model has room for)",
    )
    length.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times"
    )
    length.add_argument("--num", type=positive_int, default=1, metavar="N", help="how many continuations (default: 1)")
    add_sampling_options(parser)
    add_answer_options(parser)
    machine = parser.add_argument_group("machine and output")
    machine.add_argument("--dtype", choices=DTYPES, default="auto", help="number format (default: as stored)")
    add_machine_options(machine)
    add_json(machine, "prompt, text, tokens, seconds, tok_s, finish_reason and seed")
    machine.add_argument("--no-stream", action="store_true", help="print the text at the end, all at once")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Declare how tokens are chosen; `check_sampling` and `sampling_options` read it."""
    choice = parser.add_argument_group("choice of tokens (defaults: the model's own generation_config.json)")
    choice.add_argument("--greedy", action="store_true", help="always the likeliest token, no sampling")
    choice.add_argument("--temperature", type=positive_float, metavar="X", help="below 1 safer, above 1 wilder")
    choice.add_argument("--top-k", type=whole_number, metavar="K", help="only the K likeliest tokens (0: all)")
    choice.add_argument("--top-p", type=fraction, metavar="P", help="only the likeliest tokens that add up to P")
    choice.add_argument("--min-p", type=fraction, metavar="P", help="only tokens with P times the likeliest's chance")
    choice.add_argument("--repetition-penalty", type=positive_float, metavar="X", help="above 1 repeats less")
    choice.add_argument(
        "--seed", type=whole_number, metavar="N", help="for the same text again (default: a new one, shown at the end)"
    )


def run(args: argparse.Namespace) -> int:
    """Read the prompt, load the model, write `--num` continuations."""
    _check(args)
    answer = answer_options(args)
    prompt = read_prompt(args)

    from quintet.auto import AutoModelForCausalLM
    from quintet.generation.known_tokens import known_tokens
    from quintet.tokenizers.auto import AutoTokenizer

    set_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model, revision=args.revision)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, revision=args.revision, dtype=DTYPES[args.dtype], device_map=choose_device(args.device)
    )
    model.eval()
    check_vocabulary(model, tokenizer)
    model.optimize()  # what is wrong with the native kernels is said before the first word is
    ids = _encode(tokenizer, prompt)
    options = {**_options(args, _room(model, len(ids), args.max_new_tokens)), **answer}
    known = known_tokens(model, tokenizer)
    if known is not None:
        options["logits_processor"] = [known]
    seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    for number in range(args.num):
        if number and not args.json:
            print(style("---", "dim", sys.stdout))
        _write_one(model, tokenizer, prompt, ids, options, args, seed + number)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other, before anything is loaded."""
    if args.prompt is not None and args.file is not None:
        raise UsageError("a prompt and --file were both given. Give one of them.")
    check_sampling(args)
    if args.greedy and args.num > 1:
        raise UsageError(f"--greedy writes the same text each time, so --num {args.num} is of no use. Leave one out.")
    if "" in args.stop:
        raise UsageError("--stop was given an empty text, which would stop at once. Give at least one character.")


def check_sampling(args: argparse.Namespace) -> None:
    """Raise UsageError for options of sampling where nothing is sampled."""
    given = [f"--{name.replace('_', '-')}" for name in SAMPLING if getattr(args, name) is not None]
    if args.greedy and given:
        raise UsageError(
            f"--greedy takes the likeliest token, so {', '.join(given)} would do nothing. Give one of them."
        )


def read_prompt(args: argparse.Namespace) -> str:
    """Return the prompt from the argument, the file or stdin; the bundled model has an opening of its own.

    Raises:
        UsageError: there is no prompt.
        InputError: it is too long, or not UTF-8.
    """
    if args.prompt is not None and args.prompt != "-":
        return str(args.prompt)
    if args.file is not None and args.file != "-":
        return _without_edges(read_input(args.file, MAX_PROMPT_BYTES))
    asked = args.prompt == "-" or args.file == "-"
    if asked or (sys.stdin is not None and not sys.stdin.isatty()):
        text = _without_edges(read_input("-", MAX_PROMPT_BYTES))
        if text.strip():
            return text
    if args.model == BUNDLED_MODEL and not asked:
        return DEFAULT_OPENING
    raise UsageError('no prompt. Give one: quintet generate "Once upon a time", --file FILE, or text on stdin.')


def _without_edges(text: str) -> str:
    """A prompt without what a text file has and a prompt has not: a byte-order mark, the newline at its end."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n")


def _encode(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of the prompt; an empty one becomes the token that begins a text."""
    ids = list(tokenizer(prompt, verbose=False)["input_ids"])
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    if not ids:
        raise InputError("the prompt is empty, and this model has no token that begins a text. Give some text.")
    return ids


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer with ids that the model lacks; a model with more rows than tokens is padded, and usual."""
    size = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model only {size}: they do not belong together. Get "
            "the tokenizer files of this model, or resize the model with resize_token_embeddings()."
        )


def _room(model: Any, prompt_tokens: int, wanted: int | None) -> int:
    """How many tokens to write: `wanted` if they fit behind the prompt, or by default what fits."""
    limit = model._position_limit()
    if limit is None:
        return wanted or DEFAULT_NEW_TOKENS
    if prompt_tokens + (wanted or 1) > limit:
        more = f" and --max-new-tokens asks for {wanted} more" if wanted else ""
        raise InputError(
            f"the prompt has {prompt_tokens} tokens{more}, but this model holds {limit} in all. "
            f"{'Ask for fewer, or shorten' if wanted else 'Shorten'} the prompt."
        )
    return wanted or min(DEFAULT_NEW_TOKENS, limit - prompt_tokens)


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords of `model.generate`; what is not given is left to the model's generation config."""
    given = {name: getattr(args, name) for name in (*SAMPLING, "repetition_penalty")}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options["do_sample"] = not args.greedy
    return options


def _options(args: argparse.Namespace, new_tokens: int) -> dict[str, Any]:
    options = sampling_options(args)
    options["max_new_tokens"] = new_tokens
    if args.stop:
        options["stop_strings"] = args.stop
    return options


class StopFilter:
    """Passes text on as it comes, but holds back what may turn out to be a stop text, and all that follows one.

    Args:
        stops: The stop texts; none of them empty.
        write: Receives the text that is safe to show.
    """

    def __init__(self, stops: Sequence[str], write: Callable[[str], object]) -> None:
        self._stops = stops
        self._write = write
        self._held = ""
        self.text = ""
        self.stopped = False

    def feed(self, piece: str, end: bool = False) -> None:
        """Take the next piece; at the `end` what was held back is written after all."""
        if self.stopped:
            return
        pending = self._held + piece
        # The stop that is complete first wins, as if the text came one character at a time.
        found = [(at + len(stop), at) for stop in self._stops if (at := pending.find(stop)) >= 0]
        if found:
            self.stopped = True
            ready, self._held = pending[: min(found)[1]], ""
        else:
            keep = 0 if end else max((_overlap(pending, stop) for stop in self._stops), default=0)
            ready, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        if ready:
            self.text += ready
            self._write(ready)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)


@dataclass(frozen=True)
class _Result:
    text: str
    tokens: int
    seconds: float
    finish_reason: str


def _write_one(
    model: Any,
    tokenizer: Any,
    prompt: str,
    ids: list[int],
    options: dict[str, Any],
    args: argparse.Namespace,
    seed: int,
) -> None:
    """Write one continuation and say how fast it was."""
    from quintet.tokenizers.stream import gap_after

    show = not args.json
    if show:
        print(style(_shown(prompt), "bold", sys.stdout), end="", flush=True)
    live = show and not args.no_stream
    try:
        gap = "" if prompt[-1:].isspace() else gap_after(tokenizer, ids)
        result = _continue(model, tokenizer, ids, options, args.stop, seed, _print_piece if live else None, gap)
    except KeyboardInterrupt:
        if show:
            print(flush=True)
        raise
    speed = round(result.tokens / result.seconds, 1)
    if args.json:
        print_json(
            {
                "prompt": prompt,
                "text": result.text,
                "tokens": result.tokens,
                "seconds": round(result.seconds, 3),
                "tok_s": speed,
                "finish_reason": result.finish_reason,
                "seed": None if args.greedy else seed,
                "model": args.model,
            }
        )
        return
    print("" if live else _shown(result.text), flush=True)
    how = "greedy" if args.greedy else f"seed {seed}"
    line = f"{result.tokens} tokens in {result.seconds:.2f} s: {speed:g} tokens/s ({how})"
    print(style(line, "dim", sys.stderr), file=sys.stderr)


def _continue(
    model: Any,
    tokenizer: Any,
    ids: list[int],
    options: dict[str, Any],
    stops: Sequence[str],
    seed: int,
    write: Callable[[str], object] | None,
    gap: str,
) -> _Result:
    """Generate after `ids`, handing `gap` and then text to `write` as it is finished. Imports torch."""
    import torch

    from quintet.generation import TextStreamer

    filtered = StopFilter(stops, write or (lambda text: None))

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            filtered.feed(text, end=stream_end)

    torch.manual_seed(seed)
    filtered.feed(gap)
    input_ids = torch.tensor([ids], device=model.device)  # (1, T)
    began = time.perf_counter()
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        tokenizer=tokenizer,
        streamer=Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        **options,
    )
    seconds = max(time.perf_counter() - began, 1e-9)
    new = output[0, len(ids) :].tolist()
    eos = model.generation_config.eos_token_id
    ends = set(eos) if isinstance(eos, list) else {eos}
    ended = filtered.stopped or bool(new and new[-1] in ends)
    return _Result(filtered.text, len(new), seconds, "stop" if ended else "length")


def _print_piece(text: str) -> None:
    print(_shown(text), end="", flush=True)


def _shown(text: str) -> str:
    """The text for stdout: as it is into a file or pipe, without control sequences on a terminal."""
    return printable(text) if sys.stdout.isatty() else text
