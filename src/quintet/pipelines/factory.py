"""`pipeline(task, model)`: finds and loads what a task needs."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import quintet.auto as auto
from quintet.auto import AutoConfig, family_of, model_types
from quintet.config import PreTrainedConfig
from quintet.errors import ConfigError, HubError, TokenizerError
from quintet.pipelines.base import Pipeline
from quintet.pipelines.feature_extraction import FeatureExtractionPipeline
from quintet.pipelines.question_answering import QuestionAnsweringPipeline
from quintet.pipelines.tasks import TASKS, Task, find_task
from quintet.pipelines.text_classification import TextClassificationPipeline
from quintet.pipelines.text_generation import TextGenerationPipeline
from quintet.pipelines.token_classification import TokenClassificationPipeline
from quintet.pipelines.zero_shot_classification import ZeroShotClassificationPipeline
from quintet.tokenizers.auto import AutoTokenizer

__all__ = ["pipeline"]

logger = logging.getLogger("quintet.pipelines")

CLASSES: dict[str, type[Pipeline]] = {
    one.default_task: one
    for one in (
        TextGenerationPipeline,
        TextClassificationPipeline,
        TokenClassificationPipeline,
        QuestionAnsweringPipeline,
        FeatureExtractionPipeline,
        ZeroShotClassificationPipeline,
    )
}
# Arguments of the reference's function that models of text have no use for.
NOT_TEXT = ("feature_extractor", "image_processor", "video_processor", "processor")


def pipeline(
    task: str | None = None,
    model: Any = None,
    config: str | PreTrainedConfig | None = None,
    tokenizer: Any = None,
    *,
    revision: str | None = None,
    use_fast: bool = True,
    token: str | bool | None = None,
    device: Any = None,
    device_map: Any = None,
    dtype: Any = "auto",
    torch_dtype: Any = None,
    trust_remote_code: bool | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    pipeline_class: type[Pipeline] | None = None,
    **options: Any,
) -> Pipeline:
    """Make a pipeline: a callable that takes text and gives answers.

    Args:
        task: "text-generation", "text-classification" ("sentiment-analysis"), "token-classification" ("ner"),
            "question-answering", "feature-extraction" or "zero-shot-classification". None: what the model is for.
        model: A folder, a name, or a model. None: the bundled storyteller, for the tasks that it can do.
        config: A configuration, or the folder or name of one; None for the model's.
        tokenizer: A tokenizer, a folder or name, or a pair of a name and a dict of options; None for the model's.
        revision, token: Of a model that is loaded by name.
        use_fast: Prefer the fast tokenizer class.
        device: "cpu", "cuda:1", a torch.device, or a number: of a CUDA device, -1 for the CPU. None, and a number
            where there is no CUDA: the first CUDA device, else the CPU.
        device_map: For `from_pretrained`, in place of device.
        dtype: Type of the weights; "auto": as they are stored. `torch_dtype` is the older name.
        torch_dtype: See dtype.
        trust_remote_code: Must not be true: no code from a checkpoint is run.
        model_kwargs: Further keywords of `from_pretrained`.
        pipeline_class: A subclass of Pipeline to use.
        **options: For the pipeline: `batch_size`, `progress`, and the options of its task.

    Raises:
        ConfigError: an unknown task, a model without the head that the task needs, arguments that contradict.
        TokenizerError: no tokenizer was found.
        HubError: no model of that name.
    """
    keywords = _model_keywords(dtype, torch_dtype, device, device_map, model_kwargs)
    for name in NOT_TEXT:
        if options.pop(name, None) is not None:
            raise ConfigError(f"{name} is for images and sound, which quintet has no models for. Leave it out.")
    if trust_remote_code:
        raise ConfigError("trust_remote_code=True: quintet never runs code from a checkpoint. Leave it out.")
    if task is None and model is None:
        raise ConfigError("pipeline() needs a task or a model. Pass one: pipeline('text-generation').")
    found = None if task is None else find_task(task)
    if model is None:
        model = _default_model(found, tokenizer)
    where: dict[str, Any] = {
        name: value for name, value in (("revision", revision), ("token", token)) if value is not None
    }
    if isinstance(options.get("local_files_only"), bool):
        where["local_files_only"] = options.pop("local_files_only")
    path = str(model) if isinstance(model, (str, Path)) else None
    if isinstance(config, (str, os.PathLike)):
        config = AutoConfig.from_pretrained(config, **where)
    if found is None:
        found = _task_of(model, AutoConfig.from_pretrained(path, **where) if path and config is None else config)
    if path is not None:
        model = _load_model(found, path, config, {**where, **keywords})
        if device is None and keywords.get("device_map") is not None:
            device = model.device
    tokenizer = _load_tokenizer(tokenizer, path, model, use_fast, where)
    chosen = pipeline_class or CLASSES[found.name]
    return chosen(model=model, tokenizer=tokenizer, task=task or found.name, device=device, **options)


def _model_keywords(
    dtype: Any, torch_dtype: Any, device: Any, device_map: Any, given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The keywords of `from_pretrained`.

    Raises:
        ConfigError: one is given twice.
    """
    keywords = dict(given or {})
    asked: dict[str, Any] = {}
    if not isinstance(dtype, str) or dtype != "auto":
        asked["dtype"] = dtype
    elif torch_dtype is not None:
        asked["dtype"] = torch_dtype
    asked["device_map"] = device_map
    for name, value in asked.items():
        if value is None:
            continue
        if name in keywords or (name == "dtype" and "torch_dtype" in keywords):
            raise ConfigError(f"{name} is given twice: as an argument and in model_kwargs. Give it once.")
        keywords[name] = value
    if device is not None and keywords.get("device_map") is not None:
        raise ConfigError("device and device_map are both given, and say the same. Give one of them.")
    return keywords


