"""The twins of linear layers compute what the plain ones do, for every number of rows, and step aside for training."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from quintet.fused.few_rows import MAX_ROWS, FewRowsConv1D, FewRowsLinear, few_rows_linear, shares, use_few_rows
from quintet.layers.conv1d import Conv1D
from quintet.models.gpt2 import GPT2LMHeadModel, tiny

needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="the twins are used with MKL only")


@given(
    rows=st.integers(1, MAX_ROWS + 2),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 130),
    bias=st.booleans(),
    deep=st.booleans(),
)
def test_equals_the_plain_product(rows: int, inputs: int, outputs: int, bias: bool, deep: bool) -> None:
    torch.manual_seed(rows * 1000 + outputs)
    weight, x = torch.randn(outputs, inputs), torch.randn((rows, 1, inputs) if deep else (rows, inputs))
    added = torch.randn(outputs) if bias else None
    with torch.no_grad():
        out = few_rows_linear(x, weight, added)
    if rows > MAX_ROWS or shares(outputs, torch.get_num_threads()) == 1:
        assert out is None
        return
    assert out is not None
    torch.testing.assert_close(out, nn.functional.linear(x, weight, added), atol=2e-5, rtol=1e-5)


@given(outputs=st.integers(1, 100_000), threads=st.integers(1, 64))
def test_shares_are_equal(outputs: int, threads: int) -> None:
    parts = shares(outputs, threads)
    assert outputs % parts == 0 and (parts == 1 or parts >= 2 * threads)


def test_when_it_steps_aside() -> None:
    weight, x = torch.randn(8, 4), torch.randn(2, 4)
    assert few_rows_linear(x, weight, None) is None  # gradients are on
    with torch.no_grad():
        assert few_rows_linear(x, weight, None) is not None
        assert few_rows_linear(x.double(), weight.double(), None) is None
        assert few_rows_linear(x, torch.randn(4, 8).t(), None) is None  # not contiguous
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert few_rows_linear(x, weight, None) is None


@needs_mkl
def test_a_model_keeps_its_numbers_parameters_and_hooks() -> None:
    model = GPT2LMHeadModel(tiny()).eval()
    plain = copy.deepcopy(model)
    seen: list[str] = []
    model.transformer.h[0].mlp.c_fc.register_forward_hook(lambda *_: seen.append("c_fc"))
    before = dict(model.named_parameters())
    report = model.optimize()
    assert "lm_head" in report.replaced and "transformer.h.1.attn.c_attn" in report.replaced
    assert type(model.lm_head) is FewRowsLinear and type(model.transformer.h[0].mlp.c_fc) is FewRowsConv1D
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


@needs_mkl
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


@needs_mkl
def test_generate_uses_it_in_evaluation_only() -> None:
    model = GPT2LMHeadModel(tiny()).train()
    prompt = torch.tensor([[1, 2, 3]])
    model.generate(prompt, max_new_tokens=2)
    assert type(model.lm_head) is nn.Linear
    model.eval().generate(prompt, max_new_tokens=2)
    assert type(model.lm_head) is FewRowsLinear


def test_subclasses_and_other_types_stay() -> None:
    class Own(nn.Linear):
        pass

    model = nn.ModuleDict({"own": Own(4, 4), "narrow": nn.Linear(4, 4).half(), "plain": nn.Linear(4, 4)})
    report = use_few_rows(model)
    assert type(model["own"]) is Own and type(model["narrow"]) is nn.Linear
    if torch.backends.mkl.is_available():
        assert report.replaced == ["plain"] and report.kept == ["narrow"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loading_lays_out_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    model = GPT2LMHeadModel(tiny()).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path)
    weight = loaded.transformer.h[0].mlp.c_fc.weight
    assert weight.t().is_contiguous() and torch.equal(weight, model.transformer.h[0].mlp.c_fc.weight)
    loaded.save_pretrained(tmp_path / "again")  # on disk it is (in, out) again
    again = Conv1D(2, 2)
    assert again.weight.is_contiguous()
    first, second = (tmp_path / "model.safetensors").read_bytes(), (tmp_path / "again/model.safetensors").read_bytes()
    assert first == second
