"""Models of this library in EleutherAI's lm-evaluation-harness (the extra `eval`).

    from lm_eval import simple_evaluate
    from quintet.integrations.lm_eval import QuintetLM

    print(simple_evaluate(model=QuintetLM("storyteller"), tasks=["lambada_openai"])["results"])

Importing this module registers the class, so that `simple_evaluate(model="quintet", model_args="pretrained=...")` finds
it too. Numbers are those of `quintet eval`, which computes them with the same functions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from quintet.auto import AutoModelForCausalLM
from quintet.errors import InputError
from quintet.evaluate.perplexity import DEFAULT_WINDOW, rolling_windows
from quintet.generation.pairs import prefix_token
from quintet.generation.scoring import Scorer, left_padded, score_targets
from quintet.tokenizers import AutoTokenizer

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"quintet.integrations.lm_eval needs lm-eval, and {error.name} is not installed. Install it with: "
        "pip install 'quintet[eval]'",
        name=error.name,
    ) from None

__all__ = ["QuintetLM"]

# The names that tasks use for the number of new tokens, the first that is given counts.
NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")


@register_model("quintet")
class QuintetLM(TemplateLM):
    """A model and its tokenizer as lm-eval wants them.

    Args:
        pretrained: Folder or name, or a model (give its tokenizer then).
        tokenizer: A tokenizer, or its folder or name; default: that of the model.
        revision: Branch, tag or commit of a model that is loaded by name.
        device: "cpu", "cuda", ...; default: cuda where there is one.
        dtype: As in `from_pretrained`.
        batch_size: Rows computed at once; "auto" is 8.
        max_length: Tokens that the model is given at most; default: what it has room for, 2,048 if that has no end.
        max_gen_toks: Tokens to generate where a task does not say.
        max_batch_size: Taken because lm-eval gives it; nothing depends on it.

    Raises:
        InputError: a model without a tokenizer, or a batch size that is no number.
    """

    def __init__(
        self,
        pretrained: Any = "storyteller",
        *,
        tokenizer: Any = None,
        revision: str | None = None,
        device: str | None = None,
        dtype: Any = "auto",
        batch_size: int | str = 8,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        named = isinstance(pretrained, (str, os.PathLike))
        if not named and tokenizer is None:
            raise InputError("pretrained is a model, so its tokenizer is needed too: QuintetLM(model, tokenizer=...).")
        if tokenizer is None or isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer or pretrained, revision=revision)
        if named:
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            pretrained = AutoModelForCausalLM.from_pretrained(
                pretrained, revision=revision, dtype=dtype, device_map=device
            )
        self.model: Any = pretrained.eval()
        self.tokenizer: Any = tokenizer
        self.batch_size = _batch_size(batch_size)
        self.max_length = max_length or self.model._position_limit() or DEFAULT_WINDOW
        self.max_gen_toks = int(max_gen_toks)
        Scorer(self.model, self.max_length)  # says now what it would say in the middle of a run
        self._device = self.model.device

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that a text begins after."""
        token = prefix_token(self.tokenizer)
        if token is None:
            raise InputError("the tokenizer has neither bos nor eos, so an empty context cannot be scored. Set one.")
        return token

    @property
    def tokenizer_name(self) -> str:
        """The name under which lm-eval caches requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the ids of a text; special tokens as the tokenizer does it unless said."""
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer(string, return_attention_mask=False, verbose=False, **options)["input_ids"])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a conversation as the model's chat format has it."""
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(text)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        with _Bar("loglikelihood", disable_tqdm) as bar:
            scores = score_targets(
                self.model,
                [(context, target) for _, context, target in requests],
                batch_size=self.batch_size,
                max_length=self.max_length,
                progress=bar,
            )
        answers = [(score.logprob, score.greedy) for score in scores]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text, every token once, in windows that do not overlap (as `quintet eval
        perplexity` with a stride of the window)."""
        pairs, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            for pair in rolling_windows(tokens, self.max_length, self.max_length, self.prefix_token_id):
                pairs.append(pair)
                owners.append(number)
        with _Bar("loglikelihood_rolling", disable_tqdm) as bar:
            scores = score_targets(
                self.model, pairs, batch_size=self.batch_size, max_length=self.max_length, progress=bar
            )
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, scores, strict=True):
            totals[owner] += score.logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after each context, up to the first stop text.

        Raises:
            InputError: more new tokens are wanted than the model has room for.
        """
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        answers: dict[int, str] = {}
        with _Bar("generate_until", disable_tqdm) as bar:
            for group in groups.values():
                rows = {number: self.tok_encode(requests[number].args[0]) for number in group}
                order = sorted(group, key=lambda number: -len(rows[number]))
                for first in range(0, len(order), self.batch_size):
                    batch = order[first : first + self.batch_size]
                    wanted = dict(requests[batch[0]].args[1])
                    answers.update(zip(batch, self._write([rows[number] for number in batch], wanted), strict=True))
                    bar(len(answers), len(requests))
        for number, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, answers[number])
        return [answers[number] for number in range(len(requests))]

    def _write(self, rows: list[list[int]], wanted: dict[str, Any]) -> list[str]:
        """Continue the rows of one batch; `wanted` are a task's generation options."""
        stops, new_tokens, options = self._options(wanted)
        room = self.max_length - new_tokens
        if room < 1:
            raise InputError(
                f"{new_tokens} new tokens are wanted, but the model has room for {self.max_length} in all. Ask for "
                "fewer in the task's generation_kwargs (max_gen_toks)."
            )
        ids, mask = left_padded([row[-room:] or [self.prefix_token_id] for row in rows])  # (B, T)
        output = self.model.generate(
            ids.to(self.model.device),
            attention_mask=(torch.ones_like(ids) if mask is None else mask).to(self.model.device),
            max_new_tokens=new_tokens,
            stop_strings=stops or None,
            tokenizer=self.tokenizer,
            pad_token_id=self.eot_token_id,
            **options,
        )
        texts = (
            self.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for row in output[:, ids.shape[1] :].tolist()
        )
        return [_cut(text, stops) for text in texts]

    def _options(self, wanted: dict[str, Any]) -> tuple[list[str], int, dict[str, Any]]:
        """Stop texts, number of new tokens, and what else `generate` is given."""
        until = wanted.pop("until", None) or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        given = [wanted.pop(name, None) for name in NEW_TOKENS]
        new_tokens = next((int(number) for number in given if number is not None), self.max_gen_toks)
        temperature = wanted.get("temperature")
        sample = bool(wanted.pop("do_sample", temperature not in (None, 0, 0.0)))
        if not sample:  # the likeliest token: what shapes a distribution would do nothing
            wanted = {name: value for name, value in wanted.items() if name not in SAMPLING}
        return stops, new_tokens, {"do_sample": sample, **wanted}


class _Bar:
    """A progress bar that is told how many are done, and of how many."""

    def __init__(self, what: str, hidden: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(desc=what, unit="request", disable=hidden or None, file=sys.stderr)

    def __enter__(self) -> Callable[[int, int], None]:
        return self._show

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def _show(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)


def _batch_size(value: int | str) -> int:
    if isinstance(value, str) and value.startswith("auto"):
        return 8
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise InputError(f"batch_size is {value!r}, but must be a whole number of at least 1, or 'auto'.")
    return number


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop text in it."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
