"""One conversion: find the layouts, check what can be checked, convert beside the output, move all files at once."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from quintet.convert import LAYOUTS, layout_of
from quintet.convert.base import HUB, Layout, Progress, Write
from quintet.errors import CheckpointError, UsageError
from quintet.hub import StagedFiles

__all__ = ["Conversion", "check_output", "check_space", "convert", "detect_layout", "move_files"]

# Weight files that would stand beside new ones of other names, and be read with them or in their place.
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_MARGIN = 16 << 20  # free space that is left alone: file systems need some for themselves


class Conversion(NamedTuple):
    """What a conversion did."""

    source_layout: str
    target_layout: str
    files: list[Path]
    size: int
    note: str | None = None


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    source_layout: str | None = None,
    target_layout: str | None = None,
    force: bool = False,
    progress: Progress = lambda done, total: None,
) -> Conversion:
    """Convert the checkpoint in `source` and put the result into `output`.

    The files are made in a hidden folder beside `output` (in it, when it is there) and moved into their places when all
    are complete: an error, a full disk or Ctrl-C leave nothing behind.

    Args:
        source: Folder to read; it is never written to.
        output: Folder to make.
        source_layout: Name of the layout of `source`; None finds it from the files.
        target_layout: Name of the layout to make; None is "hub", our own.
        force: Write into an `output` that holds files. Those of the same names, and weights, are replaced.
        progress: Called with the bytes done and the bytes in all.

    Raises:
        UsageError: An unknown layout, or no conversion between the two.
        CheckpointError: No layout is recognised, the source is damaged, the output is in use, or space is short.
    """
    source, output = Path(source), Path(output)
    if not source.is_dir():
        raise CheckpointError(f"'{source}' is not a folder. Give the folder that holds the checkpoint's files.")
    found = detect_layout(source) if source_layout is None else _known(source_layout)
    wanted = _known(target_layout or HUB)
    layout, write = _conversion(found, wanted, source)
    check_output(source, output, force)
    check_space(output, layout.size(source))
    # On the disk of the result, also when `output` is where a disk is mounted: files are moved, not copied.
    beside = output if output.is_dir() else output.parent
    beside.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".part", dir=beside))
    try:
        note = write(source, work, progress)
        size = sum(file.stat().st_size for file in work.iterdir())
        files = move_files(work, output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Conversion(found, wanted, files, size, note)


def detect_layout(folder: Path) -> str:
    """Return the name of the layout that a folder holds.

    Raises:
        CheckpointError: None of them, or several.
    """
    # Ours comes last: another layout may have a config.json too.
    found = [name for name in LAYOUTS if layout_of(name).detect(folder)]
    if not found and (folder / "config.json").is_file():
        found = [HUB]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(f"'{folder}' may be any of {', '.join(found)}. Say which one with --from.")
    raise CheckpointError(
        f"'{folder}' holds none of the known layouts: {', '.join([HUB, *LAYOUTS])}. Check the path; --from NAME says "
        "what is missing for one of them."
    )


def _known(name: str) -> str:
    return name if name == HUB else layout_of(name).name


def _conversion(found: str, wanted: str, source: Path) -> tuple[Layout, Write]:
    if found == wanted:
        other = " Say what it is to become with --to." if found == HUB else ""
        raise UsageError(f"'{source}' is in the layout {found!r} already, so there is nothing to convert.{other}")
    if HUB not in (found, wanted):
        raise UsageError(f"there is no way from {found!r} straight to {wanted!r}. Convert to 'hub' first.")
    layout = layout_of(found if wanted == HUB else wanted)
    write = layout.to_hub if wanted == HUB else layout.from_hub
    if write is None:
        able = [name for name in LAYOUTS if layout_of(name).from_hub is not None]
        raise UsageError(
            f"checkpoints cannot be converted from {found!r} to {wanted!r}. "
            + (f"From 'hub' there is a way to {', '.join(able)}." if able else "From 'hub' there is no way yet.")
        )
    return layout, write


def check_output(source: Path, output: Path, force: bool) -> None:
    """Refuse an output that is a file, the source itself, or a folder with files that may not be replaced."""
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"'{output}' is a file, and a folder is needed to convert into. Give another path.")
    if output.is_dir() and os.path.samefile(source, output):
        raise CheckpointError(f"'{output}' is the source too. Give another folder to convert into.")
    if output.is_dir() and any(output.iterdir()) and not force:
        raise CheckpointError(
            f"'{output}' holds files already. Give another folder, or --force to replace those of the same names."
        )


def check_space(output: Path, needed: int) -> None:
    """Refuse a result of so many bytes where the disk of `output` has no room for it."""
    place = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed + _MARGIN:
        raise CheckpointError(
            f"The result takes about {needed / 1e9:.2f} GB, and '{place}' has {free / 1e9:.2f} GB free. Free some "
            "space, or convert to another disk."
        )


def move_files(work: Path, output: Path) -> list[Path]:
    """Move the files of `work` to their places, all of them or none."""
    made = not output.exists()
    output.mkdir(exist_ok=True)
    names = sorted(file.name for file in work.iterdir())
    stale = {file.name for file in output.iterdir() if _WEIGHTS.fullmatch(file.name)} - set(names)
    if not any(_WEIGHTS.fullmatch(name) for name in names):  # a tokenizer alone: the model's weights stay
        stale = set()
    try:
        with StagedFiles(output) as staged:
            for name in names:
                os.replace(work / name, staged.path(name))
            staged.commit(remove=sorted(stale))
    except BaseException:
        if made and not any(output.iterdir()):
            output.rmdir()
        raise
    return [output / name for name in names]
