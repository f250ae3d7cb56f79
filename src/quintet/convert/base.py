"""What describes a foreign layout to the rest: data and three or four functions, no torch at import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HUB", "Layout", "Progress"]

# The name of our own layout, which is the one that models are published in today: config.json, model.safetensors.
HUB = "hub"

Progress = Callable[[int, int], None]  # (bytes done, bytes in all), called as often as one likes
# (folder to read, empty folder to fill, progress); what it returns is a line for the user
Write = Callable[[Path, Path, Progress], str | None]


@dataclass(frozen=True)
class Layout:
    """One foreign layout.

    A `Write` puts files, no folders, into the folder it is given and flushes nothing: that folder is a temporary one,
    and its files take their final places together once all of them are complete. It may be interrupted anywhere.

    Args:
        name: As in the table of layouts.
        detect: Whether a folder holds this layout. It looks at names, and reads no more than a few kilobytes.
        size: How many bytes the result of converting a folder takes at most, either way.
        to_hub: Converts it to our layout; None when that is not possible.
        from_hub: Converts our layout to it; None when that is not possible. It checks that the model is of its kind.
    """

    name: str
    detect: Callable[[Path], bool]
    size: Callable[[Path], int]
    to_hub: Write | None = None
    from_hub: Write | None = None
