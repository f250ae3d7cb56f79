"""From labelled tokens to entities.

Letters: T tokens, L labels.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

__all__ = ["AggregationStrategy", "Token", "entities_of", "without_overlaps"]

Record = dict[str, Any]
Joiner = Callable[[list[str]], str]


class AggregationStrategy(str, enum.Enum):
    """How tokens become entities; see TokenClassificationPipeline."""

    NONE = "none"
    SIMPLE = "simple"
    FIRST = "first"
    AVERAGE = "average"
    MAX = "max"


@dataclass
class Token:
    """A token, or a word made of tokens.

    Args:
        word: As it is in the vocabulary.
        scores: (L,) probabilities.
        start, end: Its characters in the text.
        index: Its place among the tokens.
        goes_on: Whether it goes on with the word of the token before it.
    """

    word: str
    scores: Any
    start: int
    end: int
    index: int
    goes_on: bool


def entities_of(
    tokens: Sequence[Token], strategy: AggregationStrategy, names: Mapping[int, str], join: Joiner
) -> list[Record]:
    """Return records of tokens ("none") or of entities.

    Args:
        tokens: In the text's order.
        strategy: See AggregationStrategy.
        names: Labels by number.
        join: Makes text of tokens.
    """
    if strategy in (AggregationStrategy.NONE, AggregationStrategy.SIMPLE):
        labelled = [_labelled(token, token.scores, names) for token in tokens]
        if strategy is AggregationStrategy.NONE:
            return labelled
    else:
        labelled = [_word(group, strategy, names, join) for group in _groups(tokens)]
    return _grouped(labelled, join)


def _labelled(token: Token, scores: Any, names: Mapping[int, str]) -> Record:
    best = int(scores.argmax())
    return {
        "entity": names[best],
        "score": float(scores[best]),
        "index": token.index,
        "word": token.word,
        "start": token.start,
        "end": token.end,
    }


def _groups(tokens: Sequence[Token]) -> list[list[Token]]:
    """Put the tokens of each word together."""
    words: list[list[Token]] = []
    for token in tokens:
        if words and token.goes_on:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _word(tokens: Sequence[Token], strategy: AggregationStrategy, names: Mapping[int, str], join: Joiner) -> Record:
    """Give all tokens of a word one label."""
    scores = tokens[0].scores
    if strategy is AggregationStrategy.MAX:
        scores = max(tokens, key=lambda token: token.scores.max()).scores
    elif strategy is AggregationStrategy.AVERAGE:
        scores = numpy.nanmean(numpy.stack([token.scores for token in tokens]), axis=0)  # (L,)
    record = _labelled(tokens[0], scores, names)
    del record["index"]
    return {**record, "word": join([token.word for token in tokens]), "end": tokens[-1].end}


def _grouped(labelled: Sequence[Record], join: Joiner) -> list[Record]:
    """Join neighbours with the same tag, except where a B- begins a new entity."""
    groups: list[list[Record]] = []
    for record in labelled:
        begins, tag = _tag(record["entity"])
        if groups and not begins and tag == _tag(groups[-1][-1]["entity"])[1]:
            groups[-1].append(record)
        else:
            groups.append([record])
    return [
        {
            "entity_group": group[0]["entity"].split("-", 1)[-1],
            "score": float(numpy.nanmean([record["score"] for record in group])),
            "word": join([record["word"] for record in group]),
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }
        for group in groups
    ]


def _tag(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and the label without B- or I-; one without either goes on."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def without_overlaps(entities: Sequence[Record]) -> list[Record]:
    """Of entities that overlap, found in pieces that share tokens, keep the longest; of equal ones the surest."""
    kept: list[Record] = []
    for entity in sorted(entities, key=lambda record: record["start"]):
        last = kept[-1] if kept else None
        if last is None or not last["start"] <= entity["start"] < last["end"]:
            kept.append(entity)
        elif _rank(entity) > _rank(last):
            kept[-1] = entity
    return kept


def _rank(entity: Record) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]
