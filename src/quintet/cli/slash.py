"""The commands inside of a chat: lines that begin with a slash."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from quintet.cli.common import one_line
from quintet.cli.conversation import Conversation
from quintet.cli.terminal import Screen
from quintet.errors import ChatError, InputError, suggest

__all__ = ["COMMANDS", "EFFORTS", "Chat", "command"]

FORM = "quintet-chat-1"  # of a saved conversation
LONGEST_FILE = 64 * 2**20
EFFORTS = ("low", "medium", "high", "none")


@dataclass
class Chat:
    """A chat that goes on.

    Args:
        talk: The conversation.
        screen: Where things are shown.
        name: The model.
        send: A message to be answered next.
        again: What the conversation ends with is to be answered.
        over: The person leaves.
    """

    talk: Conversation
    screen: Screen
    name: str
    send: dict[str, Any] | None = None
    again: bool = False
    over: bool = False


class Slash(NamedTuple):
    """A command: what follows its name, what it does, and the function that does it."""

    takes: str
    help: str
    run: Callable[[Chat, str], None]


def command(chat: Chat, line: str) -> None:
    """Carry out a line that begins with a slash.

    Raises:
        ChatError, InputError, OSError: It cannot be carried out; the chat is as before.
    """
    name, _, rest = line.strip().removeprefix("/").partition(" ")
    found = COMMANDS.get(name)
    if found is None:
        hint = suggest(name, COMMANDS).replace("'", "'/", 1) or " /help lists the commands."
        raise ChatError(f"there is no command {'/' + name!r}.{hint} To send a text that begins so, write //.")
    rest = rest.strip()
    if rest and not found.takes:
        raise ChatError(f"/{name} takes nothing behind it, and got {rest[:40]!r}. Leave that out.")
    if not rest and found.takes and not found.takes.startswith("["):
        raise ChatError(f"/{name} needs {found.takes} behind it.")
    found.run(chat, rest)


def _help(chat: Chat, rest: str) -> None:
    heads = [f"/{name} {slash.takes}".rstrip() for name, slash in COMMANDS.items()]
    width = max(map(len, heads))
    lines = [f"{head:<{width}}  {slash.help}" for head, slash in zip(heads, COMMANDS.values(), strict=True)]
    lines += [
        "",
        'Several lines: end a line with a backslash, or write """ before the first and after the last.',
        "Ctrl-C stops an answer; Ctrl-C or Ctrl-D at an empty prompt leaves.",
    ]
    chat.screen.note("\n".join(lines))


def _reset(chat: Chat, rest: str) -> None:
    chat.talk.reset()
    chat.screen.note("A new conversation.")


def _save(chat: Chat, rest: str) -> None:
    from quintet.hub import write_json_atomic

    path = Path(os.path.expanduser(rest))
    if path.exists() and not _is_ours(path):
        raise ChatError(f"there is a file '{path}' which is no saved conversation. Give another name.")
    record = {
        "form": FORM,
        "model": chat.name,
        "format": chat.talk.form.name,
        "system": chat.talk.system,
        "effort": chat.talk.effort,
        "messages": chat.talk.messages,
    }
    write_json_atomic(path, record)
    chat.screen.note(f"Saved {_messages(chat)} to {path}.")


def _load(chat: Chat, rest: str) -> None:
    path = Path(os.path.expanduser(rest))
    record = _read(path)
    messages, system, effort = record.get("messages"), record.get("system"), record.get("effort")
    if record.get("form") != FORM or not isinstance(messages, list):
        raise ChatError(f"'{path}' is no saved conversation. Give a file that /save has written.")
    if not isinstance(system, (str, type(None))) or effort not in (None, *EFFORTS):
        raise ChatError(f"'{path}' is damaged: its system text or its effort is of a wrong kind.")
    chat.talk.replace(messages, system)
    if "reasoning_effort" in chat.talk.form.options:
        chat.talk.effort = effort
    other = f", made with {one_line(str(record.get('model')))}" if record.get("model") != chat.name else ""
    chat.screen.note(f"Loaded {_messages(chat)} from {path}{other}.")


