"""GenerationConfig: fields, checks, JSON both ways, files, and where the values in force come from."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.errors import ConfigError, GenerationError, HubError
from quintet.generation import GenerationConfig
from quintet.generation.options import OPTIONS, OWN, works
from quintet.generation.resolve import resolve_config
from quintet.models.gpt2 import GPT2Config

PUBLISHED = {
    "gpt2": {
        "_from_model_config": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "transformers_version": "4.26.0",
    },
    "seed": {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "temperature": 1.1, "top_p": 0.95},
    "oss": {
        "bos_token_id": 199998,
        "do_sample": True,
        "eos_token_id": [200002, 199999, 200012],
        "pad_token_id": 199999,
    },
    "odd": {
        "max_window_size": 6144,
        "chat_format": "chatml",
        "top_k": 0,
        "sequence_bias": [[[3, 4], 1.5]],
        "num_beams": 4,
    },
}


def test_the_fields_are_those_of_the_reference() -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.GenerationConfig()
    metadata = {"_from_model_config", "transformers_version"}
    assert set(OPTIONS) - {*OWN} == set(vars(reference)) - metadata
    assert {name: getattr(GenerationConfig(), name) for name in OPTIONS} == dict.fromkeys(OPTIONS)
    defaults = transformers.GenerationConfig._get_default_generation_params()
    assert {name: OPTIONS[name].default for name in defaults} == defaults


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(PUBLISHED[name]))
    config = GenerationConfig.from_pretrained(tmp_path)
    for key, value in PUBLISHED[name].items():
        assert getattr(config, key) == value
    config.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text()) == PUBLISHED[name]
    assert GenerationConfig.from_pretrained(tmp_path / "again") == config


def test_files_go_both_ways_between_the_libraries(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    values: dict[str, Any] = {
        "do_sample": True,
        "top_k": 7,
        "min_p": 0.1,
        "eos_token_id": [1, 2],
        "stop_strings": ["a"],
        "num_beams": 3,
    }
    transformers.GenerationConfig(**values).save_pretrained(tmp_path)
    ours = GenerationConfig.from_pretrained(tmp_path)
    assert {name: value for name, value in ours.to_diff_dict().items() if name != "transformers_version"} == values
    ours.save_pretrained(tmp_path / "ours")
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "ours")
    assert theirs == transformers.GenerationConfig(**values)


def test_without_a_file_the_model_config_counts(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    GPT2Config(bos_token_id=5, eos_token_id=6).save_pretrained(tmp_path)
    config = GenerationConfig.from_pretrained(tmp_path, top_k=3)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id, config.top_k) == (5, 6, None, 3)
    old = {"vocab_size": 9, "max_length": 50, "do_sample": True, "output_scores": True, "n_ctx": 3, "use_cache": False}
    for model_config in (GPT2Config(bos_token_id=5, eos_token_id=[6, 7], pad_token_id=8).to_dict(), old):
        ours = GenerationConfig.from_model_config(model_config)
        theirs = transformers.GenerationConfig.from_model_config(dict(model_config))
        expected = {name: getattr(theirs, name, None) for name in OPTIONS}
        assert {name: getattr(ours, name) for name in OPTIONS} == expected


NUMBERS = {
    "temperature": st.floats(0.01, 10),
    "top_k": st.integers(0, 1000),
    "top_p": st.floats(0.01, 1),
    "min_p": st.floats(0, 1),
    "repetition_penalty": st.floats(0.1, 9),
    "max_length": st.integers(50, 10**6),
    "max_new_tokens": st.integers(50, 10**6),
    "min_length": st.integers(0, 50),
    "min_new_tokens": st.integers(0, 50),
    "max_time": st.floats(0.001, 1e6),
    "eos_token_id": st.one_of(st.integers(-1, 10**6), st.lists(st.integers(0, 10**6), min_size=1)),
    "pad_token_id": st.integers(-1, 10**6),
    "stop_strings": st.one_of(st.text(min_size=1), st.lists(st.text(min_size=1), min_size=1)),
    "do_sample": st.booleans(),
    "use_cache": st.booleans(),
    "num_beams": st.integers(1, 9),
    "bad_words_ids": st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=1),
    "suppress_tokens": st.lists(st.integers(0, 9)),
    "early_stopping": st.sampled_from([True, False, "never"]),
}
UNKNOWN = st.dictionaries(
    st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=12, max_size=15),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=4),
    max_size=3,
)


@settings(max_examples=60)
@given(st.fixed_dictionaries({}, optional={name: st.none() | one for name, one in NUMBERS.items()}), UNKNOWN)
def test_json_round_trip(values: dict[str, Any], unknown: dict[str, Any]) -> None:
    config = GenerationConfig.from_dict({**values, **unknown})
    text = config.to_json_string()
    again = GenerationConfig.from_dict(json.loads(text))
    assert again == config
    assert again.to_json_string() == text
    assert json.loads(text) == {
        name: one for name, one in {**values, **unknown}.items() if one is not None or name in unknown
    }
    assert GenerationConfig.from_dict(json.loads(config.to_json_string(use_diff=False))) == config
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config and hash(twin) == hash(config)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": 0}, r"temperature is 0, but must be a number above 0, or None\. .*do_sample=False"),
        ({"temperature": -1.0}, r"temperature is -1\.0"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": True}, "temperature is True"),
        ({"top_p": 0}, r"top_p is 0, but must be a number above 0 and at most 1, or None\. 1\.0 switches it off"),
        ({"top_p": 1.01}, r"top_p is 1\.01"),
        ({"top_k": -1}, r"top_k is -1, but must be an integer of at least 0, or None\. 0 or None switches it off"),
        ({"top_k": 2.5}, r"top_k is 2\.5"),
        ({"min_p": 1.5}, r"min_p is 1\.5, but must be a number from 0 to 1"),
        ({"min_p": -0.1}, r"min_p is -0\.1"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty is 0\.0, but must be a number above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, but must be an integer of at least 1"),
        ({"max_length": 1.0}, r"max_length is 1\.0"),
        ({"min_length": -1}, "min_length is -1"),
        ({"max_time": 0}, "max_time is 0"),
        ({"num_return_sequences": 0}, "num_return_sequences is 0"),
        ({"do_sample": 1}, "do_sample is 1, but must be True or False"),
        ({"stop_strings": ""}, "stop_strings is '', but must be a string or a list of strings, none of them empty"),
        ({"stop_strings": ["a", 3]}, "stop_strings is"),
        ({"eos_token_id": []}, r"eos_token_id is \[\], but must be a token id or a list of token ids"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"pad_token_id": 0.5}, r"pad_token_id is 0\.5"),
        ({"early_stopping": "now"}, "early_stopping is 'now'"),
        (
            {"min_length": 9, "max_length": 3},
            "min_length is 9 and max_length is 3: the least cannot be more than the most",
        ),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, "min_new_tokens is 9 and max_new_tokens is 3"),
        ({"num_return_sequences": 2, "do_sample": False}, "greedy decoding gives the same sequence every time"),
        (
            {"num_return_sequences": 4, "num_beams": 3},
            r"num_return_sequences is 4, but must be at most num_beams \(3\)",
        ),
    ],
    ids=str,
)
def test_values_out_of_range(values: dict[str, Any], words: str) -> None:
    with pytest.raises(GenerationError, match=words):
        GenerationConfig(**values)
    with pytest.raises(GenerationError, match=words):
        GenerationConfig.from_dict(values)
    config = GenerationConfig(bos_token_id=4)
    with pytest.raises(GenerationError, match=words):
        config.update(bos_token_id=5, **values)
    assert config == GenerationConfig(bos_token_id=4)  # as it was


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(GenerationError, match="'temprature' is not an option of generate.*Did you mean 'temperature'"):
        GenerationConfig(temprature=1.0)
    config = GenerationConfig()
    with pytest.raises(GenerationError, match="Did you mean 'max_new_tokens'"):
        config.max_new_token = 3
    with pytest.raises(GenerationError, match="streamer is not a field of GenerationConfig. Pass it to generate"):
        config.streamer = None
    with pytest.raises(AttributeError, match="has no option 'top_q'. Did you mean 'top_"):
        _ = config.top_q
    with pytest.raises(GenerationError, match="'topk' is not an option.*'top_k'"):
        GenerationConfig.from_dict({}, topk=3)


def test_near_misses_in_a_file_are_kept_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    config = GenerationConfig.from_dict({"temperatur": 0.3})
    assert "Did you mean 'temperature'" in caplog.text
    assert config.temperatur == 0.3
    assert config.temperature is None


def test_methods_and_private_keys_of_a_file_do_nothing() -> None:
    config = GenerationConfig.from_dict(
        {"validate": 3, "_as_loaded": 5, "to_dict": None, "__class__": 1, "streamer": 4}
    )
    assert config == GenerationConfig()
    assert callable(config.validate)


def test_update_returns_what_is_no_option() -> None:
    config = GenerationConfig(top_k=5)
    assert config.update(top_k=6, attention_mask=3) == {"attention_mask": 3}
    assert config.top_k == 6
    assert config.update(defaults_only=True, top_k=7, top_p=0.5) == {}
    assert (config.top_k, config.top_p) == (6, 0.5)


def test_return_unused_kwargs(tmp_path: Path) -> None:
    GenerationConfig(bos_token_id=5).save_pretrained(tmp_path)
    config, unused = GenerationConfig.from_pretrained(tmp_path, top_k=1, foo=False, return_unused_kwargs=True)
    assert (config.top_k, unused) == (1, {"foo": False})
    with pytest.raises(GenerationError, match="'foo' is not an option"):
        GenerationConfig.from_pretrained(tmp_path, foo=False)


def test_a_misleading_config_is_not_saved(tmp_path: Path) -> None:
    config = GenerationConfig(temperature=0.5, output_scores=True)
    with pytest.raises(GenerationError, match=r"temperature=0\.5 has no effect without do_sample=True"):
        config.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
    config.do_sample = config.return_dict_in_generate = True
    config.save_pretrained(tmp_path / "new" / "folder", "other.json")
    assert GenerationConfig.from_pretrained(tmp_path / "new" / "folder", "other.json") == config


def test_saving_where_nothing_can_be_saved(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(GenerationError, match="is a file; save_pretrained needs a folder"):
        GenerationConfig().save_pretrained(file)
    with pytest.raises(GenerationError, match=r"upload the whole model with model\.push_to_hub"):
        GenerationConfig().save_pretrained(tmp_path, push_to_hub=True)
    with pytest.raises(GenerationError, match="unknown option 'revision'"):
        GenerationConfig().save_pretrained(tmp_path, revision="x")
    with pytest.raises(GenerationError, match="cannot be written as JSON"):
        GenerationConfig(constraints=object()).save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ("[1]", "object"),
        ("{", "not JSON"),
        ('{"top_k": 1, "top_k": 2}', "twice"),
        ("\xff", "UTF-8"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "generation_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=words):
        GenerationConfig.from_pretrained(tmp_path)


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"no file 'generation_config\.json'"):
        GenerationConfig.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="must be a dict, and got a list"):
        GenerationConfig.from_dict([])  # type: ignore[arg-type]


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from quintet.generation import GenerationConfig, TextStreamer; GenerationConfig(top_k=3); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the values in force ----------------------------------------------------------------------------------------------


def test_the_call_comes_before_its_config_before_the_model_before_the_defaults() -> None:
    of_model = GenerationConfig(do_sample=True, top_k=11, top_p=0.5, temperature=0.9)
    given_config = GenerationConfig(top_p=0.6, temperature=0.8)
    config, explicit = resolve_config(of_model, given_config, {"temperature": 0.7})
    assert (config.do_sample, config.top_k, config.top_p, config.temperature) == (True, 11, 0.6, 0.7)
    assert config.max_length == 20
    assert explicit == {"top_p", "temperature"}
    config, _ = resolve_config(of_model, None, {"top_k": None, "top_p": None})
    assert (config.top_k, config.top_p) == (None, None)  # switched off
    assert given_config.top_k is None and of_model.max_length is None  # untouched


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.3}],
    ids=str,
)
def test_options_without_effect_are_reported_when_the_caller_set_them(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.warns(UserWarning, match=f"{name}=.* has no effect without do_sample=True"):
        resolve_config(GenerationConfig(), None, options)
    with pytest.warns(UserWarning, match=f"{name}=.* has no effect"):
        resolve_config(GenerationConfig(), GenerationConfig(**options), {})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"output_scores": True}, "output_scores=True has no effect without return_dict_in_generate=True"),
        ({"length_penalty": 2.0}, "without num_beams above 1"),
        ({"early_stopping": True}, "without num_beams above 1"),
        ({"num_assistant_tokens": 3}, "without an assistant_model"),
    ],
    ids=str,
)
def test_other_options_without_effect(options: dict[str, Any], words: str) -> None:
    with pytest.warns(UserWarning, match=words):
        resolve_config(GenerationConfig(), None, options)


@pytest.mark.filterwarnings("error")
def test_what_the_model_brings_is_not_reported() -> None:
    of_model = GenerationConfig(temperature=0.7, top_p=0.8, length_penalty=2.0)
    assert resolve_config(of_model, None, {"do_sample": False})[0].temperature == 0.7
    neutral = {
        "num_beams": 1,
        "num_beam_groups": 1,
        "renormalize_logits": False,
        "guidance_scale": 1,
        "disable_compile": True,
    }
    neutral |= {
        "typical_p": 1.0,
        "no_repeat_ngram_size": 0,
        "cache_implementation": "dynamic",
        "remove_invalid_values": False,
    }
    neutral |= {"temperature": 1, "top_k": 50, "output_scores": False, "decoder_start_token_id": 3}
    resolve_config(GenerationConfig(), None, neutral)


REFUSED: list[dict[str, Any]] = [
    {"use_mtp": True},
    {"dola_layers": "high"},
    {"force_words_ids": [[3]]},
]


@pytest.mark.parametrize("options", REFUSED, ids=str)
def test_options_that_are_not_carried_out_are_refused_with_a_reason(options: dict[str, Any]) -> None:
    name = next(iter(options))
    with pytest.raises(GenerationError, match=rf"{name}=.* \(from the call\) is refused: "):
        resolve_config(GenerationConfig(), None, options)
    with pytest.raises(GenerationError, match=r"from the model's generation config"):
        resolve_config(GenerationConfig(**options), None, {})


def test_every_option_either_works_or_is_refused_or_cannot_matter() -> None:
    assert set(works()) >= {"temperature", "top_k", "stop_strings", "max_time", "num_return_sequences"}
    for option in OPTIONS.values():
        assert option.works or option.never_bites or not option.is_neutral(object())


def test_a_config_of_another_type() -> None:
    with pytest.raises(GenerationError, match="generation_config is a dict, but must be a GenerationConfig"):
        resolve_config(GenerationConfig(), {"top_k": 3}, {})  # type: ignore[arg-type]
