"""Put the tables of a page (docs/benchmarks.md) between their marks, from the JSON lines: no figure is typed by hand.

The newest result of each kind counts. `--check` changes nothing and fails when the page differs from the results.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from common import best_of
from goals import goals_table

DOCS = Path(__file__).resolve().parents[1] / "docs"
Record = dict[str, Any]

PEERS = ("quintet", "transformers")
# What tells results of one benchmark apart.
KEYS = {
    "decode": ("model", "dtype", "batch"),
    "prefill": ("model", "dtype", "tokens"),
    "load": ("model", "dtype"),
    "memory": ("model", "dtype"),
    "import": ("what",),
    "cache": ("length",),
    "micro": ("op", "dtype", "rows", "way"),
    "kernels": ("op", "size", "dtype", "rows", "threads", "activations"),
    "dispatch": ("model", "format"),
    "growth_context": ("model", "threads"),
    "growth_batch": ("model", "threads"),
    "growth_threads": ("model",),
    "baselines": ("what",),
    "families": ("model", "dtype"),
    "gpt_oss_20b": ("model",),
    "tokenizers": ("vocabulary", "what"),
    "generation": ("what",),
    "quantization": ("format",),
    "beside_llama": ("model", "format"),
}


# What tables of a machine with tiles have behind their names.
AMX = "_amx"


def newest(lines: Iterable[str]) -> dict[str, list[Record]]:
    """Return the last record of every kind, by benchmark, in the order in which the kinds first came.

    Where a benchmark ran on machines with tiles and without, the former are one of their own.
    """
    records: list[Record] = [json.loads(line) for line in lines if line.strip()]
    without = {record["benchmark"] for record in records if not _has_tiles(record)}
    found: dict[str, dict[tuple[Any, ...], Record]] = {}
    for record in records:
        name = record["benchmark"]
        key = tuple(record.get(field) for field in KEYS[name])
        found.setdefault(name + AMX if _has_tiles(record) and name in without else name, {})[key] = record
    return {name: list(kinds.values()) for name, kinds in found.items()}


def _has_tiles(record: Record) -> bool:
    level: str | None = record["machine"].get("level")
    return level == "amx"


def number(value: float) -> str:
    """Write with three or four digits that mean something."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(stat: Record) -> str:
    """Write a median with its range."""
    return f"{number(stat['median'])} ({number(stat['range'][0])} to {number(stat['range'][1])})"


def percent(value: float) -> str:
    """Write a part of one."""
    return f"{100 * value:.0f} %"


Column = tuple[str, Callable[[Record], str]]


def pair(field: str, unit: str) -> list[Column]:
    """Return a column for each peer."""
    return [
        (f"quintet, {unit}", lambda r: spread(r[field]["quintet"])),
        (f"transformers, {unit}", lambda r: spread(r[field]["transformers"])),
    ]


def both(field: str, title: str) -> list[Column]:
    """Return a column with the medians of both, and one with their ratio."""

    def medians(record: Record) -> str:
        return " / ".join(number(record[field][peer]["median"]) for peer in PEERS if peer in record[field])

    return [
        (title, medians),
        ("ratio", lambda r: f"**{r['ratio'][field]:.2f}**" if "ratio" in r else ""),
    ]


def speed(peer: str) -> Column:
    """Return the column of one library; empty where it does not have the vocabulary."""
    return (peer, lambda r: precise(r["speed"][peer]["median"]) if peer in r["speed"] else "")


def against(name: str) -> Column:
    """Return the column of what quintet is compared with: its median, and how many times better quintet is."""

    def cell(record: Record) -> str:
        if name not in record["speed"]:
            return ""
        return f"{number(record['speed'][name]['median'])}, **{record['ratio'][name]:.2f}** times"

    return ("without" if name != "transformers" else name, cell)


def precise(value: float) -> str:
    """As `number`, with three digits also below one: loading takes hundredths of a second."""
    return number(value) if value >= 1 else f"{value:.3f}"