def _read(path: Path) -> dict[str, Any]:
    from quintet.hub import read_json

    return read_json(path, limit=LONGEST_FILE, error=ChatError)


def _is_ours(path: Path) -> bool:
    try:
        return _read(path).get("form") == FORM
    except (ChatError, OSError):
        return False


def _messages(chat: Chat) -> str:
    count = len(chat.talk.messages)
    return f"{count} message{'' if count == 1 else 's'}"


def _system(chat: Chat, rest: str) -> None:
    if not rest:
        chat.screen.note("There is no system text." if chat.talk.system is None else f"System: {chat.talk.system}")
        return
    before = chat.talk.system
    chat.talk.system = None if rest in ('""', "''") else rest
    try:
        chat.talk.count()
    except Exception:
        chat.talk.system = before
        raise
    chat.screen.note("System text removed." if chat.talk.system is None else "System text set.")


def _effort(chat: Chat, rest: str) -> None:
    if "reasoning_effort" not in chat.talk.form.options:
        raise ChatError(f"the chat format of this model, {chat.talk.form.name}, has no reasoning effort.")
    if not rest:
        chat.screen.note(f"Effort: {chat.talk.effort or 'as the format has it'}.")
        return
    if rest not in EFFORTS:
        raise ChatError(f"the effort is one of {', '.join(EFFORTS)}, not {rest[:40]!r}.{suggest(rest, EFFORTS)}")
    chat.talk.effort = rest
    chat.screen.note(f"Effort: {rest}.")


def _think(chat: Chat, rest: str) -> None:
    if rest not in ("", "on", "off"):
        raise ChatError(f"/think takes on or off, not {rest[:40]!r}.")
    hidden = chat.screen.fold
    chat.screen.fold = not hidden if not rest else rest == "off"
    chat.screen.note("Reasoning is shown as one line." if chat.screen.fold else "Reasoning is shown.")
    last = chat.talk.messages[-1] if chat.talk.messages else {}
    if hidden and not chat.screen.fold and last.get("reasoning_content"):
        chat.screen.text(last["reasoning_content"], "reasoning")


def _tokens(chat: Chat, rest: str) -> None:
    used, limit = chat.talk.count(), chat.talk.limit
    room = f" of {limit}; {max(limit - used, 0)} are left" if limit is not None else ""
    chat.screen.note(f"{used} tokens{room}. {chat.talk.cached} are in the cache and need not be read again.")


def _retry(chat: Chat, rest: str) -> None:
    if not chat.talk.take_back():
        raise InputError("there is no question yet. Ask something first.")
    chat.again = True


def _tool(chat: Chat, rest: str) -> None:
    messages = chat.talk.messages
    results = 0
    while results < len(messages) and messages[-1 - results]["role"] == "tool":
        results += 1
    calls = messages[-1 - results].get("tool_calls", []) if results < len(messages) else []
    if results >= len(calls):
        raise InputError("the model waits for no tool. /tool gives the result of a call that it has just made.")
    call = calls[results]
    message = {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": rest}
    if results + 1 < len(calls):
        messages.append(message)
        chat.screen.note(f"Now the result of {calls[results + 1]['function']['name']}: /tool RESULT.")
    else:
        chat.send = message


def _exit(chat: Chat, rest: str) -> None:
    chat.over = True


COMMANDS: dict[str, Slash] = {
    "help": Slash("", "this list", _help),
    "reset": Slash("", "forget the conversation; system text and effort stay", _reset),
    "save": Slash("FILE", "write the conversation to a file", _save),
    "load": Slash("FILE", "go on with a saved conversation", _load),
    "system": Slash("[TEXT]", 'set the system text; "" removes it, nothing shows it', _system),
    "effort": Slash("[low|medium|high|none]", "how long the model may think", _effort),
    "think": Slash("[on|off]", "show reasoning in full, or as one line", _think),
    "tokens": Slash("", "how long the conversation is, and what is left", _tokens),
    "retry": Slash("", "answer the last question again", _retry),
    "tool": Slash("RESULT", "give the result of the tool that the model has called", _tool),
    "exit": Slash("", "leave", _exit),
}