def _default_model(task: Task | None, tokenizer: Any) -> str:
    if tokenizer is not None:
        raise ConfigError("a tokenizer is given and no model, and it may not belong to any default. Pass model=...")
    if task is None or task.default is None:
        name = "" if task is None else f" for {task.name}"
        raise ConfigError(f"there is no default model{name}. Pass model=..., a folder or a name.")
    logger.warning("no model is given, so the bundled %r is used. Pass model=... to choose one.", task.default)
    return task.default


def _task_of(model: Any, config: Any) -> Task:
    """Find out what a model is for.

    Raises:
        ConfigError: its configuration does not say.
    """
    config = getattr(model, "config", None) if config is None else config
    architectures = getattr(config, "architectures", None) or []
    names = [type(model).__name__] if not isinstance(model, (str, Path)) else list(architectures)
    kind = getattr(config, "model_type", None)
    if kind in model_types():
        for head, one in family_of(kind).classes.items():
            if one.__name__ in names:
                for task in TASKS.values():
                    if task.head == head:
                        return task
    raise ConfigError(
        f"the configuration does not say what the model is for (its architectures are {names}). Pass the task: one of "
        f"{', '.join(TASKS)}."
    )


def _load_model(task: Task, name: str, config: Any, keywords: dict[str, Any]) -> Any:
    """Load the model with the task's head, and refuse one whose weights the checkpoint does not have."""
    loader = getattr(auto, task.loader)
    if config is not None:
        keywords["config"] = config
    strict = not keywords.pop("output_loading_info", False) and "state_dict" not in keywords
    model, report = loader.from_pretrained(name, output_loading_info=True, **keywords)
    missing = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if missing and strict:
        raise ConfigError(
            f"'{name}' has no weights for {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}, which "
            f"{task.name} needs: it was trained for another task. Use a model with a {task.head} head, or make and "
            "train one, and pass the model itself."
        )
    return model


def _load_tokenizer(given: Any, name: str | None, model: Any, use_fast: bool, where: dict[str, Any]) -> Any:
    """Return the tokenizer, loaded from where the model is from unless it is given.

    Raises:
        TokenizerError: there is none.
    """
    options: dict[str, Any] = {}
    own = given is None
    if isinstance(given, tuple):
        given, options = given[0], dict(given[1])
    if given is None:
        given = name or getattr(model, "name_or_path", "") or getattr(model.config, "name_or_path", "")
        if not given:
            raise TokenizerError(
                f"no tokenizer: the {type(model).__name__} was made in memory, so there is no folder to look in. Pass "
                "tokenizer=AutoTokenizer.from_pretrained(...)."
            )
    if not isinstance(given, (str, os.PathLike)):
        return given
    options.setdefault("use_fast", use_fast)
    try:
        return AutoTokenizer.from_pretrained(given, **(where if own else {}), **options)
    except (TokenizerError, HubError) as error:
        raise TokenizerError(f"no tokenizer found for '{given}': {error} Pass tokenizer=...") from error
