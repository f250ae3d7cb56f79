"""Run every benchmark of docs/benchmarks.md and write their JSON lines to a file; then `report.py` makes the tables.

python benchmarks/run_all.py && python benchmarks/report.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "docs" / "benchmarks.jsonl"

# Together less than 20 minutes on two cores.
PLAN = (
    ("import_time.py", "--rounds", "5"),
    ("load.py", "--rounds", "3"),
    ("memory.py",),
    ("decode.py", "--rounds", "4", "--seconds", "35"),
    ("prefill.py", "--rounds", "5", "--seconds", "25"),
    ("generation.py", "--rounds", "2", "--seconds", "20", "--tokens", "64"),
    ("cache.py",),
    ("micro.py",),
    ("tokenization.py", "--rounds", "3"),
    ("kernels.py",),
    ("dispatch.py",),
    ("storyteller_baselines.py",),
)
# Minutes each, and gigabytes of disk: only when named with --only.
LARGE = (("quantization.py",), ("growth.py",), ("families.py",), ("gpt_oss_20b.py",))


def forget(benchmarks: set[str], results: Path) -> None:
    """Take the lines of these benchmarks out of a file."""
    if not results.exists():
        return
    lines = results.read_text(encoding="utf-8").splitlines(keepends=True)
    results.write_text("".join(line for line in lines if json.loads(line)["benchmark"] not in benchmarks), "utf-8")


def main() -> int:
    """Run the plan; a benchmark that fails is told and the others go on."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"default: {RESULTS}; lines are appended")
    parser.add_argument("--only", default=None, help="names without .py, separated by commas")
    parser.add_argument("--anew", action="store_true", help="take older lines of what is measured away")
    args = parser.parse_args()
    only = args.only.split(",") if args.only else None
    failed = []
    forgotten: set[str] = set()
    for script, *options in (*PLAN, *LARGE):
        wanted = script.removesuffix(".py") in only if only else (script, *options) in PLAN
        if not wanted:
            continue
        began = time.perf_counter()
        done = subprocess.run([sys.executable, str(HERE / script), *options], stdout=subprocess.PIPE, text=True)
        if args.anew:
            new = {json.loads(line)["benchmark"] for line in done.stdout.splitlines()} - forgotten
            forget(new, args.output)
            forgotten |= new
        with open(args.output, "a", encoding="utf-8") as out:
            out.write(done.stdout)
        lines = done.stdout.count("\n")
        print(f"{script}: {lines} results in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        if done.returncode:
            failed.append(script)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
