"""What Python says of the native functions is what their header says."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import pytest

from quintet.kernels.loader import _SIGNATURES

HEADER = Path(__file__).parents[2] / "csrc" / "cpu" / "quintet.h"
TYPES = {"int": ctypes.c_int, "int64_t": ctypes.c_int64, "float": ctypes.c_float, "double": ctypes.c_double}


def declared() -> dict[str, list[Any]]:
    """Types of the arguments of each function of the header that returns a code."""
    text = re.sub(r"//.*", "", HEADER.read_text(encoding="utf-8"))
    found: dict[str, list[Any]] = {}
    for name, arguments in re.findall(r"\bint (quintet_\w+)\(([^)]*)\);", text):
        each = [one.strip() for one in arguments.split(",") if one.strip()]
        found[name] = [ctypes.c_void_p if "*" in one else TYPES[one.split()[0]] for one in each]
    return found


@pytest.mark.parametrize("name", sorted(_SIGNATURES))
def test_arguments_are_those_of_the_header(name: str) -> None:
    assert _SIGNATURES[name] == declared()[name]


def test_no_function_that_computes_is_missing() -> None:
    asked_by_name = {"quintet_version", "quintet_has", "quintet_choose"}
    assert declared().keys() - asked_by_name == _SIGNATURES.keys()
