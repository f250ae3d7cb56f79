"""Every benchmark runs with tiny sizes and prints JSON lines; the report makes tables; the n-gram model is right."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from importlib import util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = ("--model-shape", "tiny", "--rounds", "0", "--threads", "1")
PEERS = {"quintet", "transformers"}


def load(name: str) -> ModuleType:
    spec = util.spec_from_file_location(f"quintet_benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(FOLDER))  # as for a script that is run; not for longer, as other packages have these names
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def run(script: str, *options: str, env: dict[str, str] | None = None) -> list[dict]:
    done = subprocess.run(
        [sys.executable, str(FOLDER / script), *options],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    for record in records:
        assert {"cpu", "cores", "threads", "torch", "commit", "load"} <= set(record["machine"])
        assert record["command"].startswith(f"python benchmarks/{script}")
    return records


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def results(work_dir: str) -> list[dict]:
    """One of every comparison."""
    pytest.importorskip("transformers")
    where = (*TINY, "--work-dir", work_dir, "--dtypes", "fp32")
    return [
        *run("decode.py", *where, "--batches", "1,2", "--tokens", "4", "--prompt", "5"),
        *run("prefill.py", *where, "--tokens", "16"),
        *run("load.py", *where),
        *run("memory.py", *where, "--tokens", "3"),
    ]


def test_comparisons_print_both_peers(results: list[dict]) -> None:
    assert [r["benchmark"] for r in results] == ["decode", "decode", "prefill", "load", "memory"]
    for record in results:
        field = {"decode": "tok_s", "prefill": "tok_s", "load": "seconds", "memory": "peak_rss_mib"}[
            record["benchmark"]
        ]
        assert set(record[field]) == PEERS
        assert all(stat["median"] > 0 for stat in record[field].values())
        assert record["ratio"] > 0


def test_decode_gives_the_same_tokens(results: list[dict]) -> None:
    assert all(r["same_tokens"] for r in results if r["benchmark"] == "decode")


def test_import_time() -> None:
    records = run("import_time.py", "--rounds", "0")
    assert [r["what"] for r in records] == ["import quintet", "quintet --help", "import torch", "import transformers"]


def test_cache_and_micro() -> None:
    assert run("cache.py", "--rounds", "1", "--lengths", "8", "--steps", "2", "--threads", "1")[0]["us"]["slab"]
    tiny = ("--layers", "c_proj", "--row-counts", "1,8", "--copies", "1", "--seconds", "0", "--threads", "1")
    records = run("micro.py", *tiny, "--dtypes", "fp32,fp16", "--cpu-time")
    assert {r["clock"] for r in records} == {"cpu"}
    assert all(r["us_q10"] > 0 for r in records)


def test_generation(work_dir: str) -> None:
    pytest.importorskip("transformers")
    records = run("generation.py", *TINY, "--work-dir", work_dir, "--tokens", "12", "--prompt", "5")
    assert [r["what"].split(",")[0] for r in records] == [
        "loop beside the model",
        "greedy",
        "4 beams",
        "draws",
        "draws with a generator",
        "32 rows that end one by one",
        "prompt lookup",
    ]
    for record in records:
        assert set(record["speed"]) <= {*PEERS, "without"} and len(record["speed"]) > 1
        assert set(record["ratio"]) == set(record["speed"]) - {"quintet"}
        assert record.get("same_tokens", True)
        assert ("without" in record) == ("without" in record["speed"])
    assert sum("same_tokens" in record for record in records) == 5
    text = load("report").table("generation", records)
    assert "| 4 beams, tokens/s | 1 |" in text and "plain greedy |" in text


def test_tokenization(data_dir: Path) -> None:
    pytest.importorskip("transformers")
    tiny = ("--vocabularies", "gpt2", "--rounds", "1", "--characters", "4000", "--threads", "1")
    records = run(
        "tokenization.py", *tiny, "--peers", "quintet,transformers,tokenizers", env={"QUINTET_DATA": str(data_dir)}
    )
    names = ["load", "one text", "short texts", "batch", "decode", "decode one id"]
    assert [r["what"] for r in records] == names
    for record in records:
        assert set(record["speed"]) == {"quintet", "transformers", "tokenizers"}
        assert all(stat["median"] > 0 for stat in record["speed"].values())
        assert set(record["ratio"]) == {"transformers", "tokenizers"}
    text = load("report").table("tokenizers", records)
    assert "| gpt2 | decode one id, calls/s |" in text


def test_tokenization_without_texts(tmp_path: Path) -> None:
    assert run("tokenization.py", env={"QUINTET_DATA": str(tmp_path / "none")}) == []


def test_baselines(tiny_gpt2: Path, tmp_path: Path) -> None:
    train, valid = tmp_path / "train.txt", tmp_path / "valid.txt"
    train.write_text("The old woman took her lantern and went out. " * 60, encoding="utf-8")
    valid.write_text("The old woman went into the forest. " * 20, encoding="utf-8")
    texts = ("--train", str(train), "--valid", str(valid), "--threads", "1")
    records = run("storyteller_baselines.py", "--model", str(tiny_gpt2), *texts)
    assert [r["what"].split()[0] for r in records] == ["xz", "xz", "modified", f"{tiny_gpt2.name},"]
    assert records[1]["bpb"] < records[0]["bpb"]  # what the training text has need not be written again
    assert all(0 < r["bpb"] < 20 for r in records)


def test_baselines_without_texts(tmp_path: Path) -> None:
    assert run("storyteller_baselines.py", env={"QUINTET_DATA": str(tmp_path / "none")}) == []


def test_families_in_processes_of_their_own(tmp_path: Path) -> None:
    sizes = ("--tokens", "4", "--long", "32", "--rounds", "0", "--threads", "1", "--work-dir", str(tmp_path))
    (record,) = run("families.py", "--models", "tiny-gpt-oss", "--dtypes", "mxfp4", *sizes)
    assert record["model"] == "tiny-gpt-oss" and record["dtype"] == "mxfp4" and "ratio" not in record
    for name in ("load_s", "decode_tok_s", "prefill_tok_s", "decode_peak_mib", "peak_mib"):
        assert list(record[name]) == ["quintet"] and record[name]["quintet"]["median"] > 0
    assert 0 < record["file_mib"] < 1


def test_quantization(data_dir: Path) -> None:
    sizes = ("--tokens", "512", "--row", "8", "--calibration", "512", "--threads", "1")
    env = {"QUINTET_DATA": str(data_dir)}
    records = run("quantization.py", "--models", "storyteller,tiny", "--formats", "128", *sizes, env=env)
    assert sum("act8" in record["format"] for record in records) == len(records) / 2 == 5
    for record in records:
        teller, tiny = record["models"]["storyteller"], record["models"].get("tiny")
        bits = 8 if record["format"].startswith("int8") else 4
        assert bits < teller["bits_per_number"] < bits + 0.2
        assert (tiny is None) == ("calibrated" in record["format"]) and (tiny is None or 0 < tiny["logits_error"] < 0.5)
        assert teller["tokens"] == 511 and teller["perplexity"] > 1 and 3e6 < teller["file_bytes"] < 7e6
        assert 0 < teller["divergence_nats"] < 0.1
    text = load("report").table("quantization", records)
    assert f"| int8, groups of 128 | 8.12 | {records[0]['models']['storyteller']['file_bytes'] / 1e6:.2f} |" in text


def test_quantization_by_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setitem(sys.modules, "kernels", None)  # a package that bitsandbytes looks for, not our script
    module = load("quantization")
    judge = module.Blocks("tiny", SimpleNamespace(row=8))
    errors = {row.name: judge.measure(row)["logits_error"] for row in module.formats() if "bitsandb" in row.name}
    names = ["nf4", "fp4", "nf4, scales packed too", "LLM.int8()"]
    assert list(errors) == [f"{name} (bitsandbytes)" for name in names]
    nf4, fp4, twice, eight = errors.values()
    assert 0 < eight < nf4 < fp4 and 0 < twice < fp4 and twice != nf4


def test_quantization_without_texts(tmp_path: Path) -> None:
    options = ("--models", "storyteller,tiny", "--formats", "mxfp4, the rest int8, act8", "--row", "8")
    (record,) = run("quantization.py", *options, env={"QUINTET_DATA": str(tmp_path / "none")})
    assert list(record["models"]) == ["tiny"] and 0 < record["models"]["tiny"]["logits_error"] < 0.3


def test_report_fills_the_page_and_checks_it(results: list[dict], tmp_path: Path) -> None:
    lines, page = tmp_path / "results.jsonl", tmp_path / "page.md"
    with_tiles = {**results[0], "ratio": 98.0, "machine": {**results[0]["machine"], "level": "amx"}}
    results = [{**result, "machine": {**result["machine"], "level": "avx512"}} for result in results]
    older = {**results[0], "ratio": 99.0}
    lines.write_text("".join(json.dumps(r) + "\n" for r in [older, *results, with_tiles]), encoding="utf-8")
    page.write_text("# A\n<!-- table: decode -->\n<!-- end -->\n<!-- table: micro -->\nold\n<!-- end -->\n", "utf-8")

    def report(*options: str) -> int:
        command = [sys.executable, str(FOLDER / "report.py"), "--results", str(lines), "--page", str(page), *options]
        return subprocess.run(command, capture_output=True).returncode

    assert report("--check") == 1
    assert report() == 0
    assert report("--check") == 0
    text = page.read_text(encoding="utf-8")
    assert f"**{results[0]['ratio']:.2f}**" in text and "99.00" not in text  # the newest of each kind
    assert results[0]["command"] in text and results[0]["machine"]["cpu"] in text
    assert "Not measured yet." in text and "old" not in text


def test_every_table_has_a_place_on_the_page_and_the_page_is_current() -> None:
    report = load("report")
    page = (report.DOCS / "benchmarks.md").read_text(encoding="utf-8")
    others = (report.DOCS / "quantization.md").read_text(encoding="utf-8")
    assert all(f"<!-- table: {name} -->" in page + others for name in report.KEYS)
    stored = report.DOCS / "benchmarks.jsonl"
    lines = stored.read_text(encoding="utf-8").splitlines() if stored.exists() else []
    assert report.fill(page, report.newest(lines)) == page, "run python benchmarks/report.py"


def test_no_table_of_the_page_is_typed_by_hand() -> None:
    report = load("report")
    page = (report.DOCS / "benchmarks.md").read_text(encoding="utf-8")
    assert "| --- |" in page
    assert "| --- |" not in re.sub(r"<!-- table: \w+ -->\n.*?<!-- end -->", "", page, flags=re.DOTALL)


def test_what_is_said_beside_llama_is_made_of_the_results() -> None:
    report = load("report")

    def record(model: str, prompt: float, **others: float) -> dict:
        made = {"decode_s": 1.0, "batch_s": 2.0, "first_token_s": 3.0, "peak_mb": 4.0, **others}
        fields = {name: {"quintet-auto": 10.0, "llama-on": 10 * x, "ratio": x} for name, x in made.items()}
        return {"model": model, **fields, "prompt_s": {"quintet-auto": 1.0, "llama-on": prompt, "ratio": prompt}}

    words = report.WORDS["beside_llama_words"][1]
    assert words([]) == "Not measured yet."
    small = [record("gpt2", 1.5), record("gpt2", 0.5, decode_s=0.25)]
    said = words(small)
    assert "read 0.50 to 1.50 times" in said and "decoded 0.25 to 1.00\n" in said and "8 texts 2.00 times" in said
    assert "gpt-oss" not in said
    said = words([*small, record("gpt-oss-20b", 1.0), record("gpt-oss-20b", 1.0, first_token_s=5.0)])
    assert "takes 25.0 % of llama.cpp's memory" in said and "token after 10.0 s, not 30.0 to 50.0." in said
    page = report.fill("a\n<!-- table: beside_llama_words -->\nold\n<!-- end -->\n", {"beside_llama": small})
    assert page == f"a\n<!-- table: beside_llama_words -->\n{words(small)}\n<!-- end -->\n"
    readme = (report.DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert "<!-- table: beside_llama_words -->" in readme, "the test of pages compares it with the results"


def test_goals_beside_llama() -> None:
    report, goals = load("report"), load("goals")
    said = report.WORDS["beside_llama_goals"][1]
    assert "not measured" in said([]) and f"\n0 of {sum(len(one.values) for one in goals.GOALS)} are" in said([])

    def record(style: str, **fields: tuple[float, float, float]) -> dict:
        values = {
            name: {"quintet-auto": a, "llama-on": b, "ratio": b / a, "of_limit": c}
            for name, (a, b, c) in fields.items()
        }
        return {"model": "gpt2", "format": style, **values}

    def all_of(style: str, decode: float) -> dict:
        return record(
            style, decode_s=(1, decode, 0.5), batch_s=(2, 3, 0.5), prompt_s=(1, 1.4, 0.5), first_token_s=(2.004, 1, 1)
        )

    lines = said([all_of("bf16", 0.996), all_of("int8", 1.29), all_of("int4", 1.3)]).splitlines()
    of_gpt2 = [line for line in lines if line.startswith("| gpt2 |")]
    assert of_gpt2[0].endswith("| 1.00, 1.30, 1.30 | **1.00**, 1.29, **1.30** |")
    assert of_gpt2[1].endswith("| 1.50 | 1.40 |") and of_gpt2[2].endswith("| 1.50 | **1.50** |")
    assert of_gpt2[3].endswith("| **2.00 s**, **2.00 s**, **2.00 s** |")
    assert lines[-1].startswith("6 of ")
    assert "| gpt2 | 8 texts, best formats | times llama.cpp's | all | 1.50 | not measured |" in said(
        [all_of("bf16", 1)]
    )


def test_alternate_turns_the_order_around_and_drops_the_first_round() -> None:
    common = load("common")
    order: list[str] = []
    runs = {name: lambda name=name: float(order.append(name) or len(order)) for name in ("a", "b")}
    values = common.alternate(runs, 2)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert values == {"a": [3.0, 6.0], "b": [4.0, 5.0]}
    assert common.ratio(values, "a", "b") == pytest.approx((3 / 4 + 6 / 5) / 2)


# --- the n-gram model ---------------------------------------------------------------------------------------------


def slow_probability(text: list[int], vocabulary: int, order: int, taken, context: tuple[int, ...], word: int) -> float:
    """Modified Kneser-Ney with dictionaries, straight from its definition."""

    def counts(n: int) -> Counter:
        grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
        if n == order:
            return Counter(grams)
        longer = {tuple(text[i : i + n + 1]) for i in range(len(text) - n)}
        return Counter({gram: sum(1 for one in longer if one[1:] == gram) for gram in set(grams)})

    p = 1 / vocabulary
    for n in range(1, order + 1):
        if n - 1 > len(context):
            break
        before = tuple(context[len(context) - (n - 1) :])
        table = counts(n)
        steps = taken(np.array(list(table.values())))
        after = defaultdict(int, {g[-1]: c for g, c in table.items() if g[:-1] == before and c})
        total = sum(after.values())
        if total:
            spare = sum(steps[min(c, 3)] for c in after.values())
            p = (after[word] - steps[min(after[word], 3)] + spare * p) / total
    return p


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_kneser_ney_equals_the_definition_and_sums_to_one(order: int) -> None:
    module = load("kneser_ney")
    rng = np.random.default_rng(order)
    vocabulary = 6
    text = np.minimum(rng.geometric(0.4, size=90) - 1, vocabulary - 2)  # the last id never occurs
    model = module.KneserNey(text, vocabulary, order)
    seen = [tuple(text[i : i + order - 1].tolist()) for i in (0, 17, 60)]
    contexts = [*seen, *(tuple(rng.integers(vocabulary, size=order - 1).tolist()) for _ in range(4))]
    for context in contexts:
        rows = np.tile(np.array(context, dtype=np.int64).reshape(1, order - 1), (vocabulary, 1))
        got = model.probabilities(rows, np.arange(vocabulary))
        wanted = [
            slow_probability(text.tolist(), vocabulary, order, module.discounts, context, w) for w in range(vocabulary)
        ]
        assert got.sum() == pytest.approx(1, abs=1e-12)
        assert (got > 0).all()
        np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_kneser_ney_text_starts_with_short_contexts() -> None:
    module = load("kneser_ney")
    rng = np.random.default_rng(0)
    text, other = rng.integers(4, size=60), rng.integers(4, size=9)
    model = module.KneserNey(text, 4, 3)
    wanted = -sum(
        math.log(
            slow_probability(text.tolist(), 4, 3, module.discounts, tuple(other[max(0, i - 2) : i].tolist()), int(w))
        )
        for i, w in enumerate(other)
    )
    assert model.nats(other) == pytest.approx(wanted, rel=1e-12)


def test_kneser_ney_refuses_a_text_that_is_too_short() -> None:
    with pytest.raises(ValueError, match="the text has 3 tokens, but an order of 5 needs at least 5"):
        load("kneser_ney").KneserNey(np.arange(3), 10, 5)


def test_model_nats_counts_every_token_once(tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from quintet.auto import AutoModelForCausalLM

    monkeypatch.syspath_prepend(str(FOLDER))
    module = load("storyteller_baselines")
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2).eval()
    tokens = np.random.default_rng(0).integers(model.config.vocab_size, size=53)
    ids = torch.tensor([[model.config.bos_token_id, *tokens.tolist()]])
    with torch.no_grad():
        whole = float(model(input_ids=ids, labels=ids).loss) * len(tokens)
        wanted = 0.0
        for i in range(1, 54):  # with windows of 16 moving by 1, token i sees at most the 15 before it
            part = ids[:, max(0, i - 15) : i + 1]
            wanted -= float(torch.log_softmax(model(input_ids=part).logits[0, -2], -1)[part[0, -1]])
    assert module.model_nats(model, tokens, window=64, stride=32) == pytest.approx(whole, rel=1e-5)
    assert module.model_nats(model, tokens, window=16, stride=1) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md", "docs/quantization.md"])
def test_the_pages_print_what_was_measured(page: str) -> None:
    command = [sys.executable, str(FOLDER / "report.py"), "--page", str(FOLDER.parent / page), "--check"]
    assert subprocess.run(command).returncode == 0


def test_gpt_oss_20b(tmp_path: Path) -> None:
    tiny = ("--model-shape", "tiny", "--threads", "1", "--tokens", "3", "--folder", str(tmp_path / "made"))
    for _ in range(2):  # the second time the checkpoint is there
        [record] = run("gpt_oss_20b.py", *tiny)
        assert record["benchmark"] == "gpt_oss_20b" and record["model"] == "tiny"
        assert record["ready_s"] > 0 and record["token_s"] > 0 and record["prompt_s"] > 0
        assert record["peak_gb"] >= max(record["peak_anonymous_gb"], record["peak_file_gb"]) > 0
    assert "made_s" not in record
    from quintet import GptOssForCausalLM
    from quintet.quant.packed_experts import PackedExperts

    model = GptOssForCausalLM.from_pretrained(tmp_path / "made")
    assert type(model.model.layers[0].mlp.experts) is PackedExperts


def test_gpt_oss_20b_says_what_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sys.path.insert(0, str(FOLDER))
    try:
        module = load("gpt_oss_20b")
    finally:
        sys.path.remove(str(FOLDER))
    folder = tmp_path / "not" / "there"
    assert module.shortage(folder, 10**6, there=False) is None
    reason = module.shortage(folder, 10**18, there=False)
    assert str(tmp_path) in reason and "GB free, and the checkpoint takes 1000000000.0" in reason
    assert "of memory are available, and 1000000001.5 are needed" in module.shortage(folder, 10**18, there=True)
    pieces = b"".join(module.pieces(b"abcde", 3, 9))
    assert pieces == b"deabcdeab"


# --- native kernels, and what a token costs as work grows ----------------------------------------------------------


def has_native() -> bool:
    from quintet.kernels.loader import library

    return library() is not None


def test_kernels(work_dir: str) -> None:
    sizes = ("--shape", "tiny", "--seconds", "0", "--rows", "1", "9", "--threads", "1", "--work-dir", work_dir)
    records = run("kernels.py", *sizes)
    linear = ["matvec", "matmul", "int8_linear", "int4_linear", "mxfp4_matvec", "head_topk"]
    beside_torch = ["mxfp4_experts", "attention", "attention_window", "attention_decode", "rms_norm", "layer_norm"]
    operations = [*linear, *beside_torch, "blocks"]
    assert list(dict.fromkeys(r["op"] for r in records)) == operations
    for record in records:
        few = record["op"] != "head_topk" or record["rows"] <= 8
        ways = {"torch", *(["native"] if has_native() and few else [])}
        ways |= set() if record["op"] in beside_torch else {"fused without native"}
        assert set(record["gb_s"]) == set(record["gflop_s"]) == ways
        assert all(speed > 0 for speed in record["gflop_s"].values()) and record["read_gb_s"] > 0
    text = load("report").table("kernels", records)
    assert "| blocks | tiny | bfloat16 | 1 | 1 |" in text and "| GB/s |" in text and "| GFLOPS |" in text


def test_kernels_with_activations_of_8_bits(work_dir: str) -> None:
    sizes = ("--shape", "tiny", "--seconds", "0", "--rows", "2", "--threads", "1", "--work-dir", work_dir)
    records = run("kernels.py", *sizes, "--ops", "int8_linear,int4_linear", "--activations", "int8")
    assert [r["op"] for r in records] == ["int8_linear", "int4_linear"]
    assert "bfloat16, x in int8" in load("report").table("kernels", records)


@pytest.mark.skipif(not has_native(), reason="no native kernels")
def test_speeds_of_both_activations_stand_side_by_side() -> None:
    sizes = ("--shape", "tiny", "--seconds", "0", "--rows", "2", "9", "--threads", "1", "--ops", "int8_linear,matmul")
    records = [one for kind in ("bf16", "int8") for one in run("kernels.py", *sizes, "--activations", kind)]
    rows = [line for line in load("report").activations_table(records).splitlines() if line.startswith("| int8_linear")]
    speeds = [r["gflop_s"]["native"] for r in records if r["op"] == "int8_linear" and r["rows"] == 9]
    assert len(rows) == 1 and rows[0].endswith(f"**{speeds[1] / speeds[0]:.2f}** |")


def test_dispatch(work_dir: str) -> None:
    records = run("dispatch.py", *TINY, "--work-dir", work_dir, "--tokens", "4", "--formats", "fp32,int8")
    assert [r["format"] for r in records] == (["fp32", "int8"] if has_native() else [])
    for record in records:
        assert 0 < record["native_us"]["median"] < record["step_us"]["median"] and record["native_calls"] >= 1
        part = 1 - record["native_us"]["median"] / record["step_us"]["median"]
        assert record["between"]["median"] == pytest.approx(part, abs=0.3)
    assert not records or "| tiny | int8 |" in load("report").table("dispatch", records)


def test_growth_and_its_pictures(work_dir: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    sizes = ("--lengths", "16,512", "--batches", "1,16", "--steps", "2", "--past", "8", "--prompt", "9")
    options = ("--models", "tiny", *sizes, "--rounds", "1", "--threads", "2", "--work-dir", work_dir)
    eight = run("growth.py", *options, "--parts", "context", "--cache", "Int8Cache")
    assert {r["model"] for r in eight} == {"tiny, Int8Cache"}
    records = run("growth.py", *options)
    assert (
        0
        < eight[0]["limit_ms"]["512"] * eight[0]["read_gb_s"]
        < records[0]["limit_ms"]["512"] * records[0]["read_gb_s"]
    )
    kinds = ["growth_context", "growth_batch", "growth_threads"]
    assert [r["benchmark"] for r in records] == [kinds[0], kinds[0], kinds[1], kinds[1], kinds[2]]
    assert [r["threads"] for r in records[:4]] == [1, 2, 1, 2]
    assert list(records[0]["ms"]) == list(records[0]["limit_ms"]) == ["16", "512"]
    assert 0 < records[0]["limit_ms"]["16"] <= records[0]["limit_ms"]["512"] and records[0]["ms"]["512"]["median"] > 0
    assert list(records[2]["tok_s"]) == ["1", "16"] and list(records[4]["prompt_tok_s"]) == ["1", "2"]
    report = load("report")
    assert "| tiny | 2 |" in report.table("growth_context", records[:2])
    assert "| tiny | 1 / 2 |" in report.table("growth_threads", records[4:])
    lines = tmp_path / "results.jsonl"
    lines.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    command = [sys.executable, str(FOLDER / "plots.py"), "--results", str(lines), "--folder", str(tmp_path)]
    drawn = []
    for _ in range(2):
        assert subprocess.run(command, capture_output=True).returncode == 0
        drawn.append({path.name: path.read_bytes() for path in tmp_path.glob("*.svg")})
    assert set(drawn[0]) == {report.PICTURES[kind][0] for kind in kinds}
    assert drawn[0] == drawn[1], "the same figures give the same file"
    assert all(b"<svg" in content for content in drawn[0].values())


def test_growth_refuses_names_that_it_does_not_know() -> None:
    command = [sys.executable, str(FOLDER / "growth.py"), "--models", "gpt9"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "--models gpt9: known are gpt-oss, windows" in done.stderr


def test_lines_that_are_measured_anew_take_the_place_of_older_ones(tmp_path: Path) -> None:
    lines = tmp_path / "results.jsonl"
    lines.write_text('{"benchmark": "a", "n": 1}\n{"benchmark": "b"}\n{"benchmark": "a", "n": 2}\n', encoding="utf-8")
    module = load("run_all")
    module.forget({"a", "c"}, lines)
    assert lines.read_text(encoding="utf-8") == '{"benchmark": "b"}\n'
    module.forget({"a"}, tmp_path / "none.jsonl")


def test_thread_counts() -> None:
    common = load("common")
    counts = {most: common.thread_counts(most) for most in (1, 2, 3, 4, 16, 24)}
    assert counts[1] == [1] and counts[2] == [1, 2] and counts[3] == [1, 2, 3] and counts[4] == [1, 2, 4]
    assert counts[16] == [1, 2, 4, 8, 16] and counts[24] == [1, 2, 4, 8, 16, 24]


# --- beside llama.cpp, which is not here ---------------------------------------------------------------------------


def with_tiny_shapes(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> dict[str, str]:
    """Put small sizes in the place of the published ones; return for each name the family."""
    sizes = {"width": 64, "heads": 4, "layers": 2, "inner": 96, "vocab": 320, "context": 128}
    families = {"gpt2": "gpt2", "pythia-410m": "gpt_neox", "seed-oss-1.5b": "seed_oss", "gpt-oss-20b": "gpt_oss"}
    for name in families:
        shape = {**module.SHAPES[name], **sizes}
        shape |= {"groups": 2, "head": 32} if "head" in shape else {}
        shape |= {"experts": 4, "used": 2} if "experts" in shape else {}
        monkeypatch.setitem(module.SHAPES, name, shape)
    return families


def test_files_for_llama_have_the_tensors_of_the_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from quintet.auto import family_of

    module = load("gguf_files")
    for name, family in with_tiny_shapes(monkeypatch, module).items():
        record, s = family_of(family), module.SHAPES[name]
        if family == "gpt2":
            fields = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 96, "n_positions": 128}
        else:
            fields = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
            given = {"num_key_value_heads": "groups", "head_dim": "head", "num_local_experts": "experts"}
            fields |= {field: s[key] for field, key in given.items() if key in s}
        model = record.classes["causal-lm"](record.tiny(**fields, vocab_size=320))
        for matrix in module.FORMATS:
            path = tmp_path / f"{name}-{matrix}.gguf"
            module.write(path, name, matrix)
            read = gguf.GGUFReader(path)
            wanted = list(module.tensors(s, matrix))
            found = [(t.name, tuple(t.shape.tolist()[::-1]), t.tensor_type.name.lower()) for t in read.tensors]
            assert found == wanted
            assert sum(int(t.n_elements) for t in read.tensors) == model.num_parameters()
            assert read.fields["general.architecture"].contents() == s["arch"]


LLAMA = """
import os, types
from types import SimpleNamespace as Record
__version__ = "0.0"
done = []
def llama_model_default_params(): return Record()
def llama_context_default_params(): return Record(flash_attn_type=None, kv_unified=True)
def llama_log_callback(function): return function
def llama_log_set(*given): pass
def llama_backend_init(): pass
def llama_synchronize(context): pass
def llama_batch_free(batch): pass
def llama_get_memory(context): return context
def llama_memory_clear(context, data): context.tokens = {}
def llama_model_load_from_file(name, options): return os.path.exists(name)
def llama_init_from_model(model, params):
    assert params.flash_attn_type == 0 and params.kv_unified is False and params.n_threads == 1
    return Record(tokens={}, room=params.n_ctx)
