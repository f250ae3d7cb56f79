"""Router, experts and balancing loss against the reference and against a loop over single tokens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts, GptOssTopKRouter, load_balancing_loss_func

from quintet.errors import InputError
from quintet.layers.experts import Experts, TopKRouter, clamped_swiglu, groups, load_balancing_loss

E, D, F, K = 6, 12, 10, 3
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def reference(dtype: torch.dtype = torch.float32, **sizes: object) -> tuple[GptOssTopKRouter, GptOssExperts]:
    config = SimpleNamespace(
        **{
            "num_local_experts": E, "hidden_size": D, "intermediate_size": F, "num_experts_per_tok": K,
            "swiglu_alpha": 1.702, "swiglu_limit": 7.0, "_experts_implementation": "eager", **sizes,
        }
    )  # fmt: skip
    router, experts = GptOssTopKRouter(config), GptOssExperts(config)
    experts.config = config
    for parameter in (*router.parameters(), *experts.parameters()):
        torch.nn.init.normal_(parameter, std=0.5)
    return router.to(dtype), experts.to(dtype)


def pair(
    dtype: torch.dtype = torch.float32, **sizes: object
) -> tuple[TopKRouter, Experts, GptOssTopKRouter, GptOssExperts]:
    torch.manual_seed(3)
    router, experts = reference(dtype, **sizes)
    own_router = TopKRouter(E, D, router.top_k).to(dtype)
    own_router.load_state_dict(router.state_dict())
    own = Experts(E, D, F, alpha=experts.alpha, limit=experts.limit).to(dtype)
    own.load_state_dict(experts.state_dict())
    return own_router, own, router, experts


@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize("name", DTYPES)
def test_forward_is_the_references(name: str, rows: int) -> None:
    router, experts, their_router, theirs = pair(DTYPES[name])
    x = torch.randn(rows, D, dtype=DTYPES[name])
    with torch.no_grad():
        logits, weights, indices = router(x)
        want_logits, want_weights, want_indices = their_router(x)
        got, want = experts(x, indices, weights), theirs(x, want_indices, want_weights)
    assert torch.equal(logits, want_logits)
    assert torch.equal(indices, want_indices)
    assert torch.equal(weights, want_weights)
    assert got.dtype == want.dtype
    # the same arithmetic in the same order, so narrow types agree as well as wide ones
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 9])
def test_gradients_are_the_references(rows: int) -> None:
    router, experts, their_router, theirs = pair()
    x = torch.randn(rows, D)
    results = []
    for route, net in ((router, experts), (their_router, theirs)):
        given = x.clone().requires_grad_(True)
        _, weights, indices = route(given)
        net(given, indices, weights).pow(2).sum().backward()
        results.append([given.grad, *(p.grad for p in (*route.parameters(), *net.parameters()))])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert experts.gate_up_proj.grad is not None
    if rows == 1:  # the experts that nobody used got nothing
        assert int((experts.gate_up_proj.grad.abs().sum((1, 2)) > 0).sum()) == K


def test_a_limit_and_alpha_of_ones_own() -> None:
    router, experts, their_router, theirs = pair(swiglu_alpha=0.9, swiglu_limit=0.25)
    x = torch.randn(8, D)
    _, weights, indices = router(x)
    torch.testing.assert_close(experts(x, indices, weights), theirs(x, *their_router(x)[:0:-1]))


def test_swiglu_by_hand() -> None:
    gate_up = torch.tensor([[9.0, -9.0, -9.0, 0.5]])
    got = clamped_swiglu(gate_up, alpha=2.0, limit=3.0)
    sigmoid = torch.sigmoid(torch.tensor([6.0, -18.0]))
    torch.testing.assert_close(got, torch.stack([-2.0 * 3.0 * sigmoid[0], 1.5 * -9.0 * sigmoid[1]])[None])


def test_a_row_does_not_depend_on_its_batch() -> None:
    router, experts, *_ = pair(torch.float64)
    x = torch.randn(11, D, dtype=torch.float64)
    _, weights, indices = router(x)
    whole = experts(x, indices, weights)
    rows = [experts(x[i : i + 1], indices[i : i + 1], weights[i : i + 1]) for i in range(11)]
    torch.testing.assert_close(whole, torch.cat(rows), rtol=0, atol=1e-14)


@pytest.mark.parametrize("rows", [1, 5])
def test_only_used_experts_are_computed(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, experts, *_ = pair()
    seen: list[int] = []
    compute = Experts.compute

    def counted(self: Experts, x: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape[0])
        return compute(self, x, *parts)

    monkeypatch.setattr(Experts, "compute", counted)
    indices = torch.tensor([[4, 1]]).expand(rows, 2)
    experts(torch.randn(rows, D), indices, torch.full((rows, 2), 0.5))
    assert seen == [rows, rows]


def test_groups_name_every_choice_once() -> None:
    indices = torch.tensor([[3, 0], [0, 5], [5, 3], [1, 0]])
    found = {
        (expert, int(r), int(s)) for expert, row, slot in groups(indices, E) for r, s in zip(row, slot, strict=True)
    }
    assert found == {(int(indices[r, s]), r, s) for r in range(4) for s in range(2)}
    assert [expert for expert, _, _ in groups(indices, E)] == [0, 1, 3, 5]
    assert [row.tolist() for _, row, _ in groups(indices, E)] == [[0, 1, 3], [3], [0, 2], [1, 2]]


def test_no_tokens() -> None:
    _, experts, *_ = pair()
    out = experts(torch.empty(0, D), torch.empty(0, K, dtype=torch.long), torch.empty(0, K))
    assert out.shape == (0, D)


@pytest.mark.parametrize("rows", [1, 4])
def test_the_compilers_way_says_the_same(rows: int) -> None:
    router, experts, *_ = pair()
    x = torch.randn(rows, D)
    _, weights, indices = router(x)
    got = torch.compile(experts, fullgraph=True, backend="eager")(x, indices, weights)
    torch.testing.assert_close(got, experts(x, indices, weights), rtol=1e-5, atol=1e-5)


def test_under_autocast() -> None:
    router, experts, *_ = pair()
    x = torch.randn(7, D)
    _, weights, indices = router(x)
    for rows in (1, 7):
        with torch.autocast("cpu", torch.bfloat16):
            got = experts(x[:rows], indices[:rows], weights[:rows])
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, experts(x[:rows], indices[:rows], weights[:rows]), rtol=0.05, atol=0.3)


@pytest.mark.parametrize("masked", [False, True])
def test_loss_is_the_references(masked: bool) -> None:
    torch.manual_seed(0)
    logits = tuple(torch.randn(2 * 5, E, requires_grad=True) for _ in range(3))
    padding = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]) if masked else None
    got, want = load_balancing_loss(logits, E, K, padding), load_balancing_loss_func(logits, E, K, padding)
    torch.testing.assert_close(got, want)
    for one, other in zip(torch.autograd.grad(got, logits), torch.autograd.grad(want, logits), strict=True):
        torch.testing.assert_close(one, other)


def test_loss_by_hand() -> None:
    # two tokens, two experts, one chosen: the second token is padding and counts for nothing
    logits = (torch.log(torch.tensor([[0.75, 0.25], [0.1, 0.9]])),)
    assert load_balancing_loss(logits, 2, 1, torch.tensor([[1, 0]])).item() == pytest.approx(2 * 0.75)
    both = 2 * (0.5 * (0.75 + 0.1) / 2 + 0.5 * (0.25 + 0.9) / 2)
    assert load_balancing_loss(logits, 2, 1).item() == pytest.approx(both)
    even = (torch.zeros(4, 2),)
    assert load_balancing_loss(even, 2, 2).item() == pytest.approx(2.0)


def test_loss_passes_over_slots_of_a_cache() -> None:
    logits = (torch.randn(2 * 3, E),)
    padding = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 1, 1, 0]])
    assert torch.equal(load_balancing_loss(logits, E, K, padding), load_balancing_loss(logits, E, K, padding[:, 2:]))


def test_loss_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError, match=r"at least one layer and got none"):
        load_balancing_loss((), E, K)
    for shape in ((3, 4), (2, 4)):
        with pytest.raises(InputError, match=rf"shape \({shape[0]}, 4\) does not fit 10 tokens"):
            load_balancing_loss((torch.randn(10, E),), E, K, torch.ones(shape))


def test_words_for_print() -> None:
    assert "num_experts=6, hidden_size=12, intermediate_size=10" in repr(Experts(E, D, F))
    assert "top_k=3" in repr(TopKRouter(E, D, K))
