"""The evaluations that `quintet eval` knows. No torch here."""

from __future__ import annotations

from typing import NamedTuple

from quintet.errors import ConfigError, suggest

__all__ = ["TASKS", "Task", "find_task"]


class Task(NamedTuple):
    """An evaluation: its name, and what it measures on which file."""

    name: str
    what: str
    file: str


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("lambada", "can it guess the last word: accuracy, perplexity", "JSON lines with a text each"),
        Task("perplexity", "how well it predicts a text: per token, byte, word", "a UTF-8 text"),
    )
}


def find_task(name: str) -> Task:
    """Return the task of that name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name not in TASKS:
        hint = suggest(name, TASKS) or f" The tasks are {', '.join(TASKS)}."
        raise ConfigError(f"unknown evaluation {name!r}.{hint}")
    return TASKS[name]
