"""`quintet generate` with a tokenizer whose tokens end words, GPT-1's: prompt and text are words of one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quintet.cli.main import main
from quintet.models.openai_gpt import OpenAIGPTLMHeadModel, tiny

TOKENS = ["<unk>", *"the.", *(f"{letter}</w>" for letter in "the."), "th", "the</w>"]


@pytest.fixture
def gpt1(tmp_path: Path) -> str:
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(TOKENS)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
    OpenAIGPTLMHeadModel(tiny(vocab_size=len(TOKENS), initializer_range=0.3)).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("stream", [[], ["--no-stream"]], ids=["live", "at the end"])
def test_a_space_follows_the_prompt(gpt1: str, stream: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from quintet import AutoTokenizer

    assert main(["generate", "--model", gpt1, "--max-new-tokens", "12", "--greedy", "the", *stream]) == 0
    out = capsys.readouterr().out
    model, tokenizer = OpenAIGPTLMHeadModel.from_pretrained(gpt1), AutoTokenizer.from_pretrained(gpt1)
    ids = model.generate(torch.tensor([tokenizer("the")["input_ids"]]), max_new_tokens=12, do_sample=False)
    assert out.rstrip("\n").rstrip() == tokenizer.decode(ids[0], clean_up_tokenization_spaces=False).rstrip()
    assert out.startswith("the ")


def test_a_prompt_that_ends_in_a_space_gets_no_second_one(gpt1: str, capsys: pytest.CaptureFixture[str]) -> None:
    for prompt, begin in (("the", " "), ("the ", ""), ("the\n", "")):
        assert main(["generate", "--model", gpt1, "--max-new-tokens", "5", "--greedy", "--json", prompt]) == 0
        text = json.loads(capsys.readouterr().out)["text"]
        assert text.startswith(begin) and not text[len(begin) :].startswith(" ")
