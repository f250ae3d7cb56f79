"""The loop: it learns, it can be killed, and what it writes loads."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from quintet.auto import AutoModelForCausalLM
from quintet.cli.main import main
from quintet.errors import TrainingError
from quintet.models.gpt2 import GPT2LMHeadModel, tiny
from quintet.tokenizers import AutoTokenizer
from quintet.training.arguments import TrainingArguments
from quintet.training.report import plot_run, read_log
from quintet.training.run import train
from quintet.training.state import find_last, load_state, replace_folder
from quintet.training.trainer import evaluate

TIMES = ("seconds", "tokens_per_second", "eval_seconds")


def records(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k not in TIMES} for r in read_log(run)]


def weights(run: Path) -> bytes:
    return (run / "last" / "weights.safetensors").read_bytes()


def test_it_learns_and_its_model_loads(options: dict[str, Any], book: dict[str, Path]) -> None:
    summary = train(TrainingArguments(**{**options, "max_steps": 40, "save_dtype": "float16"}))
    log = read_log(Path(options["output_dir"]))
    losses = [r["loss"] for r in log if "loss" in r]
    assert losses[-1] < losses[0] - 0.5
    folder = Path(summary["best_model"])
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32  # what it was trained in, whatever the file holds
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    text = book["valid"].read_text()
    ids = np.asarray([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
    loss = evaluate(model, ids, 16)
    assert loss == pytest.approx(summary["best_eval_loss"], abs=5e-3)  # float16 rounds the weights
    bits = loss * (len(ids) - 1) / math.log(2) / len(text.encode())
    assert bits == pytest.approx(summary["bits_per_byte"], abs=5e-3)
    assert Path(summary["plot"]).stat().st_size > 1000


def test_the_same_seed_gives_the_same_run(options: dict[str, Any], tmp_path: Path) -> None:
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(TrainingArguments(**{**options, "output_dir": str(tmp_path / name), "seed": seed}))
        runs.append((records(tmp_path / name), weights(tmp_path / name)))
    assert runs[0] == runs[1]
    assert runs[0][1] != runs[2][1]


@pytest.mark.parametrize("stop_after", [4, 6])
def test_interrupted_anywhere_it_ends_the_same(options: dict[str, Any], tmp_path: Path, stop_after: int) -> None:
    whole = {**options, "output_dir": str(tmp_path / "whole")}
    train(TrainingArguments(**whole))

    def stop(record: dict[str, Any]) -> None:
        if record["step"] == stop_after and "loss" in record:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TrainingArguments(**options), stop)
    train(TrainingArguments(**options))
    run = Path(options["output_dir"])
    assert weights(run) == weights(tmp_path / "whole")
    assert records(run) == records(tmp_path / "whole")
    best = "best/model.safetensors"
    assert (run / best).read_bytes() == (tmp_path / "whole" / best).read_bytes()


def test_sigkill_and_resume(options: dict[str, Any], config_file: Path, tmp_path: Path) -> None:
    train(TrainingArguments(**{**options, "output_dir": str(tmp_path / "whole"), "max_steps": 60, "save_steps": 2}))
    command = [sys.executable, "-m", "quintet", "train", str(config_file), "--max-steps", "60", "--save-steps", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run = Path(options["output_dir"])
    deadline = time.time() + 120
    while not (run / "last" / "trainer_state.json").exists() and time.time() < deadline:
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    found = find_last(run)
    assert found is not None and json.loads((found / "trainer_state.json").read_text())["step"] < 60
    assert main(command[3:]) == 0
    assert weights(run) == weights(tmp_path / "whole")
    assert records(run) == records(tmp_path / "whole")


def test_a_kill_between_the_two_renames(tmp_path: Path) -> None:
    for name in ("last", "last.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"step": name}))
    (tmp_path / "last").rename(tmp_path / "last.old")  # the first rename of replace_folder, and no more
    found = find_last(tmp_path)
    assert found == tmp_path / "last"
    assert json.loads((found / "trainer_state.json").read_text())["step"] == "last"
    replace_folder(tmp_path / "last.new", tmp_path / "last")
    assert json.loads((found / "trainer_state.json").read_text())["step"] == "last.new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last"]


def test_accumulation_equals_one_large_batch(options: dict[str, Any], tmp_path: Path) -> None:
    model = {**options["model"], "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = []
    for rows, parts in ((8, 1), (4, 2), (2, 4)):
        run = tmp_path / f"{rows}"
        change = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": parts, "output_dir": str(run)}
        train(TrainingArguments(**{**options, **change, "model": model, "adam_epsilon": 1e-3}))
        ends.append(records(run)[-1]["eval_loss"])
    assert ends[0] == pytest.approx(ends[1], abs=1e-5)
    assert ends[0] == pytest.approx(ends[2], abs=1e-5)


def test_gradients_are_clipped(options: dict[str, Any], tmp_path: Path) -> None:
    free = tmp_path / "free"
    one = {**options, "max_steps": 1, "warmup_steps": 0}
    train(TrainingArguments(**{**one, "output_dir": str(free), "max_grad_norm": 0.0}))
    train(TrainingArguments(**{**one, "max_grad_norm": 1e-9}))
    # Next to no gradient leaves next to no step: AdamW divides by it again, but its epsilon is larger.
    clipped = Path(options["output_dir"])
    assert weights(clipped) != weights(free)
    assert records(clipped)[0]["grad_norm"] == pytest.approx(records(free)[0]["grad_norm"])  # the norm before clipping


def test_fine_tuning_goes_on_from_a_model(options: dict[str, Any], tmp_path: Path) -> None:
    first = train(TrainingArguments(**{**options, "max_steps": 40}))
    change = {"model": {}, "init_from": first["best_model"], "output_dir": str(tmp_path / "tuned"), "max_steps": 2}
    second = train(TrainingArguments(**{**options, **change, "learning_rate": 1e-5, "warmup_steps": 0}))
    assert second["best_eval_loss"] == pytest.approx(first["best_eval_loss"], abs=0.05)


def test_gradient_checkpointing_and_bf16_train(options: dict[str, Any], tmp_path: Path) -> None:
    plain = train(TrainingArguments(**options))
    for change, tolerance in (({"gradient_checkpointing": True}, 1e-5), ({"bf16": True}, 0.05)):
        other = train(TrainingArguments(**{**options, **change, "output_dir": str(tmp_path / str(tolerance))}))
        assert other["best_eval_loss"] == pytest.approx(plain["best_eval_loss"], abs=tolerance)


def test_a_run_that_explodes_keeps_its_checkpoint(options: dict[str, Any]) -> None:
    train(TrainingArguments(**{**options, "max_steps": 4}))
    before = weights(Path(options["output_dir"]))
    with pytest.raises(TrainingError, match="lower learning_rate"):
        train(TrainingArguments(**{**options, "learning_rate": 1e30, "max_grad_norm": 0.0, "warmup_steps": 0}))
    assert weights(Path(options["output_dir"])) == before


def test_refusals(options: dict[str, Any], tmp_path: Path) -> None:
    train(TrainingArguments(**{**options, "max_steps": 4}))
    with pytest.raises(TrainingError, match="was begun with seed=0 and is asked to go on with 5"):
        train(TrainingArguments(**{**options, "seed": 5}))
    with pytest.raises(TrainingError, match="of a model with other weights"):
        train(TrainingArguments(**{**options, "model": {**options["model"], "n_embd": 16}}))
    with pytest.raises(TrainingError, match="holds a run already"):
        train(TrainingArguments(**{**options, "resume": False}))
    fresh = {**options, "output_dir": str(tmp_path / "fresh")}
    with pytest.raises(TrainingError, match="only 32 positions"):
        train(TrainingArguments(**{**fresh, "block_size": 64}))
    with pytest.raises(TrainingError, match="the tokenizer has 300 tokens and the model only 20"):
        train(TrainingArguments(**{**fresh, "model": {**options["model"], "vocab_size": 20}}))
    with pytest.raises(ValueError, match="n_embedd.*Did you mean 'n_embd'"):
        train(TrainingArguments(**{**fresh, "model": {**options["model"], "n_embedd": 20}}))
    assert not (tmp_path / "fresh").exists()  # nothing is written before everything fits


def test_evaluate_is_the_mean_over_the_text() -> None:
    model = GPT2LMHeadModel(tiny(n_positions=64)).train()
    tokens = np.random.default_rng(0).integers(0, 99, 50)
    ids = torch.from_numpy(tokens)[None]
    one = model.eval()(input_ids=ids, labels=ids).loss.item()
    model.train()
    assert evaluate(model, tokens, 64) == pytest.approx(one, abs=1e-5)
    assert model.training


def test_state_of_another_optimizer_is_restored(options: dict[str, Any]) -> None:
    train(TrainingArguments(**options))
    run = Path(options["output_dir"])
    model = AutoModelForCausalLM.from_pretrained(run / "best", dtype="float32")
    optimizer = torch.optim.AdamW(model.parameters())
    state = load_state(run / "last", model, optimizer)
    assert state["step"] == 12
    assert len(optimizer.state) == len(list(model.parameters()))
    assert all(set(values) == {"step", "exp_avg", "exp_avg_sq"} for values in optimizer.state.values())
    assert all(int(values["step"]) == 12 for values in optimizer.state.values())


def test_plot_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not the folder of a training run"):
        plot_run(tmp_path)
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(TrainingError, match="no training step yet"):
        plot_run(tmp_path)
