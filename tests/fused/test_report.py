"""What `optimize()` says it did, and what is said when gradients make plain modules compute."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quintet.auto import family_of
from quintet.fused import cpu_linear, cpu_norm, notice
from quintet.fused.report import OptimizeReport, computed_by
from quintet.kernels import loader
from quintet.kernels.linear import matmul_pays
from quintet.models.gpt2 import GPT2LMHeadModel, tiny
from quintet.models.gpt_oss import GptOssForCausalLM
from quintet.models.gpt_oss import tiny as tiny_experts
from quintet.quant.config import IntegerConfig

NATIVE = loader.library() is not None
LEVEL = loader.status().level
FAMILIES = ["gpt2", "openai-gpt", "gpt_neox", "seed_oss", "gpt_oss"]


def by_kind(model: Any) -> dict[str, tuple[int, str]]:
    return {one.what: (one.modules, one.how) for one in model.optimize().computed}


def test_a_report_can_be_printed_again_and_again() -> None:
    model = GPT2LMHeadModel(tiny()).eval()
    first, second = model.optimize(), model.optimize()
    assert isinstance(first, OptimizeReport) and first.replaced and not second.replaced
    assert first.computed == second.computed
    *lines, last = str(first).splitlines()
    assert last == f"{len(first.replaced)} modules swapped by this call; with gradients plain modules compute"
    assert lines == str(second).splitlines()[:-1]
    assert any(line.startswith("linear layers stored (in, out)     8  ") for line in lines)
    assert OptimizeReport(["a"]).describe().startswith("1 modules swapped") and "model" not in repr(first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_computes_plain_weights(dtype: torch.dtype) -> None:
    found = by_kind(GPT2LMHeadModel(tiny()).to(dtype).eval())
    number, how = found["linear layers"]
    by_input, product = found.get("linear layers stored (in, out)", (0, ""))
    assert (number, by_input) == ((1, 8) if dtype == torch.float32 else (9, 0)) and "native" not in product
    many = matmul_pays(dtype, 2)
    assert (how == f"native {LEVEL}") == many
    assert how.startswith(f"native {LEVEL} for up to 8 rows, then ") == (NATIVE and not many)
    assert ("slice by slice" in how) == (dtype == torch.float16)
    assert ("blocks" in found) == NATIVE
    if NATIVE:
        most = "" if many else f" for steps of up to {2 if dtype == torch.float32 else 8} tokens"
        assert found["blocks"] == (2, f"in one native call{most}, else one by one as below")


@pytest.fixture(params=[True, False], ids=["native", "plain"])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """With the native kernels, where they are built, and without."""
    if not request.param:
        monkeypatch.setattr(loader, "_loaded", lambda: (None, loader.Status(False, None, None, "a test")))
    elif not NATIVE:
        pytest.skip("no native kernels")
    return loader.status().level


def results_of(place: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a function of a module returns from now on."""
    plain, found = getattr(place, name), []

    def spied(*args: Any, **options: Any) -> Any:
        found.append(plain(*args, **options))
        return found[-1]

    monkeypatch.setattr(place, name, spied)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", ["gpt2", "seed_oss", "gpt_oss"])
