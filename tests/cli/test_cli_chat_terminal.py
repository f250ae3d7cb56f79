"""`quintet chat` with a person at a terminal: a pseudo-terminal drives the real program."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("pseudo-terminals are of Unix", allow_module_level=True)
sys.path.insert(0, str(Path(__file__).parent))

from chat_terminal import Terminal

PROMPT = r"> (\x1b\[0m)?\Z"
QUICK = ("--threads", "1", "--seed", "3", "-n", "6")


def words(text: str) -> str:
    """`text` without colours, in one line."""
    return " ".join(re.sub(r"\x1b\[[\d;]*m", "", text).split())


@pytest.fixture(scope="module")
def long_gpt2(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny GPT-2 with room for long answers."""
    import torch

    from quintet.models.gpt2 import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("long") / "gpt2"
    shutil.copytree(tiny_gpt2, folder)
    config = GPT2Config.from_pretrained(tiny_gpt2)
    config.n_positions = 4096
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_a_conversation(tiny_gpt2: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    with Terminal("chat", str(tiny_gpt2), *QUICK) as screen:
        banner = screen.expect(PROMPT)
        assert "format transcript, 128 tokens, seed 3. /help lists the commands." in words(banner)
        assert "\x1b[1;36m" in banner, "a coloured prompt"
        screen.send("Hello there\n")
        answer = screen.expect(PROMPT)
        assert "6 tokens in " in words(answer) and "tokens/s" in words(answer) and "\x1b[2m" in answer
        screen.send("/tokns\n")
        assert "there is no command '/tokns'. Did you mean '/tokens'?" in words(screen.expect(PROMPT))
        screen.send("/tokens\n")
        assert "tokens of 128;" in words(screen.expect(PROMPT))
        screen.send(f"/save {file}\n")
        assert "Saved 2 messages" in words(screen.expect(PROMPT))
        screen.send("/reset\n")
        assert "A new conversation." in words(screen.expect(PROMPT))
        screen.send("/tokens\n")
        assert re.search(r" 0 tokens of 128; 128 are left. 0 are in the cache", words(screen.expect(PROMPT)))
        screen.send(f"/load {file}\n")
        assert "Loaded 2 messages" in words(screen.expect(PROMPT))
        screen.send("x")
        screen.expect("x")
        screen.interrupt(PROMPT)  # takes back what was typed
        screen.send("/exit\n")
        assert screen.leave() == 0
    assert screen.seen.endswith("Bye.\x1b[0m\r\n")
    messages = json.loads(file.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[0]["content"] == "Hello there"


def test_history_and_messages_of_several_lines(long_gpt2: Path, tmp_path: Path) -> None:
    pytest.importorskip("readline")
    file = tmp_path / "talk.json"
    with Terminal("chat", str(long_gpt2), *QUICK, "--no-color") as screen:
        screen.expect(PROMPT)
        screen.send("first message\n")
        screen.expect(PROMPT)
        screen.send("/tokens\n")
        screen.expect(PROMPT)
        screen.send("\x1b[A\x1b[A\n")  # up, up, enter
        screen.expect(PROMPT)
        screen.send("one\\\n")
        screen.expect(r"\.\.\. \Z")
        screen.send("two\n")
        screen.expect(PROMPT)
        screen.send('"""\n')
        screen.expect(r"\.\.\. \Z")
        screen.send("three\\\n")
        screen.expect(r"\.\.\. \Z")
        screen.send('four"""\n')
        screen.expect(PROMPT)
        screen.send(f"/sav\t{file}\n")  # tab completes
        screen.expect("Saved 8 messages")
        screen.expect(PROMPT)
        screen.send("\x04")
        assert screen.leave() == 0
    asked = [message["content"] for message in json.loads(file.read_text())["messages"] if message["role"] == "user"]
    assert asked == ["first message", "first message", "one\ntwo", "three\\\nfour"]
    assert "\x1b[2m" not in screen.seen and "\x1b[1" not in screen.seen, "no colours"


def test_ctrl_c_stops_the_answer_and_not_the_program(long_gpt2: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    arguments = ("chat", str(long_gpt2), "--threads", "1", "--seed", "3", "-n", "2000", "--no-color")
    with Terminal(*arguments, slow=True) as screen:
        screen.expect(PROMPT)
        for _ in range(2):
            screen.send("Hello\n")
            screen.expect(r"Hello\r\n[^\r]{8,}")  # the answer has begun; it would take minutes
            screen.send("\x03")
            assert "Stopped; /retry asks again." in words(screen.expect(PROMPT))
        screen.send("/tokens\n")
        assert re.search(r"[1-9]\d* are in the cache", words(screen.expect(PROMPT)))
        screen.send(f"/save {file}\n")
        assert "Saved 4 messages" in words(screen.expect(PROMPT))
        screen.send("/reset\n")
        screen.expect(PROMPT)
        screen.send("abc")
        screen.expect("abc")
        screen.interrupt(PROMPT)
        screen.send("\x04")
        assert screen.leave() == 0
    messages = json.loads(file.read_text())["messages"]
    for message in messages[1::2]:
        written = message["content"].split("\n")[0].strip()
        assert written and "\ufffd" in written or written[:8] in screen.seen, "what was written stays"


def test_ctrl_c_at_an_empty_prompt_leaves(tiny_gpt2: Path) -> None:
    with Terminal("chat", str(tiny_gpt2), *QUICK, columns=24, NO_COLOR="1") as screen:
        banner = screen.expect(PROMPT)
        own = [line for line in banner.split("\r\n") if "warning:" not in line]
        assert len(own) > 5 and max(map(len, own)) <= 24, "narrow"
        assert "\x1b[" not in banner.replace("\x1b[?2004h", ""), "without colours"
        screen.send("/help\n")
        assert max(map(len, screen.expect(PROMPT).split("\r\n")[1:-1])) <= 24
        screen.interrupt("Bye")
        assert screen.leave() == 0
    assert screen.seen.endswith("Bye.\r\n")
