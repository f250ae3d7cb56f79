"""`python -m quintet`: the same as the `quintet` command."""

from __future__ import annotations

import sys

from quintet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
