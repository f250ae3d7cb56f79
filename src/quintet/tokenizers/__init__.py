"""Tokenizers: the call API that people know, over the `tokenizers` library. Nothing here imports torch."""

from tokenizers import AddedToken

from quintet.tokenizers.auto import AutoTokenizer
from quintet.tokenizers.base import PreTrainedTokenizerBase
from quintet.tokenizers.encoding import BatchEncoding, CharSpan, TokenSpan
from quintet.tokenizers.fast import PreTrainedTokenizer, PreTrainedTokenizerFast
from quintet.tokenizers.gpt2 import GPT2Tokenizer, GPT2TokenizerFast
from quintet.tokenizers.gpt_neox import GPTNeoXTokenizerFast
from quintet.tokenizers.openai_gpt import OpenAIGPTTokenizer, OpenAIGPTTokenizerFast
from quintet.tokenizers.options import PaddingStrategy, TensorType, TruncationStrategy
from quintet.tokenizers.stream import StreamDecoder
from quintet.tokenizers.trainer import train_bpe, train_bpe_from_iterator

__all__ = [
    "AddedToken",
    "AutoTokenizer",
    "BatchEncoding",
    "CharSpan",
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "GPTNeoXTokenizerFast",
    "OpenAIGPTTokenizer",
    "OpenAIGPTTokenizerFast",
    "PaddingStrategy",
    "PreTrainedTokenizer",
    "PreTrainedTokenizerBase",
    "PreTrainedTokenizerFast",
    "StreamDecoder",
    "TensorType",
    "TokenSpan",
    "TruncationStrategy",
    "train_bpe",
    "train_bpe_from_iterator",
]
