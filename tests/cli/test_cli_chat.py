"""`quintet chat` through pipes: turns, commands, channels, JSON, errors."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quintet.chat import ChatEvent
from quintet.cli.main import main
from quintet.cli.terminal import Screen, gather
from quintet.generation.loops.column import Column
from quintet.tokenizers.fast import PreTrainedTokenizerFast

TOOL = {"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}  # fmt: skip


class Stdin:
    """A standard input with bytes and an answer to isatty()."""

    def __init__(self, data: bytes, tty: bool = False) -> None:
        self.buffer = io.BytesIO(data)
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


@pytest.fixture
def chat(tiny_gpt2: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Sends lines to the command and returns (stdout, stderr)."""

    def run(lines: str | bytes, *argv: str, model: Path | str = tiny_gpt2, code: int = 0) -> tuple[str, str]:
        data = lines.encode() if isinstance(lines, str) else lines
        monkeypatch.setattr(sys, "stdin", Stdin(data))
        assert main(["chat", str(model), "--threads", "1", "--seed", "3", "-n", "6", *argv]) == code
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Makes models answer with the given texts, one a turn; returns the list of what they were asked."""
    from quintet.generation import GenerationMixin

    def force(folder: Path, *answers: str) -> list[dict[str, Any]]:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        left, asked = list(answers), []

        def generate_iter(self: Any, inputs: torch.Tensor, **options: Any) -> Any:
            text = tokenizer.decode(inputs[0].tolist(), skip_special_tokens=False)
            asked.append({"prompt": text, **options})
            for index in tokenizer(left.pop(0), add_special_tokens=False)["input_ids"]:
                yield Column(torch.tensor([index]), [index], [False])

        monkeypatch.setattr(GenerationMixin, "generate_iter", generate_iter)
        return asked

    return force


THINKING = "<|channel|>analysis<|message|>Let me\nsee.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>It is 4\x1b[2J.<|return|>"
CALL = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Oslo"}<|call|>'


def test_each_line_is_a_turn_and_only_answers_go_to_stdout(chat) -> None:
    out, err = chat("one\n\ntwo\n")
    assert "> " not in out and "\x1b" not in out + err
    assert "This model has no chat format of its own" in err
    assert len(re.findall(r"^6 tokens in [\d.]+ s: [\d.e+]+ tokens/s, the first after [\d.]+ s\.", err, re.M)) == 2
    assert chat("one\n\ntwo\n")[0] == out, "the same seed, the same conversation"


def test_json_is_one_event_a_line_and_the_answer_at_the_end(chat) -> None:
    out, err = chat("one\n/tokens\n", "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert records[-1]["event"] == "answer" and records[-1]["tokens"] == 6 and records[-1]["seed"] == 3
    assert [record["event"] for record in records[:-1]] == ["start", *["text"] * (len(records) - 3), "end"]
    text = "".join(record["text"] for record in records[:-1])
    assert records[-1]["message"] == {"role": "assistant", "content": text}
    assert "tokens of 128" in err


def test_channels_of_gpt_oss(chat, says, talking_gpt_oss: Path) -> None:
    asked = says(talking_gpt_oss, THINKING + FINAL, THINKING + FINAL)
    out, err = chat("2+2?\n/effort high\nagain\n", "--system", "Be brief.", model=talking_gpt_oss)
    assert out == "It is 4\\x1b[2J.\n" * 2, "no control sequence reaches the terminal"
    assert "Let me\nsee.\n" in err and "Effort: high." in err and "tokens/s" in err
    assert "Be brief." in asked[0]["prompt"] and "Reasoning: medium" in asked[0]["prompt"]
    assert "Reasoning: high" in asked[1]["prompt"]
    assert "analysis<|message|>Let me" not in asked[1]["prompt"], "reasoning of an answered turn is not read again"
    assert asked[0]["eos_token_id"] == [261, 262]


def test_reasoning_as_one_line(chat, says, talking_gpt_oss: Path) -> None:
    says(talking_gpt_oss, THINKING + FINAL, THINKING + FINAL)
    out, err = chat("2+2?\n/think on\nagain\n", "--hide-reasoning", model=talking_gpt_oss)
    assert out.count("It is 4") == 2
    assert re.search(r"^thought for 11 tokens$", err, re.M), "of a byte each"
    assert err.count("Let me\nsee.") == 2, "shown after /think on, and then as it comes"


def test_folded_reasoning_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(interactive=True, fold=True)
    for part, text in (("analysis", "Let me"), ("analysis", " see."), ("final", "\n\nIt is 4.\n\n")):
        screen.show(ChatEvent("text", int(part == "final"), channel=part, text=text), 2)
    screen.finish()
    assert capsys.readouterr().out == "thinking ...\rthought for 2 tokens\nIt is 4.\n"
    screen.fold = False
    screen.show(ChatEvent("text", 0, channel="analysis", text="Hm."), 1)
    screen.show(ChatEvent("text", 1, channel="final", text="Yes."), 1)
    screen.finish()
    assert capsys.readouterr().out == "Hm.\n\nYes.\n"


def test_tool_calls_and_their_results(chat, says, talking_gpt_oss: Path, tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(json.dumps([TOOL]))
    asked = says(talking_gpt_oss, THINKING + CALL, FINAL.removeprefix("<|start|>assistant"))
    lines = "Weather?\n/tool 12 degrees\n/tool again\n"
    out, err = chat(lines, "--tools", str(tmp_path / "tools.json"), model=talking_gpt_oss, code=1)
    assert out == 'tool call: weather {"city": "Oslo"}\nIt is 4\\x1b[2J.\n'
    assert "The model waits for the tool: /tool RESULT gives it." in err
    assert "type weather = (_: {" in asked[0]["prompt"]
    assert "functions.weather to=assistant<|channel|>commentary<|message|>12 degrees<|end|>" in asked[1]["prompt"]
    assert "the model waits for no tool" in err


def test_a_call_that_was_cut_off_is_not_kept(chat, says, talking_gpt_oss: Path) -> None:
    asked = says(talking_gpt_oss, THINKING + CALL[:-20], FINAL)
    chat("Weather?\nWell?\n", model=talking_gpt_oss)
    assert "functions.weather" not in asked[1]["prompt"] and "Well?" in asked[1]["prompt"]


def test_thinking_of_seed_oss(chat, says, talking_seed_oss: Path) -> None:
    asked = says(talking_seed_oss, "<seed:think>Hm.</seed:think>\nFour.<seed:eos>")
    out, err = chat("2+2?\n", "--effort", "low", model=talking_seed_oss)
    assert out == "Four.\n" and "Hm.\n" in err
    assert "512" in asked[0]["prompt"]


def test_a_transcript_ends_at_the_next_speaker(chat, says, tiny_gpt2: Path) -> None:
    says(tiny_gpt2, " The cat.\nUser: I said", " Yes.\n")
    out, err = chat("one\ntwo\n", "--json")
    answers = [json.loads(line) for line in out.splitlines() if '"event": "answer"' in line]
    assert [answer["message"]["content"] for answer in answers] == ["The cat.", "Yes.\n"]
    assert [answer["finish_reason"] for answer in answers] == ["stop", "stop"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("/help\n", r"^/effort \[low\|medium\|high\|none\]  how long the model may think$"),
        ("one\n/reset\n/tokens\n", r"^A new conversation\.\n0 tokens of 128; 128 are left\."),
        ("/tokens\none\n/tokens\n", r"^[123]\d tokens of 128; \d+ are left\. [12]\d are in the cache"),
        ("/system\n/system Be kind.\n/system\n", r"There is no system text\.\nSystem text set\.\nSystem: Be kind\.$"),
        ('/system x\n/system ""\n/system\n', r"System text removed\.\nThere is no system text\.$"),
        ("/think\n/think on\n", r"^Reasoning is shown as one line\.\nReasoning is shown\.$"),
        ("/exit\none\n", r"Do not expect it to answer like a chat model\.\n\Z"),
    ],
)
def test_commands(lines: str, message: str, chat) -> None:
    out, err = chat(lines)
    assert re.search(message, err, re.M), err
    assert bool(out) == ("one\n" in lines and "/exit" not in lines)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/rest", "there is no command '/rest'. Did you mean '/reset'? To send a text that begins so, write //."),
        ("/zzz", "there is no command '/zzz'. /help lists the commands."),
        ("/save", "/save needs FILE behind it."),
        ("/tokens 3", "/tokens takes nothing behind it, and got '3'."),
        ("/effort low", "the chat format of this model, transcript, has no reasoning effort."),
        ("/think maybe", "/think takes on or off, not 'maybe'."),
        ("/retry", "there is no question yet. Ask something first."),
        ("/tool 3", "the model waits for no tool."),
        ("/load /no/such/file", "There is no folder '/no/such'"),
        (b"\xff", "stdin is not UTF-8 text: a line has byte 0xff at 0."),
        ("word " * 200, "but the model holds 128 in all. /reset begins a new conversation; a message of at most"),
    ],
)
def test_in_a_pipe_an_error_ends_the_program(line: str | bytes, message: str, chat) -> None:
    out, err = chat(line, code=1)
    assert out == "" and message in err
    assert err.splitlines()[-1].startswith("quintet: error: ")


def test_retry_answers_again_and_two_slashes_are_text(chat, says, tiny_gpt2: Path) -> None:
    asked = says(tiny_gpt2, " One.\n", " Two.\n", " Three.\n")
    out, _ = chat("//path is what?\n/retry\nNext\n")
    assert out == "One.\nTwo.\nThree.\n"
    assert asked[0]["prompt"] == asked[1]["prompt"] == "User: /path is what?\nAssistant:"
    assert "Two." in asked[2]["prompt"] and "One." not in asked[2]["prompt"]


def test_save_and_load(chat, says, tiny_gpt2: Path, tmp_path: Path) -> None:
    asked = says(tiny_gpt2, " One.\n", " Two.\n", " Three.\n")
    file = tmp_path / "talk.json"
    _, err = chat(f"/system Be kind.\nHello\n/save {file}\n/save {file}\n")
    assert f"Saved 2 messages to {file}." in err
    record = json.loads(file.read_text())
    assert record["messages"][0] == {"role": "user", "content": "Hello"} and record["system"] == "Be kind."
    chat(f"/load {file}\nAnd?\n")
    assert asked[1]["prompt"].startswith("Be kind.\nUser: Hello\nAssistant: One.\nUser: And?\nAssistant:")
    chat("And?\n", "--load", str(file))
    assert asked[2]["prompt"] == asked[1]["prompt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is no saved conversation. Give a file that /save has written."),
        ("[1", "talk.json"),
        ('{"form": "quintet-chat-1", "messages": [{"role": "usr", "content": "x"}]}', "Did you mean 'user'?"),
        ('{"form": "quintet-chat-1", "messages": [{"role": "system", "content": "x"}]}', "Put it first."),
        ('{"form": "quintet-chat-1", "messages": [], "effort": 3}', "is damaged"),
    ],
)
def test_files_that_are_no_conversations(content: str, message: str, chat, tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text(content)
    assert message in chat(f"/load {tmp_path / 'talk.json'}\n", code=1)[1]
    if '"form"' not in content:
        assert (
            "which is no saved conversation. Give another name." in chat(f"/save {tmp_path / 'talk.json'}\n", code=1)[1]
        )
        assert (tmp_path / "talk.json").read_text() == content


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--effort", "low"], 2, "--effort: the chat format of this model, transcript, has no reasoning effort."),
        (["--effort", "hi"], 2, "invalid choice: 'hi'"),
        (["--greedy", "--top-k", "3"], 2, "--greedy takes the likeliest token"),
        (["--tools", "/no/such/file"], 1, "No such file"),
        (["--colour"], 2, "Did you mean '--no-color'?"),
    ],
)
def test_wrong_command_lines(argv: list[str], code: int, message: str, chat) -> None:
    assert message in chat("one\n", *argv, code=code)[1]


def test_wrong_models_and_tools(chat, tmp_path: Path, talking_gpt_oss: Path) -> None:
    assert "/no/such/model" in chat("one\n", model="/no/such/model", code=1)[1]
    file = tmp_path / "tools.json"
    for content, message in (("{", "is not JSON"), ("{}", "must hold a list of tools, not a dict")):
        file.write_text(content)
        assert message in chat("one\n", "--tools", str(file), code=1)[1]
    file.write_text(json.dumps([TOOL]))
    assert "was not trained to call tools" in chat("one\n", "--tools", str(file), code=1)[1]
    file.write_text("[3]")
    assert "quintet: error:" in chat("one\n", "--tools", str(file), model=talking_gpt_oss, code=1)[1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a", "b"], "a"),
        (["a\\", "b\\", "c", "d"], "a\nb\nc"),
        (["a\\"], "a"),
        (['"""', "a", "", "b", '"""', "c"], "a\n\nb"),
        (['"""a', 'b"""'], "a\nb"),
        (['"""a"""'], "a"),
        (['"""', "a"], "a"),
        ([], None),
    ],
)
def test_messages_of_several_lines(lines: list[str], message: str | None) -> None:
    left = iter(lines)
    assert gather(lambda more: next(left, None)) == message


def test_colours_only_where_they_are_wanted(chat, says, talking_gpt_oss: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for argv, coloured in (([], True), (["--no-color"], False)):
        says(talking_gpt_oss, THINKING + CALL)
        out, err = chat("2+2?\n", *argv, model=talking_gpt_oss)
        assert (
            "\x1b[36mtool call: weather \x1b[0m" in out,
            "\x1b[2mLet me\n" in err.replace("\x1b[0m\x1b[2m", ""),
        ) == (
            coloured,
            coloured,
        )
        assert ("\x1b" in out + err) == coloured
