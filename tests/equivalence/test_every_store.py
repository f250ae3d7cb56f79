"""Every store of keys gives what no store gives, however a text is cut and whatever was done to the store between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.cache import Cache, DynamicCache, OffloadedCache, QuantizedCache, StaticCache
from quintet.layers.begin import windows_of

LONGEST = 18
STORES: dict[str, Any] = {
    "all keys": lambda config: DynamicCache(),
    "by its config": lambda config: DynamicCache(config=config),
    "fixed shape": lambda config: StaticCache(config, max_cache_len=LONGEST),
    "offloaded": lambda config: OffloadedCache(config=config),
    # so much is kept exact that nothing is rounded
    "quantized": lambda config: QuantizedCache(config=config, residual_length=LONGEST),
}

examples = settings(max_examples=8, derandomize=True, database=None)


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Any:
    """Makes a store for a configuration."""
    return STORES[request.param]


@pytest.fixture
def text() -> torch.Tensor:
    """Two rows of as many tokens as the stores are made for, more than any window."""
    return torch.randint(90, (2, LONGEST), generator=torch.Generator().manual_seed(6))


def test_parts_of_any_size(make: Any, store: Any, fed: Any, text: torch.Tensor, close: Any) -> None:
    model = make()
    with torch.no_grad():
        whole = model(text).logits

        @examples
        @given(st.sets(st.integers(1, LONGEST - 1)))
        def check(cuts: set[int]) -> None:
            ends = [0, *sorted(cuts), LONGEST]
            sizes = [end - start for start, end in zip(ends, ends[1:])]  # noqa: B905
            close(fed(model, text, sizes, past=store(model.config))[0], whole)

        check()


def test_padded_parts_of_any_size(make: Any, store: Any, fed: Any, text: torch.Tensor, close: Any) -> None:
    model = make()
    with torch.no_grad():

        @examples
        @given(st.sets(st.integers(1, LONGEST - 1)), st.integers(0, LONGEST - 1), st.integers(0, LONGEST - 1))
        def check(cuts: set[int], left: int, right: int) -> None:
            mask = torch.ones_like(text)
            mask[0, :left] = mask[1, LONGEST - right :] = 0
            ends = [0, *sorted(cuts), LONGEST]
            sizes = [end - start for start, end in zip(ends, ends[1:])]  # noqa: B905
            got, _ = fed(model, text, sizes, mask, store(model.config))
            assert got.isfinite().all()
            close(got[0, left:], model(text[:1, left:]).logits[0])
            close(got[1, : LONGEST - right], model(text[1:, : LONGEST - right]).logits[0])

        check()


class Conversation:
    """A store and the tokens that it must hold: what is done to one is done to the other."""

    def __init__(self, model: Any, past: Cache, file: Path, tuples: bool) -> None:
        self.model, self.past, self.file, self.tuples = model, past, file, tuples
        self.tokens = torch.empty(2, 0, dtype=torch.int64)
        self.undoable = 0

    def extend(self, count: int) -> None:
        count = min(count, LONGEST - self.tokens.shape[1])
        if not count:
            return
        new = torch.randint(90, (self.tokens.shape[0], count))
        self.tokens = torch.cat([self.tokens, new], 1)
        out = self.model(new, past_key_values=self.past, use_cache=True)
        assert out.past_key_values is self.past
        wanted = self.model(self.tokens).logits[:, -count:]
        torch.testing.assert_close(out.logits, wanted, rtol=1e-5, atol=2e-5)
        self.undoable = count

    def undo(self) -> None:
        if self.undoable:
            self.past.crop(-self.undoable)
            self.tokens, self.undoable = self.tokens[:, : -self.undoable], 0

    def crop(self, length: int) -> None:
        if self.tuples:  # others may have dropped what they would need
            self.past.crop(length)
            self.tokens, self.undoable = self.tokens[:, :length], 0

    def rows(self, order: list[int]) -> None:
        index = torch.tensor([row % self.tokens.shape[0] for row in order])
        self.past.reorder_cache(index) if len(order) == self.tokens.shape[0] else self.past.batch_select_indices(index)
        self.tokens = self.tokens[index]

    def repeat(self, times: int) -> None:
        if self.tokens.shape[0] < 3:
            self.past.batch_repeat_interleave(times)
            self.tokens = self.tokens.repeat_interleave(times, 0)

    def reload(self, _: int) -> None:
        self.past.save(self.file)
        self.past, self.undoable = type(self.past).load(self.file, config=self.model.config), 0

    def as_tuples(self, _: int) -> None:
        if self.tuples:
            self.past, self.undoable = DynamicCache.from_legacy_cache(self.past.to_legacy_cache()), 0  # type: ignore[attr-defined]


ACTIONS = st.one_of(
    *(st.tuples(st.just("extend"), st.integers(1, 9)) for _ in range(3)),  # most often
    st.tuples(st.just("undo")),
    st.tuples(st.just("crop"), st.integers(1, LONGEST)),
    st.tuples(st.just("rows"), st.lists(st.integers(0, 2), min_size=1, max_size=3)),
    st.tuples(st.just("repeat"), st.integers(1, 2)),
    st.tuples(st.just("reload"), st.just(0)),
    st.tuples(st.just("as_tuples"), st.just(0)),
)


def test_whatever_is_done_to_a_store(make_one: Any, store: Any, tmp_path: Path) -> None:
    """Handed back and forth, undone, cropped, reordered, repeated, extended, saved and restored, in any order."""
    model = make_one()

    @settings(max_examples=16, derandomize=True, database=None)
    @given(st.lists(ACTIONS, min_size=3, max_size=12))
    def check(actions: list[Any]) -> None:
        past = store(model.config)
        talk = Conversation(model, past, tmp_path / "cache", type(past) is DynamicCache and not len(past))
        talk.extend(2)
        for name, *arguments in actions:
            getattr(talk, name)(*arguments)
            assert talk.past.get_seq_length() == talk.tokens.shape[1]
        talk.extend(1)

    with torch.no_grad():
        check()


def test_a_store_can_be_used_again_after_a_reset(make_one: Any, store: Any, text: torch.Tensor, close: Any) -> None:
    model = make_one()
    past = store(model.config)
    with torch.no_grad():
        model(text, past_key_values=past, use_cache=True)
        past.reset()
        assert past.get_seq_length() == 0
        close(model(text[:, 3:8], past_key_values=past).logits, model(text[:, 3:8]).logits)


def test_what_8_bits_cost(make_one: Any, fed: Any, text: torch.Tensor) -> None:
    """With all but four tokens in 8 bits, logits move by a share of their spread that is small and not nothing."""
    model = make_one()
    with torch.no_grad():
        wanted = model(text).logits
        got, past = fed(
            model, text, [12, 3, 1, 1, 1], past=QuantizedCache(config=model.config, q_group_size=4, residual_length=4)
        )
        assert past.get_seq_length() == LONGEST
        error = (got - wanted).abs().max() / wanted.std()
        assert error < 0.05
        full = any(window is None for window in windows_of(model.config))
        assert (error > 1e-4) == full  # layers with a window are kept as they are


def test_a_compiled_step_needs_no_length(make: Any, text: torch.Tensor, close: Any) -> None:
    """With a store of fixed shape masks have the same shape at every step, and may cover all of its slots."""
    model = make()
    past = StaticCache(model.config, max_cache_len=LONGEST)
    mask = torch.ones_like(text)
    mask[0, :5] = 0
    with torch.no_grad():
        out = [model(text[:, :9], attention_mask=mask, past_key_values=past).logits]
        out += [model(text[:, i : i + 1], attention_mask=mask, past_key_values=past).logits for i in range(9, LONGEST)]
        got = torch.cat(out, 1)
        close(got[0, 5:], model(text[:1, 5:]).logits[0])
        close(got[1], model(text[1:]).logits[0])
