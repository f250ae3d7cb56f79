"""Prompt caches in files: they go on as if read from the beginning, and only for their model and their text."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from quintet.auto import family_of, model_types
from quintet.cache import Cache, DynamicCache, Int8Cache, OffloadedCache, QuantizedCache, StaticCache
from quintet.cache.provenance import fingerprint
from quintet.errors import CheckpointError, HubError, InputError

GREEDY: dict[str, Any] = {"eos_token_id": None, "pad_token_id": 97, "max_new_tokens": 6}


def tiny(model_type: str, task: str = "causal-lm", **fields: Any) -> Any:
    """A model of the family with uneven weights; windows are shorter than the texts, and every expert takes part."""
    family = family_of(model_type)
    experts = getattr(family.tiny(), "num_local_experts", None)
    if experts is not None:
        fields = {"num_experts_per_tok": experts, "sliding_window": 5, **fields}
    torch.manual_seed(0)
    model = family.classes[task](family.tiny(**fields))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.eval()


@pytest.fixture(scope="module", params=model_types())
def family_model(request: pytest.FixtureRequest) -> Any:
    return tiny(request.param)


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return tiny("gpt2")


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(90, (2, 9), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def saved(gpt2: Any, ids: torch.Tensor, tmp_path: Path) -> Path:
    """A file that `generate` has made; it holds 9 tokens of 2 rows."""
    cache = DynamicCache(config=gpt2.config)
    gpt2.generate(ids, past_key_values=cache, **{**GREEDY, "max_new_tokens": 1})
    cache.save(tmp_path / "prompt.safetensors")
    return tmp_path / "prompt.safetensors"


STORES = {
    "dynamic": lambda config: DynamicCache(config=config),
    "offloaded": lambda config: OffloadedCache(config=config),
    "static": lambda config: StaticCache(config, 40),
    "quantized": lambda config: QuantizedCache(config=config),
    "int8": lambda config: Int8Cache(config=config),
}

# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("padded", [False, True])
def test_a_loaded_cache_goes_on_as_from_scratch(
    family_model: Any, ids: torch.Tensor, tmp_path: Path, store: str, padded: bool
) -> None:
    mask = torch.ones_like(ids)
    mask[0, : 4 * padded] = 0
    cache = STORES[store](family_model.config)
    first = family_model.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY)
    cache.save(tmp_path / "cache")
    text = torch.cat([first, ids], 1)
    given = torch.nn.functional.pad(mask, (0, 15), value=1)
    plain = family_model.generate(text, attention_mask=given, **GREEDY)
    for checked in (False, True):
        checks = {"model": family_model, "tokens": text} if checked else {}
        again = Cache.load(tmp_path / "cache", **checks)
        assert type(again) is type(cache)
        assert torch.equal(again.tokens, cache.tokens)
        got = family_model.generate(text, attention_mask=given, past_key_values=again, **GREEDY)
        assert torch.equal(got, plain)
        assert again.get_seq_length() == text.shape[1] + 5


def test_generate_makes_and_returns_a_cache_that_knows_its_text(
    family_model: Any, ids: torch.Tensor, tmp_path: Path
) -> None:
    out = family_model.generate(ids, return_dict_in_generate=True, **GREEDY)
    out.past_key_values.save(tmp_path / "cache")
    again = Cache.load(tmp_path / "cache", model=family_model, tokens=out.sequences)
    assert torch.equal(again.tokens, out.sequences[:, :-1])
    assert again.record.model is family_model


def test_one_row_may_be_given_as_a_list(gpt2: Any, tmp_path: Path) -> None:
    cache = DynamicCache()
    with torch.no_grad():
        gpt2(torch.tensor([[5, 6, 7]]), past_key_values=cache)
    cache.save(tmp_path / "cache", model=gpt2, tokens=[5, 6, 7])
    for tokens in ([5, 6, 7, 8], torch.tensor([5, 6, 7]), ((5, 6, 7),)):
        assert Cache.load(tmp_path / "cache", model=gpt2, tokens=tokens).tokens.tolist() == [[5, 6, 7]]


def test_the_last_token_of_a_text_need_not_be_read(gpt2: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    out = gpt2.generate(ids, return_dict_in_generate=True, **GREEDY)
    out.past_key_values.save(tmp_path / "cache", tokens=out.sequences)  # one more than the cache holds
    assert torch.equal(Cache.load(tmp_path / "cache").tokens, out.sequences[:, :-1])


def test_what_was_changed_before_saving_is_saved(gpt2: Any, ids: torch.Tensor, saved: Path) -> None:
    cache = Cache.load(saved)
    cache.crop(4)
    cache.batch_select_indices(torch.tensor([1]))
    cache.save(saved)  # over itself, and still of the model that nobody named
    again = Cache.load(saved, model=gpt2, tokens=ids[1:])
    assert torch.equal(again.tokens, ids[1:, :4])
    plain = gpt2.generate(ids[1:], **GREEDY)
    assert torch.equal(gpt2.generate(ids[1:], past_key_values=again, **GREEDY), plain)


def test_a_cache_of_no_tokens(gpt2: Any, tmp_path: Path) -> None:
    DynamicCache(config=gpt2.config).save(tmp_path / "cache", model=gpt2)
    again = Cache.load(tmp_path / "cache", model=gpt2)
    assert (again.get_seq_length(), again.tokens) == (0, None)


# --- another model ----------------------------------------------------------------------------------------------------


def changed(gpt2: Any, how: str) -> Any:
    model = copy.deepcopy(gpt2)
    if how == "weights":
        with torch.no_grad():
            model.transformer.h[1].mlp.c_fc.weight.add_(1e-3)
    elif how == "type":
        model = tiny("openai-gpt")
    elif how == "configuration":
        model.config.activation_function = "relu"
    elif how == "dtype":
        model = model.bfloat16()
    elif how == "layers":
        model = tiny("gpt2", n_layer=3)
    elif how == "heads":
        model = tiny("gpt2", n_head=2)
    return model


OTHER = {
    "weights": "its weights are others",
    "type": r"it is of the type 'gpt2', and this one of the type 'openai-gpt'",
    "configuration": "its configuration is another one",
    "dtype": "its keys are torch.float32, and this model computes in torch.bfloat16",
    "layers": "it has 2 layers and the model 3",
    "heads": "it has 4 key/value heads and the model 2",
}


@pytest.mark.parametrize("how", OTHER)
def test_another_model_is_refused_by_load_and_by_generate(gpt2: Any, ids: torch.Tensor, saved: Path, how: str) -> None:
    model = changed(gpt2, how)
    with pytest.raises(CheckpointError, match=f"was made by another model: {OTHER[how]}.*Load it with the model"):
        Cache.load(saved, model=model)
    cache = Cache.load(saved)
    with pytest.raises(InputError):
        model.generate(ids, past_key_values=cache, **GREEDY)
    if how not in ("layers", "heads"):
        with pytest.raises(InputError, match=f"past_key_values was made by another model: {OTHER[how]}"):
            model.generate(ids, past_key_values=cache, **GREEDY)
    assert cache.get_seq_length() == 9


def test_the_same_model_elsewhere_is_taken(gpt2: Any, ids: torch.Tensor, saved: Path, tmp_path: Path) -> None:
    """What keys do not depend on may differ: the head, its labels, special tokens, training or not."""
    gpt2.save_pretrained(tmp_path / "model")
    again = type(gpt2).from_pretrained(tmp_path / "model")
    again.config.eos_token_id = 7
    again.generation_config.top_k = 3
    for model in (again, again.train(), copy.deepcopy(gpt2)):
        assert Cache.load(saved, model=model, tokens=ids).get_seq_length() == 9
    classifier = family_of("gpt2").classes["sequence-classification"](family_of("gpt2").tiny(num_labels=5))
    classifier.transformer.load_state_dict(gpt2.transformer.state_dict())
    assert Cache.load(saved, model=classifier).get_seq_length() == 9
    again.optimize()
    assert Cache.load(saved, model=again).get_seq_length() == 9


def test_a_file_that_does_not_say_whose_it_is(gpt2: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    cache = DynamicCache()
    with torch.no_grad():
        gpt2(ids, past_key_values=cache)
    cache.save(tmp_path / "cache")
    with pytest.raises(CheckpointError, match=r"does not say which model made it.*save\(path, model=model\)"):
        Cache.load(tmp_path / "cache", model=gpt2)
    with pytest.raises(CheckpointError, match=r"holds 9 tokens and says of 0 which they are.*tokens=ids"):
        Cache.load(tmp_path / "cache", tokens=ids)
    assert Cache.load(tmp_path / "cache", config=gpt2.config).tokens is None
    with pytest.raises(CheckpointError, match="was made by another model: it has 2 layers and the model 3"):
        Cache.load(tmp_path / "cache", config=tiny("gpt2", n_layer=3).config)


def test_fingerprints(family_model: Any) -> None:
    first = fingerprint(family_model)
    assert first is not None
    assert first == fingerprint(copy.deepcopy(family_model)) == fingerprint(family_model.base_model)
    assert sorted(first) == ["config", "model_type", "weights"]
    other = copy.deepcopy(family_model)
    for name, parameter in other.base_model.named_parameters():
        with torch.no_grad():
            parameter += 0.01
            assert fingerprint(other)["weights"] != first["weights"], name
            parameter.copy_(dict(family_model.base_model.named_parameters())[name])
    assert fingerprint(other) == first
    assert fingerprint(object()) is None
    assert fingerprint(copy.deepcopy(family_model).to("meta")) is None


def test_a_fingerprint_reads_little() -> None:
    """64 numbers of a weight, whatever its size and layout."""
    from quintet.cache.provenance import _sample

    big = torch.zeros(1000, 1000)
    assert _sample(big).shape == (64 * 4,)
    whole = torch.arange(12.0).reshape(3, 4)
    for tensor in (whole, whole.t().contiguous().t(), whole[:, ::2], torch.tensor(3.0), torch.zeros(0, 3)):
        numbers = _sample(tensor).view(torch.float32)
        assert sorted(numbers.tolist()) == sorted(tensor.flatten().tolist())
    assert _sample(torch.zeros(2, 3, 100).bfloat16()).shape == (64 * 2,)


# --- another text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (lambda ids: ids.index_fill(1, torch.tensor([3]), 95), "at place 3 of row 0 it has read token .*, not 95"),
        (lambda ids: ids[:1], "it has 2 rows and the text 1"),
        (lambda ids: ids[:, :5], "it has read 9 tokens, and these are 5"),
        (lambda ids: ids.flip(0), "was read from another text: at place 0 of row 0"),
    ],
)
def test_another_text_is_refused(saved: Path, ids: torch.Tensor, tokens: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        Cache.load(saved, tokens=tokens(ids))


def test_generate_refuses_another_text(gpt2: Any, ids: torch.Tensor, saved: Path) -> None:
    other = torch.cat([ids, ids], 1)
    other[1, 8] = (other[1, 8] + 1) % 90
    cache = Cache.load(saved)
    with pytest.raises(InputError, match="another text than the prompt: at place 8 of row 1"):
        gpt2.generate(other, past_key_values=cache, **GREEDY)
    cache.crop(8)
    assert torch.equal(gpt2.generate(other, past_key_values=cache, **GREEDY), gpt2.generate(other, **GREEDY))


@pytest.mark.parametrize("tokens", ["text", [1.5], [[1, 2], [3]], [True], 5, torch.zeros(1, 2, 3).long(), [2**70]])
def test_tokens_that_are_none(saved: Path, tokens: Any) -> None:
    with pytest.raises(InputError, match="but must be token ids"):
        Cache.load(saved, tokens=tokens)
    with pytest.raises(InputError, match="but must be token ids"):
        Cache.load(saved).save(saved, tokens=tokens)


def test_tokens_that_are_not_as_many(saved: Path, ids: torch.Tensor) -> None:
    for count in (8, 11):
        with pytest.raises(InputError, match=f"tokens are {count}, but the cache holds 9"):
            Cache.load(saved).save(saved, tokens=ids.repeat(1, 2)[:, :count])
    with pytest.raises(InputError, match="tokens have 1 rows, but the cache holds 2"):
        Cache.load(saved).save(saved, tokens=ids[:1])


# --- files ------------------------------------------------------------------------------------------------------------


def rewrite(path: Path, tensors: Any = None, metadata: Any = None) -> None:
    with safe_open(path, framework="pt") as file:
        old = dict(file.metadata())
    held = load_file(path)
    if tensors is not None:
        tensors(held)
    save_file(held, path, {**old, **(metadata or {})})


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "type of tokens": (
        {"tensors": lambda t: t.update(tokens=t["tokens"].float())},
        r"its tokens are torch.float32 of shape \(2, 9\) for 9 places",
    ),
    "shape of tokens": ({"tensors": lambda t: t.update(tokens=t["tokens"][0])}, r"of shape \(9,\) for 9 places"),
    "more tokens": ({"tensors": lambda t: t.update(tokens=t["tokens"].repeat(1, 2))}, r"\(2, 18\) for 9 places"),
    "rows of tokens": (
        {"tensors": lambda t: t.update(tokens=t["tokens"][:1].clone())},
        "its tokens have 1 rows, and 2",
    ),
    "model": ({"metadata": {"model": "[]"}}, "holds a JSON list"),
    "no json": ({"metadata": {"model": "{"}}, "is not JSON"),
    "keys": ({"metadata": {"model": '{"weights": "1"}'}}, r"describes its model by \['weights'\]"),
    "values": (
        {"metadata": {"model": '{"weights": 1, "config": "", "model_type": ""}'}},
        "describes its model by",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(saved: Path, name: str) -> None:
    changes, words = BROKEN[name]
    rewrite(saved, **changes)
    with pytest.raises(CheckpointError, match=words):
        Cache.load(saved)


def test_fewer_tokens_than_places_are_a_beginning(gpt2: Any, ids: torch.Tensor, saved: Path) -> None:
    rewrite(saved, lambda held: held.update(tokens=held["tokens"][:, :3].clone()))
    cache = Cache.load(saved, model=gpt2)
    assert torch.equal(cache.tokens, ids[:, :3])
    with pytest.raises(CheckpointError, match="holds 9 tokens and says of 3 which they are"):
        Cache.load(saved, tokens=ids)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files(saved: Path, share: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match="no sound safetensors file"):
        Cache.load(saved)


def test_every_broken_byte_of_the_header_is_survived(saved: Path) -> None:
    """A file is refused or gives a sound cache; nothing else comes out of it."""
    data = saved.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for place in range(0, header, 7):
        saved.write_bytes(data[:place] + bytes([data[place] ^ 0x15]) + data[place + 1 :])
        try:
            cache = Cache.load(saved)
        except (CheckpointError, HubError):
            continue
        assert isinstance(cache, Cache)


def test_paths(gpt2: Any, saved: Path, tmp_path: Path) -> None:
    cache = Cache.load(str(saved))
    with pytest.raises(HubError, match="nowhere"):
        Cache.load(tmp_path / "nowhere")
    with pytest.raises((CheckpointError, HubError)):
        Cache.load(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be saved as"):
        cache.save(tmp_path / "no" / "such" / "folder")
    with pytest.raises(CheckpointError, match="cannot be saved as"):
        cache.save(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be saved as"):
        cache.save(saved / "below a file")


def test_a_failed_save_leaves_what_was_there(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    cache = Cache.load(saved)

    def broken(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quintet.cache.storing.save_file", broken)
    with pytest.raises(CheckpointError, match="No space left"):
        cache.save(saved)
    monkeypatch.setattr("quintet.cache.storing.save_file", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cache.save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_the_file_says_what_it_is(gpt2: Any, saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        about = file.metadata()
        assert json.loads(about["model"]) == fingerprint(gpt2)
        assert file.get_tensor("tokens").shape == (2, 9)
    assert about["format"] == "quintet cache 1"


@pytest.mark.parametrize("method", ["mxfp4", "int8", "int4"])
def test_packed_weights_have_fingerprints_of_their_own(ids: torch.Tensor, tmp_path: Path, method: str) -> None:
    family = family_of("gpt_oss")
    torch.manual_seed(0)
    plain = family.classes["causal-lm"](family.tiny(hidden_size=64, intermediate_size=64, head_dim=16)).eval()
    packed = copy.deepcopy(plain)
    packed.quantize(method)
    out = packed.generate(ids, return_dict_in_generate=True, **GREEDY)
    out.past_key_values.save(tmp_path / "cache")
    assert Cache.load(tmp_path / "cache", model=packed, tokens=out.sequences).get_seq_length() == 14
    with pytest.raises(CheckpointError, match="its weights are others|its configuration is another"):
        Cache.load(tmp_path / "cache", model=plain)
