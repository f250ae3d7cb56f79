"""How good a model is: log-probabilities of given texts, LAMBADA, perplexity.

Names load when they are first used, so that the list of tasks needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quintet.evaluate.data import read_records, read_text
    from quintet.evaluate.lambada import LambadaResult, evaluate_lambada, split_last_word
    from quintet.evaluate.pairs import encode_pair, prefix_token
    from quintet.evaluate.perplexity import PerplexityResult, evaluate_perplexity, rolling_windows
    from quintet.evaluate.scoring import Score, Scorer, score_targets
    from quintet.evaluate.tasks import TASKS, Task, find_task

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
    "data": ("read_records", "read_text"),
    "lambada": ("LambadaResult", "evaluate_lambada", "split_last_word"),
    "pairs": ("encode_pair", "prefix_token"),
    "perplexity": ("PerplexityResult", "evaluate_perplexity", "rolling_windows"),
    "scoring": ("Score", "Scorer", "score_targets"),
    "tasks": ("TASKS", "Task", "find_task"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
