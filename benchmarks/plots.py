"""Draw the pictures of docs/benchmarks.md from the JSON lines: what a token costs as work grows. Needs matplotlib.

python benchmarks/plots.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from report import DOCS, PICTURES, newest

COLORS = ("#12507b", "#b3541e", "#6b8e23", "#7a5195")
Record = dict[str, Any]


def by_threads(axis: Any, records: list[Record], field: str) -> None:
    """Draw a line for each model and number of threads, with the range of the rounds."""
    models = list(dict.fromkeys(record["model"] for record in records))
    for record in records:
        color = COLORS[models.index(record["model"]) % len(COLORS)]
        points = [(int(at), stat) for at, stat in record[field].items()]
        places, medians = [at for at, _ in points], [stat["median"] for _, stat in points]
        style = {1: ":", 2: "-"}.get(record["threads"], "--")
        name = f"{record['model']}; {record['threads']} thread{'s' * (record['threads'] > 1)}"
        axis.plot(places, medians, ls=style, marker="o", ms=3, lw=1.6, color=color, label=name)
        ends = [[stat["range"][end] for _, stat in points] for end in (0, 1)]
        axis.fill_between(places, *ends, color=color, alpha=0.15, lw=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks(places, [f"{at:,}" for at in places])


def context(axis: Any, records: list[Record]) -> None:
    """Milliseconds of a token, and the limit of the most threads."""
    by_threads(axis, records, "ms")
    most = max(record["threads"] for record in records)
    models = list(dict.fromkeys(record["model"] for record in records))
    for record in records:
        if record["threads"] == most:
            color = COLORS[models.index(record["model"]) % len(COLORS)]
            places = [int(at) for at in record["limit_ms"]]
            axis.plot(places, list(record["limit_ms"].values()), ls=(0, (1, 4)), lw=1, color=color)
    axis.plot([], [], ls=(0, (1, 4)), lw=1, color="black", label=f"memory's limit, {most} threads")
    axis.set_xlabel("tokens of context")
    axis.set_ylabel("milliseconds a token")


def batch(axis: Any, records: list[Record]) -> None:
    """Tokens a second of all texts."""
    by_threads(axis, records, "tok_s")
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set_xlabel("texts decoded together")
    axis.set_ylabel("tokens a second, all texts")


def threads(axis: Any, records: list[Record]) -> None:
    """How many times faster than one thread."""
    most = 1
    for record, color in zip(records, COLORS * len(records), strict=False):
        for field, style, what in (("decode_tok_s", "-", "decoding"), ("prompt_tok_s", "--", "reading a prompt")):
            places = [int(at) for at in record[field]]
            speeds = [stat["median"] / record[field]["1"]["median"] for stat in record[field].values()]
            axis.plot(places, speeds, ls=style, marker="o", ms=4, color=color, label=f"{record['model']}, {what}")
            most = max(most, *places)
    axis.plot([1, most], [1, most], lw=1, ls=":", color="black", label="as many times as threads")
    axis.set_xticks(range(1, most + 1))
    axis.set_xlabel("threads")
    axis.set_ylabel("speed, times that of one thread")


def beside(axis: Any, records: list[Record]) -> None:
    """Times as fast as llama.cpp: a group of bars for each model and format."""
    fields = (
        ("decode_s", "decoding one text"),
        ("batch_s", "decoding 8 texts"),
        ("prompt_s", "reading a prompt of 512"),
    )
    places = range(len(records))
    for number, ((field, what), color) in enumerate(zip(fields, COLORS, strict=False)):
        bars = [place + 0.27 * (number - 1) for place in places]
        axis.bar(bars, [record[field]["ratio"] for record in records], width=0.25, color=color, label=what)
    axis.axhline(1, lw=1, ls=":", color="black")
    names = [f"{record['model']} {record['format']}" for record in records]
    axis.set_xticks(places, names, fontsize=8, rotation=30, ha="right")
    axis.set_ylabel("times as fast as llama.cpp")


def draw(name: str, records: list[Record], folder: Path) -> Path:
    """Write one picture."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "quintet"  # the same figures give the same file
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4.8))
    kinds = {"growth_context": context, "growth_batch": batch, "growth_threads": threads, "beside_llama": beside}
    kinds[name](axis, records)
    axis.set_ylim(bottom=None if name == "growth_batch" else 0)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    machine = records[-1]["machine"]
    axis.set_title(f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}", fontsize=9)
    figure.tight_layout()
    path = folder / PICTURES[name][0]
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def main() -> None:
    """Draw what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=DOCS / "benchmarks.jsonl")
    parser.add_argument("--folder", type=Path, default=DOCS)
    args = parser.parse_args()
    found = newest(args.results.read_text(encoding="utf-8").splitlines())
    for name in PICTURES:
        if found.get(name):
            print(draw(name, found[name], args.folder))


if __name__ == "__main__":
    main()