def llama_batch_init(size, embeddings, sequences):
    rows = lambda: [None] * size
    named = [[None] for _ in range(size)]
    return Record(n_tokens=0, token=rows(), pos=rows(), n_seq_id=rows(), seq_id=named, logits=rows())
def llama_decode(context, batch):
    for place, (sequence,) in zip(batch.pos, batch.seq_id):
        before = context.tokens.get(sequence, 0)
        assert place == before, "tokens follow each other"
        context.tokens[sequence] = before + 1
    assert sum(context.tokens.values()) <= context.room
    assert sum(batch.logits) == len({one for (one,) in batch.seq_id}), "the last of each text is scored"
    return 0
"""


def test_llama_is_asked_for_what_quintet_is(tmp_path: Path) -> None:
    """By a library in its place that counts tokens."""
    (tmp_path / "llama_cpp.py").write_text(LLAMA, encoding="utf-8")
    sizes = ["--threads", "1", "--flash", "off", "--prompt", "9", "--past", "4", "--new", "3", "--sequences", "2"]
    command = [sys.executable, str(FOLDER / "llama_peer.py"), str(tmp_path / "llama_cpp.py"), *sizes]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("version") == "0.0"
    assert set(found) == {"load_s", "first_token_s", "prompt_s", "decode_s", "batch_s", "peak_mb"}
    assert all(value > 0 for value in found.values())
    command[2] = str(tmp_path / "none.gguf")
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 1 and "llama.cpp does not read" in done.stderr


PEER = """#!{python}
import json, sys
if sys.argv[1].endswith("gguf_files.py"):
    open(sys.argv[sys.argv.index("--out") + 1], "w").close()
