"""DecodeState: the one place that knows cache, attention mask, positions and padding while a model decodes.

Loops ask it for scores and tell it which tokens were chosen; they never see an argument of the model.

Letters: B rows, T tokens of the prompt, N tokens that follow, P tokens that a given cache holds already, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from quintet.cache.record import UNKNOWN
from quintet.errors import GenerationError, InputError
from quintet.generation.buffer import ColumnBuffer
from quintet.generation.given import GenerativeModel, Prompt

__all__ = ["Ahead", "DecodeState"]

# Tensors that belong to the model's heads and not to the rows of the batch.
NOT_PER_ROW = ("head_mask", "cross_attn_head_mask")


class Ahead(NamedTuple):
    """What is known of the next tokens, without the scores of all of them if possible.

    Args:
        states: (B, E) what the head reads; None with `scores`.
        best: The best scores in float32 and their tokens, (B, k) each; None where the head has to be asked for all.
        scores: (B, V) in float32, where the model had to make them; otherwise None.
    """

    states: torch.Tensor | None = None
    best: tuple[torch.Tensor, torch.Tensor] | None = None
    scores: torch.Tensor | None = None


class DecodeState:
    """A model in the middle of a sequence.

    Args:
        model: The model.
        prompt: What it continues.
        room: Tokens that are expected to follow, to size buffers.
        use_cache: Keep keys and values; otherwise every step computes the whole sequence again.
        collect: Names of further outputs to ask for, such as "attentions" and "hidden_states".
        chunk: Tokens of the prompt to read at once; None for all. Further outputs are those of the last part.
    """

    def __init__(
        self,
        model: GenerativeModel,
        prompt: Prompt,
        *,
        room: int = 0,
        use_cache: bool = True,
        collect: tuple[str, ...] = (),
        chunk: int | None = None,
    ) -> None:
        self.model = model
        self.cache = prompt.cache
        self.collected: dict[str, Any] = {}
        self.before_forward: Callable[[], None] | None = None
        """Called before each forward pass; other processes that run parts of the model hear of it there."""
        self._collect = collect
        self._chunk = chunk
        self._use_cache = use_cache
        self._rows = prompt.ids.shape[0]
        self._first, self._embeds = prompt.feed, prompt.embeds
        self._mask = None if prompt.mask is None else ColumnBuffer(prompt.mask, room)
        self._per_token = {name: ColumnBuffer(value, room) for name, value in prompt.per_token.items()}
        self._others = dict(prompt.others)
        self._all_ids = None if use_cache or prompt.feed is None else ColumnBuffer(prompt.feed, room)
        self._fixed: dict[str, Any] = {"use_cache": use_cache, "return_dict": True}
        self._fixed.update({f"output_{name}": True for name in collect})
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            self._fixed["logits_to_keep"] = 1

    @property
    def rows(self) -> int:
        """B."""
        return self._rows

    @property
    def vocabulary(self) -> int:
        """V, as the model's head has it."""
        model: Any = self.model
        return len(model.get_output_embeddings().weight)

    @property
    def shares_prefill(self) -> bool:
        """Whether reading a prompt once and repeating the result equals reading each copy.

        Dropout would differ between copies, and without a cache there is nothing to repeat.
        """
        return self._use_cache and not self.model.training

    def prefill(self) -> torch.Tensor:
        """Read the prompt and return the scores of its next token, (B, V) in float32."""
        name, whole = ("input_ids", self._first) if self._embeds is None else ("inputs_embeds", self._embeds)
        if whole is None:
            raise GenerationError("the prompt was read before. Begin a new DecodeState.")
        tokens = whole.shape[1]
        size = self._chunk or tokens
        for begin in range(0, tokens, size):
            end = min(begin + size, tokens)
            inputs: dict[str, Any] = {name: whole[:, begin:end]}
            inputs.update({key: buffer.view[:, begin:end] for key, buffer in self._per_token.items()})
            scores = self._forward(inputs, unread=tokens - end)
        self._first = self._embeds = None
        return scores

    def prefill_copies(self, count: int) -> torch.Tensor:
        """Read the prompt and repeat every row `count` times, in the order in which that costs least; see `prefill`.

        Returns:
            (B * count, V) scores, copies side by side.
        """
        if self.shares_prefill:
            scores = self.prefill()
            self.expand(count)
            return scores.repeat_interleave(count, dim=0) if count > 1 else scores
        self.expand(count)
        return self.prefill()

    def advance(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read one more token of each row, (B,), and return the scores of the next, (B, V) in float32."""
        return self._forward(self._next_inputs(tokens[:, None]))  # (B,) -> (B, 1)

    @property
    def open_head(self) -> Any:
        """The model's output head where it can be asked in the model's stead, with the same result; otherwise None."""
        model: Any = self.model
        forward = type(model).forward
        if getattr(forward, "ends_with_head", None) is not forward or self._collect or self._others:
            return None
        head = model.get_output_embeddings()
        if not hasattr(head, "best_outputs") or not self._use_cache or model.training:
            return None
        for one in (model, head):
            if one._forward_hooks or one._forward_pre_hooks or "forward" in one.__dict__:
                return None  # somebody watches it, or has put something in its place
        return head if model._compiled_call_impl is None else None

    def advance_best(self, tokens: torch.Tensor, count: int) -> Ahead:
        """Read one more token of each row, (B,), and return the `count` best scores of the next, where that saves work.

        Only for a model that has had an `open_head`.
        """
        inputs = self._next_inputs(tokens[:, None])  # (B,) -> (B, 1)
        model: Any = self.model
        head = None

        def forward() -> Any:
            nonlocal head
            head = self.open_head
            if head is None:  # somebody listens to it now
                return model(**inputs, **self._others, **self._fixed)
            return model.base_model(**inputs, use_cache=True, return_dict=True)

        native, outputs = self._run(inputs, forward, best=count)
        if native is not None:
            return Ahead(native.states, native.best)
        if head is None:
            return Ahead(scores=self._scores(outputs))
        states = outputs.last_hidden_state[:, -1]  # (B, 1, E) -> (B, E)
        return Ahead(states, head.best_outputs(states, count))

    def head_scores(self, states: torch.Tensor) -> torch.Tensor:
        """Return the scores that the model's head makes of (B, E) states, (B, V) in float32."""
        model: Any = self.model
        scores: torch.Tensor = model.get_output_embeddings()(states[:, None])  # (B, E) -> (B, 1, V)
        return scores[:, 0].float()

    def advance_many(self, tokens: torch.Tensor, keep: int | None = None) -> torch.Tensor:
        """Read the next tokens of each row, (B, N), and return the scores after each of them, (B, N, V) in float32.

        `crop` forgets those that are rejected.

        Args:
            tokens: (B, N).
            keep: Scores of the last so many tokens only.
        """
        keep = tokens.shape[1] if keep is None else keep
        scores = self._forward(self._next_inputs(tokens), keep=keep)
        return scores[:, None] if keep == 1 else scores  # (B, V) -> (B, 1, V)

    def _next_inputs(self, tokens: torch.Tensor) -> dict[str, Any]:
        """Take note of (B, N) tokens and return what `forward` is to read."""
        count = tokens.shape[1]
        for name, buffer in self._per_token.items():
            for _ in range(count):
                buffer.append(buffer.last[:, 0] + (1 if name == "position_ids" else 0))
        if self._mask is not None:
            for _ in range(count):
                self._mask.append(1)
        if self._all_ids is None:
            new = {name: buffer.view[:, -count:] for name, buffer in self._per_token.items()}
            return {"input_ids": tokens, **new}
        for column in tokens.unbind(1):
            self._all_ids.append(column)
        return {"input_ids": self._all_ids.view, **{name: one.view for name, one in self._per_token.items()}}

    def _forward(self, inputs: dict[str, Any], keep: int = 1, unread: int = 0) -> torch.Tensor:
        """Run the model; return the scores of the last token, (B, V), or those of the last `keep`, (B, keep, V).

        The last `unread` columns of the mask belong to tokens that come later.
        """
        native, outputs = self._run(
            inputs, lambda: self.model(**inputs, **self._others, **self._fixed_for(keep)), unread=unread
        )
        if native is not None:
            scores: torch.Tensor = native.scores
            return scores.float()
        return self._scores(outputs, keep)

    def _scores(self, outputs: Any, keep: int = 1) -> torch.Tensor:
        """Return what `_forward` does, and keep what else was asked for."""
        if self._collect:
            self.collected = {name: getattr(outputs, name, None) for name in self._collect}
        logits = outputs.logits
        if logits.dim() == 3 and keep > 1:
            return logits[:, -keep:].to(torch.float32, copy=True)  # (B, keep, V)
        if logits.dim() == 3 and logits.shape[1] == 1:
            return logits[:, 0].float()  # (B, 1, V) -> (B, V)
        if logits.dim() != 3:
            raise InputError(
                f"{type(self.model).__name__} gave scores of shape {tuple(logits.shape)}, but generate() needs "
                "(rows, tokens, vocabulary). Give input_ids of shape (rows, tokens)."
            )
        return logits[:, -1].to(torch.float32, copy=True)  # a copy, so that the scores of the prompt can be freed

    def _run(
        self, inputs: dict[str, Any], forward: Callable[[], Any], *, unread: int = 0, best: int | None = None
    ) -> tuple[Any, Any]:
        """Let the model read its inputs, in one native call where it can do a step so.

        Args:
            inputs: What it is to read; cache and mask are put in.
            forward: Runs the model on them.
            unread: See `_forward`.
            best: How many of the best scores are wanted of a native step; None for all scores.

        Returns:
            What the native step gives and None, or None and what `forward` returns.
        """
        if self.cache is not None:
            inputs["past_key_values"] = self.cache
        if self._mask is not None:
            inputs["attention_mask"] = self._mask.view[:, : self._mask.length - unread]
        length = self.cache.get_seq_length() if self.cache is not None else 0
        if self.before_forward is not None:
            self.before_forward()
        native = outputs = None
        try:
            native = self._natively(inputs, best)
            if native is None:
                outputs = forward()
        except BaseException:
            # Ctrl-C or an error in the middle of the layers: some of them have stored this token and some have not.
            if self.cache is not None:
                self.cache.crop(length)
            raise
        if self._use_cache:
            self.cache = self.cache if outputs is None else outputs.past_key_values
            if self.cache is None:
                raise GenerationError(
                    f"{type(self.model).__name__} returned no past_key_values. Call generate(use_cache=False)."
                )
            self._note(inputs, length)
        return native, outputs

    def _natively(self, inputs: dict[str, Any], best: int | None) -> Any:
        """Return what a native step makes of one token of each row, or None where the model has to read the inputs."""
        step = getattr(type(self.model), "native_step", None)  # of the class: a wrapper may pass on what is inside it
        if step is None or self._collect or self._others or self._per_token or not self._use_cache:
            return None
        ids = inputs.get("input_ids")
        if self.cache is None or ids is None or ids.shape[1] != 1:
            return None
        return step(self.model, ids, self.cache, inputs.get("attention_mask"), best)

    def _note(self, inputs: dict[str, Any], start: int) -> None:
        """Tell the cache what it was just read from; padding and embeddings are no tokens."""
        record = None if self.cache is None else self.cache.record
        if record is None:
            return
        if record.model is not self.model:
            record.model = self.model
        ids = inputs.get("input_ids")
        if ids is None:
            ids = torch.full(inputs["inputs_embeds"].shape[:2], UNKNOWN, device=inputs["inputs_embeds"].device)
        elif ids.shape[1] > 1 and self._mask is not None:
            ids = ids.masked_fill(inputs["attention_mask"][:, -ids.shape[1] :] == 0, UNKNOWN)
        record.note(ids, start)

    def _fixed_for(self, keep: int) -> dict[str, Any]:
        """Return the arguments of `forward` that stay the same, for the scores of the last `keep` tokens."""
        return (
            self._fixed if keep == 1 or "logits_to_keep" not in self._fixed else self._fixed | {"logits_to_keep": keep}
        )

    def expand(self, count: int) -> None:
        """Repeat every row `count` times, copies side by side: several continuations of each prompt."""
        if count == 1:
            return
        self._rows *= count
        if self.cache is not None:
            self.cache.batch_repeat_interleave(count)
        for buffer in self._buffers():
            buffer.repeat(count)
        self._first = None if self._first is None else self._first.repeat_interleave(count, dim=0)
        self._embeds = None if self._embeds is None else self._embeds.repeat_interleave(count, dim=0)
        self._map_others(lambda tensor: tensor.repeat_interleave(count, dim=0))
        self.collected = {
            name: None if tensors is None else tuple(one.repeat_interleave(count, dim=0) for one in tensors)
            for name, tensors in self.collected.items()
        }

    def reorder(self, rows: torch.Tensor, newest: int | None = None) -> None:
        """Replace the rows by those at `rows`, as beam search does; also drops rows that are finished.

        Args:
            rows: Their numbers.
            newest: When each row only takes the place of another copy of the same prompt: how many of the newest tokens
                may differ between the two. Only those move.
        """
        if newest is not None:
            if newest > 0 and self.cache is not None:
                self.cache.reorder_newest(rows, newest)
            if newest > 0 and self._all_ids is not None:
                self._all_ids.select(rows)
            return
        if self.cache is not None:
            self.cache.reorder_cache(rows)
        self._select_inputs(rows)

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the rows at `rows`, each of which stays in its place or moves into that of a row that goes.

        As `reorder`, without a copy of the cache where its store can do without.
        """
        if self.cache is not None:
            self.cache.keep_rows(rows)
        self._select_inputs(rows)

    def _select_inputs(self, rows: torch.Tensor) -> None:
        for buffer in self._buffers():
            buffer.select(rows)
        self._map_others(lambda tensor: tensor.index_select(0, rows))
        self._rows = rows.shape[0]

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens of what the model has read, as rejected drafts need.

        Raises:
            InputError: a layer with a window has dropped keys that are needed there; see `most_undone`.
        """
        dropped = self.length - length
        if dropped <= 0:
            return
        if self.cache is not None:
            self.cache.crop(length)
        for buffer in self._buffers():  # those of single tokens do not hold what a given cache held before
            buffer.crop(buffer.length - dropped)

    @property
    def length(self) -> int:
        """Tokens that the model has read, those in a given cache included."""
        if self.cache is not None:
            return self.cache.get_seq_length()
        return 0 if self._all_ids is None else self._all_ids.length

    @property
    def most_undone(self) -> int | None:
        """Tokens of the last `advance_many` that `crop` can take back, whichever they are; None for any number.

        A layer with a window holds on to the keys of one window besides the newest; after a longer step some lengths
        in its middle are out of reach.
        """
        layers = getattr(getattr(self.cache, "self_attention_cache", self.cache), "layers", ())
        limits = [layer.most_undone for layer in layers if layer.most_undone is not None]
        return min(limits, default=None)

    def _buffers(self) -> list[ColumnBuffer]:
        found = [*self._per_token.values(), self._mask, self._all_ids]
        return [one for one in found if one is not None]

    def _map_others(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for name, value in self._others.items():
            if isinstance(value, torch.Tensor) and name not in NOT_PER_ROW:
                self._others[name] = function(value)
