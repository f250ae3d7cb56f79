"""docs/differences.md is true: of us, and of the reference that it speaks of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from quintet.errors import ConfigError, InputError

IDS = torch.tensor([[5, 17, 3, 88, 42], [70, 2, 33, 4, 90]])
LEFT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


def test_left_padding(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPT2LMHeadModel")
    alone = theirs(IDS[:1, 2:]).logits
    same(ours(IDS, attention_mask=LEFT).logits[:1, 2:], alone)
    assert not torch.allclose(theirs(IDS, attention_mask=LEFT).logits[:1, 2:], alone, atol=1e-3)
    # their behaviour, as the page says
    got = ours(IDS, attention_mask=LEFT, position_ids=torch.arange(5)[None]).logits
    same(got[LEFT.bool()], theirs(IDS, attention_mask=LEFT).logits[LEFT.bool()])
    # the other rows do not differ
    same(ours(IDS, attention_mask=LEFT).logits[1], theirs(IDS, attention_mask=LEFT).logits[1])


def test_left_padding_in_generate(pair: Any) -> None:
    """Their `generate` corrects what their `forward` does not, so the two write the same."""
    ours, theirs = pair("GPT2LMHeadModel")
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 98}
    got = ours.generate(IDS, attention_mask=LEFT, **options)
    assert torch.equal(got, theirs.generate(IDS, attention_mask=LEFT, **options))


def test_what_they_swallow(pair: Any) -> None:
    ours, theirs = pair("GPT2LMHeadModel")
    theirs(IDS, atention_mask=LEFT)
    with pytest.raises(TypeError, match="Did you mean 'attention_mask'"):
        ours(IDS, atention_mask=LEFT)
    theirs(IDS, attention_mask=LEFT[:, :3])  # too short
    with pytest.raises(InputError, match=r"attention_mask has shape \(2, 3\), but must be \(2, 5\)"):
        ours(IDS, attention_mask=LEFT[:, :3])
    theirs(IDS, cache_position=torch.arange(5, 10))
    with pytest.raises(InputError, match="cache_position"):
        ours(IDS, cache_position=torch.arange(5, 10))
    assert theirs.resize_token_embeddings(50).num_embeddings == 50
    with pytest.raises(InputError, match="allow_shrink=True"):
        ours.resize_token_embeddings(50)
    assert ours.resize_token_embeddings(50, allow_shrink=True).num_embeddings == 50


def test_what_they_cannot(pair: Any) -> None:
    ours, theirs = pair("GPT2LMHeadModel")
    too_long = torch.ones(1, 65, dtype=torch.long)
    for model, error in ((theirs, IndexError), (ours, ValueError)):
        for given in ({"input_ids": IDS + 20}, {"input_ids": too_long}, {"input_ids": IDS, "labels": IDS + 20}):
            with pytest.raises(error):
                model(**given)
    for name in ("prune_heads", "parallelize"):
        assert hasattr(ours, name)
        assert not hasattr(theirs, name)
    past = ours(IDS[:, :3]).past_key_values.to_legacy_cache()
    assert isinstance(ours(IDS[:, 3:], past_key_values=past).past_key_values, tuple)
    with pytest.raises(AttributeError):
        theirs(IDS[:, 3:], past_key_values=past)


def test_attentions_and_upcast_with_every_backend(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPT2LMHeadModel", backend="sdpa", their_backend="sdpa")
    assert theirs(IDS, output_attentions=True).attentions == ()
    assert len(ours(IDS, output_attentions=True).attentions) == 2
    assert ours(IDS, output_attentions=True).cross_attentions is None
    upcast, their_upcast = pair("GPT2LMHeadModel", backend="sdpa", their_backend="sdpa", reorder_and_upcast_attn=True)
    for model in (upcast, their_upcast, theirs):
        model.to(torch.bfloat16)
    assert torch.equal(their_upcast(IDS).logits, theirs(IDS).logits)  # without effect
    fused = upcast(IDS).logits
    upcast.config._attn_implementation = "eager"
    assert torch.equal(upcast(IDS).logits, fused)  # one way, whatever the backend


def test_attentions_in_training(pair: Any) -> None:
    ours, theirs = pair("GPT2Model", attn_pdrop=0.5)
    for model, whole in ((ours, True), (theirs, False)):
        sums = model.train()(IDS, output_attentions=True).attentions[0].sum(-1)
        assert torch.allclose(sums, torch.ones(())) is whole


def test_queries_that_see_nothing(pair: Any) -> None:
    ours, theirs = pair("GPT2Model", backend="eager")
    first = ours(IDS, attention_mask=LEFT, output_attentions=True).attentions[0][0, 0]
    assert first[:2].tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    their_first = theirs(IDS, attention_mask=LEFT, output_attentions=True).attentions[0][0, 0]
    assert their_first[0].tolist() == pytest.approx([0.2] * 5)


def test_bool_masks_with_eager(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPT2LMHeadModel")
    causal = torch.ones(5, 5).tril().bool()[None, None]
    same(ours(IDS, attention_mask=causal).logits, theirs(IDS).logits)
    assert not torch.allclose(theirs(IDS, attention_mask=causal).logits, theirs(IDS).logits, atol=1e-3)


def test_head_masks_are_not_ignored(pair: Any) -> None:
    ours, theirs = pair("GPT2LMHeadModel")
    none = torch.zeros(4)
    assert torch.equal(theirs(IDS, head_mask=none).logits, theirs(IDS).logits)
    assert not torch.allclose(ours(IDS, head_mask=none).logits, ours(IDS).logits, atol=1e-3)


def test_configurations(transformers: Any, tmp_path: Path) -> None:
    from quintet import GPT2Config

    theirs = transformers.GPT2Config
    assert theirs(n_layer=-3).n_layer == -3
    assert theirs(activation_function="gelu_nwe")
    assert theirs.from_dict({}, n_layers=3)
    for call in (
        lambda: GPT2Config(n_layer=-3),
        lambda: GPT2Config(activation_function="gelu_nwe"),
        lambda: GPT2Config.from_dict({}, n_layers=3),
    ):
        with pytest.raises(ConfigError):
            call()
    assert theirs(dtype="float16").dtype is torch.float16
    assert GPT2Config(dtype="float16").dtype == "float16"
    assert getattr(torch, GPT2Config(dtype=torch.float16).dtype) is torch.float16
    names = {0: "no", 1: "yes", 2: "perhaps"}
    assert theirs(id2label=names).label2id is None
    assert GPT2Config(id2label=names).label2id == {"no": 0, "yes": 1, "perhaps": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "auto_map": {"AutoConfig": "x.Y"}}))
    assert theirs.from_pretrained(tmp_path).auto_map
    assert not hasattr(GPT2Config.from_pretrained(tmp_path), "auto_map")


def test_summaries(transformers: Any, same: Any) -> None:
    from transformers.models.gpt2.modeling_gpt2 import GPT2SequenceSummary

    from quintet.heads import SequenceSummary
    from quintet.models.gpt2 import tiny

    def both(**fields: Any) -> tuple[Any, Any]:
        config = tiny(num_labels=3, **fields)
        ours = SequenceSummary(config).eval()
        theirs = GPT2SequenceSummary(transformers.GPT2Config.from_dict(config.to_dict())).eval()
        theirs.load_state_dict(ours.state_dict())
        return ours, theirs

    states = torch.randn(2, 3, 5, 32)  # rows, choices, tokens, width
    ours, theirs = both(summary_type="last", summary_use_proj=False)
    same(ours(states), states[:, :, -1])
    same(theirs(states), states[:, -1])
    ours, theirs = both(summary_type="mean", summary_use_proj=False)
    same(ours(states), states.mean(2))
    same(theirs(states), states.mean(1))
    ours, theirs = both(summary_activation="relu")
    assert (theirs(states) >= 0).all()
    assert (ours(states) < 0).any()


def test_outputs_and_caches(pair: Any) -> None:
    ours, theirs = pair("GPT2LMHeadModel")
    for model, order in ((ours, ["loss", "logits"]), (theirs, ["logits", "loss"])):
        out = model(IDS, use_cache=False)
        out.loss = torch.ones(())
        assert list(out) == order
    mine, other = ours(IDS).past_key_values, theirs(IDS).past_key_values
    for name in ("key_cache", "value_cache", "to_legacy_cache", "__getitem__"):
        assert hasattr(mine, name)
        assert not hasattr(other, name)


def test_int32_labels(pair: Any) -> None:
    ours, theirs = pair("GPT2ForSequenceClassification", pad_token_id=98)
    labels = torch.tensor([0, 1], dtype=torch.int32)
    assert ours(IDS, labels=labels).loss.isfinite()
    with pytest.raises(RuntimeError):
        theirs(IDS, labels=labels)


def test_what_gpt1_takes_and_they_do_not(pair: Any, transformers: Any) -> None:
    from quintet import OpenAIGPTModel
    from quintet.models.openai_gpt import tiny

    ours, theirs = pair("OpenAIGPTModel")
    mask = torch.ones(2, 1, 5, 5).tril().bool()
    assert ours(IDS, attention_mask=mask).last_hidden_state.shape == (2, 5, 32)
    with pytest.raises((RuntimeError, IndexError)):
        theirs(IDS, attention_mask=mask)
    fields = tiny(afn="gelu_new").to_dict()
    OpenAIGPTModel(tiny(afn="gelu_new"))
    with pytest.raises(KeyError, match="gelu_new"):
        transformers.OpenAIGPTModel(transformers.OpenAIGPTConfig.from_dict(fields))
    with pytest.raises(ConfigError, match="summary_type is 'attn'"):
        tiny(summary_type="attn")
    attn = transformers.OpenAIGPTConfig.from_dict({**tiny().to_dict(), "summary_type": "attn"})
    with pytest.raises(NotImplementedError):
        transformers.OpenAIGPTDoubleHeadsModel(attn)
    wide = transformers.OpenAIGPTConfig.from_dict(tiny(n_embd=64, initializer_range=0.3).to_dict())
    assert transformers.OpenAIGPTModel(wide).h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.1)
    ours = OpenAIGPTModel(tiny(n_embd=64, initializer_range=0.3))
    assert ours.h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.3, rel=0.1)


def test_windows_of_gpt_oss(pair: Any, transformers: Any, same: Any) -> None:
    from quintet.models.gpt_oss import GptOssForCausalLM, tiny

    ours, theirs = pair("GptOssForCausalLM", sliding_window=1)
    wanted = theirs(IDS, use_cache=False).logits
    past, other = ours(IDS[:, :4]).past_key_values, theirs(IDS[:, :4], use_cache=True).past_key_values
    assert (past.layers[0].keys.shape[2], other.layers[0].keys.shape[2]) == (0, 4)
    same(ours(IDS[:, 4:], past_key_values=past).logits, wanted[:, 4:])
    assert not torch.allclose(theirs(IDS[:, 4:], past_key_values=other).logits, wanted[:, 4:], atol=1e-3)
    every = tiny(sliding_window=None)
    assert GptOssForCausalLM(every)(IDS).logits.isfinite().all()
    with pytest.raises(ValueError, match="sliding_window"):
        transformers.GptOssForCausalLM(transformers.GptOssConfig.from_dict(every.to_dict()))(IDS, use_cache=False)
    fused = transformers.GptOssConfig.from_dict(tiny().to_dict())
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        transformers.GptOssForCausalLM._from_config(fused, attn_implementation="sdpa")


def test_sinks_where_nothing_is_seen(pair: Any) -> None:
    ours, theirs = pair("GptOssModel", sliding_window=2)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1] * 5])
    got, wanted = (model(IDS, attention_mask=mask, output_attentions=True).attentions[0] for model in (ours, theirs))
    assert wanted[0, :, 4].eq(0).all()
    assert got[0, :, 4, 4].gt(0).all()
    assert got[0, :, 4, :4].eq(0).all()


def test_masks_by_kind_of_layer(pair: Any, same: Any) -> None:
    ours, theirs = pair("GptOssForCausalLM")
    none = dict.fromkeys(("full_attention", "sliding_attention"))
    same(ours(IDS, attention_mask=none).logits, ours(IDS).logits)
    assert not torch.allclose(theirs(IDS, attention_mask=none).logits, theirs(IDS).logits, atol=1e-3)


def test_the_balancing_loss(pair: Any) -> None:
    ours, theirs = pair("GptOssForCausalLM", output_router_logits=True)
    padding = torch.tensor([[1, 1, 1, 1, 0], [1] * 5])
    four = torch.zeros(2, 1, 5, 5)
    past = {model: model(IDS[:, :4], use_cache=True).past_key_values for model in (ours, theirs)}
    assert ours(IDS[:, 4:], attention_mask=padding, past_key_values=past[ours]).aux_loss.isfinite()
    assert ours(IDS, attention_mask=four).aux_loss.isfinite()
    with pytest.raises(RuntimeError):
        theirs(IDS[:, 4:], attention_mask=padding, past_key_values=past[theirs])
    with pytest.raises(RuntimeError):
        theirs(IDS, attention_mask=four)


def test_configurations_of_gpt_oss(transformers: Any) -> None:
    from quintet.models.gpt_oss import GptOssConfig, GptOssModel, tiny

    theirs = transformers.GptOssConfig
    assert (GptOssConfig().router_aux_loss_coef, theirs().router_aux_loss_coef) == (0.9, 0.001)
    with pytest.raises(ConfigError, match="hidden_act is 'relu'"):
        GptOssModel(tiny(hidden_act="relu"))
    fields = {**tiny().to_dict(), "hidden_act": "relu"}
    assert transformers.GptOssModel(theirs.from_dict(fields))
    assert theirs(num_experts_per_tok=129).num_experts_per_tok == 129
    with pytest.raises(ConfigError, match="only 128 experts"):
        GptOssConfig(num_experts_per_tok=129)
    assert theirs.from_dict({"experts_per_token": 2}).num_experts_per_tok == 4
    assert GptOssConfig.from_dict({"experts_per_token": 2}).num_experts_per_tok == 2
    for file, mine, other in (({"rope_scaling": None}, "default", "yarn"), ({}, "yarn", "yarn")):
        assert GptOssConfig.from_dict(file).rope_parameters["rope_type"] == mine
        assert theirs.from_dict(file).rope_parameters["rope_type"] == other
    plain = GptOssConfig(rope_scaling={"rope_type": "default"})
    assert plain.to_dict()["rope_scaling"] == {"rope_type": "default"}
    assert theirs.from_dict(plain.to_dict()).rope_parameters["rope_type"] == "default"


def test_outputs_and_types_of_gpt_oss(pair: Any, tmp_path: Path) -> None:
    ours, theirs = pair("GptOssModel")
    options = {"output_hidden_states": True, "output_router_logits": True, "use_cache": False}
    assert list(ours(IDS, **options))[-1] == "router_logits"
    assert list(theirs(IDS, **options)) == ["last_hidden_state", "router_logits", "hidden_states"]
    ours.save_pretrained(tmp_path)
    for model, kept in ((ours, torch.float16), (theirs, torch.float32)):
        half = type(model).from_pretrained(tmp_path, dtype=torch.float16)
        assert half.norm.weight.dtype == half.layers[0].input_layernorm.weight.dtype == kept
        assert half.layers[0].self_attn.sinks.dtype == torch.float16
        assert half(IDS).last_hidden_state.dtype == torch.float16
