"""Text in, answers out: `pipeline(task, model)` and the class behind each task.

Names load when they are first used, so that the list of tasks needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quintet.pipelines.base import Pipeline
    from quintet.pipelines.data import KeyDataset, KeyPairDataset
    from quintet.pipelines.factory import pipeline
    from quintet.pipelines.feature_extraction import FeatureExtractionPipeline
    from quintet.pipelines.question_answering import QuestionAnsweringPipeline
    from quintet.pipelines.tasks import ALIASES, TASKS, Task, find_task
    from quintet.pipelines.text_classification import TextClassificationPipeline
    from quintet.pipelines.text_generation import ReturnType, TextGenerationPipeline
    from quintet.pipelines.token_classification import AggregationStrategy, NerPipeline, TokenClassificationPipeline
    from quintet.pipelines.zero_shot_classification import ZeroShotClassificationPipeline

__all__ = [
    "ALIASES",
    "AggregationStrategy",
    "FeatureExtractionPipeline",
    "KeyDataset",
    "KeyPairDataset",
    "NerPipeline",
    "Pipeline",
    "QuestionAnsweringPipeline",
    "ReturnType",
    "TASKS",
    "Task",
    "TextClassificationPipeline",
    "TextGenerationPipeline",
    "TokenClassificationPipeline",
    "ZeroShotClassificationPipeline",
    "find_task",
    "pipeline",
]

_HOMES = {
    "base": ("Pipeline",),
    "data": ("KeyDataset", "KeyPairDataset"),
    "factory": ("pipeline",),
    "feature_extraction": ("FeatureExtractionPipeline",),
    "question_answering": ("QuestionAnsweringPipeline",),
    "tasks": ("ALIASES", "TASKS", "Task", "find_task"),
    "text_classification": ("TextClassificationPipeline",),
    "text_generation": ("ReturnType", "TextGenerationPipeline"),
    "token_classification": ("AggregationStrategy", "NerPipeline", "TokenClassificationPipeline"),
    "zero_shot_classification": ("ZeroShotClassificationPipeline",),
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
