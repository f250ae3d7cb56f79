"""Random calls of `generate` in both libraries: the same tokens, scores, records and streams.

A case is run again by its number, `python tests/generation/differential 17`, or by the line that a failure prints. What
is left out, and where the reference is asked for something else, is written with its reason in `differential_cases.py`
and `differential_run.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import differential_run  # noqa: E402
from differential_cases import LEFT_OUT, NOT_DRAWN, STRATEGIES, make_case  # noqa: E402
from differential_models import VARIANTS, pair  # noqa: E402

from quintet.generation import processors  # noqa: E402
from quintet.generation.options import OPTIONS  # noqa: E402

FEW, ALL = 150, 2150


def _check(number: int) -> None:
    case = make_case(number)
    print(f"python tests/generation/differential '{differential_run.line(case)}'")
    differential_run.check(case)


@pytest.mark.parametrize("number", range(FEW))
def test_case(number: int) -> None:
    _check(number)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(FEW, ALL))
def test_many_cases(number: int) -> None:
    _check(number)


def test_every_option_is_drawn() -> None:
    cases = [make_case(number) for number in range(ALL)]
    drawn = {name for case in cases for name in case["options"]}
    drawn |= {"stop_strings", "bos_token_id"}  # written elsewhere in a case
    can_bite = {option.name for option in OPTIONS.values() if option.works or option.never_bites}
    assert can_bite - drawn == set(NOT_DRAWN)
    assert drawn <= can_bite
    assert {case["strategy"] for case in cases} == set(STRATEGIES)
    assert {case["family"] for case in cases[:FEW]} == set(VARIANTS)
    for name in ("stop_strings", "processors", "criteria", "prefix_allowed", "streamer"):
        assert sum(bool(case[name]) for case in cases) > ALL // 50, name


def test_every_rule_is_about_something() -> None:
    """A rule that no case needs would hide that the libraries agree."""
    applied = {rule["why"]: 0 for rule in LEFT_OUT}
    kept = [rule["when"] for rule in LEFT_OUT]

    def counted(place: int) -> Any:
        def when(case: Any) -> bool:
            found = bool(kept[place](case))
            applied[LEFT_OUT[place]["why"]] += found
            return found

        return when

    try:
        for place, rule in enumerate(LEFT_OUT):
            rule["when"] = counted(place)
        for number in range(ALL):
            make_case(number)
    finally:
        for rule, when in zip(LEFT_OUT, kept, strict=True):
            rule["when"] = when
    assert not [why for why, count in applied.items() if not count]


def test_a_printed_line_is_the_case() -> None:
    case = make_case(17)
    assert json.loads(differential_run.line(case)) == case


def _first(**wanted: Any) -> Any:
    """Return the first case with an option and plain surroundings."""
    for number in range(ALL):
        case = make_case(number)
        if all(case["options"].get(name) == value for name, value in wanted.items()) and case["strategy"] == "sample":
            return case
    raise AssertionError(f"no case with {wanted}")


def test_a_wrong_filter_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = _first(temperature=0.5, output_scores=True)
    differential_run.check(case)
    call = processors.TemperatureLogitsWarper.__call__
    monkeypatch.setattr(
        processors.TemperatureLogitsWarper, "__call__", lambda self, ids, scores: call(self, ids, scores) * 1.0001
    )
    with pytest.raises(AssertionError, match="scores|tokens"):
        differential_run.check(case)


def test_a_wrong_weight_is_noticed() -> None:
    case = {**_first(output_logits=True), "family": "gpt2", "variant": 0}
    weight = next(pair("gpt2", 0).ours.parameters())
    differential_run.check(case)
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight += 1e-3
        with pytest.raises(AssertionError):
            differential_run.check(case)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    differential_run.check(case)
