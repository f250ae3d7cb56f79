"""GPT-1's original release becomes a checkpoint that computes what the original algorithm computes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quintet.convert.run import convert
from quintet.errors import CheckpointError, HubError
from quintet.models.openai_gpt import OpenAIGPTLMHeadModel

IDS = [3, 39, 0, 7, 7, 21, 12, 5]


def scores(folder: Path, ids: list[int]) -> np.ndarray:
    model = OpenAIGPTLMHeadModel.from_pretrained(folder)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("cuts", [1, 10, 13, [5, 6, 6, 384, 1344]], ids=str)
@pytest.mark.parametrize("size", [(16, 40, 24, 2), (9, 50, 36, 3), (8, 40, 12, 1)], ids=str)
def test_the_numbers_are_those_of_the_original_algorithm(
    release: Any, tmp_path: Path, size: tuple[int, ...], cuts: Any
) -> None:
    parameters = release.random_parameters(release.shapes(*size))
    convert(release.write(tmp_path / "in", parameters, cuts), tmp_path / "out")
    wanted = release.forward(parameters, IDS, heads=12)
    np.testing.assert_allclose(scores(tmp_path / "out", IDS), wanted, rtol=1e-4, atol=1e-5)


def test_every_array_has_its_own_place(release: Any, tmp_path: Path, parameters: dict[str, np.ndarray]) -> None:
    """Each one changes the scores: had any been put in another's place, the test above would have shown it."""
    wanted = release.forward(parameters, IDS, heads=12)
    rng = np.random.default_rng(1)
    for name in parameters:
        other = dict(parameters)
        other[name] = parameters[name] + rng.standard_normal(parameters[name].shape).astype(np.float32) * 0.1
        changed = release.forward(other, IDS, heads=12)
        # (a softmax does not see the bias of the keys, but that of queries and values is in the same array)
        assert np.abs(changed - wanted).max() > 1e-3, name


