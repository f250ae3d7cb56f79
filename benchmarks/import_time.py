"""Milliseconds of importing quintet and of `quintet --help` in fresh processes, beside torch and transformers.

Each is the median over alternating rounds of a whole process minus that of `python -c pass` in the same round.
"""

from __future__ import annotations

import statistics

import common

COMMANDS = {
    "pass": ["-c", "pass"],
    "import quintet": ["-c", "import quintet"],
    "quintet --help": ["-m", "quintet", "--help"],
    "import torch": ["-c", "import torch"],
    "import transformers": ["-c", "import transformers"],
}


def main() -> None:
    """Measure them all."""
    parser = common.parser(__doc__, shape=False)
    parser.set_defaults(rounds=9)
    args = parser.parse_args()
    env = common.child_env()
    values = common.alternate(
        {name: lambda a=argv: common.wall(a, env) for name, argv in COMMANDS.items()}, args.rounds
    )
    base = values.pop("pass")
    for name, seconds in values.items():
        extra = [1000 * (one - bare) for one, bare in zip(seconds, base, strict=True)]
        common.emit(
            "import",
            {
                "what": name,
                "rounds": len(extra),
                "ms": common.summary({"extra": extra}, 1)["extra"],
                "bare_python_ms": round(1000 * statistics.median(base), 1),
            },
            args.threads,
        )


if __name__ == "__main__":
    main()
