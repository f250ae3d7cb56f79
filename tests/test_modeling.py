"""What every model can do: embeddings read, replaced and resized, weights tied, counted, checkpointed in training."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from quintet.auto import family_of, model_types
from quintet.errors import ConfigError, InputError
from quintet.models.gpt2 import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model, tiny

IDS = torch.tensor([[5, 17, 3, 88, 42], [70, 2, 33, 4, 90]])
EVERY = [(kind, task) for kind in model_types() for task in family_of(kind).classes]


@pytest.fixture(params=EVERY, ids=" ".join)
def model(request: pytest.FixtureRequest) -> Any:
    """A small model of every family and task."""
    kind, task = request.param
    family = family_of(kind)
    return family.classes[task](family.tiny()).eval()


def test_embeddings_are_read_and_replaced(model: Any) -> None:
    old = model.get_input_embeddings()
    assert isinstance(old, nn.Embedding)
    assert old.weight.shape == (99, 32)
    new = nn.Embedding(99, 32)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new
    head = model.get_output_embeddings()
    if head is None:
        with pytest.raises(InputError, match="has no language-model head to replace"):
            model.set_output_embeddings(nn.Linear(32, 99))
    else:
        other = nn.Linear(32, 99, bias=False)
        model.set_output_embeddings(other)
        assert model.get_output_embeddings() is other
        model.tie_weights()
        assert (other.weight is new.weight) is model.config.tie_word_embeddings


def test_resizing_keeps_the_old_rows(model: Any) -> None:
    old, padding = model.get_input_embeddings().weight.detach().clone(), model.get_input_embeddings().padding_idx
    for size in (105, 128):
        embedding = model.resize_token_embeddings(size)
        assert embedding is model.get_input_embeddings()
        assert embedding.weight.shape == (size, 32)
        assert embedding.num_embeddings == model.config.vocab_size == size
        assert torch.equal(embedding.weight[:99], old)
        assert embedding.weight.requires_grad
        assert embedding.padding_idx == padding
        head = model.get_output_embeddings()
        if head is not None:
            assert (head.weight is embedding.weight) is model.config.tie_word_embeddings
            assert head.weight.shape == (size, 32) and head.out_features == size
            out = model(torch.full((1, 3), size - 1), labels=torch.full((1, 3), size - 1))
            assert out.logits.shape == (1, 3, size)
            assert out.loss.isfinite()


def test_a_resized_model_is_saved_and_loaded(tmp_path: Any) -> None:
    model = GPT2LMHeadModel(tiny()).eval()
    model.resize_token_embeddings(110)
    model.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert again.config.vocab_size == 110
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_new_rows_stand_by_the_mean_of_the_old() -> None:
    model = GPT2Model(tiny(vocab_size=500))
    weight = model.get_input_embeddings().weight
    with torch.no_grad():  # correlated columns, away from 0
        weight.copy_(torch.randn(500, 8) @ torch.randn(8, 32) + 3)
    mean, covariance = weight.mean(0), weight.detach().T.cov()
    new = model.resize_token_embeddings(4500).weight.detach()[500:]
    assert (new - mean).abs().max() < 1e-3
    assert (new.mean(0) - mean).abs().max() < 1e-5
    assert new.unique(dim=0).shape[0] == 4000  # no two the same
    got = (new - mean).double().T.cov() * 1e9
    assert torch.linalg.norm(got - covariance) / torch.linalg.norm(covariance) < 0.15


def test_new_rows_from_the_initial_distribution() -> None:
    model = GPT2Model(tiny(initializer_range=0.5))
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(7)
    new = model.resize_token_embeddings(2000, mean_resizing=False).weight.detach()[99:]
    assert new.std() == pytest.approx(0.5, rel=0.05)
    assert abs(new.mean()) < 0.05


def test_rounding_up() -> None:
    model = GPT2LMHeadModel(tiny())
    assert model.resize_token_embeddings(pad_to_multiple_of=64).num_embeddings == 128
    assert model.resize_token_embeddings(130, pad_to_multiple_of=8).num_embeddings == 136
    assert model.resize_token_embeddings(136, pad_to_multiple_of=8) is model.get_input_embeddings()
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.config.vocab_size == 136


def test_nothing_is_cut_off_unasked() -> None:
    model = GPT2LMHeadModel(tiny())
    before = model.get_input_embeddings()
    with pytest.raises(
        InputError, match=r"resize_token_embeddings\(90\) would throw away 9 of 99 rows.*allow_shrink=True"
    ):
        model.resize_token_embeddings(90)
    assert model.get_input_embeddings() is before
    assert model.config.vocab_size == 99
    cut = model.resize_token_embeddings(90, allow_shrink=True)
    assert torch.equal(cut.weight, before.weight[:90])
    assert model.lm_head.weight is cut.weight
    for arguments in (
        {"new_num_tokens": 0},
        {"new_num_tokens": -4},
        {"new_num_tokens": 99.0},
        {"new_num_tokens": True},
    ):
        with pytest.raises(InputError, match="new_num_tokens is .*, but must be an integer of at least 1"):
            model.resize_token_embeddings(**arguments)
    for value in (0, -8, 2.0):
        with pytest.raises(InputError, match="pad_to_multiple_of is .*, but must be an integer of at least 1"):
            model.resize_token_embeddings(120, pad_to_multiple_of=value)


def test_an_untied_head_is_resized_on_its_own() -> None:
    model = GPT2LMHeadModel(tiny(tie_word_embeddings=False))
    head, embedding = model.lm_head.weight, model.transformer.wte.weight
    assert head is not embedding
    model.lm_head.bias = nn.Parameter(torch.arange(99.0))
    old = head.detach().clone()
    model.resize_token_embeddings(120)
    assert model.lm_head.weight is not model.transformer.wte.weight
    assert model.lm_head.weight.shape == (120, 32)
    assert torch.equal(model.lm_head.weight[:99], old)
    assert model.lm_head.bias.tolist() == [*range(99), *[0] * 21]
    model.resize_token_embeddings(50, allow_shrink=True)
    assert model.lm_head.bias.tolist() == [*range(50)]
    assert model(IDS % 50).logits.shape == (2, 5, 50)


def test_ties() -> None:
    tied, untied = GPT2LMHeadModel(tiny()), GPT2LMHeadModel(tiny(tie_word_embeddings=False))
    assert tied.lm_head.weight is tied.transformer.wte.weight
    assert untied.num_parameters() - tied.num_parameters() == 99 * 32
    tied(IDS, labels=IDS).loss.backward()
    torch.optim.SGD(tied.parameters(), lr=1.0).step()
    assert torch.equal(tied.lm_head.weight, tied.transformer.wte.weight)
    assert len({id(p) for p in tied.parameters()}) == len(list(tied.parameters()))


def test_counting() -> None:
    model = GPT2LMHeadModel(tiny())
    block = (4 * 32 * 32 + 4 * 32) + (2 * 4 * 32 * 32 + 5 * 32) + 4 * 32
    assert model.num_parameters() == 99 * 32 + 64 * 32 + 2 * block + 2 * 32
    assert model.num_parameters(exclude_embeddings=True) == 2 * block + 2 * 32
    for parameter in itertools.chain(model.transformer.h.parameters(), model.transformer.ln_f.parameters()):
        parameter.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == 99 * 32 + 64 * 32
    assert model.get_memory_footprint() == model.num_parameters() * 4
    assert model.half().get_memory_footprint() == model.num_parameters() * 2
    assert model.dtype == torch.float16
    assert model.device == torch.device("cpu")
    assert GPT2Model(tiny()).base_model.__class__ is GPT2Model
    assert model.base_model is model.transformer


@pytest.mark.parametrize("extra", [{}, {"output_attentions": True, "output_hidden_states": True}], ids=["plain", "all"])
def test_gradient_checkpointing_gives_the_same_gradients(model: Any, extra: dict[str, Any]) -> None:
    config = model.config
    config.pad_token_id = 98
    dropless = type(model)(
        type(config)(**{**config.to_dict(), "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0})
    )
    dropless.train()
    gradients = []
    for enabled in (False, True):
        if enabled:
            dropless.gradient_checkpointing_enable({"use_reentrant": False})
        assert dropless.is_gradient_checkpointing is enabled
        dropless.zero_grad()
        torch.manual_seed(0)
        out = dropless(IDS, **extra)
        if enabled:
            assert out.get("past_key_values") is None
        sum(
            value.float().logsumexp(-1).sum() for name, value in out.items() if isinstance(value, torch.Tensor)
        ).backward()
        gradients.append({name: p.grad for name, p in dropless.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)
    dropless.gradient_checkpointing_disable()
    assert not dropless.is_gradient_checkpointing


def test_gradient_checkpointing_saves_memory() -> None:
    """Fewer tensors are kept for the backward pass."""
    model = GPT2LMHeadModel(tiny(n_layer=6)).train()

    def kept() -> int:
        total = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(IDS, labels=IDS)
        return total

    plain = kept()
    model.gradient_checkpointing_enable()
    assert kept() < plain / 2


def test_gradient_checkpointing_is_refused_with_a_cache() -> None:
    model = GPT2LMHeadModel(tiny())
    past = model(IDS).past_key_values
    model.gradient_checkpointing_enable()
    model.train()
    with pytest.raises(InputError, match="past_key_values cannot be used while training with gradient checkpointing"):
        model(IDS, past_key_values=past)
    assert model.eval()(IDS).past_key_values is not None  # outside training it is as if it were off
    with pytest.raises(InputError, match="use_reentrant=True is not supported; leave it out"):
        model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(InputError, match="gradient_checkpointing_kwargs: determinism_check='none'"):
        model.gradient_checkpointing_enable({"determinism_check": "none"})


def test_a_model_needs_its_own_configuration() -> None:
    with pytest.raises(ConfigError, match="GPT2Model needs a GPT2Config and got a dict"):
        GPT2Model({})  # type: ignore[arg-type]
    config = tiny()
    config.n_head = 5
    with pytest.raises(ConfigError, match="n_embd is 32 and n_head is 5"):
        GPT2Model(config)


def test_a_head_is_loaded_into_another_class(tmp_path: Any) -> None:
    GPT2LMHeadModel(tiny()).save_pretrained(tmp_path)
    model, report = GPT2ForSequenceClassification.from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    assert model.score.weight.shape == (3, 32)
    assert set(report["missing_keys"]) == {"score.weight"}
    assert model.score.weight.std().item() == pytest.approx(0.02, rel=0.4)


def test_configurations_are_not_shared_by_from_config() -> None:
    from quintet.auto import AutoModelForCausalLM

    config = tiny()
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype="bfloat16")
    model.prune_heads({0: [1]})
    assert config.pruned_heads == {}
    assert config._attn_implementation == "sdpa"
    assert model.dtype == torch.bfloat16
    assert isinstance(model.config, GPT2Config)
