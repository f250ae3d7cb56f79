"""Small trials around a training recipe: what each change does to the loss after the same number of tokens.

    python recipes/trials.py recipes/storyteller.json --steps 300

Each variant runs in a folder of its own under --output-dir and prints one line of JSON: the change, tokens per second,
validation loss and bits per byte. The schedule is that of the recipe, shortened to --steps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from quintet.training.arguments import TrainingArguments
from quintet.training.run import train

VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "learning rate 4e-3": {"learning_rate": 4e-3},
    "learning rate 7e-4": {"learning_rate": 7e-4},
    "192 wide, 8 blocks": {"model": {"n_embd": 192, "n_layer": 8, "n_head": 3}},
    "no dropout": {"model": {"resid_pdrop": 0.0, "embd_pdrop": 0.0}},
    "16 sequences a step, half the steps": {"per_device_train_batch_size": 16, "max_steps": 0.5},
    "cosine": {"lr_scheduler_type": "cosine"},
    "not compiled": {"torch_compile": False},
    "float32": {"bf16": False},
}


def main() -> None:
    """Run the trials."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/trials"))
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    args = parser.parse_args()
    for number, name in enumerate(args.only):
        change = dict(VARIANTS[name])
        base = json.loads(args.recipe.read_text(encoding="utf-8"))
        steps = int(args.steps * change.pop("max_steps", 1))
        change["model"] = {**base["model"], **change.get("model", {})}
        run = args.output_dir / f"{number:02d}"
        short = {"max_steps": steps, "warmup_steps": max(1, steps // 8), "eval_steps": 0, "save_steps": 0}
        summary = train(TrainingArguments(**{**base, **short, **change, "output_dir": str(run)}))
        log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        speeds = sorted(record["tokens_per_second"] for record in log if "loss" in record)
        record = {
            "variant": name,
            "steps": summary["step"],
            "tokens_per_second": round(speeds[len(speeds) // 2]),
            "eval_loss": round(summary["best_eval_loss"], 4),
            "bits_per_byte": round(summary["bits_per_byte"], 4),
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
