"""The pages of docs/models: their code runs offline, and their tables are true.

A page is named as its family's file. Every name on the hub in its code becomes a small checkpoint of that family, made
here, so that the code runs as it is printed.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import quintet
from quintet.checkpoint.meta import without_memory
from quintet.family import Family
from quintet.tokenizers.trainer import train_bpe

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "models"
PAGES = sorted(path.stem for path in FOLDER.glob("*.md"))
TEXT = "The Pile is a large text. Hello, my dog is cute. Once upon a time there was a house at the edge of a forest.\n"
HUB_NAME = re.compile(r"""["']([\w-]+/[\w.-]+)["']""")
# What every page says, by its headings.
HEADINGS = ["Shapes", "The block", "The checkpoint's names", "What differs from its siblings", "An example"]


def read(page: str) -> str:
    return (FOLDER / f"{page}.md").read_text(encoding="utf-8")


def blocks(page: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w*)\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)


def family_of(page: str) -> Family:
    record: Family = importlib.import_module(f"quintet.models.{page}").FAMILY
    return record


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[str, Family], None]:
    """Makes a folder of that name with a model of random weights and a tokenizer."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 8, encoding="utf-8")

    def make(name: str, family: Family) -> None:
        tokenizer = train_bpe([text], vocab_size=300, output=tmp_path / name, model_max_length=64)
        end = tokenizer.token_to_id("<|endoftext|>")
        config = family.tiny(vocab_size=tokenizer.get_vocab_size(), bos_token_id=end, eos_token_id=end)
        family.classes["causal-lm"](config).save_pretrained(tmp_path / name)

    return make


def test_there_are_pages() -> None:
    assert "gpt_neox" in PAGES


@pytest.mark.parametrize("page", PAGES)
def test_headings_and_languages(page: str) -> None:
    found = re.findall(r"^## (.*)$", read(page), re.MULTILINE)
    assert [heading for heading in HEADINGS if heading not in found] == []
    assert {language for language, _ in blocks(page)} == {"text", "python"}
    assert read(page).count("```") == 2 * len(blocks(page))
    for name in re.findall(r"`(\w+)` \|", read(page)):
        if name.startswith(family_of(page).config.__name__.removesuffix("Config")):
            assert hasattr(quintet, name), name


@pytest.mark.parametrize("page", PAGES)
def test_code_runs(
    page: str, checkpoint: Callable[[str, Family], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = [block for language, block in blocks(page) if language == "python"]
    assert code
    for name in sorted(set(HUB_NAME.findall("\n".join(code)))):
        checkpoint(name, family_of(page))
    namespace: dict[str, Any] = {"__name__": page}
    for block in code:
        exec(compile(block, f"docs/models/{page}.md", "exec"), namespace)


def neox_rows() -> list[list[str]]:
    lines = read("gpt_neox").splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `EleutherAI/")
    ]


def test_neox_shapes() -> None:
    rows = neox_rows()
    assert len(rows) == 9
    for name, *cells in rows:
        layers, hidden, heads, size, vocabulary, parameters = (int(cell.replace(",", "")) for cell in cells)
        config = quintet.GPTNeoXConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
        )
        assert config.head_dim == size, name
        assert vocabulary % 128 == 0
        with without_memory():
            model = quintet.GPTNeoXForCausalLM(config)
        assert model.num_parameters() == parameters, name


def column(page: str, number: int) -> dict[str, str]:
    """A column of the table of shapes, commas left out."""
    lines = read(page).partition("## Shapes")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: row[number].replace(",", "") for row in rows}


def test_seed_oss_shapes() -> None:
    published = quintet.SeedOssConfig(hidden_size=5120, rope_theta=1e7)
    for number, config in ((1, published), (2, quintet.SeedOssConfig())):
        found = column("seed_oss", number)
        for row, field in (
            *(("`hidden_size`, E", "hidden_size"), ("`intermediate_size`, F", "intermediate_size")),
            *(("layers", "num_hidden_layers"), ("query heads, H", "num_attention_heads")),
            *(("key/value heads, G", "num_key_value_heads"), ("`head_dim`, D", "head_dim")),
            *(("`vocab_size`, V", "vocab_size"), ("`rope_theta`", "rope_theta")),
            ("`max_position_embeddings`", "max_position_embeddings"),
        ):
            assert int(found[row]) == getattr(config, field), row
    with without_memory():
        model = quintet.SeedOssForCausalLM(published)
    assert model.num_parameters() == int(column("seed_oss", 1)["parameters"])


@pytest.mark.parametrize(("number", "layers", "experts"), [(1, 24, 32), (2, 36, 128)])
def test_gpt_oss_shapes(number: int, layers: int, experts: int) -> None:
    shapes = column("gpt_oss", number)
    config = quintet.GptOssConfig(num_hidden_layers=layers, num_local_experts=experts)
    with without_memory():
        model = quintet.GptOssForCausalLM(config)
    assert (int(shapes["layers"]), int(shapes["experts, X"])) == (layers, experts)
    assert int(shapes["parameters"]) == (count := model.num_parameters())
    parts = {name: weight.numel() for name, weight in model.named_parameters()}
    of_experts = sum(size for name, size in parts.items() if ".experts." in name)
    idle = of_experts - of_experts // experts * config.num_experts_per_tok + parts["model.embed_tokens.weight"]
    assert int(shapes["of these used for a token"]) == count - idle
    packed = sum(size for name, size in parts.items() if name.endswith(("gate_up_proj", "down_proj")))
    sizes = {"weights as published (MXFP4)": packed * 17 / 32 + 2 * (count - packed), "weights in bfloat16": 2 * count}
    for row, size in sizes.items():
        assert shapes[row] == f"{size / 2**30:.1f} GiB"
    for row, field in (("`sliding_window`", "sliding_window"), ("`vocab_size`, V", "vocab_size")):
        assert int(shapes[row]) == getattr(config, field)


@pytest.mark.parametrize("page", PAGES)
def test_every_tensor_is_on_the_page(page: str) -> None:
    """The table of names has each name of the language model's file, `{i}` standing for a layer, and no other."""
    table = read(page).partition("## The checkpoint's names")[2].partition("\n## ")[0]
    on_page = set()
    for line in table.splitlines():
        if line.startswith("| `"):
            first, *others = re.findall(r"`([^`]+)`", line.split("|")[1])
            on_page |= {first, *(first.rpartition(".")[0] + other if other[0] == "." else other for other in others)}
    torch.manual_seed(0)
    family = family_of(page)
    model = family.classes["causal-lm"](family.tiny())
    tied = set(model._tied_weights_keys) if model.config.tie_word_embeddings else set()
    names = {re.sub(r"\.\d+\.", ".{i}.", name) for name in model.state_dict() if name not in tied}
    assert on_page - tied == names
