"""Random and mutated token streams, and what must hold for the events of any of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from quintet.chat.events import ChatEvent
from quintet.chat.stream import ChatParser

UNKNOWN = 1_000_000  # an id that no vocabulary has


class Streams:
    """Makes streams out of special tokens, pieces of text, whole good answers, and noise."""

    def __init__(self, tokenizer: Any, special: Sequence[str], fragments: Sequence[bytes], good: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.special = [tokenizer.convert_tokens_to_ids(token) for token in special]
        table = {tokenizer.token_bytes(index): index for index in range(256)}
        self.fragments = [[table[bytes([byte])] for byte in fragment] for fragment in fragments]
        self.good = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in good]

    def make(self, count: int, seed: int) -> Iterator[list[int]]:
        """`count` streams, half of them put together at random, half mutations of good answers."""
        dice = random.Random(seed)
        for number in range(count):
            yield self._random(dice) if number % 2 else self._mutated(dice)

    def _token(self, dice: random.Random) -> list[int]:
        kind = dice.random()
        if kind < 0.45:
            return [dice.choice(self.special)]
        if kind < 0.92:
            return dice.choice(self.fragments)
        return [dice.randrange(256)] if kind < 0.98 else [UNKNOWN]

    def _random(self, dice: random.Random) -> list[int]:
        return [index for _ in range(dice.randrange(16)) for index in self._token(dice)]

    def _mutated(self, dice: random.Random) -> list[int]:
        ids = list(dice.choice(self.good))
        for _ in range(dice.randrange(4)):
            place = dice.randrange(len(ids) + 1)
            action = dice.randrange(4)
            if action == 0:
                del ids[place : place + dice.randrange(1, 8)]
            elif action == 1:
                ids[place:place] = self._token(dice)
            elif action == 2:
                ids = ids[:place]
            else:
                specials = [index for index, each in enumerate(ids) if each in self.special]
                if specials:
                    del ids[dice.choice(specials)]
        return ids


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """What the tokens spell, special ones by name."""
    parts = (tokenizer.token_bytes(index) if index != UNKNOWN else b"<|%d|>" % UNKNOWN for index in ids)
    return b"".join(parts).decode("utf-8", "replace")


def check(tokenizer: Any, ids: Sequence[int], events: Sequence[ChatEvent]) -> None:
    """Nothing is lost, and every message begins once, ends once, and has its pieces in between."""
    assert "".join(event.raw for event in events) == text_of(tokenizer, ids), ids
    opened: ChatEvent | None = None
    for event in events:
        if event.kind == "start":
            assert opened is None, ids
            opened = event
        elif event.kind in ("text", "tool_call", "end"):
            assert opened is not None and opened.message == event.message, ids
            assert (opened.channel, opened.recipient, opened.role) == (event.channel, event.recipient, event.role)
            assert event.kind != "end" or event.reason in ("end", "return", "call", "cut")
            opened = None if event.kind == "end" else opened
        else:
            assert event.kind == "special", ids
    assert opened is None, ids


def fuzz(streams: Streams, parser: Callable[[int], ChatParser], count: int, seed: int) -> None:
    """Parse `count` streams and check each."""
    for number, ids in enumerate(streams.make(count, seed)):
        check(streams.tokenizer, ids, parser(number).parse(ids))


def seconds_per_token(parser: Callable[[], ChatParser], ids: Sequence[int]) -> float:
    """How much of the processor's time a token takes, the best of three; other programs do not count."""
    import time

    found = []
    for _ in range(3):
        made, start = parser(), time.process_time()
        made.parse(ids)
        found.append((time.process_time() - start) / len(ids))
    return min(found)
