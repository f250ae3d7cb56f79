"""Stores of keys and values between forward passes: one contract (`base.py`), one file per store."""

from quintet.cache.base import Cache
from quintet.cache.dynamic import DynamicCache, OffloadedCache
from quintet.cache.dynamic_layers import DynamicLayer, DynamicSlidingLayer, DynamicSlidingWindowLayer
from quintet.cache.encoder_decoder import EncoderDecoderCache, as_cache
from quintet.cache.int8 import Int8Cache, Int8Layer
from quintet.cache.quantized import QuantizationError, QuantizedCache, QuantizedLayer, quantization_error
from quintet.cache.static import StaticCache
from quintet.cache.static_layers import StaticLayer, StaticSlidingWindowLayer

__all__ = [
    "Cache",
    "DynamicCache",
    "DynamicLayer",
    "DynamicSlidingLayer",
    "DynamicSlidingWindowLayer",
    "EncoderDecoderCache",
    "Int8Cache",
    "Int8Layer",
    "OffloadedCache",
    "QuantizationError",
    "QuantizedCache",
    "QuantizedLayer",
    "StaticCache",
    "StaticLayer",
    "StaticSlidingWindowLayer",
    "as_cache",
    "quantization_error",
]
