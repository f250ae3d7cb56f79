"""The picture of a run: loss and learning rate over the tokens seen. Needs matplotlib (the `train` extra)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quintet.errors import TrainingError

__all__ = ["plot_run", "read_log"]


def read_log(run: Path) -> list[dict[str, Any]]:
    """Read the records of `log.jsonl`.

    Raises:
        TrainingError: there is no log.
    """
    file = run / "log.jsonl"
    if not file.is_file():
        raise TrainingError(f"{file} is not there: {run} is not the folder of a training run.")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


def plot_run(run: Path, picture: Path | None = None, *, lines: dict[str, float] | None = None) -> Path:
    """Draw the loss curve of a run.

    Args:
        run: Folder of the run.
        picture: Where to write (PNG or SVG by its suffix); default `run/loss.png`.
        lines: Horizontal lines to compare with, name to bits per byte; the axis is then bits per byte.

    Raises:
        TrainingError: matplotlib is not installed, or there is nothing to draw.
    """
    try:
        import matplotlib
    except ImportError:
        raise TrainingError("the plot needs matplotlib. Install it with: pip install 'quintet[train]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_log(run)
    train = [r for r in records if "loss" in r]
    valid = [r for r in records if "eval_loss" in r]
    if not train:
        raise TrainingError(f"the log of {run} has no training step yet.")
    per_step = train[-1]["tokens"] / train[-1]["step"]
    # Validation text fixes how many bits per byte a nat per token is; the same factor then fits the training curve.
    factor = next((r["bits_per_byte"] / r["eval_loss"] for r in valid if "bits_per_byte" in r), None)
    scale, unit = (factor, "bits per byte") if factor else (1.0, "loss (nats per token)")

    figure, axis = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    tokens, losses = [r["tokens"] / 1e6 for r in train], [r["loss"] * scale for r in train]
    axis.plot(tokens, losses, lw=1, color="#9db4c8", label="training")
    if valid:
        points = [(r["step"] * per_step / 1e6, r["eval_loss"] * scale) for r in valid]
        axis.plot(
            *zip(*points, strict=True),
            lw=1.8,
            color="#12507b",
            label=f"validation (best {min(p[1] for p in points):.3f})",
        )
    for (name, value), color in zip((lines or {}).items(), ("#b3541e", "#6b8e23", "#7a5195"), strict=False):
        axis.axhline(value, ls="--", lw=1, color=color, label=f"{name} ({value:.3f})")
    # The first steps fall from far above and would press the rest flat.
    shown = [*losses[len(losses) // 50 :], *(lines or {}).values()]
    axis.set_ylim(min(losses) - 0.05 * (max(shown) - min(losses)), 1.02 * max(shown))
    axis.set_xlabel("million tokens seen")
    axis.set_ylabel(unit)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    figure.tight_layout()
    picture = picture or run / "loss.png"
    figure.savefig(picture)
    pyplot.close(figure)
    return picture
