"""Guidance: the scores are moved away from those that the model gives after another prompt.

Letters: B rows, V vocabulary, S tokens so far, P tokens of the other prompt.
"""

from __future__ import annotations

from typing import Any

import torch

from quintet.errors import InputError
from quintet.generation import checks, sampling
from quintet.generation.given import Prompt
from quintet.generation.processors.base import LogitsProcessor, expanded
from quintet.generation.prompt import pick_inputs, prepare_prompt
from quintet.generation.resolve import SpecialTokens
from quintet.generation.state import DecodeState

__all__ = ["UnbatchedClassifierFreeGuidanceLogitsProcessor"]


class UnbatchedClassifierFreeGuidanceLogitsProcessor(LogitsProcessor):
    """Moves the scores away from those after a second prompt; see `sampling.guide` (Sanchez et al. 2023).

    The second prompt is continued by the same tokens, in a cache of its own that follows the rows.

    Args:
        guidance_scale: 1 changes nothing; above 1 the text keeps more to its prompt and away from the other.
        model: The model that is asked a second time.
        unconditional_ids: (prompts, P) the other prompts, padded on the left; None takes each prompt's last token.
        unconditional_attention_mask: (prompts, P) with 0 for padding; None for no padding.
        use_cache: Keep keys and values of the other prompt.

    Raises:
        GenerationError: the scale is no number.
        InputError: the other prompt or its mask has a wrong type or shape.
    """

    def __init__(
        self,
        guidance_scale: float,
        model: Any,
        unconditional_ids: torch.Tensor | None = None,
        unconditional_attention_mask: torch.Tensor | None = None,
        use_cache: bool = True,
    ) -> None:
        checks.require("guidance_scale", guidance_scale, checks.number("a finite number"), " 1.0 switches it off.")
        if unconditional_ids is None and unconditional_attention_mask is not None:
            raise InputError(
                "negative_prompt_attention_mask is given without negative_prompt_ids, which it belongs to. Pass both."
            )
        self.guidance_scale = float(guidance_scale)
        self.model = model
        self.use_cache = bool(use_cache)
        self._ids, self._mask = _checked(model, unconditional_ids, unconditional_attention_mask)
        self._state: DecodeState | None = None
        self._prompt: torch.Tensor | None = None
        self._seen: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        if self.guidance_scale == 1:
            return scores.log_softmax(dim=-1)
        return sampling.guide(scores, self._unconditional(input_ids), self.guidance_scale)

    def select(self, rows: torch.Tensor) -> None:
        """See LogitsProcessor."""
        if self._state is None or self._prompt is None or self._seen is None:
            return
        self._state.reorder(rows)
        self._prompt, self._seen = self._prompt[rows], self._seen[rows]
        self._ids = None if self._ids is None else self._ids[rows]
        self._mask = None if self._mask is None else self._mask[rows]

    def _unconditional(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the (B, V) scores after the other prompt and the new tokens."""
        if self._state is not None and self._seen is not None and torch.equal(self._seen, input_ids[:, :-1]):
            logits = self._state.advance(input_ids[:, -1])
        else:
            self._state = self._begin(input_ids)
            logits = self._state.prefill()
        self._seen = input_ids.clone()
        return logits

    def _begin(self, input_ids: torch.Tensor) -> DecodeState:
        """Return the other prompt, and the tokens that were new already when the steps do not follow each other."""
        prompt = self._prompt
        if prompt is None or not _begins_with(input_ids, prompt):
            prompt = self._prompt = input_ids.clone()  # another text
        length, rows = prompt.shape[1], input_ids.shape[0]
        if self._ids is None:
            if length == 0:
                raise InputError(
                    "guidance begins with the last token of the prompt, and a prompt of inputs_embeds alone has none. "
                    "Pass negative_prompt_ids."
                )
            return self._reader(input_ids[:, length - 1 :], None)
        new = input_ids[:, length:]
        self._ids = expanded("negative_prompt_ids", self._ids, rows)
        ids = torch.cat([self._ids, new], dim=1)
        if self._mask is None:
            return self._reader(ids, None)
        self._mask = expanded("negative_prompt_attention_mask", self._mask, rows)
        return self._reader(ids, torch.cat([self._mask, torch.ones_like(new)], dim=1))

    def _reader(self, ids: torch.Tensor, mask: torch.Tensor | None) -> DecodeState:
        return DecodeState(self.model, _other_prompt(self.model, ids, mask), use_cache=self.use_cache)


def _begins_with(input_ids: torch.Tensor, prompt: torch.Tensor) -> bool:
    length = prompt.shape[1]
    return length <= input_ids.shape[1] and torch.equal(prompt, input_ids[:, :length])


def _other_prompt(model: Any, ids: torch.Tensor, mask: torch.Tensor | None) -> Prompt:
    return prepare_prompt(model, ids, None, {} if mask is None else {"attention_mask": mask}, SpecialTokens())


def _checked(model: Any, ids: Any, mask: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the other prompt and its mask on the model's device."""
    if ids is None:
        return None, None
    try:
        tokens, _ = pick_inputs(model, ids, {}, None, None)
        return tokens, _other_prompt(model, tokens, mask).mask
    except InputError as error:
        raise InputError(f"the negative prompt cannot be used: {error}") from error
