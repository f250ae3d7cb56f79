"""Token classification: labels of tokens, or of the entities that they make up.

Letters: B rows, T tokens, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from quintet.errors import ConfigError, InputError, suggest
from quintet.pipelines.base import Parameters, Pipeline, logger, unknown_option
from quintet.pipelines.batches import Piece
from quintet.pipelines.entities import AggregationStrategy, Token, entities_of, without_overlaps
from quintet.pipelines.inputs import checked_text

__all__ = ["AggregationStrategy", "NerPipeline", "TokenClassificationPipeline"]

OPTIONS = ("aggregation_strategy", "ignore_labels", "offset_mapping", "is_split_into_words", "stride", "delimiter")


class TokenClassificationPipeline(Pipeline):
    """Labels the tokens of a text with a token classification model.

    Options, of the pipeline or of a call:
        aggregation_strategy: "none" gives tokens. "simple" joins neighbours of one label to entities (B- begins a new
            one). "first", "average" and "max" first give every word one label: that of its first token, that of its
            tokens' mean scores, that of its surest token.
        ignore_labels: Labels that are left out; ["O"] by default.
        stride: Read a text that is too long in pieces that share so many tokens; without it only its beginning is read.
        is_split_into_words: A text is a list of words; they are joined by `delimiter` (a space).
        offset_mapping: Character spans of the tokens, in place of the tokenizer's: of one text, or a list of them.

    A call gives a list of records for one text: `{"entity", "score", "index", "word", "start", "end"}`, with an
    aggregation `{"entity_group", "score", "word", "start", "end"}`; and a list of such lists for several texts.
    """

    default_task: ClassVar[str] = "token-classification"

    def _sanitize_parameters(
        self,
        aggregation_strategy: Any = None,
        ignore_labels: Sequence[str] | None = None,
        offset_mapping: Any = None,
        is_split_into_words: bool | None = None,
        stride: int | None = None,
        delimiter: str | None = None,
        **unknown: Any,
    ) -> Parameters:
        for name in unknown:
            raise unknown_option(self, name, OPTIONS)
        strategy = None if aggregation_strategy is None else _strategy(aggregation_strategy)
        if stride is not None:
            limit = self.max_tokens
            if isinstance(stride, bool) or not isinstance(stride, int) or stride < 0:
                raise ConfigError(f"stride is {stride!r}, but must be an integer of at least 0.")
            if limit is None or stride >= limit:
                raise ConfigError(
                    f"stride is {stride}, but must be less than the tokens that fit at once ({limit}). Pass a smaller "
                    "one, or set tokenizer.model_max_length."
                )
            if strategy is AggregationStrategy.NONE:
                raise ConfigError("stride joins entities of pieces, so aggregation_strategy must not be 'none'.")
        if isinstance(ignore_labels, str):
            raise ConfigError(f"ignore_labels is {ignore_labels!r}, but must be a list of labels: [{ignore_labels!r}].")
        before = {
            "is_split_into_words": is_split_into_words,
            "stride": stride,
            "delimiter": delimiter,
            "offset_mapping": offset_mapping,
        }
        after = {"aggregation_strategy": strategy, "ignore_labels": ignore_labels}
        return Parameters(
            {name: value for name, value in before.items() if value is not None},
            {},
            {name: value for name, value in after.items() if value is not None},
        )

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Label the tokens of one text, a list of texts, a data set or a generator; see the class."""
        words = options.get("is_split_into_words", self._defaults.preprocess.get("is_split_into_words"))
        if words and isinstance(inputs, (list, tuple)) and inputs and all(isinstance(one, str) for one in inputs):
            inputs = [[*inputs]]  # as the reference: a list of one result comes back
        mappings = options.pop("offset_mapping", None)
        if mappings is not None:
            inputs = _with_offsets(inputs, mappings)
        return super().__call__(inputs, **options)

    def _is_item(self, inputs: Any) -> bool:
        return isinstance(inputs, _WithOffsets)

    def preprocess(  # type: ignore[override]
        self,
        item: Any,
        is_split_into_words: bool = False,
        stride: int | None = None,
        delimiter: str = " ",
        offset_mapping: Any = None,
    ) -> list[Piece]:
        """Encode a text, in pieces where a stride is given."""
        if isinstance(item, _WithOffsets):
            item, offset_mapping = item.text, item.offsets
        text, spans = self._text_of(item, is_split_into_words, delimiter)
        options: dict[str, Any] = {} if stride is None else {"stride": stride, "return_overflowing_tokens": True}
        encoded = self.encode(
            item if is_split_into_words else text,
            truncation=self.max_tokens is not None,
            is_split_into_words=is_split_into_words,
            return_special_tokens_mask=True,
            return_offsets_mapping=True,
            **options,
        )
        if stride is None and encoded.encodings[0].overflowing:
            logger.warning(
                "a text is longer than the %d tokens that fit, and only its beginning is labelled. Pass stride=... and "
                "an aggregation_strategy to label all of it.",
                self.max_tokens,
            )
        pieces = []
        for row, encoding in enumerate(encoded.encodings):
            offsets = [(start, end) for start, end in encoding.offsets]
            if spans is not None:
                offsets = [
                    (start + spans[word], end + spans[word]) if word is not None else (start, end)
                    for (start, end), word in zip(offsets, encoding.word_ids, strict=True)
                ]
            notes = {"text": text, "offsets": offset_mapping or offsets, "special": encoding.special_tokens_mask}
            pieces.append(Piece(self.columns(encoded, None if stride is None else row), notes))
        return pieces

    def _text_of(self, item: Any, split: bool, delimiter: str) -> tuple[str, list[int] | None]:
        """Return the text, and where each word of a list of words begins in it."""
        if not split:
            if isinstance(item, (list, tuple)):
                raise InputError(f"a text is the list {item!r:.80}. Words need is_split_into_words=True.")
            return checked_text(item, "the text"), None
        if not isinstance(item, (list, tuple)):
            raise InputError(f"is_split_into_words=True takes a list of words, and got {item!r:.80}. Split it first.")
        begins, at = [], 0
        for word in item:
            begins.append(at)
            at += len(checked_text(word, "a word")) + len(delimiter)
        return delimiter.join(item), begins

    def _forward(self, pieces: Sequence[Piece], **parameters: Any) -> list[Any]:
        logits = self.run_model(pieces).logits.float().cpu()  # (B, T, L)
        return [logits[row, : len(piece.ids)] for row, piece in enumerate(pieces)]

    def postprocess(  # type: ignore[override]
        self,
        pieces: Sequence[Piece],
        outputs: Sequence[Any],
        aggregation_strategy: AggregationStrategy = AggregationStrategy.NONE,
        ignore_labels: Sequence[str] = ("O",),
    ) -> list[dict[str, Any]]:
        """Turn scores into labelled tokens or entities."""
        found: list[dict[str, Any]] = []
        for piece, logits in zip(pieces, outputs, strict=True):
            scores = logits.softmax(-1).numpy()  # (T, L)
            tokens = self._tokens(piece, scores)
            made = entities_of(
                tokens, aggregation_strategy, self.model.config.id2label, self.tokenizer.convert_tokens_to_string
            )
            found += [one for one in made if one.get("entity", one.get("entity_group")) not in ignore_labels]
        return without_overlaps(found) if len(pieces) > 1 else found

    def _tokens(self, piece: Piece, scores: Any) -> list[Token]:
        """The tokens of a row that are no special tokens."""
        text, engine = piece.notes["text"], self.tokenizer.backend_tokenizer.model
        joins = bool(getattr(engine, "continuing_subword_prefix", None))
        tokens = []
        words = self.tokenizer.convert_ids_to_tokens(piece.ids)
        for index, (word, (start, end)) in enumerate(zip(words, piece.notes["offsets"], strict=False)):
            if piece.notes["special"][index]:
                continue
            unknown = piece.ids[index] == self.tokenizer.unk_token_id
            if joins:
                goes_on = len(word) != end - start
            else:  # the tokenizer does not say what a word is: words have spaces between them
                goes_on = start > 0 and " " not in text[start - 1 : start + 1]
            tokens.append(
                Token(
                    word=text[start:end] if unknown else word,
                    scores=scores[index],
                    start=start,
                    end=end,
                    index=index,
                    goes_on=goes_on and not unknown,
                )
            )
        return tokens


