"""The names that people import, where the model pages print them, with the pages' parameters and defaults."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

import quintet
from quintet import paths

SOURCE = Path(quintet.__file__)
# Dotted path: the class or module that it must be the same as.
PATHS = {
    "quintet.modeling_outputs.BaseModelOutputWithPastAndCrossAttentions": "quintet.outputs",
    "quintet.modeling_outputs.CausalLMOutputWithCrossAttentions": "quintet.outputs",
    "quintet.modeling_outputs.QuestionAnsweringModelOutput": "quintet.outputs",
    "quintet.modeling_outputs.SequenceClassifierOutputWithPast": "quintet.outputs",
    "quintet.modeling_outputs.TokenClassifierOutput": "quintet.outputs",
    "quintet.utils.ModelOutput": "quintet.outputs",
    "quintet.utils.generic.ModelOutput": "quintet.outputs",
    "quintet.utils.TensorType": "quintet.tokenizers",
    "quintet.cache_utils.Cache": "quintet.cache",
    "quintet.cache_utils.DynamicCache": "quintet.cache",
    "quintet.cache_utils.EncoderDecoderCache": "quintet.cache",
    "quintet.configuration_utils.PretrainedConfig": "quintet.config",
    "quintet.configuration_utils.PreTrainedConfig": "quintet.config",
    "quintet.modeling_utils.PreTrainedModel": "quintet.modeling",
    "quintet.pytorch_utils.Conv1D": "quintet.layers.conv1d",
    "quintet.generation.GenerationConfig": "quintet.generation.config",
    "quintet.generation.utils.GenerationMixin": "quintet.generation.generate",
    "quintet.generation.utils.GenerateDecoderOnlyOutput": "quintet.generation.output",
    "quintet.generation.configuration_utils.GenerationConfig": "quintet.generation.config",
    "quintet.generation.logits_process.LogitsProcessorList": "quintet.generation.processors",
    "quintet.generation.stopping_criteria.StoppingCriteriaList": "quintet.generation.stopping",
    "quintet.generation.streamers.TextStreamer": "quintet.generation.streamers",
    "quintet.models.auto.AutoModel": "quintet.auto",
    "quintet.models.auto.AutoTokenizer": "quintet.tokenizers.auto",
    "quintet.models.auto.modeling_auto.AutoModelForCausalLM": "quintet.auto",
    "quintet.models.auto.configuration_auto.AutoConfig": "quintet.auto",
    "quintet.models.auto.tokenization_auto.AutoTokenizer": "quintet.tokenizers.auto",
    "quintet.models.gpt2.GPT2Model": "quintet.models.gpt2",
    "quintet.models.gpt2.modeling_gpt2.GPT2LMHeadModel": "quintet.models.gpt2",
    "quintet.models.gpt2.modeling_gpt2.GPT2Block": "quintet.models.gpt2",
    "quintet.models.gpt2.modeling_gpt2.GPT2DoubleHeadsModelOutput": "quintet.models.gpt2",
    "quintet.models.gpt2.configuration_gpt2.GPT2Config": "quintet.models.gpt2",
    "quintet.models.gpt2.tokenization_gpt2.GPT2Tokenizer": "quintet.tokenizers.gpt2",
    "quintet.models.gpt2.tokenization_gpt2_fast.GPT2TokenizerFast": "quintet.tokenizers.gpt2",
    "quintet.models.gpt_neox.GPTNeoXModel": "quintet.models.gpt_neox",
    "quintet.models.gpt_neox.modeling_gpt_neox.GPTNeoXForCausalLM": "quintet.models.gpt_neox",
    "quintet.models.gpt_neox.modeling_gpt_neox.GPTNeoXLayer": "quintet.models.gpt_neox",
    "quintet.models.gpt_neox.configuration_gpt_neox.GPTNeoXConfig": "quintet.models.gpt_neox",
    "quintet.tokenization_utils.PreTrainedTokenizer": "quintet.tokenizers",
    "quintet.tokenization_utils_base.PreTrainedTokenizerBase": "quintet.tokenizers",
    "quintet.tokenization_utils_base.BatchEncoding": "quintet.tokenizers",
    "quintet.tokenization_utils_fast.PreTrainedTokenizerFast": "quintet.tokenizers",
}
REQUIRED = inspect.Parameter.empty

BASE = {
    **dict.fromkeys(["input_ids", "past_key_values", "attention_mask", "token_type_ids", "position_ids", "head_mask"]),
    **dict.fromkeys(["inputs_embeds", "use_cache", "output_attentions", "output_hidden_states", "return_dict"]),
}
CROSS = {"cache_position": None, "encoder_hidden_states": None, "encoder_attention_mask": None}
NO_CACHE = {name: None for name in BASE if name not in ("past_key_values", "use_cache")}
FORWARD: dict[str, tuple[dict[str, Any], str]] = {
    "GPT2Model": ({**BASE, **CROSS}, "BaseModelOutputWithPastAndCrossAttentions"),
    "GPT2LMHeadModel": (
        {**BASE, **CROSS, "labels": None, "logits_to_keep": 0},
        "CausalLMOutputWithCrossAttentions",
    ),
    "GPT2DoubleHeadsModel": (
        {**BASE, "cache_position": None, "mc_token_ids": None, "labels": None, "mc_labels": None},
        "GPT2DoubleHeadsModelOutput",
    ),
    "GPT2ForSequenceClassification": ({**BASE, "labels": None}, "SequenceClassifierOutputWithPast"),
    "GPT2ForTokenClassification": ({**BASE, "labels": None}, "TokenClassifierOutput"),
    "GPT2ForQuestionAnswering": (
        {**NO_CACHE, "start_positions": None, "end_positions": None},
        "QuestionAnsweringModelOutput",
    ),
}
OUTPUTS = {
    "BaseModelOutput": "last_hidden_state hidden_states attentions",
    "BaseModelOutputWithPast": "last_hidden_state past_key_values hidden_states attentions",
    "BaseModelOutputWithPastAndCrossAttentions": "last_hidden_state past_key_values hidden_states attentions "
    "cross_attentions",
    "CausalLMOutput": "loss logits hidden_states attentions",
    "CausalLMOutputWithPast": "loss logits past_key_values hidden_states attentions",
    "CausalLMOutputWithCrossAttentions": "loss logits past_key_values hidden_states attentions cross_attentions",
    "SequenceClassifierOutput": "loss logits hidden_states attentions",
    "SequenceClassifierOutputWithPast": "loss logits past_key_values hidden_states attentions",
    "TokenClassifierOutput": "loss logits hidden_states attentions",
    "QuestionAnsweringModelOutput": "loss start_logits end_logits hidden_states attentions",
    "GPT2DoubleHeadsModelOutput": "loss mc_loss logits mc_logits past_key_values hidden_states attentions",
}
CONFIG = {
    "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
    "activation_function": "gelu_new", "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "summary_type": "cls_index", "summary_use_proj": True,
    "summary_activation": None, "summary_proj_to_labels": True, "summary_first_dropout": 0.1,
    "scale_attn_weights": True, "use_cache": True, "bos_token_id": 50256, "eos_token_id": 50256,
    "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False,
}  # fmt: skip
METHODS = {
    "PreTrainedModel": "from_pretrained save_pretrained push_to_hub get_input_embeddings set_input_embeddings "
    "get_output_embeddings set_output_embeddings resize_token_embeddings tie_weights init_weights prune_heads "
    "post_init gradient_checkpointing_enable gradient_checkpointing_disable num_parameters get_memory_footprint",
    "PretrainedConfig": "from_pretrained save_pretrained to_dict to_diff_dict to_json_string to_json_file from_dict "
    "from_json_file update get_config_dict",
    "Cache": "update get_seq_length get_max_cache_shape crop reorder_cache batch_repeat_interleave "
    "batch_select_indices reset",
    "DynamicCache": "from_legacy_cache to_legacy_cache",
    "GPT2LMHeadModel": "generate parallelize deparallelize forward",
}


def defaults(function: Any) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize("path", PATHS)
def test_dotted_paths(path: str) -> None:
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert found is getattr(importlib.import_module(PATHS[path]), name)
    namespace: dict[str, Any] = {}
    for statement in (
        f"from {module} import {name} as found",
        f"import {module} as m; found = m.{name}",
        f"import {module}; found = {path}",
    ):
        exec(statement, namespace)
        assert namespace["found"] is found, statement


def test_every_alias_leads_somewhere() -> None:
    for alias, homes in paths.ALIASES.items():
        module = importlib.import_module(f"quintet.{alias}")
        assert module.__name__ == f"quintet.{alias}"
        names = {name for home in homes for name in importlib.import_module(f"quintet.{home}").__all__}
        assert names <= set(dir(module))
        assert set(module.__all__) == names
        assert not hasattr(module, "nothing_of_that_name")
        assert importlib.util.find_spec(f"quintet.{alias}") is not None
    namespace: dict[str, Any] = {}
    exec("from quintet.modeling_outputs import *", namespace)
    assert namespace["CausalLMOutputWithPast"] is quintet.modeling_outputs.CausalLMOutputWithPast


def test_there_is_no_file_behind_an_alias() -> None:
    for alias in paths.ALIASES:
        assert not (SOURCE.parent / alias.replace(".", "/")).with_suffix(".py").exists(), alias


@pytest.mark.parametrize("name", ["quintet.nothing", "quintet.models.gpt2.modeling_gpt3", "quintet.models.llama"])
def test_other_names_are_not_found(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=name.rpartition(".")[2]):
        importlib.import_module(name)


def test_the_finder_is_installed_once() -> None:
    paths.install()
    assert sum(type(finder).__name__ == "_Aliases" for finder in sys.meta_path) == 1


def test_public_names() -> None:
    for name in quintet.__all__:
        assert getattr(quintet, name) is not None
    assert set(quintet.__all__) <= set(dir(quintet))
    assert "modeling_outputs" in dir(quintet)
    with pytest.raises(
        AttributeError, match="no attribute 'AutoModelForCausalML'. Did you mean 'AutoModelForCausalLM'"
    ):
        quintet.AutoModelForCausalML  # noqa: B018
    with pytest.raises(ImportError, match="GPT2Modle"):
        from quintet import GPT2Modle  # noqa: F401


def test_the_three_lists_of_public_names_agree() -> None:
    """The table that names are loaded by, what type checkers see, and `__all__`."""
    body = ast.parse(SOURCE.read_text(encoding="utf-8")).body
    block = next(node for node in body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module != "typing"
        for alias in node.names
    }
    assert {name: f"quintet.{home}" for name, home in quintet._HOME_OF.items()} == seen
    assert sorted(quintet.__all__) == sorted([*seen, "__version__"])


def test_the_version_is_that_of_the_package() -> None:
    text = (SOURCE.parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{quintet.__version__}"\n' in text


@pytest.mark.parametrize("name", FORWARD)
def test_forward(name: str) -> None:
    wanted, output = FORWARD[name]
    got = defaults(getattr(quintet, name).forward)
    assert {key: got.get(key, REQUIRED) for key in wanted} == wanted
    assert set(got) - set(wanted) <= {"self", "kwargs"}
    assert list(got)[1] == "input_ids"
    annotation = str(inspect.signature(getattr(quintet, name).forward).return_annotation)
    assert annotation.startswith(output)
    assert issubclass(getattr(quintet, name), quintet.PreTrainedModel)


@pytest.mark.parametrize("name", OUTPUTS)
def test_output_fields(name: str) -> None:
    home = importlib.import_module("quintet.models.gpt2") if name.startswith("GPT2") else quintet.modeling_outputs
    fields = dataclasses.fields(getattr(home, name))
    assert [field.name for field in fields] == OUTPUTS[name].split()
    assert all(field.default is None for field in fields)


def test_the_configuration() -> None:
    got = defaults(quintet.GPT2Config)
    assert list(got) == [*CONFIG, "kwargs"]
    assert {name: got[name] for name in CONFIG} == CONFIG
    config = quintet.GPT2Config()
    assert {name: getattr(config, name) for name in CONFIG} == CONFIG


@pytest.mark.parametrize("name", METHODS)
def test_methods(name: str) -> None:
    for method in METHODS[name].split():
        assert callable(getattr(getattr(quintet, name), method)), method


def test_the_alias_modules_are_quiet() -> None:
    """Tools that look at every module, as `inspect` and test runners do, must not make them load anything."""
    module = importlib.import_module("quintet.cache_utils")
    for name in ("__file__", "__wrapped__", "__warningregistry__", "__getstate__x"):
        assert not hasattr(module, name)
    assert inspect.getmodule(quintet.cache_utils.Cache) is quintet.cache.base