def within(record: Record, model: str | None, field: str, style: str, unit: float = 1) -> str:
    """Write a field of one model (None: the first there is), empty where it was not measured."""
    models = record["models"]
    facts = next(iter(models.values())) if model is None else models.get(model, {})
    value = facts.get(field)
    return "" if value is None else style.format(round(value * unit, 3) + 0.0)  # not "-0.00"


# Ways that benchmarks/kernels.py compares.
WAYS = ("torch", "fused without native", "native")
# What is the same of two kernels that differ in their activations.
SAME = ("op", "size", "dtype", "rows", "threads")
# Up to so many rows bytes of weights count, and beyond them operations.
FEW_ROWS = 8
# Drawn by benchmarks/plots.py: file in docs/, and what it shows.
PICTURES = {
    "beside_llama": ("beside_llama.svg", "How many times as fast as llama.cpp"),
    "growth_context": ("growth_context.svg", "Milliseconds a token against the tokens before it"),
    "growth_batch": ("growth_batch.svg", "Tokens a second against the texts decoded together"),
    "growth_threads": ("growth_threads.svg", "Speed against threads"),
}
LENGTHS = ("512", "1024", "2048", "4096", "8192", "16384", "32768")
BATCHES = ("1", "2", "4", "8", "16", "32", "64")


def of_way(way: str) -> Column:
    """Return the column of one of the WAYS."""

    def cell(record: Record) -> str:
        speeds = record["gflop_s" if record["rows"] > FEW_ROWS else "gb_s"]
        return number(speeds[way]) if way in speeds else ""

    return (way, cell)


def besides(field: str, unit: float, title: str) -> Column:
    """Return a column of quintet, llama.cpp and how many times faster quintet is."""

    def say(record: Record) -> str:
        found = record[field]
        ours, theirs = (best_of(found, peer)[0] for peer in ("quintet", "llama"))
        return f"{number(unit * ours)} / {number(unit * theirs)} **{found['ratio']:.2f}**"

    return title, say


def limited(field: str) -> Column:
    """Return a column of how near quintet comes to what memory lets it do."""
    return "of the limit", lambda r: percent(r[field]["of_limit"])


def memory_beside(record: Record) -> str:
    """Return the speed of memory while quintet ran, and while the better of llama.cpp's ways to decode did."""
    speeds, took = record["read_gb_s"], record["decode_s"]
    ours, theirs = (best_of(took, peer)[1] for peer in ("quintet", "llama"))
    return f"{number(speeds[ours])} / {number(speeds[theirs])}"


def along(field: str, places: Iterable[str]) -> list[Column]:
    """Return a column for each place of a curve; empty where nothing was measured there."""
    return [
        (f"{int(at):,}", lambda r, at=at: number(r[field][at]["median"]) if at in r[field] else "") for at in places
    ]


def by_threads(field: str) -> Callable[[Record], str]:
    """Write the medians of 1, 2 and more threads."""
    return lambda r: " / ".join(number(stat["median"]) for stat in r[field].values())


