"""GPT-1's tokenizers: lower-case words, BPE with `</w>` at the end of a word, 40,478 tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers

from quintet.errors import TokenizerError
from quintet.tokenizers.batch import Inputs, Wanted, check_unicode, map_texts
from quintet.tokenizers.engine import bpe_engine, load_tokenizer_json
from quintet.tokenizers.fast import PreTrainedTokenizer, PreTrainedTokenizerFast
from quintet.tokenizers.postprocess import set_template
from quintet.tokenizers.words import SEPARATOR, check_installed, prepare

__all__ = ["OpenAIGPTTokenizer", "OpenAIGPTTokenizerFast"]

Token = str | AddedToken
FILES = {"vocab_file": "vocab.json", "merges_file": "merges.txt", "tokenizer_file": "tokenizer.json"}
WORD_END = "</w>"
PRETOKENIZERS = ("basic", "spacy")


class _Words(PreTrainedTokenizerFast):
    """What both classes share: how a text becomes words."""

    vocab_files_names: ClassVar[dict[str, str]] = FILES
    _kept_as_null: ClassVar[tuple[str, ...]] = ("unk_token",)
    pretokenizer = "basic"
    do_lower_case = True

    def _set_up(
        self,
        vocab_file: str | None,
        merges_file: str | None,
        tokenizer_file: str | None,
        unk_token: Token | None,
        pretokenizer: str,
        kwargs: dict[str, Any],
    ) -> None:
        if pretokenizer not in PRETOKENIZERS:
            raise TokenizerError(f"pretokenizer is {pretokenizer!r}, but must be one of {list(PRETOKENIZERS)}.")
        self.pretokenizer = pretokenizer
        if pretokenizer == "spacy":
            check_installed()
            kwargs["pretokenizer"] = pretokenizer
        engine = _engine(type(self).__name__, vocab_file, merges_file, tokenizer_file)
        _set_unknown(engine, unk_token)
        kwargs["unk_token"] = unk_token
        self._finish(engine, kwargs)

    def _finish(self, engine: Tokenizer, kwargs: dict[str, Any]) -> None:
        if self.pretokenizer == "spacy":
            engine.normalizer = normalizers.Sequence([])
            engine.pre_tokenizer = pre_tokenizers.Split(Regex(SEPARATOR), "removed")
        if engine.post_processor is None:
            set_template(engine, bos=None, eos=None)  # without one, padding would count as a part of the text
        super()._finish(engine, kwargs)

    def _prepared(self, inputs: Inputs, wanted: Wanted, **kwargs: Any) -> Inputs:
        if self.pretokenizer != "spacy":
            return inputs
        if wanted.offset_mapping:
            raise TokenizerError(
                "return_offsets_mapping is not possible with pretokenizer='spacy', which changes the text before it is "
                "cut into tokens. Use pretokenizer='basic' where offsets are needed."
            )
        check_unicode(inputs)
        split = kwargs.get("split_special_tokens")
        split = self.split_special_tokens if split is None else split
        kept = [] if split else list(self.added_tokens_encoder)
        return inputs._replace(items=map_texts(inputs.items, lambda text: prepare(text, kept)))

    def _training_texts(self, texts: Iterable[Any]) -> Iterable[Any]:
        if self.pretokenizer != "spacy":
            return texts
        kept = list(self.added_tokens_encoder)
        return (map_texts(item, lambda text: prepare(text, kept)) for item in texts)

    def _engine_json(self) -> str:
        """The engine in its published form: the words of spaCy are a setting of tokenizer_config.json."""
        state = json.loads(super()._engine_json())
        if self.pretokenizer == "spacy":
            basic = Tokenizer(self._tokenizer.model)
            _add_basic_words(basic)
            parts = json.loads(basic.to_str())
            state.update({key: parts[key] for key in ("normalizer", "pre_tokenizer")})
        return json.dumps(state, indent=2, ensure_ascii=False) + "\n"


class OpenAIGPTTokenizer(_Words, PreTrainedTokenizer):
    """GPT-1's tokenizer, with the arguments of the pure Python class (the engine is the fast one).

    Texts are lower-cased and lose their accents, so that decoding gives back other text than went in.

    Args:
        vocab_file, merges_file: `vocab.json` and `merges.txt`.
        unk_token: What a character that is not in the vocabulary becomes; None: such characters are dropped.
        pretokenizer: How a text is cut into words before BPE. "basic": at white space and around punctuation.
            "spacy": as for the published model, with ftfy and spaCy, which `pip install "quintet[spacy]"` installs; the
            ids of most English texts are the same, and `return_offsets_mapping` is refused because the text itself is
            changed. `word_ids` count spaCy's words, and the methods about characters count in the changed text.
        **kwargs: As for `PreTrainedTokenizer`; `tokenizer_file` (a tokenizer.json) wins over the other two files.

    Raises:
        TokenizerError: Files are missing or damaged, `unk_token` is not in the vocabulary, or a package is missing.
    """

    def __init__(
        self,
        vocab_file: str | None,
        merges_file: str | None,
        unk_token: Token | None = "<unk>",
        *,
        pretokenizer: str = "basic",
        **kwargs: Any,
    ) -> None:
        whole = kwargs.pop("tokenizer_file", None)
        self._set_up(vocab_file, merges_file, whole, unk_token, pretokenizer, kwargs)


class OpenAIGPTTokenizerFast(_Words):
    """GPT-1's tokenizer.

    Texts are lower-cased and lose their accents, so that decoding gives back other text than went in.

    Args:
        vocab_file, merges_file: `vocab.json` and `merges.txt`.
        tokenizer_file: `tokenizer.json`; wins over the other two.
        unk_token: What a character that is not in the vocabulary becomes; None: such characters are dropped.
        pretokenizer: "basic" or "spacy", see `OpenAIGPTTokenizer`.
        **kwargs: As for `PreTrainedTokenizerFast`.

    Raises:
        TokenizerError: Files are missing or damaged, `unk_token` is not in the vocabulary, or a package is missing.
    """

    slow_tokenizer_class = OpenAIGPTTokenizer

    def __init__(
        self,
        vocab_file: str | None = None,
        merges_file: str | None = None,
        tokenizer_file: str | None = None,
        unk_token: Token | None = "<unk>",
        *,
        pretokenizer: str = "basic",
        **kwargs: Any,
    ) -> None:
        self._set_up(vocab_file, merges_file, tokenizer_file, unk_token, pretokenizer, kwargs)


def _engine(owner: str, vocab_file: str | None, merges_file: str | None, tokenizer_file: str | None) -> Tokenizer:
    if tokenizer_file is not None:
        return load_tokenizer_json(Path(tokenizer_file))
    if vocab_file is None or merges_file is None:
        raise TokenizerError(
            f"{owner} needs vocab_file and merges_file, or tokenizer_file; got vocab_file={vocab_file!r}, "
            f"merges_file={merges_file!r}. To load a folder, use {owner}.from_pretrained(folder)."
        )
    engine = bpe_engine(Path(vocab_file), Path(merges_file), end_of_word_suffix=WORD_END)
    _add_basic_words(engine)
    engine.decoder = decoders.BPEDecoder(suffix=WORD_END)
    return engine


def _add_basic_words(engine: Tokenizer) -> None:
    """Lower-case, strip accents, and cut at white space and around each punctuation mark."""
    engine.normalizer = normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def _set_unknown(engine: Tokenizer, token: Token | None) -> None:
    if token is not None and engine.token_to_id(str(token)) is None:
        raise TokenizerError(
            f"unk_token {str(token)!r} is not in the vocabulary, so a character that is not in it either would have no "
            "id. Give a token of the vocabulary ('<unk>' in the published one), or None to drop such characters."
        )
    engine.model.unk_token = None if token is None else str(token)
