"""Files that are evaluated, and those that cannot be."""

from __future__ import annotations

import pytest

from quintet.errors import InputError
from quintet.evaluate import data, read_records, read_text


@pytest.fixture
def file(tmp_path):
    def write(content: bytes):
        path = tmp_path / "file.jsonl"
        path.write_bytes(content)
        return path

    return write


def test_records(file):
    path = file('\ufeff{"text": "a b"}\n\n{"text": "c\\nd é", "id": 3}\r\n{"text": "e f"}'.encode())
    assert read_records(path) == ["a b", "c\nd é", "e f"]
    assert read_records(str(path), 2) == ["a b", "c\nd é"]


def test_what_is_after_the_limit_is_not_read(file):
    assert read_records(file(b'{"text": "a b"}\nno JSON'), 1) == ["a b"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty. Each line must be a JSON object with the field"),
        (b"\n \n", "is empty"),
        (b'{"text": "a"}\n{"text": "\xff"}', r"line 2 is not UTF-8 text: byte 10 is 0xff. Convert it to UTF-8"),
        (b'{"text": "a"', "line 1 is not JSON"),
        (b"[" * 100_000, "line 1 is not JSON"),
        (b'["text"]', "line 1 is a JSON list, not an object"),
        (b'{"text": "a"}\n\n{"passage": "a", "id": 1}', "line 3 has no field 'text'; it has 'passage', 'id'"),
        (b"{}", "line 1 has no field 'text'; it has nothing"),
        (b'{"text": null}', "line 1: 'text' is 'None', but must be a text of at least one word"),
        (b'{"text": ["a"]}', "but must be a text"),
        (b'{"text": " "}', "line 1: 'text' is ' ', but must be a text"),
    ],
)
def test_lines_that_are_no_records(file, content, words):
    with pytest.raises(InputError, match=words):
        read_records(file(content))


def test_text(file):
    path = file("\ufeffone\r\ntwo é\nthree\n".encode())
    assert read_text(path) == "one\r\ntwo é\nthree\n"
    assert read_text(path, 2) == "one\r\ntwo é\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no text. Give a file with at least a word"),
        (b" \n\t", "holds no text"),
        (b"ab\xc3", "is not UTF-8 text: byte 2 is 0xc3"),
    ],
)
def test_texts_that_are_none(file, content, words):
    with pytest.raises(InputError, match=words):
        read_text(file(content))


@pytest.mark.parametrize("read", [read_records, read_text])
def test_files_that_are_not_there(read, tmp_path):
    with pytest.raises(InputError, match="there is no file '.*nowhere.txt'. Check the path"):
        read(tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match="is a folder. Give the file in it"):
        read(tmp_path)
    with pytest.raises(InputError, match="is not a path"):
        read("a\0b")


def test_files_without_end(file, monkeypatch):
    monkeypatch.setattr(data, "MAX_LINE_BYTES", 2**20)
    monkeypatch.setattr(data, "MAX_TEXT_BYTES", 2**20)
    path = file(b"a" * 2**20 + b"b")
    with pytest.raises(InputError, match="line 1 is longer than 1 MiB"):
        read_records(path)
    with pytest.raises(InputError, match="is larger than 1 MiB"):
        read_text(path)
