"""The tasks that a pipeline can do, as one table. No torch here."""

from __future__ import annotations

from typing import Any, NamedTuple

from quintet.errors import ConfigError, suggest

__all__ = ["ALIASES", "TASKS", "Task", "find_task"]


class Task(NamedTuple):
    """One task.

    Args:
        name: Its name.
        pipeline: Name of its class in `quintet.pipelines`.
        head: Key of the model class in a family's `classes`.
        loader: Name of the Auto class that loads the model.
        default: Model that is used when none is given, or None.
        what: What goes in and what comes out, for `--help`.
    """

    name: str
    pipeline: str
    head: str
    loader: str
    default: str | None
    what: str


_TABLE = (
    Task(
        "text-generation",
        "TextGenerationPipeline",
        "causal-lm",
        "AutoModelForCausalLM",
        "storyteller",
        "continues a text or a chat",
    ),
    Task(
        "text-classification",
        "TextClassificationPipeline",
        "sequence-classification",
        "AutoModelForSequenceClassification",
        None,
        "labels of a text, with scores",
    ),
    Task(
        "token-classification",
        "TokenClassificationPipeline",
        "token-classification",
        "AutoModelForTokenClassification",
        None,
        "labels of each token, or of each entity",
    ),
    Task(
        "question-answering",
        "QuestionAnsweringPipeline",
        "question-answering",
        "AutoModelForQuestionAnswering",
        None,
        "the part of a context that answers a question",
    ),
    Task(
        "feature-extraction",
        "FeatureExtractionPipeline",
        "base",
        "AutoModel",
        "storyteller",
        "the hidden states of each token",
    ),
    Task(
        "zero-shot-classification",
        "ZeroShotClassificationPipeline",
        "sequence-classification",
        "AutoModelForSequenceClassification",
        None,
        "scores of labels that the model was not trained on",
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _TABLE}
"""Every task by name."""

ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}
"""Other names of tasks."""


def find_task(name: Any) -> Task:
    """Return the task of that name or alias.

    Raises:
        ConfigError: there is none; the message lists them and names the nearest.
    """
    known = ALIASES.get(name, name) if isinstance(name, str) else name
    if not isinstance(known, str) or known not in TASKS:
        hint = suggest(name, [*TASKS, *ALIASES]) if isinstance(name, str) else ""
        raise ConfigError(f"unknown task {name!r}.{hint} The tasks are {', '.join([*TASKS, *ALIASES])}.")
    return TASKS[known]