NerPipeline = TokenClassificationPipeline  # the older name


class _WithOffsets:
    """A text with spans of its tokens that somebody else found."""

    def __init__(self, text: Any, offsets: Any) -> None:
        self.text = text
        self.offsets = offsets


def _with_offsets(inputs: Any, mappings: Any) -> Any:
    """Give each text its spans.

    Raises:
        InputError: not as many as texts.
    """
    if isinstance(inputs, (str, Mapping)):
        one = mappings[0] if mappings and isinstance(mappings[0], list) else mappings
        return _WithOffsets(inputs, one)
    if mappings and isinstance(mappings[0], tuple):
        mappings = [mappings]
    if len(mappings) != len(inputs):
        raise InputError(f"offset_mapping has {len(mappings)} entries for {len(inputs)} texts. Give one for each.")
    return [_WithOffsets(text, spans) for text, spans in zip(inputs, mappings, strict=True)]


def _strategy(value: Any) -> AggregationStrategy:
    """Return the strategy of that name.

    Raises:
        ConfigError: there is none.
    """
    name = str(getattr(value, "value", value)).lower()
    names = [one.value for one in AggregationStrategy]
    if name not in names:
        raise ConfigError(
            f"aggregation_strategy is {value!r}, but must be one of {', '.join(names)}.{suggest(name, names)}"
        )
    return AggregationStrategy(name)
