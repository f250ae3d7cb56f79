"""The shared object with the native kernels: where it is, what it may use, and why it is not used.

QUINTET_NATIVE=0 forces plain PyTorch. QUINTET_ISA=amx|avx512|avx2|neon|portable chooses the instructions; otherwise the
best that the CPU has are taken. Both are read once, when the first kernel is wanted.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from quintet.errors import ConfigError

__all__ = [
    "FEW_ROWS",
    "LEVELS",
    "NATIVE_OPS",
    "Status",
    "check",
    "has_byte_products",
    "has_pair_products",
    "has_tile_products",
    "library",
    "packed_rows",
    "status",
]

# Sets of instructions, the best first.
LEVELS = ("amx", "avx512", "avx2", "neon", "portable")
# Operations that the shared object has.
NATIVE_OPS = (
    *("matvec", "matmul", "int8_linear", "int4_linear", "mxfp4_matvec", "mxfp4_experts", "attention"),
    *("head_topk", "rms_norm", "layer_norm", "rope"),
    "blocks",
)
# What the functions of the shared object must say they are; another one is of another version of quintet.
VERSION = 14
PATH = Path(__file__).parent / "_cpu.so"
# Up to so many rows weights are read once and unpacked on the way.
FEW_ROWS = 8
# Up to so many rows products with packed weights are faster than unpacking them with torch, by level; measured
# but for neon.
PACKED_ROWS = {"amx": 2**40, "avx512": 2**40, "avx2": 128, "neon": 16, "portable": 16}

# Levels whose products of bytes are faster than those of bfloat16.
BYTE_PRODUCTS = ("amx", "avx512")
# Levels that have products of many rows of bfloat16.
PAIR_PRODUCTS = ("amx", "avx512")
# Levels that have products of many rows of bfloat16 in tiles.
TILE_PRODUCTS = ("amx",)

_int, _size, _pointer, _float = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
_SIGNATURES = {
    "quintet_matvec": [_int, *[_size] * 3, _pointer, _size, _pointer, _size, _pointer, _pointer, _size],
    "quintet_matmul": [_int, *[_size] * 3, _pointer, _size, _pointer, _size, _pointer, _pointer, _size],
    "quintet_mxfp4_matvec": [_int, _int, *[_size] * 3, *[_pointer] * 3, _size, _pointer, _pointer, _size],
    "quintet_integers": [*[_int] * 4, *[_size] * 4, *[_pointer] * 4, _size, _pointer, _pointer, _size],
    "quintet_mxfp4_experts": [_int, _int, *[_size] * 5, *[_pointer] * 10, _float, _float, _size],
    "quintet_attention": [_pointer],
    "quintet_head_topk": [
        *([*[_int] * 3, *[_size] * 4, _pointer, _size, *[_pointer] * 3, _size, _pointer, _size]),
        *([*[_pointer] * 3, _size]),
    ],
    "quintet_norm": [*[_int] * 3, *[_size] * 2, *[_pointer] * 5, ctypes.c_double, _pointer, _size],
    "quintet_rope": [*[_int] * 2, *[_size] * 6, *[_pointer] * 5, _size],
    "quintet_blocks": [_pointer, _size, _pointer],
    "quintet_ask_for": [_pointer, _size],
}


@dataclass(frozen=True)
class Status:
    """What the kernels run on.

    Attributes:
        native: Whether there are native kernels.
        level: Their instructions, None without them.
        threads: The library whose threads they run on, None for one thread.
        reason: Why there are none, or what was chosen by whom.
    """

    native: bool
    level: str | None
    threads: str | None
    reason: str


@lru_cache(maxsize=1)
def _loaded() -> tuple[ctypes.CDLL | None, Status]:
    wanted = os.environ.get("QUINTET_ISA") or None
    if wanted is not None and wanted not in LEVELS:
        raise ConfigError(f"QUINTET_ISA={wanted!r} is not one of {', '.join(LEVELS)}. Set one of these, or unset it.")
    switch = os.environ.get("QUINTET_NATIVE") or "1"
    if switch not in ("0", "1"):
        raise ConfigError(f"QUINTET_NATIVE={switch!r} must be 0 (plain PyTorch) or 1 (native kernels). Or unset it.")
    if switch == "0":
        return None, Status(False, None, None, "QUINTET_NATIVE=0")
    if not PATH.is_file():
        return None, Status(
            False,
            None,
            None,
            "not built: there was no C++ compiler when quintet was installed, or no installation since",
        )
    import torch  # noqa: F401  its threads are looked for when the level is chosen

    try:
        found = ctypes.CDLL(str(PATH))
        found.quintet_runtime.restype = ctypes.c_char_p
        version = found.quintet_version()
    except (OSError, AttributeError) as error:
        return None, Status(False, None, None, f"{PATH.name} does not load: {error}")
    if version != VERSION:
        return None, Status(False, None, None, f"{PATH.name} is of another version of quintet: install again")
    has = {level: found.quintet_has(level.encode()) for level in LEVELS}
    able = [level for level, said in has.items() if said == 1]
    if wanted is not None and wanted not in able:
        why = "this CPU does not have these instructions" if has[wanted] == 0 else "this build does not have them"
        raise ConfigError(f"QUINTET_ISA={wanted}: {why}. Set one of {', '.join(able)}, or unset it.")
    level = wanted or able[0]
    found.quintet_choose(level.encode())
    for name, types in _SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = types, _int
    runtime = found.quintet_runtime().decode(errors="replace") or None
    reason = "QUINTET_ISA" if wanted else "the best that this CPU has"
    return found, Status(True, level, runtime and Path(runtime).name, reason)


def library() -> ctypes.CDLL | None:
    """Return the native kernels, or None when plain PyTorch is to be used.

    Raises:
        ConfigError: QUINTET_ISA or QUINTET_NATIVE has a value that is not allowed, or instructions that this CPU lacks.
    """
    return _loaded()[0]


def status() -> Status:
    """Return what the kernels run on, or why there are none.

    Raises:
        ConfigError: as `library`.
    """
    return _loaded()[1]


def packed_rows() -> int:
    """Return up to how many rows products with packed weights should be native: 0 without native kernels.

    Raises:
        ConfigError: as `library`.
    """
    return PACKED_ROWS.get(status().level or "", 0)


def has_byte_products() -> bool:
    """Return whether rounding the activations of many rows to 8 bits makes their products faster.

    Raises:
        ConfigError: as `library`.
    """
    return status().level in BYTE_PRODUCTS


def has_pair_products() -> bool:
    """Return whether there are native products of many rows of bfloat16 with weights of that type.

    Raises:
        ConfigError: as `library`.
    """
    return status().level in PAIR_PRODUCTS


def has_tile_products() -> bool:
    """Return whether products of many rows of bfloat16 are fastest in tiles, whatever the weights are packed as.

    Raises:
        ConfigError: as `library`.
    """
    return status().level in TILE_PRODUCTS


def check(code: int) -> None:
    """Turn the result of a native call into an error.

    Raises:
        MemoryError: there was none left.
        RuntimeError: sizes that the caller should not have let through.
    """
    if code == 2:
        raise MemoryError("a native kernel found no memory for its input")
    if code:
        raise RuntimeError(
            f"a native kernel refused its arguments (code {code}). This is an error in quintet: report it."
        )
