"""The green-list watermark (Kirchenbauer et al. 2023): a secret part of the vocabulary is favoured at every step.

Letters: B rows, V vocabulary, S tokens so far.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from quintet.generation.processors.base import LogitsProcessor
from quintet.generation.watermark_config import WatermarkingConfig

__all__ = ["WatermarkLogitsProcessor"]

logger = logging.getLogger("quintet.generation")

# Constants of the published scheme: texts that were marked elsewhere are found with the same ones.
TABLE_SIZE = 1_000_003
CANDIDATES = 40


class WatermarkLogitsProcessor(LogitsProcessor):
    """Favours a part of the vocabulary that the last tokens and a secret key choose.

    Args:
        vocab_size: V.
        device: Where random numbers are drawn; they are others on another kind of device.
        greenlist_ratio: Share of the vocabulary that is green, above 0 and below 1.
        bias: What green tokens' scores gain.
        hashing_key: The secret.
        seeding_scheme: "lefthash": the last token decides; "selfhash": the candidate too, tried for the best 40.
        context_width: Number of tokens that decide.

    Raises:
        GenerationError: a setting is out of range.
    """

    def __init__(
        self,
        vocab_size: int,
        device: Any,
        greenlist_ratio: float = 0.25,
        bias: float = 2.0,
        hashing_key: int = 15485863,
        seeding_scheme: str = "lefthash",
        context_width: int = 1,
    ) -> None:
        WatermarkingConfig(greenlist_ratio, bias, hashing_key, seeding_scheme, context_width).validate()
        self.vocab_size = int(vocab_size)
        self.greenlist_size = int(self.vocab_size * greenlist_ratio)
        self.bias = float(bias)
        self.seeding_scheme = seeding_scheme
        self.hash_key = int(hashing_key)
        self.context_width = int(context_width)
        self.rng = torch.Generator(device=device)
        self.rng.manual_seed(self.hash_key)
        self.table_size = TABLE_SIZE
        self.fixed_table = torch.randperm(TABLE_SIZE, generator=self.rng, device=device)

    def set_seed(self, input_seq: torch.Tensor) -> None:
        """Seed the random numbers by the last tokens of a row, (S,)."""
        last = input_seq[-self.context_width :]
        if self.seeding_scheme == "selfhash":
            of_each = self.fixed_table[last % TABLE_SIZE] + 1
            of_last = self.fixed_table[last[-1] % TABLE_SIZE] + 1
            seed = int((self.hash_key * of_each * of_last).min())  # int64 arithmetic, wrapping
        else:
            seed = self.hash_key * int(last[-1])
        self.rng.manual_seed(seed % (2**64 - 1))

    def green_ids(self, input_seq: torch.Tensor) -> torch.Tensor:
        """Return the green tokens after the tokens of a row, (S,); with "selfhash" they include the candidate."""
        self.set_seed(input_seq)
        order = torch.randperm(self.vocab_size, device=self.rng.device, generator=self.rng)
        return order[: self.greenlist_size]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor; below `context_width` tokens nothing is marked."""
        if input_ids.shape[-1] < self.context_width:
            logger.warning(
                "the watermark needs %d tokens of context and has %d: this step is not marked.",
                self.context_width,
                input_ids.shape[-1],
            )
            return scores
        marked = scores.clone()
        for row, tokens in enumerate(input_ids.to(self.rng.device)):
            green = (
                self._own_green(tokens, scores[row]) if self.seeding_scheme == "selfhash" else self.green_ids(tokens)
            )
            marked[row, green.to(scores.device)] += self.bias
        return marked

    def _own_green(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return those of the best candidates that are green when they are chosen."""
        best = scores.sort(dim=-1, descending=True).indices[:CANDIDATES].to(tokens.device)
        chosen = [one for one in best if bool((self.green_ids(torch.cat([tokens, one[None]])) == one).any())]
        return torch.stack(chosen) if chosen else best[:0]
