"""Text classification: labels of a text, with scores.

Letters: B rows, L labels.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from quintet.errors import ConfigError, InputError, suggest
from quintet.pipelines.base import Parameters, Pipeline, check_tokenizer_options
from quintet.pipelines.batches import Piece
from quintet.pipelines.inputs import checked_text

__all__ = ["TextClassificationPipeline", "sequence_logits"]

logger = logging.getLogger("quintet.pipelines")

FUNCTIONS = ("sigmoid", "softmax", "none")


class TextClassificationPipeline(Pipeline):
    """Labels texts, or pairs given as `{"text", "text_pair"}`, with a sequence classification model.

    Options, of the pipeline or of a call:
        top_k: How many labels to give, best first; None gives all. Without it the best one alone.
        function_to_apply: "softmax", "sigmoid" or "none". The default is none for regression, sigmoid for several
            labels at once or a single one, else softmax.
        return_all_scores: Older way to ask for all labels, in the model's order.
        **tokenizer_kwargs: For the tokenizer, such as `truncation=True`.

    A call without `top_k` gives a list with one record `{"label", "score"}` for one text, and a record each for
    several. With `top_k` each text has a list of records.
    """

    default_task: ClassVar[str] = "text-classification"

    def _sanitize_parameters(
        self,
        function_to_apply: Any = None,
        top_k: Any = "",
        return_all_scores: bool | None = None,
        **tokenizer_kwargs: Any,
    ) -> Parameters:
        check_tokenizer_options(self.tokenizer, tokenizer_kwargs)
        after: dict[str, Any] = {}
        if return_all_scores is not None:
            warnings.warn("return_all_scores is an old name; use top_k=None for all labels.", UserWarning, stacklevel=4)
            after["all_scores"] = bool(return_all_scores)
        if top_k != "":
            if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
                raise ConfigError(f"top_k is {top_k!r}, but must be an integer of at least 1, or None for all labels.")
            after["top_k"] = top_k
        if function_to_apply is not None:
            after["function_to_apply"] = _function(function_to_apply)
        return Parameters(tokenizer_kwargs, {}, after)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Label one text, a list of texts, a data set or a generator; see the class."""
        result = super().__call__(inputs, **options)
        return [result] if isinstance(inputs, str) and "top_k" not in options else result

    def preprocess(self, item: Any, **options: Any) -> list[Piece]:
        """Encode a text or a pair."""
        if isinstance(item, Mapping):
            unknown = [name for name in item if name not in ("text", "text_pair")]
            if unknown or "text" not in item:
                raise InputError(
                    f"a pair has the keys {[*item]}, but must have 'text' and may have 'text_pair'.",
                )
            first = checked_text(item["text"], "text")
            second = item.get("text_pair")
            pair = None if second is None else checked_text(second, "text_pair")
            return [Piece(self.columns(self.encode(first, pair, **options)))]
        if isinstance(item, (list, tuple)):
            raise InputError(
                f"a text is {item!r:.80}. Give a text, or for a pair a dict: {{'text': ..., 'text_pair': ...}}."
            )
        return [Piece(self.columns(self.encode(checked_text(item, "the text"), **options)))]

    def _forward(self, pieces: Sequence[Piece], **parameters: Any) -> list[Any]:
        return sequence_logits(self, pieces)

    def postprocess(  # type: ignore[override]
        self,
        pieces: Sequence[Piece],
        outputs: Sequence[Any],
        function_to_apply: str | None = None,
        top_k: int | None | str = "",
        all_scores: bool = False,
    ) -> Any:
        """Turn scores into labels."""
        logits: torch.Tensor = outputs[0]  # (L,)
        function = function_to_apply or self._usual_function()
        if function == "softmax":
            scores = logits.softmax(-1)
        else:
            scores = logits.sigmoid() if function == "sigmoid" else logits
        names = self.model.config.id2label
        records = [{"label": names[index], "score": score} for index, score in enumerate(scores.tolist())]
        if top_k == "":
            return records if all_scores else max(records, key=lambda record: record["score"])
        records.sort(key=lambda record: record["score"], reverse=True)
        return records if top_k is None else records[: int(top_k)]

    def _usual_function(self) -> str:
        config = self.model.config
        if config.problem_type == "regression":
            return "none"
        if config.problem_type == "multi_label_classification" or config.num_labels == 1:
            return "sigmoid"
        return "softmax"


def sequence_logits(pipe: Pipeline, pieces: Sequence[Piece]) -> list[torch.Tensor]:
    """Return the (L,) float32 scores of each row of a sequence classification model.

    The model finds a row's end by its configuration's padding token; one without a padding token reads row by row.
    """
    if len(pieces) > 1 and pipe.model.config.pad_token_id is None:
        if not getattr(pipe, "_told_about_padding", False):
            pipe._told_about_padding = True  # type: ignore[attr-defined]
            logger.warning(
                "model.config.pad_token_id is None, so texts are read one at a time whatever batch_size is. Set it to "
                "the id of a token that texts do not end with."
            )
        return [row for piece in pieces for row in sequence_logits(pipe, [piece])]
    logits = pipe.run_model(pieces).logits.float().cpu()  # (B, L)
    return [*logits]


def _function(value: Any) -> str:
    """Return the name of a function, also from an enum of such names.

    Raises:
        ConfigError: there is no such function.
    """
    name = str(getattr(value, "value", value)).lower()
    if name not in FUNCTIONS:
        raise ConfigError(
            f"function_to_apply is {value!r}, but must be one of {', '.join(FUNCTIONS)}.{suggest(name, FUNCTIONS)}"
        )
    return name
