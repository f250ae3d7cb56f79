"""Where the examples find their data: the folder that QUINTET_DATA names, else ../shared/data beside the project."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT / "src") not in sys.path:  # the code beside these scripts, whatever is installed
    sys.path.insert(0, str(ROOT / "src"))


def find(name: str, given: Path | None, source: str) -> Path:
    """Return the file `given`, or the one of that name in the data folder.

    Args:
        name: File name.
        given: What the user said, which counts first.
        source: Where the data can be had, for the message.

    Raises:
        SystemExit: it is not there; says what to do.
    """
    if given is not None:
        if not given.exists():
            raise SystemExit(f"there is no file {given}. Check the path.")
        return given
    folder = os.environ.get("QUINTET_DATA")
    file = (Path(folder) if folder else ROOT.parent / "shared" / "data") / name
    if not file.exists():
        raise SystemExit(
            f"no data: {file} is not there. Set QUINTET_DATA to the folder that holds {name}, or give --file. {source}"
        )
    return file
