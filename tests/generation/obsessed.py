"""A tiny model that says what it is told: the same tokens over and over, whatever it reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Any

import torch

from quintet.models.gpt2 import GPT2Config, GPT2LMHeadModel

POSITIONS = 4096


class Obsessed(GPT2LMHeadModel):
    """A GPT-2 with random weights whose scores are raised for some tokens.

    Args:
        tokenizer: Gives the size of the vocabulary.
        loved: Texts of the tokens that it cannot stop writing: each scores 100 more than the one behind it.
        spare: Rows of the vocabulary that are no tokens; the model likes them best of all.
        opening: The token that it begins with where the prompt ends with a line end.
        after: By a token: the one that it writes behind that.
    """

    def __init__(
        self,
        tokenizer: Any,
        loved: Sequence[str] = ("x",),
        spare: int = 0,
        opening: str | None = None,
        after: dict[str, str] | None = None,
    ) -> None:
        size = len(tokenizer) + spare
        torch.manual_seed(3)
        ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        super().__init__(GPT2Config(vocab_size=size, n_positions=POSITIONS, n_embd=8, n_layer=1, n_head=2, **ends))
        self.eval()
        self.bias = torch.zeros(size)

        def first(text: str) -> int:
            return int(tokenizer(text, add_special_tokens=False)["input_ids"][0])

        for rank, text in enumerate(reversed(loved), start=1):
            self.bias[first(text)] = 100.0 * rank
        self.bias[len(tokenizer) :] = 1e5
        self.after = {first(one): first(two) for one, two in (after or {}).items()}
        self.opening = None if opening is None else (first("\n"), first(opening))

    @wraps(GPT2LMHeadModel.forward)
    def forward(self, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(input_ids, *args, **kwargs)
        outputs.logits = outputs.logits + self.bias
        for row, last in enumerate(input_ids[:, -1].tolist()):
            if last in self.after:
                outputs.logits[row, -1, self.after[last]] += 1e4
            elif self.opening and input_ids.shape[1] > 1 and last == self.opening[0]:
                outputs.logits[row, -1, self.opening[1]] += 1e4
        return outputs
