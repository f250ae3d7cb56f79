"""Zero-shot classification: scores of labels that the model was not trained on, by a model of entailment.

Source: Yin et al. 2019, "Benchmarking Zero-shot Text Classification". Letters: L candidate labels.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from quintet.errors import ConfigError, InputError, TokenizerError
from quintet.pipelines.base import Parameters, Pipeline, unknown_option
from quintet.pipelines.batches import Piece
from quintet.pipelines.inputs import checked_text
from quintet.pipelines.text_classification import sequence_logits

__all__ = ["ZeroShotClassificationPipeline"]

logger = logging.getLogger("quintet.pipelines")

OPTIONS = ("candidate_labels", "hypothesis_template", "multi_label", "multi_class")


class ZeroShotClassificationPipeline(Pipeline):
    """Scores how well each of some labels fits a text, with a model that says whether one text follows from another.

    The model's `label2id` must have a label that begins with "entail"; without one the last label is taken.

    Options, of the pipeline or of a call:
        candidate_labels: A list of labels, or one text with commas between them.
        hypothesis_template: A text with {} for the label; "This example is {}." by default.
        multi_label: Score each label for itself, entailment against contradiction; else the scores add up to 1.

    A call gives `{"sequence", "labels", "scores"}` with the best label first, and a list of them for several texts.
    An item may be a dict `{"sequence", "candidate_labels"}` with labels of its own.
    """

    default_task: ClassVar[str] = "zero-shot-classification"

    def __init__(self, model: Any, tokenizer: Any = None, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        if self.entailment_id == -1:
            logger.warning(
                "no label of the model begins with 'entail' (label2id is %s), so the last one is taken for "
                "entailment. Set model.config.label2id to say which it is.",
                model.config.label2id,
            )

    @property
    def entailment_id(self) -> int:
        """Number of the entailment label; -1 when none has that name."""
        labels: dict[str, int] = self.model.config.label2id
        return next((number for name, number in labels.items() if name.lower().startswith("entail")), -1)

    def _sanitize_parameters(self, **options: Any) -> Parameters:
        for name in options:
            if name not in OPTIONS:
                raise unknown_option(self, name, OPTIONS)
        if options.get("multi_class") is not None:
            warnings.warn("multi_class is an old name; use multi_label.", UserWarning, stacklevel=4)
            options.setdefault("multi_label", options["multi_class"])
        before: dict[str, Any] = {}
        if "candidate_labels" in options:
            before["candidate_labels"] = _labels(options["candidate_labels"])
        if "hypothesis_template" in options:
            before["hypothesis_template"] = checked_text(options["hypothesis_template"], "hypothesis_template")
        return Parameters(before, {}, {name: options[name] for name in ("multi_label",) if name in options})

    def __call__(self, sequences: Any, candidate_labels: Any = None, **options: Any) -> Any:  # type: ignore[override]
        """Score labels for one text, a list of texts, a data set or a generator; see the class."""
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        return super().__call__(sequences, **options)

    def preprocess(  # type: ignore[override]
        self,
        item: Any,
        candidate_labels: Sequence[str] | None = None,
        hypothesis_template: str = "This example is {}.",
    ) -> list[Piece]:
        """Encode one pair of text and hypothesis for each label."""
        if isinstance(item, Mapping):
            unknown = [name for name in item if name not in ("sequence", "candidate_labels")]
            if unknown or "sequence" not in item:
                raise InputError(
                    f"an item has the keys {[*item]}, but must have 'sequence' and may have 'candidate_labels'."
                )
            labels = item.get("candidate_labels")
            candidate_labels = candidate_labels if labels is None else _labels(labels)
            item = item["sequence"]
        text = checked_text(item, "the text")
        if not text:
            raise InputError("the text is empty. Give at least one word.")
        if not candidate_labels:
            raise InputError("there are no candidate_labels. Pass at least one: candidate_labels=['sport', 'music'].")
        pieces = []
        for label in candidate_labels:
            encoded = self._encode_pair(text, _hypothesis(hypothesis_template, label))
            pieces.append(Piece(self.columns(encoded), {"text": text, "label": label}))
        return pieces

    def _encode_pair(self, text: str, hypothesis: str) -> Any:
        """Encode a pair; only the text is cut when it is too long."""
        try:
            return self.encode(text, hypothesis, truncation="only_first")
        except TokenizerError as error:
            if "Truncation" not in str(error):
                raise
            raise InputError(
                f"the hypothesis {hypothesis!r:.60} alone is longer than the model. Use shorter labels."
            ) from error

    def _forward(self, pieces: Sequence[Piece], **parameters: Any) -> list[Any]:
        return sequence_logits(self, pieces)

    def postprocess(  # type: ignore[override]
        self, pieces: Sequence[Piece], outputs: Sequence[Any], multi_label: bool = False
    ) -> dict[str, Any]:
        """Turn the scores of all hypotheses into scores of labels."""
        logits = torch.stack([*outputs])  # (L, classes)
        entailment = self.entailment_id
        if multi_label or len(pieces) == 1:
            contradiction = -1 if entailment == 0 else 0
            scores = logits[:, [contradiction, entailment]].softmax(-1)[:, 1]  # (L,)
        else:
            scores = logits[:, entailment].softmax(0)  # (L,)
        values = scores.tolist()
        order = sorted(range(len(values)), key=lambda index: (values[index], index), reverse=True)
        return {
            "sequence": pieces[0].notes["text"],
            "labels": [pieces[index].notes["label"] for index in order],
            "scores": [values[index] for index in order],
        }


def _labels(value: Any) -> list[str]:
    """Return labels as a list of texts.

    Raises:
        ConfigError: they are no texts.
    """
    if isinstance(value, str):
        return [label.strip() for label in value.split(",") if label.strip()]
    if not isinstance(value, (list, tuple)) or not all(isinstance(label, str) for label in value):
        raise ConfigError(f"candidate_labels is {value!r:.80}, but must be a list of texts, or one with commas.")
    return list(value)


def _hypothesis(template: str, label: str) -> str:
    """Put a label into the template.

    Raises:
        ConfigError: the template has no place for it.
    """
    try:
        made = template.format(label)
    except (IndexError, KeyError, ValueError) as error:
        raise ConfigError(f"hypothesis_template is {template!r}, which cannot be filled in: {error}.") from None
    if made == template:
        raise ConfigError(f"hypothesis_template is {template!r}, but must hold {{}} where the label is to stand.")
    return made
