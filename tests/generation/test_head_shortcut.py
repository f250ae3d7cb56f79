"""Tokens straight from the output head are those of the plain way; where somebody looks at scores it is not taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import quintet
from quintet.auto import family_of, model_types
from quintet.fused.cpu_linear import CpuLinear
from quintet.generation.loops.shortcut import Shortcut
from quintet.kernels.loader import status
from quintet.quant.config import IntegerConfig
from quintet.quant.packed_linear import PackedLinear

pytestmark = pytest.mark.skipif(not status().native, reason=f"no native kernels: {status().reason}")

VOCABULARY = 700
SAMPLED: list[dict[str, Any]] = [
    {"top_k": 5},
    {"top_k": 40, "temperature": 0.7},
    {"top_k": 50, "temperature": 1.9, "top_p": 0.8},
    {"top_k": 20, "min_p": 0.05, "top_p": 0.95},
    {"top_k": 1},
]


def model_of(family: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    record = family_of(family)
    torch.manual_seed(0)
    model = record.classes["causal-lm"](record.tiny(vocab_size=VOCABULARY, **overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model.to(dtype)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """For each step at the head whether tokens or candidates came of it."""
    steps: list[bool] = []
    plain = Shortcut.advance

    def advance(self: Shortcut, tokens: torch.Tensor) -> Any:
        found = plain(self, tokens)
        steps.append(found.processors is not self._processors)
        return found

    monkeypatch.setattr(Shortcut, "advance", advance)
    yield steps


def both(model: Any, monkeypatch: pytest.MonkeyPatch, seed: int = 3, **options: Any) -> torch.Tensor:
    """Generate both ways, and see that they agree."""
    results = []
    for off in (False, True):
        with monkeypatch.context() as patch:
            if off:
                patch.setattr(Shortcut, "of", lambda *_: None)
            torch.manual_seed(seed)
            given = dict(options)
            if given.pop("own", False):
                given["generator"] = torch.Generator().manual_seed(seed)
            results.append(model.generate(**given))
    assert torch.equal(*results)
    return results[0]


def prompt(rows: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, VOCABULARY, (rows, 5), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1:, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("family", model_types())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy(family: str, dtype: torch.dtype, taken: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(family, dtype)
    for rows in (1, 3):
        both(model, monkeypatch, **prompt(rows), do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0)
    assert len(taken) == 22 and all(taken)


@pytest.mark.parametrize("options", SAMPLED, ids=str)
@pytest.mark.parametrize("own", [False, True])
def test_sampling(options: dict[str, Any], own: bool, taken: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = model_of("gpt_oss", dtype)
        for rows in (1, 4):
            more = {"do_sample": True, "max_new_tokens": 15, "eos_token_id": None, "pad_token_id": 0, "own": own}
            both(model, monkeypatch, **prompt(rows), **more, **options)
    assert sum(taken) > len(taken) * 0.7, "equal logits send a step the plain way now and then"


def test_rows_that_end_and_several_of_a_prompt(taken: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("seed_oss")
    ends = list(range(3, VOCABULARY, 9))
    out = both(
        model,
        monkeypatch,
        **prompt(2),
        do_sample=True,
        top_k=30,
        num_return_sequences=3,
        max_new_tokens=25,
        eos_token_id=ends,
        pad_token_id=0,
    )
    assert (out[:, 5:] == 0).any(), "rows have ended at different times"
    assert any(taken)


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_heads(bits: int, taken: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    model.quantize(IntegerConfig(8, head_bits=bits))
    assert isinstance(model.lm_head, PackedLinear)
    both(model, monkeypatch, **prompt(2), do_sample=False, max_new_tokens=9, eos_token_id=None, pad_token_id=0)
    both(model, monkeypatch, **prompt(2), do_sample=True, top_k=7, max_new_tokens=9, eos_token_id=None, pad_token_id=0)
    assert len(taken) == 16 and sum(taken) > 12


def test_equal_logits(taken: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """More tokens equal the last of k than are looked at: all of them stay, so the plain way is taken."""
    model = model_of("gpt2")
    with torch.no_grad():
        model.lm_head.weight[100:400] = model.lm_head.weight[100]
    for options in ({"do_sample": False}, {"do_sample": True, "top_k": 30}, {"do_sample": True, "top_k": 400}):
        both(model, monkeypatch, **prompt(1), **options, max_new_tokens=12, eos_token_id=None, pad_token_id=0)
    assert any(taken) and not all(taken)


def test_numbers_that_are_none_are_told_as_always() -> None:
    model = model_of("gpt2")
    model.generate(**prompt(1), do_sample=False, max_new_tokens=2, pad_token_id=0)
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = float("nan")
    with pytest.raises(quintet.GenerationError, match="row 0 hold NaN"):
        model.generate(**prompt(1), do_sample=False, max_new_tokens=3, pad_token_id=0)


def test_where_it_is_not_taken(taken: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {**prompt(1), "do_sample": False, "max_new_tokens": 4, "pad_token_id": 0}
    model = model_of("gpt2")
    shown = {"return_dict_in_generate": True}
    for more in (
        {"repetition_penalty": 1.3},
        {"output_scores": True, **shown},
        {"output_logits": True, **shown},
        {"output_hidden_states": True, **shown},
        {"do_sample": True, "top_p": 0.9, "top_k": 0},
        {"do_sample": True, "top_k": VOCABULARY},
        {"use_cache": False},
    ):
        model.generate(**{**options, **more})
        assert not any(taken), more
    list(model.generate_iter(**options, logprobs=2))
    assert not any(taken)
    for module in (model, model.lm_head):
        seen: list[int] = []
        handle = module.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        model.generate(**options)
        handle.remove()
        assert len(seen) == 4 and not any(taken)

    class Louder(type(model)):  # type: ignore[misc]
        def forward(
            self,
            input_ids: Any = None,
            attention_mask: Any = None,
            past_key_values: Any = None,
            use_cache: Any = None,
            return_dict: Any = None,
        ) -> Any:
            out = super().forward(input_ids, past_key_values, attention_mask=attention_mask, use_cache=use_cache)
            out.logits = -out.logits
            return out

    taken.clear()
    louder = Louder(model.config).eval()
    louder.load_state_dict(model.state_dict())
    assert not torch.equal(louder.generate(**options), model.generate(**options))
    assert taken == [True] * 3, "the plain model alone"


def test_the_storyteller(taken: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    model = quintet.AutoModelForCausalLM.from_pretrained("storyteller", dtype="bfloat16")
    tokenizer = quintet.AutoTokenizer.from_pretrained("storyteller")
    given = tokenizer("Once upon a time", return_tensors="pt")
    for options in ({"do_sample": False}, {"do_sample": True, "top_k": 40, "temperature": 0.8, "top_p": 0.95}):
        both(model, monkeypatch, **given, **options, repetition_penalty=1.0, max_new_tokens=60, min_new_tokens=None)
    assert sum(taken) > 50
    assert isinstance(model.lm_head, CpuLinear)
