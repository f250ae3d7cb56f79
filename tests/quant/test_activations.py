"""What packed layers multiply their weights with: rounded to 8 bits for many rows, where that was asked for or pays."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_packable import model_of

from quintet.errors import ConfigError, InputError
from quintet.kernels import integers, loader
from quintet.kernels.integers import activations_for, round_activations
from quintet.kernels.loader import FEW_ROWS, library, status
from quintet.kernels.mxfp4 import (
    mxfp4_experts,
    mxfp4_experts_reference,
    mxfp4_matvec,
    mxfp4_matvec_reference,
    native_mxfp4_experts,
    native_mxfp4_matvec,
)
from quintet.quant.config import CHOICES, IntegerConfig, Mxfp4Config
from quintet.quant.mxfp4 import pack
from quintet.quant.packed_experts import PackedExperts
from quintet.quant.packed_linear import LINEARS, PackedLinear

needs_native = pytest.mark.skipif(library() is None, reason=f"no native kernels: {status().reason}")
MANY = FEW_ROWS + 4


def stacks(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    inner, hidden, experts = 96, 64, 4
    into, into_scales, _ = pack(torch.randn(experts, 2 * inner, hidden), "gate_up")
    down, down_scales, _ = pack(torch.randn(experts, hidden, inner), "down")
    return (
        *(into, into_scales, torch.randn(experts, 2 * inner, dtype=dtype)),
        *(down, down_scales, torch.randn(experts, hidden, dtype=dtype)),
    )


def near(got: torch.Tensor | None, wanted: torch.Tensor, share: float = 2e-3) -> None:
    assert got is not None
    assert float((got.detach().double() - wanted.detach().double()).norm() / wanted.double().norm()) < share


def test_when_they_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, tiles in product((False, True), repeat=2):
        monkeypatch.setattr(integers, "has_byte_products", lambda fast=fast: fast)
        monkeypatch.setattr(integers, "has_tile_products", lambda tiles=tiles: tiles)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            exact = "tiles" if tiles and dtype == torch.bfloat16 else "bf16"
            for choice in CHOICES:
                assert activations_for(choice, FEW_ROWS, dtype) == "bf16"
                assert activations_for("bf16", MANY, dtype) == exact
                assert activations_for("int8", MANY, dtype) == "int8"
            auto = "int8" if fast and exact == "bf16" and dtype != torch.float32 else exact
            assert activations_for("auto", MANY, dtype) == auto


def test_levels_that_gain_by_it() -> None:
    assert loader.has_byte_products() == (status().level in ("amx", "avx512"))
    assert loader.has_tile_products() == (status().level == "amx")


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_experts_of_rounded_activations(rows: int, dtype: torch.dtype) -> None:
    x, parts = torch.randn(rows, 64, dtype=dtype), stacks(dtype)
    indices = torch.stack([torch.randperm(4)[:2] for _ in range(rows)])
    weights = torch.rand(rows, 2)
    wide = [part.double() if part.is_floating_point() else part for part in parts]
    wanted = mxfp4_experts_reference(x.double(), indices, weights, wide, 1.702, 7.0, "int8")
    exact = mxfp4_experts_reference(x.double(), indices, weights, wide, 1.702, 7.0)
    got = native_mxfp4_experts(x, indices, weights, parts, 1.702, 7.0, "int8")
    near(got, wanted, 3e-3 if dtype == torch.bfloat16 else 1e-3)  # a value between two steps may go to the other one
    assert float((wanted - exact).norm() / exact.norm()) < 0.02
    assert torch.equal(mxfp4_experts(x, indices, weights, parts, 1.702, 7.0, "int8"), got)
    for row in range(rows):
        one = slice(row, row + 1)
        alone = native_mxfp4_experts(x[one], indices[one], weights[one], parts, 1.702, 7.0, "int8")
        assert torch.equal(alone, got[one])


@needs_native
@pytest.mark.parametrize("rows", [1, 12])
def test_products_of_rounded_activations(rows: int) -> None:
    x = torch.randn(rows, 96)
    blocks, scales, _ = pack(torch.randn(1, 10, 96), "weight")
    wanted = mxfp4_matvec_reference(round_activations(x).double(), blocks[0], scales[0])
    near(native_mxfp4_matvec(x, blocks[0], scales[0], None, "int8"), wanted, 1e-6)
    near(mxfp4_matvec_reference(x, blocks[0], scales[0], None, "int8"), wanted, 1e-6)
    torch.library.opcheck(torch.ops.quintet.mxfp4_matvec.default, (x, blocks[0], scales[0], None, "int8"))
    with pytest.raises(InputError, match="activations='int4' is not one of bf16, int8"):
        mxfp4_matvec(x, blocks[0], scales[0], None, "int4")


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 4])
def test_layers_round_many_rows_and_leave_few(bits: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.nn.Linear(64, 48, dtype=dtype)
    layers = {}
    for choice in CHOICES:
        layers[choice], _ = LINEARS[bits].from_plain(plain, group=32, activations=choice)
        assert layers[choice].activations == choice
    x = torch.randn(MANY, 64, dtype=dtype)
    monkeypatch.setattr(integers, "has_byte_products", lambda: True)
    monkeypatch.setattr(integers, "has_tile_products", lambda: False)
    with torch.no_grad():
        few = {choice: layer(x[:FEW_ROWS]) for choice, layer in layers.items()}
        many = {choice: layer(x) for choice, layer in layers.items()}
    assert torch.equal(few["int8"], few["bf16"]) and torch.equal(few["auto"], few["bf16"])
    assert not torch.equal(many["int8"], many["bf16"])
    assert torch.equal(many["auto"], many["bf16" if dtype == torch.float32 else "int8"])
    numbers = layers["int8"].unpack(torch.float64)
    wanted = round_activations(x).double() @ numbers.t() + plain.bias.double()
    near(many["int8"], wanted, 1e-2 if dtype == torch.bfloat16 else 1e-5)
    with torch.enable_grad():  # with gradients they stay as they are
        assert torch.equal(layers["int8"](x), layers["bf16"](x))


@pytest.mark.parametrize("choice", CHOICES)
def test_a_configuration_reaches_every_packed_layer(choice: str) -> None:
    model = model_of("gpt_oss")
    model.quantize(Mxfp4Config(activations=choice))
    packed = [module for module in model.modules() if isinstance(module, PackedExperts)]
    assert packed and all(module.activations == choice for module in packed)
    dense = model_of("seed_oss")
    dense.quantize(IntegerConfig(8, activations=choice))
    assert {m.activations for m in dense.modules() if isinstance(m, LINEARS[8])} == {choice}


def told(model: Any) -> tuple[set[str], set[str]]:
    """What the packed experts of a model, and its packed linear layers, were told."""
    modules = list(model.modules())
    return (
        {module.activations for module in modules if isinstance(module, PackedExperts)},
        {module.activations for module in modules if isinstance(module, PackedLinear)},
    )


@pytest.mark.parametrize(
    ("experts", "linears"), [("int8", None), (None, "bf16"), ("bf16", "int8"), ("auto", "int8"), ("int8", "auto")]
)
def test_a_choice_is_saved_and_read(experts: str | None, linears: str | None, tmp_path: Path) -> None:
    model = model_of("gpt_oss")
    if experts is not None:
        model.quantize(Mxfp4Config(activations=experts))
    if linears is not None:
        model.quantize(IntegerConfig(8, activations=linears))
    want = ({experts} - {None}, {linears} - {None})
    assert told(model) == want
    for folder in (tmp_path / "first", tmp_path / "second"):
        model.save_pretrained(folder)
        said = json.loads((folder / "config.json").read_text())["quantization_config"]
        assert "auto" not in said.values() and ("activations" in said) == ((linears or experts) != "auto")
        model = type(model).from_pretrained(folder)
        assert told(model) == want
    # the call goes before the file
    given = Mxfp4Config(activations="bf16") if linears is None else IntegerConfig(8, activations="bf16")
    found = told(type(model).from_pretrained(tmp_path / "first", quantization_config=given))
    assert found == ((want[0], {"bf16"}) if linears else ({"bf16"}, set()))


def test_a_file_that_says_nothing_or_nonsense(tmp_path: Path) -> None:
    model = model_of("gpt_oss")
    model.quantize("mxfp4+int8")
    model.save_pretrained(tmp_path)
    assert told(type(model).from_pretrained(tmp_path)) == ({"auto"}, {"auto"})
    said = json.loads((tmp_path / "config.json").read_text())
    for key in ("activations", "expert_activations"):
        changed = {**said, "quantization_config": {**said["quantization_config"], key: "fp8"}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match="activations is 'fp8', but must be one of 'auto', 'bf16', 'int8'"):
            type(model).from_pretrained(tmp_path)


def test_a_configuration_that_is_not_one() -> None:
    for kind in (IntegerConfig, Mxfp4Config):
        words = f"{kind.__name__}: activations is 'fp8', but must be one of 'auto', 'bf16', 'int8'"
        with pytest.raises(ConfigError, match=words):
            kind(activations="fp8")
