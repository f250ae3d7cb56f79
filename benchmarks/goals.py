"""What was wanted beside llama.cpp and of the machine's limit, and which of it the newest results reach."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from common import best_of

Record = dict[str, Any]
FORMATS = ("bf16", "int8", "int4")
GPT_OSS, SEED, PYTHIA, GPT2 = "gpt-oss-20b", "seed-oss-1.5b", "pythia-410m", "gpt2"


class Goal(NamedTuple):
    """A row of the table.

    Args:
        model: Which model.
        formats: Those that it is wanted in.
        what: In words.
        field: Of a record.
        part: "ratio", times llama.cpp's; "of_limit", of what memory allows; "seconds".
        values: One for each format: at least, of seconds at most.
        best: Beside the best of llama.cpp's formats, and with the best of ours.
    """

    model: str
    formats: tuple[str, ...]
    what: str
    field: str
    part: str
    values: tuple[float, ...]
    best: bool = False


GOALS = (
    Goal(GPT_OSS, FORMATS, "decode", "decode_s", "of_limit", (0.85, 0.85, 0.85)),
    Goal(GPT_OSS, ("int8", "int4"), "decode", "decode_s", "ratio", (1.35, 1.6)),
    Goal(GPT_OSS, FORMATS, "prompt of 512", "prompt_s", "ratio", (5, 5, 5)),
    Goal(GPT_OSS, FORMATS, "8 texts", "batch_s", "ratio", (2.5, 2.5, 2.5)),
    Goal(GPT_OSS, FORMATS, "8 texts", "batch_s", "of_limit", (0.8, 0.8, 0.8)),
    Goal(GPT_OSS, FORMATS, "start to first token", "first_token_s", "seconds", (3, 3, 3)),
    Goal(GPT_OSS, FORMATS, "start to first token", "first_token_s", "ratio", (4, 4, 4)),
    Goal(SEED, FORMATS, "decode", "decode_s", "ratio", (1.05, 1.35, 1.4)),
    Goal(SEED, FORMATS, "decode", "decode_s", "of_limit", (0.85, 0.85, 0.85)),
    Goal(SEED, FORMATS, "prompt of 512", "prompt_s", "ratio", (1.9, 3, 2)),
    Goal(SEED, FORMATS, "start to first token", "first_token_s", "ratio", (1, 1, 1)),
    Goal(PYTHIA, FORMATS, "decode", "decode_s", "ratio", (1, 1.3, 1.2)),
    Goal(PYTHIA, FORMATS, "decode", "decode_s", "of_limit", (0.8, 0.8, 0.8)),
    Goal(PYTHIA, FORMATS, "prompt of 512", "prompt_s", "ratio", (1.4, 2.2, 1.4)),
    Goal(GPT2, FORMATS, "decode", "decode_s", "ratio", (1, 1.3, 1.3)),
    Goal(GPT2, FORMATS, "prompt of 512, best formats", "prompt_s", "ratio", (1.5,), best=True),
    Goal(GPT2, FORMATS, "8 texts, best formats", "batch_s", "ratio", (1.5,), best=True),
    Goal(GPT2, FORMATS, "start to first token", "first_token_s", "seconds", (2, 2, 2)),
)


def _least(records: Iterable[Record], field: str, peer: str) -> float:
    return min(best_of(r[field], peer)[0] for r in records)


def _measured(goal: Goal, records: list[Record]) -> list[float | None]:
    """Return what was measured for each of the goal's values; None for what was not."""
    found = {r["format"]: r for r in records if r["model"] == goal.model and r["format"] in goal.formats}
    if goal.best:
        if len(found) < len(goal.formats):
            return [None]
        return [_least(found.values(), goal.field, "llama") / _least(found.values(), goal.field, "quintet")]

    def of(record: Record | None) -> float | None:
        if record is None:
            return None
        if goal.part == "seconds":
            return _least([record], goal.field, "quintet")
        return record[goal.field][goal.part]  # type: ignore[no-any-return]

    return [of(found.get(name)) for name in goal.formats]


def _say(value: float | None, part: str) -> str:
    if value is None:
        return "not measured"
    return f"{100 * value:.0f} %" if part == "of_limit" else f"{value:.2f} s" if part == "seconds" else f"{value:.2f}"


def reached(goal: Goal, value: float | None, wanted: float) -> bool:
    """Whether a value, as it is written in the table, is what was wanted."""
    if value is None:
        return False
    return round(value, 2) <= wanted if goal.part == "seconds" else round(value, 2) >= wanted


def goals_table(records: list[Record]) -> str:
    """Return the table: a goal reached is in bold."""
    lines = ["| model | what | unit | formats | wanted | measured |", "| --- | --- | --- | --- | --- | --- |"]
    count = met = 0
    for goal in GOALS:
        values = _measured(goal, records)
        cells = []
        for value, wanted in zip(values, goal.values, strict=True):
            good = reached(goal, value, wanted)
            count, met = count + 1, met + good
            cells.append(f"**{_say(value, goal.part)}**" if good else _say(value, goal.part))
        unit = {"ratio": "times llama.cpp's", "of_limit": "of the limit", "seconds": "at most"}[goal.part]
        wanted_cells = ", ".join(_say(value, goal.part) for value in goal.values)
        formats = "all" if goal.best else ", ".join(goal.formats)
        lines.append(f"| {goal.model} | {goal.what} | {unit} | {formats} | {wanted_cells} | {', '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{met} of {count} are reached (bold)."
