"""How good a model is: log-probabilities of given texts, LAMBADA, perplexity.

Names load when they are first used, so that the list of tasks needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quintet.evaluate.data import read_records, read_text
    from quintet.evaluate.lambada import LambadaResult, evaluate_lambada, split_last_word
    from quintet.evaluate.perplexity import PerplexityResult, evaluate_perplexity, rolling_windows
    from quintet.evaluate.tasks import TASKS, Task, find_task
    from quintet.generation.pairs import encode_pair, prefix_token
    from quintet.generation.scoring import Score, Scorer, score_targets

__all__ = [
    "LambadaResult",
    "PerplexityResult",
    "Score",
    "Scorer",
    "TASKS",
    "Task",
    "encode_pair",
    "evaluate_lambada",
    "evaluate_perplexity",
    "find_task",
    "prefix_token",
    "read_records",
    "read_text",
    "rolling_windows",
    "score_targets",
    "split_last_word",
]

_HOMES = {
    "quintet.evaluate.data": ("read_records", "read_text"),
    "quintet.evaluate.lambada": ("LambadaResult", "evaluate_lambada", "split_last_word"),
    "quintet.generation.pairs": ("encode_pair", "prefix_token"),
    "quintet.evaluate.perplexity": ("PerplexityResult", "evaluate_perplexity", "rolling_windows"),
    "quintet.generation.scoring": ("Score", "Scorer", "score_targets"),
    "quintet.evaluate.tasks": ("TASKS", "Task", "find_task"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
