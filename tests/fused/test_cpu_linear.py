"""The twins of linear layers compute what the plain ones do, for every size and type, and step aside for training."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from quintet.fused import cpu_linear as module
from quintet.fused.cpu_experts import use_cpu_twins
from quintet.fused.cpu_linear import CpuConv1D, CpuLinear, cpu_linear, onednn, shares
from quintet.kernels.linear import native_matvec
from quintet.layers.conv1d import Conv1D
from quintet.models.gpt2 import GPT2LMHeadModel, tiny


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "native_matvec", lambda *_: None)


@given(
    rows=st.integers(1, 20),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 130),
    bias=st.booleans(),
    deep=st.booleans(),
    transposed=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_equals_the_plain_product(
    rows: int, inputs: int, outputs: int, bias: bool, deep: bool, transposed: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(rows * 1000 + outputs)
    weight = (torch.randn(inputs, outputs).t() if transposed else torch.randn(outputs, inputs)).to(dtype)
    x = torch.randn((rows, 1, inputs) if deep else (rows, inputs)).to(dtype)
    added = torch.randn(outputs).to(dtype) if bias else None
    with torch.no_grad():
        out = cpu_linear(x, weight, added)
    if out is None:
        assert (dtype == torch.float16 and rows < 4) or onednn() is None
        return
    exact = nn.functional.linear(x.double(), weight.double(), None if added is None else added.double())
    assert out.dtype == dtype and out.shape == exact.shape
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out.double(), exact, atol=2 * tolerance, rtol=tolerance)


@pytest.mark.usefixtures("without_native")
def test_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "onednn", lambda: None)
    weight, x = torch.randn(8, 4), torch.randn(6, 4)
    with torch.no_grad():
        assert cpu_linear(x, weight, None) is None
        out = cpu_linear(x.half(), weight.half(), None)
    assert out is not None
    torch.testing.assert_close(out.float(), x @ weight.t(), atol=1e-2, rtol=1e-2)


@pytest.mark.usefixtures("without_native")
@pytest.mark.parametrize("bias", [False, True])
def test_a_single_bfloat16_row_of_many_inputs_is_given_twice(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    seen = []
    linear = module.onednn()
    if linear is None:
        pytest.skip("torch has no oneDNN here")
    monkeypatch.setattr(module, "onednn", lambda: lambda x, w, b: seen.append(x.shape[0]) or linear(x, w, b))
    x, weight = torch.randn(1, 1, 1600).bfloat16(), torch.randn(24, 1600).bfloat16()
    offset = torch.randn(24).bfloat16() if bias else None
    with torch.no_grad():
        got = module.cpu_linear(x, weight, offset)
        assert got is not None and got.shape == (1, 1, 24)
        wanted = nn.functional.linear(x.double(), weight.double(), None if offset is None else offset.double())
        torch.testing.assert_close(got.double(), wanted, rtol=2e-2, atol=0.3)
        module.cpu_linear(x[..., :64], weight[:, :64].contiguous(), offset)
    assert seen == [2, 1]


def test_a_large_float16_weight_is_converted_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UPCAST_SLICE", 64)
    weight, x, bias = torch.randn(37, 16).half(), torch.randn(5, 16).half(), torch.randn(37).half()
    with torch.no_grad():
        out = cpu_linear(x, weight, bias)
    assert out is not None
    torch.testing.assert_close(
        out.float(), nn.functional.linear(x.float(), weight.float(), bias.float()), atol=1e-2, rtol=1e-2
    )


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_ways_equal_the_product(dtype: torch.dtype, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(x: torch.Tensor, *rest: torch.Tensor | None) -> torch.Tensor | None:
        asked.append(x.shape[0])
        return native_matvec(x, *rest) if native else None  # type: ignore[arg-type]

    monkeypatch.setattr(module, "native_matvec", counted)
    weight, bias = torch.randn(50, 33).to(dtype), torch.randn(50).to(dtype)
    for rows in range(1, 12):
        x = torch.randn(rows, 33).to(dtype)
        with torch.no_grad():
            out = cpu_linear(x, weight, bias)
        if out is not None:
            bound = 1e-5 if dtype == torch.float32 else 2e-2
            exact = nn.functional.linear(x.double(), weight.double(), bias.double())
            torch.testing.assert_close(out.double(), exact, atol=bound, rtol=bound)
    assert asked == list(range(1, module.NATIVE_ROWS[dtype] + 1))


@given(outputs=st.integers(1, 100_000), threads=st.integers(1, 64))
def test_shares_are_equal(outputs: int, threads: int) -> None:
    parts = shares(outputs, threads)
    assert outputs % parts == 0 and (parts == 1 or parts >= 2 * threads)


def test_when_it_steps_aside() -> None:
    weight, x = torch.randn(8, 4), torch.randn(2, 4)
    assert cpu_linear(x, weight, None) is None  # gradients are on
    with torch.no_grad():
        assert cpu_linear(x.double(), weight.double(), None) is None
        assert cpu_linear(x.half(), weight, None) is None
        assert cpu_linear(torch.empty(0, 4), weight, None) is None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert cpu_linear(x, weight, None) is None


def test_a_model_keeps_its_numbers_parameters_and_hooks() -> None:
    model = GPT2LMHeadModel(tiny()).eval()
    plain = copy.deepcopy(model)
    seen: list[str] = []
    model.transformer.h[0].mlp.c_fc.register_forward_hook(lambda *_: seen.append("c_fc"))
    before = dict(model.named_parameters())
    report = model.optimize()
    assert "lm_head" in report.replaced and "transformer.h.1.attn.c_attn" in report.replaced
    assert type(model.lm_head) is CpuLinear and type(model.transformer.h[0].mlp.c_fc) is CpuConv1D
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in before.items()}
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.optimize().replaced == []  # twins are not swapped again
    ids = torch.randint(0, 99, (3, 7))
    with torch.no_grad():
        for length in (1, 2, 7):
            ours, theirs = model(ids[:, :length]), plain(ids[:, :length])
            torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=0)
    assert seen
    for twin, old in zip(model.state_dict().items(), plain.state_dict().items(), strict=True):
        assert twin[0] == old[0]
        torch.testing.assert_close(twin[1], old[1], atol=0, rtol=0)


def test_training_goes_on_after_it() -> None:
    model, plain = (GPT2LMHeadModel(tiny(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    model.eval().optimize()
    ids = torch.randint(0, 99, (2, 9))
    for one in (model.train(), plain.train()):
        one(ids, labels=ids).loss.backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-5, msg=name)


def test_generate_uses_it_in_evaluation_only() -> None:
    model = GPT2LMHeadModel(tiny()).train()
    prompt = torch.tensor([[1, 2, 3]])
    model.generate(prompt, max_new_tokens=2)
    assert type(model.lm_head) is nn.Linear
    model.eval().generate(prompt, max_new_tokens=2)
    assert type(model.lm_head) is CpuLinear


def test_subclasses_and_other_types_stay() -> None:
    class Own(nn.Linear):
        pass

    model = nn.ModuleDict({"own": Own(4, 4), "wide": nn.Linear(4, 4).double(), "plain": nn.Linear(4, 4)})
    report = use_cpu_twins(model)
    assert type(model["own"]) is Own and type(model["wide"]) is nn.Linear
    assert report.replaced == ["plain"] and report.kept == ["wide"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loading_lays_out_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    model = GPT2LMHeadModel(tiny()).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path)
    weight = loaded.transformer.h[0].mlp.c_fc.weight
    half = dtype != torch.float32
    assert (weight.t() if half else weight).is_contiguous() and torch.equal(
        weight, model.transformer.h[0].mlp.c_fc.weight
    )
    loaded.save_pretrained(tmp_path / "again")  # on disk it is (in, out) again
    again = Conv1D(2, 2)
    assert again.weight.is_contiguous()
    first, second = (tmp_path / "model.safetensors").read_bytes(), (tmp_path / "again/model.safetensors").read_bytes()
    assert first == second
