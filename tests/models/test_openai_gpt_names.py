"""GPT-1's names, where its page prints them, with the page's parameters in their order, defaults and output fields."""

from __future__ import annotations

import dataclasses
import importlib
import inspect

import pytest

import quintet

BASE = ["input_ids", "attention_mask", "token_type_ids", "position_ids", "head_mask", "inputs_embeds"]
END = ["output_attentions", "output_hidden_states", "return_dict"]
FORWARD = {
    "OpenAIGPTModel": (BASE + END, "BaseModelOutput"),
    "OpenAIGPTLMHeadModel": ([*BASE, "labels", *END], "CausalLMOutput"),
    "OpenAIGPTDoubleHeadsModel": (
        [*BASE, "mc_token_ids", "labels", "mc_labels", *END],
        "OpenAIGPTDoubleHeadsModelOutput",
    ),
    "OpenAIGPTForSequenceClassification": ([*BASE, "labels", *END], "SequenceClassifierOutput"),
}
CONFIG = {
    "vocab_size": 40478, "n_positions": 512, "n_embd": 768, "n_layer": 12, "n_head": 12, "afn": "gelu",
    "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "layer_norm_epsilon": 1e-5, "initializer_range": 0.02,
    "summary_type": "cls_index", "summary_use_proj": True, "summary_activation": None, "summary_proj_to_labels": True,
    "summary_first_dropout": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("name", FORWARD)
def test_forward(name: str) -> None:
    """What is ours beyond the page comes after it, and by keyword."""
    wanted, output = FORWARD[name]
    parameters = inspect.signature(getattr(quintet, name).forward).parameters
    assert list(parameters)[1 : len(wanted) + 1] == wanted
    assert all(parameters[key].default is None for key in wanted)
    ours = list(parameters)[len(wanted) + 1 :]
    assert set(ours) <= {"logits_to_keep", "past_key_values", "use_cache", "kwargs"}
    for key in ("past_key_values", "use_cache"):
        assert parameters[key].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[key].default is None
    annotation = str(inspect.signature(getattr(quintet, name).forward).return_annotation)
    assert annotation.startswith(output)
    assert issubclass(getattr(quintet, name), quintet.OpenAIGPTPreTrainedModel)
    assert list(inspect.signature(getattr(quintet, name).__init__).parameters) == ["self", "config"]


def test_the_output_of_two_heads_has_no_cache() -> None:
    module = importlib.import_module("quintet.models.openai.modeling_openai")
    fields = [field.name for field in dataclasses.fields(module.OpenAIGPTDoubleHeadsModelOutput)]
    assert fields == ["loss", "mc_loss", "logits", "mc_logits", "hidden_states", "attentions"]


def test_the_configuration() -> None:
    parameters = inspect.signature(quintet.OpenAIGPTConfig).parameters
    assert list(parameters) == [*CONFIG, "kwargs"]
    assert {name: parameters[name].default for name in CONFIG} == CONFIG
    config = quintet.OpenAIGPTConfig()
    assert {name: getattr(config, name) for name in CONFIG} == CONFIG


@pytest.mark.parametrize(
    ("path", "home"),
    [
        ("quintet.models.openai.OpenAIGPTModel", "quintet.models.openai_gpt"),
        ("quintet.models.openai.modeling_openai.OpenAIGPTLMHeadModel", "quintet.models.openai_gpt"),
        ("quintet.models.openai.modeling_openai.OpenAIGPTDoubleHeadsModelOutput", "quintet.models.openai_gpt"),
        ("quintet.models.openai.configuration_openai.OpenAIGPTConfig", "quintet.models.openai_gpt"),
        ("quintet.models.openai.tokenization_openai.OpenAIGPTTokenizer", "quintet.tokenizers"),
        ("quintet.models.openai.tokenization_openai_fast.OpenAIGPTTokenizerFast", "quintet.tokenizers"),
        ("quintet.models.openai.OpenAIGPTTokenizer", "quintet.tokenizers"),
    ],
)
def test_dotted_paths(path: str, home: str) -> None:
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert found is getattr(importlib.import_module(home), name)
    namespace: dict[str, object] = {}
    exec(f"import {module}; found = {path}", namespace)
    assert namespace["found"] is found
