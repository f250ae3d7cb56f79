"""The SynthID watermark (Dathathri et al. 2024): a tournament of several rounds that secret coin flips decide.

Letters: B rows, V vocabulary, S tokens so far, N new tokens among them, D rounds, G tokens of a group (`ngram_len`).
"""

from __future__ import annotations

from typing import Any

import torch

from quintet.errors import GenerationError
from quintet.generation.processors.base import LogitsProcessor
from quintet.generation.watermark_config import SynthIDTextWatermarkingConfig

__all__ = ["SynthIDTextWatermarkLogitsProcessor"]

# Knuth's linear congruential generator, which the published scheme hashes with.
MULTIPLIER, INCREMENT = 6364136223846793005, 1


class SynthIDTextWatermarkLogitsProcessor(LogitsProcessor):
    """Marks text by a tournament between candidates: on average the text's distribution stays what it was.

    What is marked depends on the new tokens alone, so that beams may be reordered and rows dropped. The hash is the
    published one, not that of any service.

    Args:
        ngram_len: G, at least 2.
        keys: The secret: one number for each round.
        sampling_table_size: Size of the table of coin flips.
        sampling_table_seed: Its seed.
        context_history_size: Number of past contexts in which nothing is marked again.
        device: Where the table is made.
        skip_first_ngram_calls: Leave the first G - 1 tokens alone.
        debug_mode: Mark a uniform distribution instead of the scores.

    Raises:
        GenerationError: a setting is out of range.
    """

    def __init__(
        self,
        ngram_len: int,
        keys: list[int],
        sampling_table_size: int,
        sampling_table_seed: int,
        context_history_size: int,
        device: Any,
        skip_first_ngram_calls: bool = False,
        debug_mode: bool = False,
    ) -> None:
        SynthIDTextWatermarkingConfig(
            ngram_len,
            keys,
            context_history_size,
            sampling_table_seed,
            sampling_table_size,
            skip_first_ngram_calls,
            debug_mode,
        ).validate()
        self.ngram_len = int(ngram_len)
        self.keys = torch.tensor(keys, device=device)
        generator = torch.Generator(device=device).manual_seed(sampling_table_seed)
        self.sampling_table = torch.randint(0, 2, (sampling_table_size,), generator=generator, device=device)
        self.context_history_size = int(context_history_size)
        self.device = device
        self.skip_first_ngram_calls = skip_first_ngram_calls
        self.debug_mode = debug_mode
        self._prompt: torch.Tensor | None = None

    # --- marking ------------------------------------------------------------------------------------------------------

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor; the first call sees the prompt, the next ones what follows it."""
        _check_rows(input_ids)
        if self.debug_mode:
            scores = torch.ones_like(scores)
        new = self._new_tokens(input_ids)  # (B, N)
        width, steps = self.ngram_len - 1, new.shape[1]
        if self.skip_first_ngram_calls and steps < width:
            return scores
        # The prompt is no context: zeros stand before the first new token.
        contexts = torch.nn.functional.pad(new, (width, 0)).unfold(1, width, 1)  # (B, N + 1, G - 1)
        hashes = self.accumulate_hash(torch.ones_like(contexts[..., 0]), contexts)  # (B, N + 1)
        now = hashes[:, -1:]  # (B, 1)
        earlier = hashes[:, width if self.skip_first_ngram_calls else 0 : -1][:, -self.context_history_size :]
        seen = (earlier == now).any(dim=1, keepdim=True)  # (B, 1)

        candidates = torch.arange(scores.shape[-1], device=now.device)[:, None]  # (V, 1)
        of_each = self.accumulate_hash(now, candidates)  # (B, V)
        # One round at a time: all of them at once would be B x V x D numbers.
        rounds = (self.sample_g_values(self.accumulate_hash(of_each, key[None])) for key in self.keys)
        marked = _tournament(scores, rounds)
        return torch.where(seen.to(scores.device), scores, marked)

    def update_scores(self, scores: torch.Tensor, g_values: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities after a tournament.

        Args:
            scores: (B, V).
            g_values: (B, V, D) coin flips.
        """
        return _tournament(scores, iter(g_values.unbind(dim=-1)))

    def _new_tokens(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the tokens after the prompt, which is what the first call of a text saw."""
        prompt = self._prompt
        if prompt is None or not _continues(prompt, input_ids):
            prompt = self._prompt = input_ids.clone()
        return input_ids[:, prompt.shape[1] :].to(self.device)

    # --- hashes and coin flips ----------------------------------------------------------------------------------------

    def accumulate_hash(
        self,
        current_hash: torch.Tensor,
        data: torch.Tensor,
        multiplier: int = MULTIPLIER,
        increment: int = INCREMENT,
    ) -> torch.Tensor:
        """Add numbers to a hash, one after the other, in wrapping 64-bit arithmetic.

        Args:
            current_hash: (...) hashes so far.
            data: (..., L) numbers; the leading dimensions fit those of the hashes.
            multiplier: Of the generator.
            increment: Of the generator.
        """
        for one in data.unbind(dim=-1):
            current_hash = (current_hash + one) * multiplier + increment
        return current_hash

    def compute_ngram_keys(self, ngrams: torch.Tensor) -> torch.Tensor:
        """Return the (B, groups, D) hashes of groups of tokens, (B, groups, G).

        Raises:
            GenerationError: another shape.
        """
        if ngrams.dim() != 3 or ngrams.shape[2] != self.ngram_len:
            raise GenerationError(
                f"ngrams has shape {tuple(ngrams.shape)}, but must be (rows, groups, {self.ngram_len})."
            )
        hashes = self.accumulate_hash(torch.ones_like(ngrams[..., 0]), ngrams)  # (B, groups)
        return self.accumulate_hash(hashes[..., None], self.keys[:, None])  # (B, groups, D)

    def sample_g_values(self, ngram_keys: torch.Tensor) -> torch.Tensor:
        """Return the coin flip, 0 or 1, of each hash."""
        return self.sampling_table[ngram_keys % self.sampling_table.shape[0]]

    # --- for detectors ------------------------------------------------------------------------------------------------

    def compute_g_values(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the coin flips of a text: (B, S) tokens to (B, S - G + 1, D).

        Raises:
            GenerationError: another shape, or fewer than G tokens.
        """
        self._check_text(input_ids)
        return self.sample_g_values(self.compute_ngram_keys(input_ids.to(self.device).unfold(1, self.ngram_len, 1)))

    def compute_context_repetition_mask(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return where a context comes for the first time: (B, S) tokens to (B, S - G + 1) flags.

        Raises:
            GenerationError: another shape, or fewer than G tokens.
        """
        self._check_text(input_ids)
        contexts = input_ids[:, :-1].unfold(1, self.ngram_len - 1, 1)  # (B, S - G + 1, G - 1)
        hashes = self.accumulate_hash(torch.ones_like(contexts[..., 0]), contexts)
        rows = []
        for row in hashes.tolist():
            last: dict[int, int] = {}
            fresh = []
            for place, one in enumerate(row):
                fresh.append(place - last.get(one, -self.context_history_size - 1) > self.context_history_size)
                last[one] = place
            rows.append(fresh)
        return torch.tensor(rows, device=input_ids.device)

    def compute_eos_token_mask(self, input_ids: torch.Tensor, eos_token_id: int) -> torch.Tensor:
        """Return 1 before the first end-of-sequence token and 0 from it on, (B, S)."""
        _check_rows(input_ids)
        return ((input_ids == eos_token_id).cumsum(dim=1) == 0).long()

    def expected_mean_g_value(self, vocab_size: int, coinflip_prob: float = 0.5) -> float:
        """Return the mean coin flip of marked text with one round and a uniform model.

        Args:
            vocab_size: V.
            coinflip_prob: Probability of a 1.
        """
        return coinflip_prob + coinflip_prob * (1 - coinflip_prob) * (1 - (1 / vocab_size))

    def _check_text(self, input_ids: torch.Tensor) -> None:
        _check_rows(input_ids)
        if input_ids.shape[1] < self.ngram_len:
            raise GenerationError(
                f"the text has {input_ids.shape[1]} tokens, and ngram_len is {self.ngram_len}: nothing can be read "
                "from it. Give a longer text."
            )


def _check_rows(input_ids: torch.Tensor) -> None:
    if input_ids.dim() != 2:
        raise GenerationError(f"input_ids has shape {tuple(input_ids.shape)}, but must be (rows, tokens).")


def _tournament(scores: torch.Tensor, rounds: Any) -> torch.Tensor:
    """Let tokens with a 1 win against those with a 0, round by round; log-probabilities come back."""
    probabilities = scores.softmax(dim=1)  # (B, V)
    for flips in rounds:
        flips = flips.to(scores.device)
        mass = (flips * probabilities).sum(dim=1, keepdim=True)
        probabilities = probabilities * (1 + flips - mass)
    logs = probabilities.log()
    return torch.where(logs.isfinite(), logs, torch.finfo(logs.dtype).min)


def _continues(prompt: torch.Tensor, input_ids: torch.Tensor) -> bool:
    """Whether every row begins with one of the prompts, which may have been reordered or have lost rows."""
    length = prompt.shape[1]
    if input_ids.shape[1] < length:
        return False
    heads = input_ids[:, :length]
    if heads.shape == prompt.shape and torch.equal(heads, prompt):
        return True
    return bool((heads[:, None] == prompt[None]).all(dim=-1).any(dim=1).all())
