"""RoPE parameters of configurations: both generations of names, what contradicts, what is written."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.config import PreTrainedConfig
from quintet.errors import ConfigError
from quintet.models.gpt_neox import GPTNeoXConfig, tiny
from quintet.rope import ROPE_TYPES, RopeFields, merge, rotary_size, standardise

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5],
    "long_factor": [2, 3.0],
    "original_max_position_embeddings": 32,
}
# One complete set of each type, for a rotary size of 4.
FULL: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2},
    "ntk": {"rope_type": "ntk", "factor": 2.0},
    "yarn": {
        **YARN,
        "beta_fast": 16,
        "beta_slow": 0.5,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "attention_factor": 1.2,
        "truncate": False,
    },
    "longrope": {**LONG, "factor": 4.0, "attention_factor": 1.1},
    "llama3": LLAMA3,
}


class Whole(RopeFields, PreTrainedConfig):
    """A family that rotates whole heads, with a default of its own."""

    model_type = "whole"
    default_rope_theta = 5000.0
    default_rope_scaling = YARN

    def __init__(
        self,
        head_dim: int = 8,
        max_position_embeddings: int = 64,
        rope_theta: Any = 5000.0,
        rope_scaling: Any = YARN,
        **kwargs: Any,
    ) -> None:
        self.head_dim = head_dim
        self.max_position_embeddings = max_position_embeddings
        self.set_rope(theta=rope_theta, scaling=rope_scaling, parameters=kwargs.pop("rope_parameters", None))
        super().__init__(**kwargs)


def made(**given: Any) -> dict[str, Any]:
    return standardise("Owner", **{"head_dim": 4, "max_position_embeddings": 64, **given})


# -- the canonical dict --------------------------------------------------------------------------------------------


def test_every_type_has_an_example_here() -> None:
    assert list(FULL) == list(ROPE_TYPES)
    for rope_type, (required, optional) in ROPE_TYPES.items():
        assert set(FULL[rope_type]) - {"rope_type"} >= set(required)
        extra = {"original_max_position_embeddings"} if rope_type == "dynamic" else set()
        assert set(FULL[rope_type]) - {"rope_type"} == {*required, *optional} - extra


@pytest.mark.parametrize("rope_type", FULL)
def test_old_and_new_names_give_the_same(rope_type: str) -> None:
    full = FULL[rope_type]
    wanted = {"rope_theta": 500.0, **full}
    assert made(theta=500.0, scaling=full) == wanted
    assert made(parameters={**full, "rope_theta": 500.0}) == wanted
    assert made(parameters=full, theta=500.0) == wanted
    assert made(scaling={**full, "rope_theta": 500.0}) == wanted  # as some files between the two generations have it
    old = {"type": full["rope_type"], **{key: value for key, value in full.items() if key != "rope_type"}}
    assert made(theta=500.0, scaling=old) == wanted
    assert made(scaling={**old, "rope_type": rope_type}, theta=500.0, parameters=wanted) == wanted
    assert made(parameters={"full_attention": wanted, "sliding_attention": dict(wanted)}) == wanted
    assert made(parameters={"full_attention": full, "sliding_attention": full, "rope_theta": 500.0}) == wanted


def test_nothing_given_is_the_default() -> None:
    for empty in (None, {}):
        assert made(scaling=empty) == made(parameters=empty) == {"rope_type": "default", "rope_theta": 10000.0}
    assert made(default_theta=7.0) == {"rope_type": "default", "rope_theta": 7.0}
    assert made(partial=0.5, head_dim=8) == {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    }


@pytest.mark.parametrize("name", ["ntk-aware", "ntk_aware", "ntk"])
def test_names_of_ntk(name: str) -> None:
    assert made(scaling={"type": name, "factor": 2.0})["rope_type"] == "ntk"


def test_keys_that_are_null_are_not_there() -> None:
    given = {**YARN, "beta_fast": None, "attention_factor": None, "short_factor": None, "rope_theta": None}
    assert made(scaling=given) == {"rope_theta": 10000.0, **YARN}
    assert made(scaling={**YARN, "factor": None})["factor"] is None  # the ratio of the two lengths, made in the layer


def test_what_is_given_is_copied() -> None:
    given = copy.deepcopy(LONG)
    found = made(scaling=given)
    given["long_factor"][0] = 99.0
    assert found["long_factor"] == [2, 3.0]


def test_equal_meaning_is_no_contradiction() -> None:
    assert made(scaling=YARN, parameters={**YARN, "truncate": True, "beta_slow": 1, "rope_theta": 10000})["truncate"]
    assert made(theta=500, parameters={"rope_type": "default", "rope_theta": 500.0})["rope_theta"] == 500


@pytest.mark.parametrize(
    ("share", "head_dim", "size"), [(1.0, 8, 8), (0.5, 8, 4), (0.25, 12, 3), (0.3, 10, 3), (0.1, 10, 1)]
)
def test_rotary_size(share: float, head_dim: int, size: int) -> None:
    assert rotary_size({"partial_rotary_factor": share}, head_dim) == size
    assert made(partial=share, head_dim=head_dim)["rope_type"] == "default"  # odd parts of a head are allowed


# -- what is refused -----------------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no type": ({"scaling": {"factor": 2.0}}, "rope_scaling is {'factor': 2.0}, which has no key 'rope_type'. Add one"),
    "no type, new": ({"parameters": {"factor": 2.0, "rope_theta": 1e4}}, "rope_parameters is .* no key 'rope_type'"),
    "unknown type": (
        {"scaling": {"rope_type": "yarm", "factor": 2.0}},
        r"rope_type 'yarm', but must have one of default, linear.*Did you mean 'yarn'\?",
    ),
    "type of a wrong kind": ({"scaling": {"rope_type": ["yarn"]}}, r"rope_type \['yarn'\], but must have one of"),
    "two types": (
        {"scaling": {"rope_type": "yarn", "type": "linear", "factor": 2.0}},
        "rope_type 'yarn' and type 'linear', which is the older name of the same key. Remove one",
    ),
    "not an object": ({"scaling": "linear"}, "rope_scaling is 'linear', but must be an object or None"),
    "a list": ({"parameters": [1]}, r"rope_parameters is \[1\], but must be an object or None"),
    "linear without factor": ({"scaling": {"type": "linear"}}, "of rope_type 'linear' has no key 'factor'; it needs"),
    "yarn without factor": (
        {"scaling": {"rope_type": "yarn", "beta_fast": 32}},
        "'yarn' has no key 'factor'; it needs factor. Add it, with a number from 1",
    ),
    "longrope without a list": (
        {"scaling": {key: value for key, value in LONG.items() if key != "long_factor"}},
        "'longrope' has no key 'long_factor'; it needs short_factor, long_factor",
    ),
    "longrope without the length": (
        {"scaling": {key: value for key, value in LONG.items() if not key.startswith("original")}},
        "'longrope' has no key 'original_max_position_embeddings'",
    ),
    "llama3 without a key": (
        {"scaling": {key: value for key, value in LLAMA3.items() if key != "low_freq_factor"}},
        "'llama3' has no key 'low_freq_factor'; it needs factor, low_freq_factor, high_freq_factor",
    ),
    "unknown key": (
        {"scaling": {**YARN, "beta_fats": 3}},
        r"the key 'beta_fats' \(3\), which is unknown. Did you mean 'beta_fast'\?; rope_type 'yarn' takes factor",
    ),
    "another type's key": (
        {"scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 32}},
        r"the key 'beta_fast' \(32\), which belongs to yarn; rope_type 'linear' takes factor. Remove it, or change",
    ),
    "a factor for nothing": (
        {"parameters": {"rope_type": "default", "factor": 2.0}},
        "'factor' .*belongs to linear, dynamic, ntk, yarn, longrope, llama3; rope_type 'default' takes no other keys",
    ),
    "small factor": (
        {"scaling": {"type": "linear", "factor": 0.5}},
        "factor of rope_scaling is 0.5, but must be a number from 1",
    ),
    "factor as text": ({"scaling": {"type": "dynamic", "factor": "2"}}, "factor of rope_scaling is '2', but must be"),
    "factor as a flag": ({"scaling": {"type": "dynamic", "factor": True}}, "factor of rope_scaling is True"),
    "infinite factor": ({"scaling": {"type": "linear", "factor": float("inf")}}, "factor of rope_scaling is inf"),
    "no number": ({"scaling": {"type": "linear", "factor": float("nan")}}, "factor of rope_scaling is nan"),
    "betas": ({"scaling": {**YARN, "beta_fast": 1, "beta_slow": 2}}, "beta_slow 2 and beta_fast 1, but beta_fast must"),
    "beta below the other's default": ({"scaling": {**YARN, "beta_slow": 40}}, "beta_slow 40 and beta_fast 32"),
    "frequencies": (
        {"scaling": {**LLAMA3, "high_freq_factor": 1.0}},
        "low_freq_factor 1.0 and high_freq_factor 1.0, but high_freq_factor must be the larger",
    ),
    "truncate": ({"scaling": {**YARN, "truncate": 1}}, "truncate of rope_scaling is 1, but must be true or false"),
    "attention factor": ({"scaling": {**YARN, "attention_factor": 0}}, "attention_factor .* must be a number above 0"),
    "original length": (
        {"scaling": {**YARN, "original_max_position_embeddings": 16.0}},
        "original_max_position_embeddings of rope_scaling is 16.0, but must be an integer from 2",
    ),
    "list of texts": ({"scaling": {**LONG, "short_factor": ["1", "2"]}}, "short_factor .* a list of numbers above 0"),
    "no list": ({"scaling": {**LONG, "short_factor": 1.0}}, "short_factor of rope_scaling is 1.0, but must be a list"),
    "short list": (
        {"scaling": {**LONG, "long_factor": [1.0]}},
        "long_factor has 1 numbers, but must have 2, one for each pair of the rotary size 4",
    ),
    "theta": ({"theta": -1}, "rope_theta is -1, but must be a number above 1"),
    "theta as text": ({"theta": "1e4"}, "rope_theta is '1e4', but must be a number above 1"),
    "huge theta": ({"theta": 10**400}, "rope_theta is 10+.*but must be a number above 1"),
    "share": ({"partial": 1.5}, "partial_rotary_factor is 1.5, but must be a number above 0 and at most 1"),
    "odd head": (
        {"head_dim": 9},
        r"rotary size is 9 \(1.0 of head_dim 9\), but must be even for a head that is rotated whole",
    ),
    "odd size": (
        {"head_dim": 12, "partial": 0.25, "scaling": YARN},
        r"rotary size is 3 \(0.25 of head_dim 12\), but must be even for rope_type 'yarn'",
    ),
    "nothing to rotate": ({"partial": 0.1}, r"rotary size is 0 \(0.1 of head_dim 4\), but rope_type 'default' needs 1"),
    "too small for ntk": (
        {"head_dim": 2, "scaling": {"type": "ntk", "factor": 2.0}},
        "rotary size is 2 .*, but rope_type 'ntk' needs 3 or more",
    ),
    "dynamic from another length": (
        {"scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32}},
        "original_max_position_embeddings is 32 and max_position_embeddings is 64, but rope_type 'dynamic' grows from",
    ),
    "two bases": (
        {"theta": 500.0, "parameters": {"rope_type": "default", "rope_theta": 600.0}},
        "rope_theta is 500.0 in its own field and 600.0 in rope_parameters. Remove one of them",
    ),
    "two shares": (
        {"partial": 0.5, "parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
        "partial_rotary_factor is 0.5 in its own field and 0.25 in rope_parameters",
    ),
    "two kinds": (
        {"scaling": {"type": "linear", "factor": 2.0}, "parameters": YARN},
        "rope_type is 'linear' in rope_scaling and 'yarn' in rope_parameters",
    ),
    "two factors": ({"scaling": YARN, "parameters": {**YARN, "factor": 8.0}}, "factor is 4.0 in rope_scaling and 8.0"),
    "a key less": (
        {"scaling": {**YARN, "truncate": False}, "parameters": YARN},
        "truncate is False in rope_scaling and True in rope_parameters",
    ),
    "layers that differ": (
        {"parameters": {"full_attention": {**YARN, "rope_theta": 1e6}, "sliding_attention": {"rope_type": "default"}}},
        "rope_parameters has 'factor' 4.0 for 'full_attention' and None for 'sliding_attention', but all layers must",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name: str) -> None:
    given, words = BAD[name]
    with pytest.raises(ConfigError, match=f"Owner: .*{words}"):
        made(**given)


# -- configurations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rope_type", FULL)
def test_files_have_the_old_names_alone_and_come_back(rope_type: str) -> None:
    config = tiny(rotary_emb_base=500, rope_scaling=FULL[rope_type])
    data = json.loads(config.to_json_string())
    assert data["rotary_emb_base"] == 500 and data["rotary_pct"] == 0.5
    assert not {"rope_parameters", "rope_theta", "partial_rotary_factor", "_rope_parameters"} & set(data)
    if rope_type == "default":
        assert data["rope_scaling"] is None
    elif rope_type in ("linear", "dynamic"):  # releases before 4.43 know no other form
        assert data["rope_scaling"] == {"type": rope_type, "factor": 2}
    else:
        assert data["rope_scaling"] == FULL[rope_type]
    again = GPTNeoXConfig.from_dict(data)
    assert again == config and again.rope_parameters == config.rope_parameters
    assert copy.deepcopy(config) == config


def test_fields_are_read_and_set() -> None:
    config = tiny()
    assert config.rope_scaling is None
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.5}
    config.rope_scaling = {"type": "linear", "factor": 2.0}
    config.rotary_emb_base = 500
    config.rotary_pct = 1.0
    assert (config.rope_theta, config.rotary_emb_base) == (500, 500)
    assert (config.rotary_pct, config.partial_rotary_factor) == (1.0, 1.0)
    assert config.rope_scaling == {"rope_type": "linear", "factor": 2.0}
    config.rope_theta = 600.0
    assert config.rope_parameters == {
        "rope_type": "linear",
        "rope_theta": 600.0,
        "partial_rotary_factor": 1.0,
        "factor": 2.0,
    }
    config.rope_parameters = {"rope_type": "default"}  # what it leaves out stays
    assert (config.rope_scaling, config.rope_theta, config.rotary_pct) == (None, 600.0, 1.0)
    config.rope_scaling = None
    config.validate()
    assert GPTNeoXConfig.from_dict(config.to_dict()).rotary_pct == 1.0


def test_setting_something_wrong_raises_and_changes_nothing() -> None:
    config = tiny()
    before = config.to_dict()
    for name, value, words in (
        ("rope_scaling", {"type": "linear"}, "no key 'factor'"),
        ("rope_theta", 0, "rotary_emb_base is 0, but must be a number above 1"),
        ("rotary_pct", 2.0, "rotary_pct is 2.0"),
        ("rope_parameters", "yarn", "must be an object"),
    ):
        with pytest.raises(ConfigError, match=f"GPTNeoXConfig: .*{words}"):
            setattr(config, name, value)
        with pytest.raises(ConfigError, match=words):
            config.update({"hidden_act": "relu", name: value})
        assert config.to_dict() == before
    config.rope_parameters["rope_theta"] = -3  # in place: found when the configuration is checked, as a model does
    with pytest.raises(ConfigError, match="rope_theta is -3|rotary_emb_base is -3|rope_theta of"):
        config.validate()


def test_sizes_are_checked_with_the_configuration() -> None:
    with pytest.raises(ConfigError, match="GPTNeoXConfig: short_factor has 2 numbers, but must have 4"):
        tiny(rope_scaling=LONG, rotary_pct=1.0)
    with pytest.raises(ConfigError, match="GPTNeoXConfig: the rotary size is 2 .* rope_type 'dynamic' needs 3"):
        tiny(rotary_pct=0.25, rope_scaling={"type": "dynamic", "factor": 2.0})


FILES: dict[str, dict[str, Any]] = {
    "old": {"rotary_emb_base": 500, "rotary_pct": 0.5, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "new": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500, "partial_rotary_factor": 0.5}},
    "common names": {
        "rope_theta": 500,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "theta apart": {"rotary_emb_base": 500, "rope_parameters": {"type": "linear", "factor": 2}, "rotary_pct": 0.5},
}
FILES["both"] = {**FILES["old"], **FILES["new"]}
FILES["all"] = {**FILES["old"], **FILES["new"], **FILES["common names"]}


@pytest.mark.parametrize("name", FILES)
def test_files_of_both_generations(name: str, tmp_path: Path) -> None:
    config = GPTNeoXConfig.from_dict(FILES[name])
    assert config.rope_parameters == FILES["new"]["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neox", **FILES[name]}))
    assert GPTNeoXConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "base, one of them the default": (
        {"rotary_emb_base": 10000, "rope_parameters": {"rope_type": "default", "rope_theta": 500}},
        "rotary_emb_base is 10000 in its own field and 500 in rope_parameters",
    ),
    "share, one of them the default": (
        {"rotary_pct": 0.25, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "rotary_pct is 0.25 in its own field and 0.5 in rope_parameters",
    ),
    "names of the base": (
        {"rotary_emb_base": 10000, "rope_theta": 500},
        "rope_theta is 10000 in rotary_emb_base and 500 in rope_theta",
    ),
    "names of the share": (
        {"rotary_pct": 0.25, "partial_rotary_factor": 0.5},
        "is 0.25 in rotary_pct and 0.5 in partial_rotary_factor",
    ),
    "kinds": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
        "is .* in rope_scaling and .* in rope_parameters",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_files_that_contradict_themselves(name: str) -> None:
    data, words = CONTRADICTIONS[name]
    with pytest.raises(ConfigError, match=f"GPTNeoXConfig: .*{words}"):
        GPTNeoXConfig.from_dict(data)


def test_keywords_win_over_the_file() -> None:
    for file in FILES.values():
        for names in ({"rope_theta": 700}, {"rotary_emb_base": 700}, {"rope_parameters": {"rope_theta": 700}}):
            config = GPTNeoXConfig.from_dict(file, **names)
            kind = "default" if "rope_parameters" in names else "linear"
            assert (config.rope_theta, config.rope_parameters["rope_type"], config.rotary_pct) == (700, kind, 0.5)
        config = GPTNeoXConfig.from_dict(file, rope_scaling=None, rotary_pct=1.0)
        assert config.rope_parameters == {"rope_type": "default", "rope_theta": 500, "partial_rotary_factor": 1.0}
        config = GPTNeoXConfig.from_dict(file, rope_scaling={"type": "ntk", "factor": 3.0})
        assert (config.rope_scaling, config.rope_theta) == ({"rope_type": "ntk", "factor": 3.0}, 500)
    config, unused = GPTNeoXConfig.from_dict({}, rope_theta=700, other=1, return_unused_kwargs=True)
    assert (config.rope_theta, unused) == (700, {"other": 1})


def test_a_family_with_a_default_of_its_own() -> None:
    plain = {"rope_type": "default", "rope_theta": 5000.0}
    assert Whole().rope_parameters == {"rope_theta": 5000.0, **YARN}
    assert Whole.from_dict({}).rope_parameters == {"rope_theta": 5000.0, **YARN}
    assert Whole(rope_scaling=None).rope_parameters == plain
    assert Whole.from_dict({"rope_scaling": None}).rope_parameters == plain
    assert Whole.from_dict({"rope_theta": 9.0}).rope_parameters == {"rope_theta": 9.0, **YARN}
    assert Whole(rope_parameters={"rope_type": "default"}).rope_parameters == plain
    assert Whole(rope_parameters=YARN, rope_scaling={"type": "linear", "factor": 2.0}).rope_scaling == {
        "rope_type": "linear",
        "factor": 2.0,
    }
    assert Whole.from_dict({"rope_parameters": {"rope_type": "default"}}).rope_parameters == plain
    for config in (Whole(), Whole(rope_scaling=None), Whole(rope_theta=9.0)):
        assert Whole.from_dict(config.to_dict()).rope_parameters == config.rope_parameters
    nested = {"full_attention": {**YARN, "rope_theta": 9}, "sliding_attention": {**YARN, "rope_theta": 9}}
    assert Whole.from_dict({"rope_parameters": nested}).rope_parameters == {"rope_theta": 9, **YARN}


def test_a_family_that_rotates_whole_heads_says_so() -> None:
    words = "Whole: partial_rotary_factor is 0.5, but this family rotates whole heads. Remove it"
    for data in ({"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}):
        with pytest.raises(ConfigError, match=words):
            Whole.from_dict(data)
    assert Whole.from_dict({"partial_rotary_factor": 1.0}) == Whole()
    with pytest.raises(ConfigError, match=words):
        Whole(partial_rotary_factor=0.5)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from([10**400, 0.5, 2]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
KEYS = sorted({key for required, optional in ROPE_TYPES.values() for key in (*required, *optional)})
OBJECTS = st.dictionaries(st.sampled_from([*KEYS, "rope_theta", "partial_rotary_factor"]) | st.text(max_size=4), VALUES)
KINDS = st.builds(lambda kind, keys: {**keys, **kind}, st.sampled_from(list(FULL.values())) | st.just({}), OBJECTS)
FUZZ = st.fixed_dictionaries(
    {},
    optional={
        "rope_scaling": VALUES | KINDS,
        "rope_parameters": VALUES | KINDS | st.dictionaries(st.sampled_from(["full_attention", "x"]), KINDS),
        "rope_theta": VALUES,
        "rotary_emb_base": VALUES,
        "rotary_pct": VALUES,
        "partial_rotary_factor": VALUES,
    },
)


@given(FUZZ)
@settings(max_examples=150)
def test_any_object_gives_a_configuration_or_a_config_error(data: dict[str, Any]) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
    try:
        config = GPTNeoXConfig.from_dict({**sizes, **data})
    except ConfigError as error:
        assert len(str(error)) > 20
        return
    text = config.to_json_string()
    again = GPTNeoXConfig.from_dict(json.loads(text))
    assert again.rope_parameters == config.rope_parameters
    assert again.to_json_string() == text


def test_reference_reads_what_is_written() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[dev]'")
    for rope_type, full in FULL.items():
        if rope_type == "ntk":  # the reference has only the growing form
            continue
        config = tiny(rotary_emb_base=500, rope_scaling=full)
        theirs = transformers.GPTNeoXConfig.from_dict(config.to_dict())
        wanted = {key: value for key, value in theirs.rope_parameters.items() if key != "type"}
        assert wanted == config.rope_parameters
        assert GPTNeoXConfig.from_dict(theirs.to_dict()).rope_parameters == config.rope_parameters


def test_merge_names_the_fields_as_the_family_does() -> None:
    with pytest.raises(ConfigError, match="X: base is 0.5, but must be a number above 1"):
        merge("X", theta=0.5, names=("base", "share"))