TABLES: dict[str, list[Column]] = {
    "decode": [
        ("model", lambda r: r["model"]),
        ("dtype", lambda r: r["dtype"]),
        ("batch", lambda r: str(r["batch"])),
        ("tokens", lambda r: str(r["tokens"])),
        ("rounds", lambda r: str(r["rounds"])),
        *pair("tok_s", "tokens/s"),
        ("ratio", lambda r: f"**{r['ratio']:.2f}**"),
        ("limit, tokens/s", lambda r: number(r["limit_tok_s"])),
        ("of the limit", lambda r: percent(r["fraction_of_limit"])),
    ],
    "prefill": [
        ("model", lambda r: r["model"]),
        ("dtype", lambda r: r["dtype"]),
        ("tokens", lambda r: str(r["tokens"])),
        ("rounds", lambda r: str(r["rounds"])),
        *pair("tok_s", "tokens/s"),
        ("ratio", lambda r: f"**{r['ratio']:.2f}**"),
        ("GFLOP/s", lambda r: number(r["gflop_s"]["quintet"])),
        # Above one the product was not the fastest there is, and the part means nothing.
        ("of the fastest product", lambda r: percent(r["fraction_of_limit"]) if r["fraction_of_limit"] <= 1 else ""),
    ],
    "load": [
        ("model", lambda r: r["model"]),
        ("dtype", lambda r: r["dtype"]),
        *pair("seconds", "s"),
        ("times faster", lambda r: f"**{r['ratio']:.2f}**"),
        ("peak memory, MiB", lambda r: " / ".join(number(v) for v in r["peak_rss_mib"].values())),
    ],
    "memory": [
        ("model", lambda r: r["model"]),
        ("dtype", lambda r: r["dtype"]),
        ("file, MiB", lambda r: number(r["file_mib"])),
        *pair("peak_rss_mib", "MiB"),
        ("ratio", lambda r: f"**{r['ratio']:.2f}**"),
    ],
    "import": [("what", lambda r: f"`{r['what']}`"), ("ms", lambda r: spread(r["ms"]))],
    "cache": [
        ("tokens in the cache", lambda r: str(r["length"])),
        ("slab, us", lambda r: spread(r["us"]["slab"])),
        ("concatenation, us", lambda r: spread(r["us"]["concatenation"])),
        ("ratio", lambda r: f"**{r['ratio']:.2f}**"),
    ],
    "micro": [
        ("operation", lambda r: r["op"]),
        ("dtype", lambda r: r["dtype"]),
        ("rows", lambda r: str(r["rows"])),
        ("way", lambda r: r["way"]),
        ("us", lambda r: number(r["us_q10"])),
        ("GB/s", lambda r: number(r["gb_s"]) if "gb_s" in r else ""),
    ],
    "kernels": [
        ("operation", lambda r: r["op"]),
        ("size", lambda r: r["size"]),
        ("dtype", lambda r: r["dtype"] + (", x in int8" if r.get("activations") == "int8" else "")),
        ("rows", lambda r: str(r["rows"])),
        ("threads", lambda r: str(r["machine"]["threads"])),
        ("level", lambda r: r["level"] or ""),
        ("unit", lambda r: "GFLOPS" if r["rows"] > FEW_ROWS else "GB/s"),
        *map(of_way, WAYS),
        ("memory read, GB/s", lambda r: number(r["read_gb_s"])),
    ],
    "dispatch": [
        ("model", lambda r: r["model"]),
        ("format", lambda r: r["format"]),
        ("a step, us", lambda r: spread(r["step_us"])),
        ("of it native, us", lambda r: spread(r["native_us"])),
        ("between", lambda r: f"**{percent(r['between']['median'])}**"),
        ("native calls", lambda r: number(r["native_calls"])),
    ],
    "growth_context": [
        ("model", lambda r: r["model"]),
        ("threads", lambda r: str(r["threads"])),
        *along("ms", LENGTHS),
        (
            "limit, first and last",
            lambda r: " / ".join(map(number, (*r["limit_ms"].values(),)[:: max(1, len(r["limit_ms"]) - 1)])),
        ),
    ],
    "growth_batch": [
        ("model", lambda r: r["model"]),
        ("threads", lambda r: str(r["threads"])),
        *along("tok_s", BATCHES),
    ],
    "growth_threads": [
        ("model", lambda r: r["model"]),
        ("threads", lambda r: " / ".join(r["decode_tok_s"])),
        ("decode, tokens/s", by_threads("decode_tok_s")),
        ("prompt, tokens/s", by_threads("prompt_tok_s")),
    ],
    "families": [
        ("model", lambda r: r["model"]),
        ("dtype", lambda r: r["dtype"]),
        ("rounds", lambda r: str(r["rounds"])),
        *both("decode_tok_s", "decode, tokens/s"),
        *both("prefill_tok_s", "prompt, tokens/s"),
        *both("peak_mib", "peak memory, MiB"),
        ("file, MiB", lambda r: number(r["file_mib"])),
        *both("load_s", "load, s")[:1],
    ],
    "gpt_oss_20b": [
        ("model", lambda r: r["model"]),
        ("file, GB", lambda r: number(r["file_gb"])),
        ("imports and load, s", lambda r: number(r["ready_s"])),
        ("of it load, s", lambda r: number(r["load_s"])),
        ("peak memory, GB", lambda r: number(r["peak_gb"])),
        ("of it the mapped file, GB", lambda r: number(r["peak_file_gb"])),
        ("above the file, GB", lambda r: number(r["peak_above_file_gb"])),
        ("a token, s", lambda r: number(r["token_s"])),
    ],
    "generation": [
        ("what", lambda r: f"{r['what']}, {r['unit']}"),
        ("rounds", lambda r: str(r["rounds"])),
        ("quintet", lambda r: spread(r["speed"]["quintet"])),
        *map(against, ("transformers", "without")),
        ("that is", lambda r: r.get("without", "")),
    ],
    "tokenizers": [
        ("vocabulary", lambda r: r["vocabulary"]),
        ("what", lambda r: f"{r['what']}, {r['unit']}"),
        *map(speed, ("quintet", "transformers", "tokenizers", "tiktoken")),
        ("times faster than transformers", lambda r: f"**{r['ratio']['transformers']:.2f}**"),
    ],
    "quantization": [
        ("format", lambda r: r["format"]),
        ("bits", lambda r: within(r, None, "bits_per_number", "{:.2f}")),
        ("file, MB", lambda r: within(r, "storyteller", "file_bytes", "{:.2f}", 1e-6)),
        ("perplexity", lambda r: within(r, "storyteller", "perplexity", "{:.3f}")),
        ("change, %", lambda r: within(r, "storyteller", "change_percent", "{:+.2f}")),
        ("±", lambda r: within(r, "storyteller", "change_error_percent", "{:.2f}")),
        ("divergence, 0.001 nats", lambda r: within(r, "storyteller", "divergence_nats", "{:.2f}", 1e3)),
        ("logits of Seed-OSS, %", lambda r: within(r, "seed-oss-1.5b", "logits_error", "{:.2f}", 100)),
        ("logits of gpt-oss, %", lambda r: within(r, "gpt-oss-20b", "logits_error", "{:.2f}", 100)),
    ],
    "beside_llama": [
        ("model", lambda r: r["model"]),
        ("format", lambda r: r["format"]),
        besides("decode_s", 1e3, "decode, ms"),
        limited("decode_s"),
        besides("batch_s", 1e3, "8 texts, ms"),
        limited("batch_s"),
        ("memory read, GB/s", memory_beside),
        besides("prompt_s", 1, "prompt of 512, s"),
        besides("first_token_s", 1, "start to first token, s"),
        ("memory, MB", lambda r: besides("peak_mb", 1, "")[1](r).partition(" **")[0]),
    ],
    "baselines": [("what", lambda r: r["what"]), ("bits per byte", lambda r: f"{r['bpb']:.3f}")],
}


