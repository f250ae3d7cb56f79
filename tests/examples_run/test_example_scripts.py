"""The scripts in examples/ run, on a slice of the data or on a few made-up lines, and say what is missing."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
GOOD = ["a wonderful film with a great cast and a moving story", "great fun from the first scene , wonderful"]
BAD = ["a dull film , a waste of time with a terrible plot", "terrible acting and a dull story , a waste of money"]


@pytest.fixture
def script(monkeypatch):
    """Loads a script as `python examples/<name>.py` would."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    for name in ("example_data", "movie_reviews", "lambada"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def passages(tmp_path):
    path = tmp_path / "lambada_test.jsonl"
    texts = ["the old woman took her lantern", "Once upon a time there was a little house"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "movie_reviews.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for folder, texts in (("neg", BAD), ("pos", GOOD)):
            for number in range(20):
                archive.writestr(f"movie_reviews/{folder}/cv{number:03}.txt", f"{texts[number % 2]} no{number}\n")
    return path


def test_lambada(script, passages, tiny_gpt2, capsys):
    result = script("lambada").main(["--model", str(tiny_gpt2), "--file", str(passages), "--show", "1"])
    out = capsys.readouterr().out
    assert result["records"] == 2 and result["perplexity"] > 1
    assert f"accuracy {result['accuracy']:.2%}" in out and out.count("wanted: lantern") == 1 and "greedy:" in out


def test_lambada_on_a_slice_of_the_data(script, data_dir, monkeypatch, capsys):
    if not (data_dir / "lambada_test.jsonl").is_file():
        pytest.skip(f"no passages in {data_dir}")
    monkeypatch.setenv("QUINTET_DATA", str(data_dir))
    result = script("lambada").main(["--limit", "8", "--show", "0"])
    assert result["records"] == 8 and math.isfinite(result["perplexity"])
    assert "storyteller on 8 passages" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "file"), [("lambada", "lambada_test.jsonl"), ("movie_reviews", "movie_reviews.zip")])
def test_what_is_said_without_data(script, name, file, tmp_path, monkeypatch):
    module = script(name)
    monkeypatch.setenv("QUINTET_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match=f"no data: .*{file} is not there. Set QUINTET_DATA to the folder that holds"):
        module.main([])
    monkeypatch.delenv("QUINTET_DATA")
    monkeypatch.setattr(module.example_data, "ROOT", tmp_path / "project")
    with pytest.raises(SystemExit, match="no data: .*shared/data/"):
        module.main([])
    with pytest.raises(SystemExit, match="there is no file .*nowhere. Check the path"):
        module.main(["--file", str(tmp_path / "nowhere")])


def tried(script, reviews, model, output):
    argv = ["--model", str(model), "--file", str(reviews), "--output", str(output), "--tokens", "24", "--epochs", "2"]
    return script("movie_reviews").main([*argv, "--threads", "1", "--learning-rate", "1e-3", "--float32"])


def test_movie_reviews(script, reviews, tiny_gpt2, tmp_path, capsys):
    result = tried(script, reviews, tiny_gpt2, tmp_path / "out")
    assert (result["train"], result["valid"], result["held_out"]) == (28, 4, 8)
    ways = {way["name"]: way["test"] for way in result["ways"]}
    assert ways["words, whole review"] == 1  # the words tell
    assert len(ways) == 5 and all(0 <= value <= 1 for value in ways.values())
    assert len(result["losses"]) == 2 * math.ceil(28 / 16) and len(result["valid_by_epoch"]) == 3
    assert json.loads((tmp_path / "out" / "movie_reviews.json").read_text()) == result
    assert "8 held-out reviews of 40" in capsys.readouterr().out
    again = tried(script, reviews, tiny_gpt2, tmp_path / "again")
    assert again["losses"] == result["losses"]
    assert [way["test"] for way in again["ways"]] == [way["test"] for way in result["ways"]]


def test_the_picture_needs_matplotlib_and_the_rest_does_not(script, reviews, tiny_gpt2, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    tried(script, reviews, tiny_gpt2, tmp_path / "out")
    assert "no picture: it needs matplotlib, pip install 'quintet[train]'" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["movie_reviews.json"]


def test_the_picture_is_drawn(script, tmp_path):
    pytest.importorskip("matplotlib")
    ways = [{"name": "words", "test": 0.9}, {"name": "frozen", "test": 0.5}]
    results = {"ways": ways, "held_out": 40, "losses": [0.7, 0.6, 0.5, 0.4], "valid_by_epoch": [0.5, 0.6, 0.7]}
    assert script("movie_reviews").plot(results, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_reviews_that_are_none(script, tmp_path):
    with zipfile.ZipFile(tmp_path / "few.zip", "w") as archive:
        archive.writestr("movie_reviews/neg/1.txt", "bad")
    with pytest.raises(SystemExit, match="holds 1 reviews; at least 20 are needed, in the folders neg/ and pos/"):
        script("movie_reviews").read_reviews(tmp_path / "few.zip", None)


def test_parts_do_not_meet_and_hold_both_labels(script):
    labels = np.array([0, 1] * 50)
    split = script("movie_reviews").split_reviews(labels, seed=3)
    assert [len(part) for part in split] == [70, 10, 20] and set(np.concatenate(split)) == set(range(100))
    assert [int(labels[part].sum()) for part in split] == [35, 5, 10]
    assert (split.test != script("movie_reviews").split_reviews(labels, seed=4).test).any()


def test_words_are_those_of_the_training_part(script):
    features = script("movie_reviews").bag_of_words(["It's good GOOD", "it's bad", "good, new new"], np.array([0, 1]))
    assert features.tolist() == [[1], [1], [0]]  # it's: the only word that two training reviews have


def test_frozen_states_do_not_see_the_padding(script, tiny_gpt2):
    from quintet import GPT2Model

    module = script("movie_reviews")
    model = module_model(tiny_gpt2)
    rows = [[5, 6, 7, 8, 9], [1, 2], [3, 4, 5]]
    last, mean = module.frozen_states(model, rows, 0, batch_size=3)
    for i, row in enumerate(rows):
        alone_last, alone_mean = module.frozen_states(model, [row], 0, batch_size=1)
        np.testing.assert_allclose(last[i], alone_last[0], atol=1e-5)
        np.testing.assert_allclose(mean[i], alone_mean[0], atol=1e-5)
    assert isinstance(model.transformer, GPT2Model)


def module_model(folder):
    from quintet import GPT2ForSequenceClassification

    return GPT2ForSequenceClassification.from_pretrained(folder, num_labels=2, pad_token_id=0)


def test_a_fitted_line_is_the_best_one(script):
    import torch

    x, y = torch.tensor([[1.0], [1.0], [-1.0]]), torch.tensor([1, 0, 0])
    weight, bias = script("movie_reviews").fit_one(x, y, 1e-2, True)
    weight.requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, weight, bias), y)
    (loss + 1e-2 * weight.square().sum()).backward()
    assert float(weight.grad.abs().max()) < 1e-4