def test_what_is_written(original: Path, tmp_path: Path, parameters: dict[str, np.ndarray]) -> None:
    done = convert(original, tmp_path / "out")
    assert (done.source_layout, done.target_layout) == ("gpt1-original", "hub")
    names = {"config.json", "generation_config.json", "model.safetensors", "merges.txt", "vocab.json"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names | {"tokenizer_config.json"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = {
        "model_type": "openai-gpt",
        "architectures": ["OpenAIGPTLMHeadModel"],
        "dtype": "float32",
        "afn": "gelu",
    }
    expected |= {"vocab_size": 40, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 12}
    assert {name: config[name] for name in expected} == expected
    model, report = OpenAIGPTLMHeadModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    weights = model.state_dict()
    for ours, theirs in {
        "positions_embed.weight": "pe",
        "tokens_embed.weight": "we",
        "h.1.ln_2.bias": "h1/ln_2/b",
    }.items():
        assert np.array_equal(weights[f"transformer.{ours}"].numpy(), parameters[theirs])
    assert np.array_equal(weights["transformer.h.0.mlp.c_fc.weight"].numpy(), parameters["h0/mlp/c_fc/w"][0])


def test_the_tokenizer_lies_beside(original: Path, tmp_path: Path) -> None:
    convert(original, tmp_path / "out")
    vocabulary = json.loads((tmp_path / "out" / "vocab.json").read_text(encoding="utf-8"))
    assert vocabulary == json.loads((original / "model" / "encoder_bpe_40000.json").read_text())
    assert (tmp_path / "out" / "merges.txt").read_text() == "#version: 0.2\nt h\nth e</w>\n"
    import quintet

    tokenizer = quintet.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(tokenizer).__name__.startswith("OpenAIGPTTokenizer")
    assert tokenizer.model_max_length == 16
    ids = tokenizer("The the.")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["the</w>", "the</w>", ".</w>"]


def test_the_model_folder_itself_is_taken_and_a_tokenizer_is_no_must(original: Path, tmp_path: Path) -> None:
    for name in ("encoder_bpe_40000.json", "vocab_40000.bpe"):
        (original / "model" / name).unlink()
    convert(original / "model", tmp_path / "out")
    assert not (tmp_path / "out" / "vocab.json").exists()
    assert (tmp_path / "out" / "model.safetensors").exists()


def change(path: str, text: str | bytes | None) -> Any:
    def apply(model: Path) -> None:
        if text is None:
            (model / path).unlink()
        else:
            (model / path).write_bytes(text.encode() if isinstance(text, str) else text)

    return apply


def saved(number: int, array: np.ndarray) -> Any:
    return lambda model: np.save(model / f"params_{number}.npy", array)


def shape_list(edit: Any) -> Any:
    def apply(model: Path) -> None:
        shapes = json.loads((model / "params_shapes.json").read_text())
        (model / "params_shapes.json").write_text(json.dumps(edit(shapes)))

    return apply


def truncated(model: Path) -> None:
    data = (model / "params_3.npy").read_bytes()
    (model / "params_3.npy").write_bytes(data[:-4])


def pipe(model: Path) -> None:
    (model / "params_2.npy").unlink()
    os.mkfifo(model / "params_2.npy")


def objects(model: Path) -> None:
    np.save(model / "params_1.npy", np.array([print, len], dtype=object), allow_pickle=True)


DAMAGES: dict[str, tuple[Any, str]] = {
    "a piece is missing": (change("params_4.npy", None), "There is no file 'params_4.npy'"),
    "the last piece is missing": (change("params_9.npy", None), r"hold [\d,]+ numbers, and params_shapes.json wants"),
    "a piece too many": (saved(10, np.zeros(3, np.float32)), "the 11 files .* hold"),
    "a truncated piece": (truncated, "params_3.npy' is not a sound .npy file"),
    "an empty piece": (change("params_3.npy", b""), "params_3.npy' is not a sound .npy file"),
    "not an npy file": (change("params_3.npy", b"PK\x03\x04 something"), "params_3.npy' is not a sound .npy file"),
    "a huge header": (
        change(
            "params_3.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1" + b"0" * 40
        ),
        "params_3.npy' is not a sound .npy file",
    ),
    "objects": (objects, "params_1.npy' is not a sound .npy file"),
    "a pipe": (pipe, "params_2.npy' is not a regular file"),
    "another type": (
        saved(0, np.zeros(9, np.float64)),
        "holds float64 numbers of shape .9,., but must be a row of float32",
    ),
    "another form": (saved(0, np.zeros((3, 3), np.float32)), r"holds float32 numbers of shape \(3, 3\)"),
    "another byte order": (saved(0, np.zeros(9, ">f4")), "holds >f4 numbers"),
    "shapes that are no JSON": (change("params_shapes.json", "[[1"), "must be a JSON list of shapes, and is not"),
    "shapes that are no list": (change("params_shapes.json", "{}"), "must be a JSON list of shapes, and is not"),
    "an empty shape": (shape_list(lambda s: [*s[:-1], []]), "must be a JSON list of shapes, and is not"),
    "a shape of text": (shape_list(lambda s: [*s[:-1], ["24"]]), r"holds the shape \['24'\]; lengths must be whole"),
    "a negative shape": (shape_list(lambda s: [*s[:-1], [-24]]), r"holds the shape \[-24\]"),
    "a shape of true": (shape_list(lambda s: [*s[:-1], [True]]), r"holds the shape \[True\]"),
    "a shape too few": (shape_list(lambda s: s[:-1]), "lists 25 shapes, but a GPT-1 has 2 and 12 for each block"),
    "no block": (shape_list(lambda s: s[:2]), "lists 2 shapes"),
    "no shape": (shape_list(lambda s: []), "lists 0 shapes"),
    "blocks in another order": (
        shape_list(lambda s: [*s[:2], s[3], s[2], *s[4:]]),
        r"shape number 2 is \[72\], but in a GPT-1 of width 24 it must be \[1, 24, 72\]",
    ),
    "tokens of another width": (shape_list(lambda s: [s[0], [40, 23], *s[2:]]), r"shape number 1 is \[40, 23\]"),
    "more tokens than numbers": (shape_list(lambda s: [s[0], [41, 24], *s[2:]]), "One is missing, or of another model"),
    "half a tokenizer": (
        change("vocab_40000.bpe", None),
        "holds encoder_bpe_40000.json but no vocab_40000.bpe. Add it",
    ),
    "the other half": (change("encoder_bpe_40000.json", None), "holds vocab_40000.bpe but no encoder_bpe_40000.json"),
    "ids with a gap": (change("encoder_bpe_40000.json", '{"a": 0, "b": 2}'), "must number its 2 tokens from 0 to 1"),
    "an id that is text": (change("encoder_bpe_40000.json", '{"a": "0"}'), "must number its 1 tokens"),
    "too many tokens": (
        change("encoder_bpe_40000.json", json.dumps({str(i): i for i in range(41)})),
        "must number its 41 tokens from 0 to 40, and the model has 40",
    ),
    "a vocabulary that is a list": (change("encoder_bpe_40000.json", "[]"), "holds a JSON list"),
    "merges that are no text": (change("vocab_40000.bpe", b"#\n\xff \xff\n"), "is not UTF-8 text"),
    "a merge of three": (
        change("vocab_40000.bpe", "#version\na b\na b c\n"),
        "line 3: 'a b c' is not a pair of tokens",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_releases_are_refused(original: Path, tmp_path: Path, name: str) -> None:
    damage, words = DAMAGES[name]
    damage(original / "model")
    with pytest.raises((CheckpointError, HubError), match=words):
        convert(original, tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["original"]  # nothing was left behind


def test_a_width_that_twelve_heads_do_not_divide(release: Any, tmp_path: Path) -> None:
    parameters = release.random_parameters(release.shapes(8, 20, 20, 1))
    with pytest.raises(CheckpointError, match="the width is 20, but must be a multiple of 12"):
        convert(release.write(tmp_path / "in", parameters), tmp_path / "out")


def test_a_folder_that_is_said_to_hold_a_release(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no params_shapes.json, neither itself nor in a folder 'model'"):
        convert(tmp_path, tmp_path / "out", source_layout="gpt1-original")


def test_progress_ends_at_the_whole(original: Path, tmp_path: Path, parameters: dict[str, np.ndarray]) -> None:
    seen: list[tuple[int, int]] = []
    convert(original, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (total := sum(array.nbytes for array in parameters.values()), total)
    assert len(seen) == len(parameters)


@pytest.mark.slow
def test_the_published_size(release: Any, tmp_path: Path) -> None:
    """116 million random numbers at the published shapes, in ten pieces."""
    shapes = release.shapes(512, 40478, 768, 12)
    assert len(shapes) == 146 and sum(map(np.prod, shapes.values())) == 116_534_784
    parameters = release.random_parameters(shapes)
    try:
        done = convert(release.write(tmp_path / "in", parameters), tmp_path / "out")
    except CheckpointError as error:
        if "GB free" in str(error):
            pytest.skip(str(error))
        raise
    assert done.size > 466_139_136
    model = OpenAIGPTLMHeadModel.from_pretrained(tmp_path / "out")
    assert model.num_parameters() == 116_534_784
    assert (model.config.n_head, model.config.n_layer, model.config.vocab_size) == (12, 12, 40478)
    ids = [17, 40477, 0, 256, 9000]
    np.testing.assert_allclose(
        scores(tmp_path / "out", ids), release.forward(parameters, ids, heads=12), rtol=1e-3, atol=2e-3
    )