def source(records: list[Record]) -> str:
    """Return the lines below a table: its commands and machines."""
    lines = []
    for command in dict.fromkeys(r["command"] for r in records):
        machines = [r["machine"] for r in records if r["command"] == command]
        m, load = machines[-1], max(one["load"] for one in machines)
        where = f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads, load up to {load}"
        versions = f"torch {m['torch']}, transformers {m['transformers']}, Python {m['python']}"
        lines.append(f"`{command}`: {where}; {versions}; commit {m['commit']}, {m['date']}.")
    return "  \n".join(lines)


def grid(columns: list[Column], records: list[Record]) -> str:
    """Return the lines of a table."""
    rows = [[title for title, _ in columns], ["---"] * len(columns)]
    rows += [[cell(record) for _, cell in columns] for record in records]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def table(name: str, records: list[Record]) -> str:
    """Return one table with its source, or a sentence that says that it is missing."""
    if not records:
        return "Not measured yet."
    text = grid(TABLES[name.removesuffix(AMX)], records) + "\n\n" + source(records)
    picture, shows = PICTURES.get(name, ("", ""))
    return f"{text}\n\n![{shows}]({picture})" if picture and (DOCS / picture).exists() else text


def span(values: Iterable[float], unit: float = 1) -> str:
    """Write the least and the largest of some values."""
    low, high = (number(unit * edge(values)) for edge in (min, max)) if (values := [*values]) else ("", "")
    return low if low == high else f"{low} to {high}"


