"""Feature extraction: the hidden states of each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from quintet.errors import ConfigError
from quintet.pipelines.base import Parameters, Pipeline, check_tokenizer_options, unknown_option
from quintet.pipelines.batches import Piece
from quintet.pipelines.inputs import checked_text

__all__ = ["FeatureExtractionPipeline"]


class FeatureExtractionPipeline(Pipeline):
    """Gives the first output of a model, for a base model the hidden states of each token.

    Options, of the pipeline or of a call:
        truncation: Read only as many tokens as fit.
        tokenize_kwargs: Further options of the tokenizer.
        return_tensors: Give a tensor (1, tokens, features) in place of nested lists.

    A call gives that for one text, and a list of them for several.
    """

    default_task: ClassVar[str] = "feature-extraction"

    def _sanitize_parameters(
        self,
        truncation: Any = None,
        tokenize_kwargs: dict[str, Any] | None = None,
        return_tensors: bool | None = None,
        **unknown: Any,
    ) -> Parameters:
        for name in unknown:
            raise unknown_option(self, name, ["truncation", "tokenize_kwargs", "return_tensors"])
        options = dict(tokenize_kwargs or {})
        if truncation is not None:
            if "truncation" in options:
                raise ConfigError("truncation is given twice: as an option and in tokenize_kwargs. Give it once.")
            options["truncation"] = truncation
        check_tokenizer_options(self.tokenizer, options)
        return Parameters(options, {}, {} if return_tensors is None else {"return_tensors": return_tensors})

    def preprocess(self, item: Any, **options: Any) -> list[Piece]:
        """Encode a text."""
        return [Piece(self.columns(self.encode(checked_text(item, "the text"), **options)))]

    def _forward(self, pieces: Sequence[Piece], **parameters: Any) -> list[Any]:
        features = self.run_model(pieces)[0].cpu()  # (B, T, D)
        return [features[row : row + 1, : len(piece.ids)] for row, piece in enumerate(pieces)]

    def postprocess(self, pieces: Sequence[Piece], outputs: Sequence[Any], return_tensors: bool = False) -> Any:  # type: ignore[override]
        """Return the features of a text."""
        return outputs[0].clone() if return_tensors else outputs[0].tolist()