else:
    flash = sys.argv[sys.argv.index("--flash") + 1]
    seconds = {{"on": 4.0, "off": 2.0}}[flash]
    print(json.dumps({{name: seconds for name in {rows!r}}}))
"""


def test_a_comparison_with_llama(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Quintet in a process of its own, a program that knows its answers in the place of llama.cpp."""
    monkeypatch.syspath_prepend(str(FOLDER))
    module = load("beside_llama")
    plain = load("common").checkpoint(tmp_path, "tiny")
    monkeypatch.setattr(module.common, "checkpoint", lambda work_dir, name: plain)
    made = module.checkpoint(tmp_path, "gpt2", "int8")
    from quintet.auto import AutoModelForCausalLM

    model, run_child = AutoModelForCausalLM.from_pretrained(made), module.common.run_child
    size, batch = module.common.bytes_per_step(model, 1, 4), module.common.bytes_per_step(model, 2, 4)
    cache = 2 * 2 * model.config.num_hidden_layers * model.config.hidden_size  # bytes of a token's keys and values
    assert batch - size == size - module.common.bytes_per_step(model) == 4 * cache, "2 texts of 4 tokens"
    ready = (0.0, {"folder": str(made), "bytes": size, "batch_bytes": batch})  # saves a process
    monkeypatch.setattr(
        module.common, "run_child", lambda argv, *given: ready if argv[1] == "--make" else run_child(argv, *given)
    )
    peer = tmp_path / "python"
    peer.write_text(PEER.format(python=sys.executable, rows=module.ROWS), encoding="utf-8")
    peer.chmod(0o755)
    options = ["--rounds", "0", "--prompt", "9", "--past", "4", "--new", "2", "--sequences", "2", "--threads", "1"]
    options += ["--models", "gpt2", "--formats", "int8", "--work-dir", str(tmp_path), "--llama-python", str(peer)]
    monkeypatch.setattr(sys, "argv", ["beside_llama.py", *options])
    module.main()
    record = json.loads(capfd.readouterr().out)
    assert (record["benchmark"], record["model"], record["peer"]) == ("beside_llama", "gpt2", "llama.cpp q8_0")
    assert 0 < record["bytes_per_step"] == size < sum(path.stat().st_size for path in made.iterdir())
    for row in module.ROWS:
        found = record[row]
        assert found["llama-on"] == 4 and found["llama-off"] == 2 and found["quintet-auto"] > 0
        low, high = (2 / max(found["quintet-auto"] + off, 1e-6) for off in (1e-5, -1e-5))  # it was rounded
        assert low - 1e-3 <= found["ratio"] <= high + 1e-3, "the better of the two counts"
    for row in ("decode_s", "batch_s"):
        assert 0 <= record[row]["of_limit"] < 1
    assert set(record["read_gb_s"]) == {"quintet-auto", "llama-on", "llama-off"}
    assert "| gpt2 | int8 |" in load("report").table("beside_llama", [record])