def llama_in_words(records: list[Record]) -> str:
    """Return what README says beside llama.cpp: from the least to the best of all models and formats."""
    if not records:
        return "Not measured yet."
    prompts, single, many = (span(r[field]["ratio"] for r in records) for field in ("prompt_s", "decode_s", "batch_s"))
    text = (
        f"Beside llama.cpp, at the same shapes and bits on this machine: prompts are read {prompts} times as fast, one "
        f"text is decoded {single}\ntimes as fast, 8 texts {many} times."
    )
    large = [r for r in records if r["model"] == "gpt-oss-20b"]
    if not large:
        return text

    def of(field: str, peer: str) -> list[float]:
        return [best_of(r[field], peer)[0] for r in large]

    memory = span((a / b for a, b in zip(of("peak_mb", "quintet"), of("peak_mb", "llama"), strict=True)), 100)
    first, others = (span(of("first_token_s", peer)) for peer in ("quintet", "llama"))
    return (
        f"{text} gpt-oss-20b takes {memory} % of llama.cpp's memory, and says its first\n"
        f"token after {first} s, not {others}."
    )


def activations_table(records: list[Record]) -> str:
    """Return the speed of products whose activations are left as they are, and rounded to 8 bits, side by side."""
    found: dict[tuple[Any, ...], Record] = {}
    for record in records:
        if record["rows"] > FEW_ROWS:
            found.setdefault(tuple(record[key] for key in SAME), {})[record["activations"]] = record
    pairs = [pair for pair in found.values() if len(pair) == 2]
    if not pairs:
        return "Not measured yet."

    def speed_of(pair: Record, kind: str) -> float:
        speed: float = pair[kind]["gflop_s"]["native"]
        return speed

    columns: list[Column] = [
        ("operation", lambda pair: pair["bf16"]["op"]),
        ("size", lambda pair: pair["bf16"]["size"]),
        ("rows", lambda pair: str(pair["bf16"]["rows"])),
        ("bf16, GFLOPS", lambda pair: number(speed_of(pair, "bf16"))),
        ("int8, GFLOPS", lambda pair: number(speed_of(pair, "int8"))),
        ("times", lambda pair: f"**{speed_of(pair, 'int8') / speed_of(pair, 'bf16'):.2f}**"),
    ]
    return grid(columns, pairs) + "\n\n" + source([record for pair in pairs for record in pair.values()])


# Sentences of a page that are made of results as tables are: the benchmark, and what says it.
WORDS: dict[str, tuple[str, Callable[[list[Record]], str]]] = {
    "beside_llama_words": ("beside_llama", llama_in_words),
    "beside_llama_goals": ("beside_llama", goals_table),
    "beside_llama_amx_goals": ("beside_llama" + AMX, goals_table),
    "activations": ("kernels", activations_table),
}


def fill(page: str, results: dict[str, list[Record]]) -> str:
    """Return the page with every marked place filled."""

    def replaced(match: re.Match[str]) -> str:
        name = match[1]
        if name in WORDS:
            benchmark, say = WORDS[name]
            return f"<!-- table: {name} -->\n{say(results.get(benchmark, []))}\n<!-- end -->"
        return f"<!-- table: {name} -->\n{table(name, results.get(name, []))}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", replaced, page, flags=re.DOTALL)


def main() -> int:
    """Fill the page, or check it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=DOCS / "benchmarks.jsonl")
    parser.add_argument("--page", type=Path, default=DOCS / "benchmarks.md")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    lines = args.results.read_text(encoding="utf-8").splitlines() if args.results.exists() else []
    page = args.page.read_text(encoding="utf-8")
    filled = fill(page, newest(lines))
    if args.check:
        if filled != page:
            print(f"{args.page} differs from {args.results}: run python benchmarks/report.py", file=sys.stderr)
        return int(filled != page)
    args.page.write_text(filled, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