def test_what_is_said_to_be_native_is(
    family: str, dtype: torch.dtype, level: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = family_of(family)
    model = record.classes["causal-lm"](record.tiny()).to(dtype).eval()
    assert computed_by(model, dtype, swapped=True) == model.optimize().computed
    found = by_kind(model)
    calls = {"RMS norms": (cpu_norm, "native_rms_norm"), "linear layers": (cpu_linear, "native_matvec")}
    for what, (place, name) in calls.items():
        returned = results_of(place, name, monkeypatch)
        with torch.no_grad():
            model(torch.tensor([[1, 2, 3]]), use_cache=False)
        number, how = found.get(what, (0, ""))
        said = number if level and how.startswith(f"native {level}") else 0
        assert sum(out is not None for out in returned) == said
        assert (how == "plain modules, torch") == (dtype == torch.float64 and number > 0)


@pytest.mark.skipif(not NATIVE, reason="no native kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_many_tokens_are_in_one_call(dtype: torch.dtype, steps: list[bool]) -> None:
    model = GPT2LMHeadModel(tiny()).to(dtype).eval()
    how = by_kind(model)["blocks"][1]
    with torch.no_grad():
        for tokens in (1, 2, 3, 8, 9):
            cache = model(torch.tensor([[1, 2]]), use_cache=True).past_key_values
            steps.clear()
            model(torch.arange(tokens)[None], past_key_values=cache)
            most = int(how.split("up to ")[1].split()[0]) if "up to" in how else 10**9
            assert steps == [tokens <= most], tokens


def test_norms_without_native_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_loaded", lambda: (None, loader.Status(False, None, None, "a test")))
    model = GptOssForCausalLM(tiny_experts()).eval()
    assert by_kind(model)["RMS norms"] == (5, "torch, in place for many tokens")
    few = results_of(cpu_norm.F, "rms_norm", monkeypatch)
    many = results_of(torch.linalg, "vector_norm", monkeypatch)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
        assert (len(few), len(many)) == (5, 0)
        monkeypatch.setattr(cpu_norm, "FEW", 3 * 32 - 1)
        model(torch.tensor([[1, 2, 3]]))
        assert (len(few), len(many)) == (5, 5)


def test_models_that_were_moved_or_changed_afterwards() -> None:
    model = GptOssForCausalLM(tiny_experts()).eval()
    model.quantize("mxfp4+int8")
    report = model.optimize()
    for change in (torch.float64, "meta"):
        model.float().to(change)
        said = {one.what: one.how for one in report.computed}
        assert said.pop("blocks", "one by one").startswith("one by one")
        assert said.pop("attentions") == "sdpa"
        assert set(said.values()) == {"plain modules, torch", "unpacked where they are used, torch"}
    twins = GPT2LMHeadModel(tiny()).eval()
    twins.optimize()
    twins.half()  # weights stay in the order that they had
    found = {one.what: one.how for one in computed_by(twins, torch.float16)}
    assert "native" not in found["linear layers stored (in, out)"]
    assert found["blocks"].startswith("one by one") if NATIVE else "blocks" not in found


def test_what_computes_attention() -> None:
    model = GPT2LMHeadModel(tiny()).eval()
    how = f"native {LEVEL} where it is faster, else sdpa" if NATIVE else "sdpa"
    assert by_kind(model)["attentions"] == (2, how)
    model.set_attn_implementation("eager")
    assert by_kind(model)["attentions"] == (2, "eager")


def test_what_computes_packed_weights() -> None:
    model = GptOssForCausalLM(tiny_experts()).eval()
    found = by_kind(model)
    assert found["lists of experts"][0] == 2 and "weighted sums" in found["lists of experts"][1]
    if NATIVE:
        assert found["blocks"][1].startswith("one by one: a module")
    model.quantize("mxfp4")
    model.quantize(IntegerConfig(4, head_bits=8))
    found = by_kind(model)
    assert (found["linear layers in int4"][0], found["linear layers in int8"][0]) == (8, 1)
    for name in ("linear layers in int4", "linear layers in int8", "lists of experts in MXFP4"):
        assert found[name][1].startswith(f"native {LEVEL}" if NATIVE else "unpacked where")
    if NATIVE:
        assert found["blocks"][1].startswith("in one native call")


@pytest.mark.parametrize(
    ("family", "packing"), [*((name, how) for name in FAMILIES for how in (None, "int8")), ("gpt_oss", "mxfp4")]
)
def test_what_is_foretold_is_what_comes(family: str, packing: str | None) -> None:
    record = family_of(family)
    model = record.classes["causal-lm"](record.tiny()).eval()
    if packing is not None:
        model.quantize(packing)
    foretold = computed_by(model, torch.float32, swapped=True)
    assert computed_by(model, torch.float32) != foretold
    assert model.optimize().computed == foretold


def test_plain_modules_are_said_to_be_plain() -> None:
    model = GptOssForCausalLM(tiny_experts())
    assert {one.how for one in computed_by(model, torch.float32)} == {"plain modules, torch", "sdpa"}
    assert computed_by(nn.Sequential(nn.LayerNorm(2)), torch.float32) == []


def test_layers_of_other_packages() -> None:
    pytest.importorskip("bitsandbytes")
    from quintet import BitsAndBytesConfig

    model = GPT2LMHeadModel(tiny()).eval()
    model.quantize(BitsAndBytesConfig(load_in_4bit=True))
    foretold = computed_by(model, torch.float32, swapped=True)
    found = by_kind(model)
    assert found["linear layers of bitsandbytes"] == (8, "bitsandbytes")
    assert {one.what: (one.modules, one.how) for one in foretold} == found


def test_gradients_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model, ids = GPT2LMHeadModel(tiny()).eval(), torch.tensor([[1, 2, 3]])
    notice._say.cache_clear()
    with caplog.at_level(logging.WARNING, logger="quintet"):
        model(ids)  # nothing was optimised, so nothing is lost
        model.optimize()
        with torch.no_grad():
            model(ids)
        with torch.inference_mode():
            model(ids)
        assert not caplog.records
        model(ids)
        model.train()
        model(ids, labels=ids).loss.backward()
    (record,) = caplog.records
    assert record.name == "quintet.fused" and "gradients are on, so the plain modules compute" in record.getMessage()
    assert "torch.inference_mode()" in record.getMessage()


def test_nothing_is_told_in_compiled_code(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    notice._say.cache_clear()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with caplog.at_level(logging.WARNING, logger="quintet"):
        assert notice.must_be_plain_and_say()
    assert not caplog.records


def test_info_says_it_from_the_headers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from quintet.cli.main import main

    model = GptOssForCausalLM(tiny_experts()).bfloat16().eval()
    model.quantize("mxfp4+int8")
    model.save_pretrained(tmp_path)
    assert main(["info", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["computed"]
    assert {one["what"]: (one["modules"], one["how"]) for one in said} == by_kind(model)
    assert main(["info", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "on the CPU" in out and "2 lists of experts in MXFP4: " in out


def test_info_without_the_package(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    pytest.importorskip("bitsandbytes")
    from quintet import BitsAndBytesConfig
    from quintet.cli.main import main
    from quintet.errors import ConfigError
    from quintet.quant import foreign

    model = GPT2LMHeadModel(tiny())
    model.quantize(BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"))
    model.save_pretrained(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "8 linear layers of bitsandbytes: bitsandbytes" in out and "packed " in out and "nf4 " in out

    def missing() -> Any:
        raise ConfigError("BitsAndBytesConfig needs the package bitsandbytes")

    monkeypatch.setattr(foreign, "bitsandbytes", missing)
    assert main(["info", str(tmp_path)]) == 0
    assert "cannot run: BitsAndBytesConfig needs the package" in capsys.readouterr().out
