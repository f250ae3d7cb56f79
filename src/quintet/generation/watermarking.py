"""Detectors of watermarks: counting green tokens, and a Bayesian judge of SynthID's coin flips.

Letters: B rows, S tokens, C places with a coin flip for every round, D rounds of the tournament.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from quintet.config import PreTrainedConfig
from quintet.errors import CheckpointError, GenerationError, InputError
from quintet.generation import checks
from quintet.generation.processors import SynthIDTextWatermarkLogitsProcessor, WatermarkLogitsProcessor
from quintet.generation.watermark_config import WatermarkingConfig, as_watermarking_config
from quintet.hub import resolve_folder, safe_join
from quintet.outputs import ModelOutput

__all__ = [
    "BayesianDetectorConfig",
    "BayesianDetectorModel",
    "BayesianWatermarkDetectorModelOutput",
    "SynthIDTextWatermarkDetector",
    "WatermarkDetector",
    "WatermarkDetectorOutput",
]

WEIGHTS = "model.safetensors"


# --- green lists ------------------------------------------------------------------------------------------------------


@dataclass
class WatermarkDetectorOutput:
    """What a detector found, every field an array with one value per text.

    Args:
        num_tokens_scored: Tokens that were looked at.
        num_green_tokens: Green ones among them.
        green_fraction: Their share.
        z_score: Standard deviations by which their number is above that of unmarked text.
        p_value: Probability of so many in unmarked text.
        prediction: Whether the text is marked.
        confidence: 1 - p_value.
    """

    num_tokens_scored: np.ndarray | None = None
    num_green_tokens: np.ndarray | None = None
    green_fraction: np.ndarray | None = None
    z_score: np.ndarray | None = None
    p_value: np.ndarray | None = None
    prediction: np.ndarray | None = None
    confidence: np.ndarray | None = None


class WatermarkDetector:
    """Says whether text carries a green-list watermark (Kirchenbauer et al. 2023, section 3).

    Args:
        model_config: Configuration of the model that wrote the text: its vocabulary and its bos token.
        device: Kind of device that it ran on; random numbers are others elsewhere.
        watermarking_config: The settings it was marked with.
        ignore_repeated_ngrams: Count every group of tokens once, so that repetitions do not look like a mark.
        max_cache_size: Number of groups whose green lists are remembered.

    Raises:
        GenerationError: the settings are not those of a green-list watermark.
    """

    def __init__(
        self,
        model_config: Any,
        device: Any,
        watermarking_config: WatermarkingConfig | dict[str, Any],
        ignore_repeated_ngrams: bool = False,
        max_cache_size: int = 128,
    ) -> None:
        settings = as_watermarking_config(watermarking_config)
        settings = settings.to_dict() if hasattr(settings, "to_dict") else settings
        if not isinstance(settings, Mapping) or "greenlist_ratio" not in settings:
            raise GenerationError(
                f"watermarking_config is {checks.shown(watermarking_config)}, but WatermarkDetector reads green lists. "
                "Pass a WatermarkingConfig; for SynthID use SynthIDTextWatermarkDetector."
            )
        self.bos_token_id = model_config.bos_token_id
        self.greenlist_ratio = float(settings["greenlist_ratio"])
        self.ignore_repeated_ngrams = bool(ignore_repeated_ngrams)
        self.processor = WatermarkLogitsProcessor(model_config.vocab_size, device, **settings)
        self._device = device
        self._is_green = lru_cache(maxsize=max_cache_size)(self._look)

    def __call__(
        self, input_ids: torch.Tensor, z_threshold: float = 3.0, return_dict: bool = False
    ) -> WatermarkDetectorOutput | np.ndarray:
        """Judge texts.

        Args:
            input_ids: (B, S) tokens, better without the prompt, which is not marked.
            z_threshold: Standard deviations above which a text counts as marked.
            return_dict: Return all that was found instead of the (B,) predictions.

        Raises:
            InputError: some rows begin with bos and some do not, or there are too few tokens.
        """
        checks.require("z_threshold", z_threshold, checks.number("a finite number"))
        if input_ids.dim() != 2 or input_ids.shape[0] == 0 or input_ids.shape[1] == 0:
            raise InputError(
                f"input_ids has shape {tuple(input_ids.shape)}, but must be (rows, tokens), none of them 0."
            )
        begins = input_ids[:, 0] == self.bos_token_id
        if bool(begins.any()) != bool(begins.all()):
            raise InputError(
                f"some rows begin with the bos token {self.bos_token_id} and some do not. Tokenize all texts in the "
                "same way."
            )
        if bool(begins.all()):
            input_ids = input_ids[:, 1:]
        if input_ids.shape[1] <= self.processor.context_width:
            raise InputError(
                f"the texts have {input_ids.shape[1]} tokens, and the watermark's context_width is "
                f"{self.processor.context_width}: nothing can be scored. Give longer texts."
            )
        scored, green = np.array([self._count(row) for row in input_ids.tolist()]).astype(np.float64).T
        share = self.greenlist_ratio
        z_score = (green - share * scored) / np.sqrt(scored * share * (1 - share))
        prediction = z_score > z_threshold
        if not return_dict:
            return prediction
        p_value = np.array([0.5 * math.erfc(one / math.sqrt(2)) for one in z_score])
        return WatermarkDetectorOutput(scored, green, green / scored, z_score, p_value, prediction, 1 - p_value)

    def _count(self, row: list[int]) -> tuple[int, int]:
        """Return how many tokens of a row were looked at, and how many are green."""
        own = self.processor.seeding_scheme == "selfhash"  # the token itself is part of its context
        size = self.processor.context_width + (0 if own else 1)
        groups = Counter(tuple(row[start : start + size]) for start in range(len(row) - size + 1))
        if self.ignore_repeated_ngrams:
            groups = Counter(groups.keys())
        green = {group: self._is_green(group if own else group[:-1], group[-1]) for group in groups}
        return sum(groups.values()), sum(count for group, count in groups.items() if green[group])

    def _look(self, context: tuple[int, ...], token: int) -> bool:
        return bool((self.processor.green_ids(torch.tensor(context, device=self._device)) == token).any())


# --- SynthID ----------------------------------------------------------------------------------------------------------


class BayesianDetectorConfig(PreTrainedConfig):
    """Configuration of BayesianDetectorModel.

    Args:
        watermarking_depth: D.
        base_rate: Share of marked texts that is expected beforehand.
        **kwargs: Any other key of a config.json.
    """

    def __init__(self, watermarking_depth: int | None = None, base_rate: float = 0.5, **kwargs: Any) -> None:
        self.watermarking_depth = watermarking_depth
        self.base_rate = base_rate
        self.model_name: str | None = None
        self.watermarking_config: Any = None
        super().__init__(**kwargs)

    def set_detector_information(self, model_name: str, watermarking_config: Any) -> None:
        """Take note of the model and the watermark that the detector was trained for."""
        self.model_name = model_name
        self.watermarking_config = watermarking_config


@dataclass(eq=False)
class BayesianWatermarkDetectorModelOutput(ModelOutput):
    """What BayesianDetectorModel returns.

    Args:
        loss: () with `labels`.
        posterior_probabilities: (B,) probability that each text is marked.
    """

    loss: torch.Tensor | None = None
    posterior_probabilities: torch.Tensor | None = None


class BayesianDetectorWatermarkedLikelihood(nn.Module):
    """Probability of each coin flip in marked text, given those of the rounds before it.

    Args:
        watermarking_depth: D.
    """

    def __init__(self, watermarking_depth: int) -> None:
        super().__init__()
        self.watermarking_depth = watermarking_depth
        self.beta = nn.Parameter(-2.5 + 0.001 * torch.randn(1, 1, watermarking_depth))
        self.delta = nn.Parameter(0.001 * torch.randn(1, 1, watermarking_depth, watermarking_depth))

    def forward(self, g_values: torch.Tensor) -> torch.Tensor:
        """Return the (B, C, D) probabilities of (B, C, D) coin flips.

        Two different tokens met in a round with the probability sigmoid(beta + delta * earlier flips); only then does
        the round favour a 1.
        """
        flips = g_values.to(self.delta.dtype)
        earlier = torch.tril(self.delta[0, 0], diagonal=-1)  # (D, D): round i sees the rounds before it
        differ = torch.sigmoid(flips @ earlier.T + self.beta)  # (B, C, D)
        return 0.5 * ((flips + 0.5) * differ + (1 - differ))


class BayesianDetectorModel(nn.Module):
    """Probability that text is marked, by Bayes' rule from its coin flips (Dathathri et al. 2024, supplement).

    It has to be trained on marked and unmarked text of the model and the watermark in question.

    Args:
        config: Its configuration.

    Raises:
        GenerationError: the configuration has no depth, or a base rate that is no probability.
    """

    def __init__(self, config: BayesianDetectorConfig) -> None:
        super().__init__()
        checks.require("watermarking_depth", config.watermarking_depth, checks.integer(1))
        share = checks.number("a number above 0 and below 1", lambda value: 0 < value < 1)
        checks.require("base_rate", config.base_rate, share)
        self.config = config
        self.watermarking_depth = int(config.watermarking_depth or 0)
        self.base_rate = float(config.base_rate)
        self.likelihood_model_watermarked = BayesianDetectorWatermarkedLikelihood(self.watermarking_depth)
        self.prior = nn.Parameter(torch.tensor([self.base_rate]))

    def forward(
        self,
        g_values: torch.Tensor,
        mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        loss_batch_weight: float = 1,
        return_dict: bool = False,
    ) -> BayesianWatermarkDetectorModelOutput | tuple[torch.Tensor, ...]:
        """Judge texts.

        Args:
            g_values: (B, C, D) coin flips, 0 or 1.
            mask: (B, C) with 0 for places that do not count.
            labels: (B,) 1 for marked texts and 0 for others, to train.
            loss_batch_weight: Weight of the penalty on large `delta`.
            return_dict: Return a record instead of a tuple.

        Raises:
            InputError: shapes that do not fit.
        """
        if g_values.dim() != 3 or g_values.shape[2] != self.watermarking_depth or mask.shape != g_values.shape[:2]:
            raise InputError(
                f"g_values has shape {tuple(g_values.shape)} and mask {tuple(mask.shape)}, but they must be "
                f"(rows, places, {self.watermarking_depth}) and (rows, places)."
            )
        marked = self.likelihood_model_watermarked(g_values).clamp(min=1e-30)
        odds = (marked.log() - math.log(0.5)) * mask[..., None]  # (B, C, D): a coin is fair in unmarked text
        prior = self.prior.clamp(1e-5, 1 - 1e-5)
        posterior = torch.sigmoid(prior.log() - (1 - prior).log() + odds.sum(dim=(1, 2)))  # (B,)
        loss = None
        if labels is not None:
            penalty = (self.likelihood_model_watermarked.delta**2).sum() * loss_batch_weight
            loss = nn.functional.binary_cross_entropy(posterior.clamp(1e-5, 1 - 1e-5), labels) + penalty
        if return_dict:
            return BayesianWatermarkDetectorModelOutput(loss=loss, posterior_probabilities=posterior)
        return (posterior,) if loss is None else (posterior, loss)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors into a folder, which is made when it is not there."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        tensors = {name: one.detach().cpu().contiguous() for name, one in self.state_dict().items()}
        save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> BayesianDetectorModel:
        """Read a detector from a folder or by name; it comes back ready to judge.

        Args:
            pretrained_model_name_or_path: A folder, or a name on the hub.
            **kwargs: Where to look: the keywords of `hub.resolve_folder`.

        Raises:
            HubError: the folder or a file is not there.
            CheckpointError: the weights are not those of such a detector.
        """
        folder = resolve_folder(pretrained_model_name_or_path, files=("config.json", WEIGHTS), **kwargs)
        model = cls(BayesianDetectorConfig.from_pretrained(folder))
        file = safe_join(folder, WEIGHTS)
        if not file.is_file():
            raise CheckpointError(f"{folder} has no {WEIGHTS}. Save the detector with save_pretrained(folder).")
        try:
            model.load_state_dict(load_file(str(file)))
        except Exception as error:
            raise CheckpointError(f"{file} does not hold the weights of a BayesianDetectorModel: {error}") from error
        return model.eval()


class SynthIDTextWatermarkDetector:
    """Says whether text carries a SynthID watermark.

    Args:
        detector_module: A trained BayesianDetectorModel, or anything called with coin flips and a mask.
        logits_processor: The processor that the text was marked with.
        tokenizer: The tokenizer, for its `eos_token_id`.
    """

    def __init__(
        self, detector_module: Any, logits_processor: SynthIDTextWatermarkLogitsProcessor, tokenizer: Any
    ) -> None:
        self.detector_module = detector_module
        self.logits_processor = logits_processor
        self.tokenizer = tokenizer

    def __call__(self, tokenized_outputs: torch.Tensor) -> Any:
        """Judge (B, S) tokens, better without the prompt; what comes back is what the detector module gives.

        Raises:
            GenerationError: fewer tokens than the watermark hashes at once.
        """
        processor = self.logits_processor
        before_end = processor.compute_eos_token_mask(tokenized_outputs, self.tokenizer.eos_token_id)
        fresh = processor.compute_context_repetition_mask(tokenized_outputs)  # (B, C)
        flips = processor.compute_g_values(tokenized_outputs)  # (B, C, D)
        return self.detector_module(flips, fresh * before_end[:, processor.ngram_len - 1 :])
