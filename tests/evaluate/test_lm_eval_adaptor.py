"""The adaptor in lm-eval itself (the extra `eval`), and what is said where it is not installed."""

from __future__ import annotations

import importlib
import json
import math
import sys
from types import SimpleNamespace

import pytest

from quintet import AutoModelForCausalLM, AutoTokenizer
from quintet.errors import InputError
from quintet.evaluate import evaluate_lambada, evaluate_perplexity, read_records

TEXT = "The cat went out. The old woman took her lantern, and went into the forest to look for it. " * 4


def test_what_is_said_without_lm_eval(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "quintet.integrations.lm_eval", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"needs lm-eval.*pip install 'quintet\[eval\]'"):
        importlib.import_module("quintet.integrations.lm_eval")


@pytest.fixture(scope="module")
def adaptor():
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'quintet[eval]'")
    return importlib.import_module("quintet.integrations.lm_eval").QuintetLM


@pytest.fixture(scope="module")
def tiny(adaptor, tiny_gpt2):
    return adaptor(tiny_gpt2, device="cpu", batch_size=3)


def asked(*arguments):
    return SimpleNamespace(args=arguments)


def test_lambada_as_lm_eval_runs_it(adaptor, data_dir, tmp_path, monkeypatch):
    """The task lambada_openai of lm-eval, on a file, against `quintet eval`: the bundled model, to 1e-4."""
    file = tmp_path / "passages.jsonl"
    passages = data_dir / "lambada_test.jsonl"
    if not passages.is_file():
        pytest.skip(f"no passages: {passages} is not there")
    file.write_text("".join(passages.read_text(encoding="utf-8").splitlines(keepends=True)[:60]), encoding="utf-8")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import lm_eval

    task = {
        "task": "lambada_file",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path / "cache")},
        "output_type": "loglikelihood",
        "test_split": "test",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    }
    model = adaptor("storyteller", device="cpu")
    theirs = lm_eval.simple_evaluate(model=model, tasks=[task], bootstrap_iters=0)["results"]["lambada_file"]
    ours = evaluate_lambada(model.model, model.tokenizer, read_records(file))
    assert theirs["perplexity,none"] == pytest.approx(ours.perplexity, rel=1e-4)
    assert theirs["acc,none"] == pytest.approx(ours.accuracy, abs=1e-9)


def test_rolling_is_the_perplexity_of_whole_strides(tiny):
    totals = tiny.loglikelihood_rolling([asked(TEXT), asked("The cat")], disable_tqdm=True)
    for total, text in zip(totals, (TEXT, "The cat"), strict=True):
        wanted = evaluate_perplexity(tiny.model, tiny.tokenizer, text, stride=128)
        assert total == pytest.approx(-wanted.nats, rel=1e-6)


def test_loglikelihood_of_an_empty_context(tiny):
    (answer,) = tiny.loglikelihood([asked("", "The cat went")], disable_tqdm=True)
    wanted = evaluate_perplexity(tiny.model, tiny.tokenizer, "The cat went")
    assert answer[0] == pytest.approx(-wanted.nats, rel=1e-6) and answer[1] in (True, False)


def test_generate_until(tiny):
    contexts = ["The cat", "The old woman took her lantern, and", "Once"]
    requests = [asked(context, {"until": ["zzz"], "max_gen_toks": 6, "do_sample": False}) for context in contexts]
    requests.append(asked("The cat", {"max_gen_toks": 3, "temperature": 0.0}))
    answers = tiny.generate_until(requests, disable_tqdm=True)
    for context, answer in zip(contexts, answers, strict=False):
        ids = tiny.tokenizer(context, return_tensors="pt")["input_ids"]
        output = tiny.model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert answer == tiny.tokenizer.decode(output, skip_special_tokens=True)
    assert answers[0].startswith(answers[3])
    stop = answers[1][2:4]
    (cut,) = tiny.generate_until([asked(contexts[1], {"until": stop, "max_gen_toks": 6})], disable_tqdm=True)
    assert cut == answers[1][: answers[1].index(stop)]


def test_long_contexts_leave_room_for_what_is_written(tiny):
    (answer,) = tiny.generate_until([asked(TEXT * 9, {"max_gen_toks": 5})], disable_tqdm=True)
    assert isinstance(answer, str)
    with pytest.raises(InputError, match="128 new tokens are wanted, but the model has room for 128"):
        tiny.generate_until([asked("The cat", {"max_gen_toks": 128})], disable_tqdm=True)


def test_answers_go_into_the_cache(tiny, monkeypatch):
    kept = []
    hook = SimpleNamespace(add_partial=lambda name, request, answer: kept.append((name, json.dumps(request))))
    monkeypatch.setattr(tiny, "cache_hook", hook)
    tiny.loglikelihood([asked("The", " cat")], disable_tqdm=True)
    tiny.loglikelihood_rolling([asked("The cat")], disable_tqdm=True)
    tiny.generate_until([asked("The cat", {"max_gen_toks": 1})], disable_tqdm=True)
    assert [name for name, _ in kept] == ["loglikelihood", "loglikelihood_rolling", "generate_until"]


def test_by_name_and_with_a_model_of_ones_own(adaptor, tiny, tiny_gpt2):
    from lm_eval.api.registry import get_model

    assert get_model("quintet") is adaptor
    named = adaptor.create_from_arg_string(f"pretrained={tiny_gpt2}", {"batch_size": "auto", "device": "cpu"})
    assert (named.batch_size, named.max_length) == (8, 128)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_gpt2), AutoTokenizer.from_pretrained(tiny_gpt2)
    own = adaptor(model, tokenizer=tokenizer)
    pair = asked("The cat", " went")
    assert own.loglikelihood([pair], disable_tqdm=True) == tiny.loglikelihood([pair], disable_tqdm=True)
    assert math.isfinite(own.loglikelihood_rolling([asked("The cat")], disable_tqdm=True)[0])
    with pytest.raises(InputError, match="pretrained is a model, so its tokenizer is needed too"):
        adaptor(model)


@pytest.mark.parametrize("size", [0, "many", -3])
def test_batch_sizes(adaptor, tiny_gpt2, size):
    with pytest.raises(InputError, match=f"batch_size is {size!r}, but must be a whole number"):
        adaptor(tiny_gpt2, batch_size=size)
