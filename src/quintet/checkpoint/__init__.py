"""Weight files: safetensors, single or in shards, memory-mapped; key rules; loading into a model; saving."""

from quintet.checkpoint.files import WeightFiles, find_weights, read_index
from quintet.checkpoint.load import TensorSource, load_weights, open_source, source_dtype
from quintet.checkpoint.rules import KeyRules, LoadReport
from quintet.checkpoint.save import parse_size, save_weights
from quintet.checkpoint.tensorfile import TensorFile, read_header

__all__ = [
    "KeyRules",
    "LoadReport",
    "TensorFile",
    "TensorSource",
    "WeightFiles",
    "find_weights",
    "load_weights",
    "open_source",
    "parse_size",
    "read_header",
    "read_index",
    "save_weights",
    "source_dtype",
]
