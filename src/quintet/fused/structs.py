"""The structures of the native step, as ctypes knows them; letters and fields as in `csrc/cpu/blocks.h`."""

from __future__ import annotations

import ctypes

__all__ = ["EIGHT_BITS", "LAYOUTS", "ORDERS", "STORED_BY_INPUT", "Block", "Linear", "Norm", "StepCall"]

_int, _long, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
ORDERS = {"pre": 0, "post": 1, "parallel": 2}
LAYOUTS = {"separate": 0, "in turn": 1, "by head": 2}
# Kind of a float32 weight that is stored (in, out).
STORED_BY_INPUT = 3
EIGHT_BITS = 3  # type of what an Int8Layer holds


class Linear(ctypes.Structure):
    _fields_ = [
        *((name, _int) for name in ("kind", "scale_type", "activations")),
        *((name, _long) for name in ("inputs", "outputs", "stride", "group")),
        *((name, _pointer) for name in ("weight", "scales", "zeros", "bias")),
    ]


class Norm(ctypes.Structure):
    _fields_ = [("kind", _int), ("type", _int), ("weight", _pointer), ("bias", _pointer), ("eps", ctypes.c_double)]


class Block(ctypes.Structure):
    _fields_ = [
        *((name, _int) for name in ("order", "layout", "activation", "gated")),
        *((name, _long) for name in ("heads", "groups", "head", "window")),
        ("scale", ctypes.c_double),
        *((name, Norm) for name in ("norm1", "norm2")),
        *((name, Linear) for name in ("q", "k", "v", "out", "gate", "up", "down")),
        *(("sinks", _pointer), ("sinks_type", _int)),
        *((name, _int) for name in ("experts", "chosen", "activations")),
        *(("alpha", ctypes.c_float), ("limit", ctypes.c_float), ("inner", _long), ("router", Linear)),
        *((name, _pointer) for name in ("gate_up_blocks", "gate_up_scales", "gate_up_bias")),
        *((name, _pointer) for name in ("down_blocks", "down_scales", "down_bias")),
        *(("keys", _pointer), ("values", _pointer), ("key_strides", _long * 3), ("value_strides", _long * 3)),
        *(("place", _long), ("padding", _pointer), ("padding_stride", _long), ("padding_length", _long)),
        *(("slot", _long), ("stored", _long)),
    ]


class StepCall(ctypes.Structure):
    _fields_ = [
        *(("type", _int), ("rope_type", _int)),
        *((name, _long) for name in ("texts", "tokens", "width")),
        *((name, _pointer) for name in ("x", "out", "cosines", "sines")),
        *((name, _long) for name in ("rope_size", "rope_texts", "threads")),
        *((name, _pointer) for name in ("ids", "places", "id_table", "place_table")),
        *((name, _long) for name in ("vocabulary", "positions")),
        *(("ends", _int), ("scored", _int), ("last", Norm), ("head", Linear), ("wanted", _long)),
        *((name, _pointer) for name in ("scores", "best", "best_ids")),
    ]
