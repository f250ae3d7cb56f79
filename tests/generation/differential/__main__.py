"""Run cases of the differential suite again: `python tests/generation/differential 17 42`, or the printed line."""

from __future__ import annotations

import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from differential_cases import make_case
from differential_run import check, line

torch.set_num_threads(1)
for argument in sys.argv[1:]:
    case = json.loads(argument) if argument.startswith("{") else make_case(int(argument))
    print(line(case))
    check(case)
    print("equal")
