"""Text generation: continues texts and chats.

Letters: B rows, S tokens of the result, N continuations of each prompt, V vocabulary.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from quintet.chat import ChatFormat
from quintet.chat.registry import format_of_model
from quintet.errors import ConfigError, InputError
from quintet.generation.known_tokens import KnownTokensLogitsProcessor, known_tokens
from quintet.generation.options import OPTIONS
from quintet.pipelines.base import Parameters, Pipeline
from quintet.pipelines.batches import MASK, Piece, collate, real_length
from quintet.pipelines.generating import Budget, StopRecorder, cut_after_end, lengths_for, scores_of, with_ends
from quintet.pipelines.inputs import checked_text
from quintet.pipelines.messages import Asked, answered, ask, chat_or_stream, continues, is_chat, named_format, templated
from quintet.tokenizers.stream import gap_after

__all__ = ["ReturnType", "TextGenerationPipeline"]

# Options of generate() that nobody set; those of sampling count only where tokens are sampled.
DEFAULTS: dict[str, Any] = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
# With these, rows of a batch could end each other's text, or there may be one only: every prompt runs alone.
ALONE = ("stopping_criteria", "max_time", "streamer", "assistant_model", "prompt_lookup_num_tokens")
# Options of a call of the pipeline that go to the tokenizer, under the same name.
ENCODING = ("add_special_tokens", "padding", "truncation")


class ReturnType(enum.Enum):
    """What comes back of a continuation."""

    TENSORS = 0
    NEW_TEXT = 1
    FULL_TEXT = 2


class TextGenerationPipeline(Pipeline):
    """Continues texts, or answers chats (lists of `{"role", "content"}`), with any model that generates.

    Options, of the pipeline or of a call:
        return_full_text: Whether the prompt is part of the text that comes back (the default).
        return_text: Accepted; text is what comes back.
        return_tensors: Give `generated_token_ids` in place of `generated_text`.
        return_type: The same as one value: see ReturnType.
        clean_up_tokenization_spaces, skip_special_tokens: Of the decoding; special tokens are left out by default.
        prefix: A text before every prompt that is not given back; None: `model.config.prefix`.
        handle_long_generation: "hole" cuts the beginning of a prompt so that the new tokens fit; None does not.
        stop_sequence: One string, or several, that end a continuation; it is part of the result.
        continue_final_message: Go on with the last message of a chat; None: when it is the assistant's.
        tools, documents: For the chat template.
        chat_format: How chats are written and answers read: a name that `quintet.chat.chat_format` knows, or a format.
            None: the tokenizer's own template, whose answers are text; without one the format of the family, whose
            answers are messages with `content`, `reasoning_content` and `tool_calls` apart. `tokenizer_encode_kwargs`
            are then the options of the format, such as {"reasoning_effort": "low"}.
        add_special_tokens, padding, truncation, tokenizer_encode_kwargs: For the tokenizer.
        max_length: Tokens in all, prompt included, but not the prefix.
        streamer: Gets each continuation as it is written.
        **generate_kwargs: Everything that `generate` takes. Unless call, pipeline or the model's generation config
            say otherwise, 256 tokens are sampled at temperature 0.7, or as many as fit behind the prompt.

    A call gives a list of records `{"generated_text"}` for one prompt, and a list of such lists for several. With
    return_full_text=False, that of a chat is the text of the answer alone.
    """

    default_task: ClassVar[str] = "text-generation"
    padding_side: ClassVar[str] = "left"

    def __init__(self, model: Any, tokenizer: Any = None, **options: Any) -> None:
        self._known: KnownTokensLogitsProcessor | None = None
        self._form: ChatFormat | None = None  # of chats without a template; looked up once, as it may warn
        super().__init__(model, tokenizer, **options)
        self._known = known_tokens(model, self.tokenizer)
        prefix = getattr(model.config, "prefix", None)
        if prefix and "prefix" not in self._defaults.preprocess:
            self._defaults.preprocess["prefix"] = prefix

    def _sanitize_parameters(
        self,
        return_full_text: bool | None = None,
        return_tensors: bool | None = None,
        return_text: bool | None = None,
        return_type: ReturnType | int | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        prefix: str | None = None,
        handle_long_generation: str | None = None,
        stop_sequence: str | Sequence[str] | None = None,
        continue_final_message: bool | None = None,
        skip_special_tokens: bool | None = None,
        tokenizer_encode_kwargs: dict[str, Any] | None = None,
        tools: Any = None,
        documents: Any = None,
        chat_format: str | ChatFormat | None = None,
        **generate: Any,
    ) -> Parameters:
        if handle_long_generation not in (None, "hole"):
            raise ConfigError(f"handle_long_generation is {handle_long_generation!r}, but must be 'hole' or None.")
        if prefix is not None:
            checked_text(prefix, "prefix")
        before = {
            "prefix": prefix,
            "handle_long_generation": handle_long_generation,
            "continue_final_message": continue_final_message,
            "tokenizer_encode_kwargs": tokenizer_encode_kwargs,
            "tools": tools,
            "documents": documents,
            "chat_format": named_format(chat_format, self.tokenizer),
            **{name: generate.pop(name) for name in ENCODING if name in generate},
        }
        after = {
            "return_type": _return_type(return_type, return_full_text, return_tensors, return_text),
            "clean_up_tokenization_spaces": clean_up_tokenization_spaces,
            "skip_special_tokens": skip_special_tokens,
            "continue_final_message": continue_final_message,
        }
        if stop_sequence is not None:
            generate["stop_strings"] = [stop_sequence] if isinstance(stop_sequence, str) else list(stop_sequence)
        earlier = self._defaults.forward.get("generate", {})
        if generate.get("generation_config") is not None:  # it takes the place of what the pipeline was made with
            earlier = {name: value for name, value in earlier.items() if name not in OPTIONS}
        options = {**earlier, **generate}
        return Parameters({**_given(before), "generate": options}, {"generate": options}, _given(after))

    def __call__(self, text_inputs: Any, **options: Any) -> Any:  # type: ignore[override]
        """Continue one prompt or chat, a list of them, a data set or a generator; see the class.

        A generator of messages is one chat.
        """
        if not isinstance(text_inputs, (str, list, tuple, Mapping)) and hasattr(text_inputs, "__next__"):
            text_inputs = chat_or_stream(text_inputs)
        return super().__call__(text_inputs, **options)

    def _is_item(self, inputs: Any) -> bool:
        return is_chat(inputs)

    # --- before -------------------------------------------------------------------------------------------------------

    def preprocess(
        self,
        item: Any,
        generate: dict[str, Any] | None = None,
        prefix: str = "",
        handle_long_generation: str | None = None,
        continue_final_message: bool | None = None,
        tokenizer_encode_kwargs: dict[str, Any] | None = None,
        tools: Any = None,
        documents: Any = None,
        chat_format: ChatFormat | None = None,
        **encoding: Any,
    ) -> list[Piece]:
        """Encode a prompt, and find out how many tokens may follow it."""
        options = generate or {}
        if encoding.get("truncation") and options.get("max_length") is not None:
            encoding["max_length"] = options["max_length"]
        if "padding" in encoding:
            encoding["padding_side"] = "left"
        encoding.update(tokenizer_encode_kwargs or {})
        extra, asked = 0, None
        if is_chat(item):
            encoding.pop("add_special_tokens", None)
            if chat_format is None and self.tokenizer.chat_template is None:
                self._form = self._form or format_of_model(self.model.config.model_type, self.tokenizer)
                chat_format = self._form
            goes_on = continues(item, continue_final_message)
            if chat_format is None:
                encoded = templated(self.tokenizer, item, goes_on, tools, documents, encoding)
            else:
                asked = ask(chat_format, self.tokenizer, item, goes_on, tools, documents, encoding)
                encoded = {"input_ids": asked.prompt.ids(self.tokenizer)}
        else:
            if not isinstance(item, str) and isinstance(item, (list, tuple, Mapping)):
                raise InputError(
                    f"a prompt is {item!r:.80}, but must be a text, or a chat: a list of messages, each a dict with "
                    "'role' and 'content'."
                )
            encoded = self.encode(prefix + checked_text(item, "the prompt"), **encoding)
            if prefix:
                extra = len(
                    self.encode(prefix, add_special_tokens=encoding.get("add_special_tokens", False))["input_ids"]
                )
        columns = {name: list(encoded[name]) for name in ("input_ids", MASK) if name in encoded}
        piece = Piece(columns, {"prompt": item, "read": len(columns["input_ids"]), "asked": asked})
        if real_length(piece) == 0:
            piece.notes["read"] = 0
            self._begin_from_nothing(piece)
        wanted = self._wanted(options)
        if handle_long_generation == "hole":
            self._make_room(piece, wanted)
        piece.notes["budget"] = lengths_for(wanted, real_length(piece), extra, self._room(piece))
        return [piece]

    def _begin_from_nothing(self, piece: Piece) -> None:
        """An empty prompt becomes the token that begins a text."""
        begin = self.tokenizer.bos_token_id
        if begin is None:
            begin = getattr(self.model.generation_config, "bos_token_id", None)
        if begin is None:
            raise InputError("the prompt is empty, and this model has no token that begins a text. Give some text.")
        piece.columns = {"input_ids": [int(begin)]}

    def _wanted(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options in force that say how long, whether at random, and where to end."""
        names = ("max_new_tokens", "max_length", "min_new_tokens", "min_length", "do_sample", "eos_token_id")
        config = options.get("generation_config")
        found: dict[str, Any] = {}
        more = ("stop_strings", "num_return_sequences", "pad_token_id", "num_beams", "prompt_lookup_num_tokens")
        for name in (*names, "temperature", *more):
            values = (options.get(name), getattr(config, name, None), getattr(self.model.generation_config, name, None))
            found[name] = next((value for value in values if value is not None), None)
        found["by_default"] = [name for name in DEFAULTS if found[name] is None and name not in options]
        if found["max_length"] is not None and "max_new_tokens" in found["by_default"]:
            found["by_default"].remove("max_new_tokens")
        for name in found["by_default"]:
            found[name] = DEFAULTS[name]
        return found

    def _room(self, piece: Piece) -> int | None:
        """Tokens that fit behind a prompt; None where there is no end to them."""
        limit = self.model._position_limit() if hasattr(self.model, "_position_limit") else self._model_limit
        return None if limit is None else limit - real_length(piece)

    def _make_room(self, piece: Piece, wanted: Mapping[str, Any]) -> None:
        """Cut the beginning of a prompt that leaves no room for the new tokens."""
        new, limit = wanted["max_new_tokens"], self.max_tokens
        if new is None:
            new = (wanted["max_length"] or 0) - len(piece.ids)
            if new < 0:
                raise InputError(
                    f"handle_long_generation='hole' cannot tell how many tokens are wanted: the prompt has "
                    f"{len(piece.ids)} and max_length is {wanted['max_length']}. Pass max_new_tokens."
                )
        if limit is None or len(piece.ids) + new <= limit:
            return
        keep = limit - new
        if keep <= 0:
            raise InputError(
                f"handle_long_generation='hole' finds no room: {new} new tokens are wanted, and the model holds "
                f"{limit} in all. Pass a smaller max_new_tokens."
            )
        piece.columns = {name: values[-keep:] for name, values in piece.columns.items()}
        piece.notes["read"] = keep

    def _advice_too_long(self) -> str:
        return "Shorten it, or pass handle_long_generation='hole' to read only its end."

    # --- the model ----------------------------------------------------------------------------------------------------

    def _forward(self, pieces: Sequence[Piece], generate: dict[str, Any] | None = None) -> list[Any]:  # type: ignore[override]
        """Generate; prompts that may have different numbers of new tokens are read apart."""
        options = dict(generate or {})
        wanted = self._wanted(options)
        alone = any((options.get(name), wanted.get(name)) != (None, None) for name in ALONE)
        beams = (wanted["num_beams"] or 1) > 1
        groups: dict[Any, list[int]] = {}
        for index, piece in enumerate(pieces):
            asked: Asked | None = piece.notes["asked"]
            stops = None if asked is None else (asked.stop_ids, asked.form.stop_strings)
            # Beams change places, so that nobody knows which of them a stop string has ended.
            moved = beams and (wanted["stop_strings"] is not None or (stops is not None and stops[1]))
            groups.setdefault(index if alone or moved else (piece.notes["budget"], stops), []).append(index)
        outputs: list[Any] = [None] * len(pieces)
        for members in groups.values():
            results = self._generate([pieces[index] for index in members], options, wanted)
            for index, result in zip(members, results, strict=True):
                outputs[index] = result
        return outputs

    def _generate(
        self, pieces: Sequence[Piece], options: dict[str, Any], wanted: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        budget: Budget = pieces[0].notes["budget"]
        tensors = collate(pieces, pad_id=self.pad_id, side="left", device=self.device)
        tensors.setdefault(MASK, torch.ones_like(tensors["input_ids"]))
        keywords = budget.applied(options)
        asked: Asked | None = pieces[0].notes["asked"]
        if asked is not None:
            stops = with_ends(wanted, asked.stop_ids, asked.form.stop_strings)
            keywords.update(stops)
            wanted = {**wanted, **stops}
        sampled = [name for name in wanted["by_default"] if name == "do_sample" or wanted["do_sample"]]
        keywords.update({name: wanted[name] for name in sampled if name != "max_new_tokens"})
        recorder = None
        if wanted["stop_strings"] is not None and len(pieces) > 1:
            recorder = StopRecorder(self.tokenizer, wanted["stop_strings"])
            keywords.update(stop_strings=None, stopping_criteria=[recorder])
        keywords.setdefault("tokenizer", self.tokenizer)
        if wanted["pad_token_id"] is None:
            keywords["pad_token_id"] = self._filler(wanted["eos_token_id"])
        if self._known is not None:
            keywords["logits_processor"] = [*(keywords.get("logits_processor") or []), self._known]
        made = self.model.generate(**tensors, **keywords)
        sequences = made if isinstance(made, torch.Tensor) else made.sequences
        width = tensors["input_ids"].shape[1]
        rows = sequences.cpu().tolist()  # (B * N, S)
        each = len(rows) // len(pieces)
        results = []
        for index in range(len(pieces)):
            mine = range(index * each, (index + 1) * each)
            new = [rows[row][width:] for row in mine]
            if len(pieces) > 1:
                ends = None if recorder is None else [recorder.end(row) for row in mine]
                new = cut_after_end(new, wanted["eos_token_id"], ends)
            results.append({"new": new, **scores_of(made, mine, max(map(len, new)))})
        return results

    def _filler(self, eos: Any) -> int:
        """The id that fills continuations which end before others."""
        if self.tokenizer.pad_token_id is not None and self.tokenizer.pad_token_id == self.pad_id:
            return self.pad_id
        first = eos[0] if isinstance(eos, (list, tuple)) and eos else eos
        return int(first) if isinstance(first, int) else self.pad_id

    # --- after --------------------------------------------------------------------------------------------------------

    def postprocess(  # type: ignore[override]
        self,
        pieces: Sequence[Piece],
        outputs: Sequence[Any],
        return_type: ReturnType = ReturnType.FULL_TEXT,
        clean_up_tokenization_spaces: bool | None = None,
        skip_special_tokens: bool | None = None,
        continue_final_message: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Return a record for each continuation of a prompt."""
        piece, output = pieces[0], outputs[0]
        decoding = {
            "skip_special_tokens": True if skip_special_tokens is None else skip_special_tokens,
            "clean_up_tokenization_spaces": clean_up_tokenization_spaces,
        }
        prompt, begun, asked = piece.notes["prompt"], piece.notes["read"] > 0, piece.notes["asked"]
        gap = (
            gap_after(self.tokenizer, piece.ids) if begun and not is_chat(prompt) and not prompt[-1:].isspace() else ""
        )
        records = []
        for number, new in enumerate(output["new"]):
            if return_type is ReturnType.TENSORS:
                records.append({"generated_token_ids": [*piece.ids, *new]})
                continue
            ids = new if begun else [*piece.ids, *new]
            text: Any = "" if asked else self.tokenizer.decode(ids, **decoding)
            text = gap + text if text and not text[0].isspace() else text
            answer = asked.answer(self.tokenizer, new) if asked else {"role": "assistant", "content": text}
            if return_type is ReturnType.FULL_TEXT:
                text = answered(prompt, answer, continue_final_message) if is_chat(prompt) else prompt + text
            elif asked:
                text = answer["content"]
            extra = {name: values[number] for name, values in output.items() if name != "new"}
            records.append({"generated_text": text, **extra})
        return records


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _return_type(kind: Any, full: bool | None, tensors: bool | None, text: bool | None) -> ReturnType | None:
    """Return what the options that contradict each other ask for, or None.

    Raises:
        ConfigError: they do contradict each other.
    """
    if kind is not None:
        try:
            return ReturnType(kind)
        except ValueError:
            raise ConfigError(f"return_type is {kind!r}, but must be one of {[*ReturnType]}.") from None
    asked = {"return_full_text": full is not None, "return_tensors": bool(tensors), "return_text": text is not None}
    both = [name for name, there in asked.items() if there]
    if len(both) > 1:
        raise ConfigError(f"{both[0]} and {both[1]} are both given. Give one of them: they say what comes back.")
    if full is not None:
        return ReturnType.FULL_TEXT if full else ReturnType.NEW_TEXT
    return ReturnType.TENSORS if tensors else None
