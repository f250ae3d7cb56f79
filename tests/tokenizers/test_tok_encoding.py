"""BatchEncoding as a dict, as an object, as tensors."""

from __future__ import annotations

import copy
import pickle

import numpy
import pytest
import torch

from quintet.errors import TokenizerError
from quintet.tokenizers import BatchEncoding, CharSpan, GPT2TokenizerFast, TokenSpan


@pytest.fixture
def rows(small: GPT2TokenizerFast) -> BatchEncoding:
    return small(["The quick fox", "over the dog"])


def test_it_is_a_dict(rows: BatchEncoding) -> None:
    assert list(rows) == ["input_ids", "attention_mask"]
    assert dict(**rows) == rows.data
    assert rows.input_ids is rows["input_ids"]
    assert "labels" not in rows
    rows["labels"] = [1]
    assert rows.pop("labels") == [1]
    assert rows.get("labels") is None
    with pytest.raises(
        AttributeError, match=r"no attribute or key 'labels'; keys are \['input_ids', 'attention_mask'\]"
    ):
        _ = rows.labels
    with pytest.raises(KeyError):
        _ = rows["labels"]


def test_rows_and_slices(rows: BatchEncoding) -> None:
    assert rows[1].ids == rows["input_ids"][1]
    assert [row.ids for row in rows[0:2]] == rows["input_ids"]
    plain = BatchEncoding({"input_ids": [[1], [2], [3]]})
    assert plain[1:] == {"input_ids": [[2], [3]]}
    with pytest.raises(KeyError, match="keys are strings"):
        _ = plain[0]


def test_copies_and_pickles(rows: BatchEncoding) -> None:
    for other in (copy.deepcopy(rows), copy.copy(rows), pickle.loads(pickle.dumps(rows))):
        assert other.data == rows.data
        assert other.word_ids(1) == rows.word_ids(1)
        assert other.n_sequences == 1


def test_spans_have_names(small: GPT2TokenizerFast) -> None:
    row = small("The quick fox")
    assert row.token_to_chars(0) == CharSpan(start=0, end=3)
    assert row.word_to_chars(1) == CharSpan(3, 9)
    assert isinstance(row.word_to_tokens(1), TokenSpan)
    assert row.char_to_token(4) == 1
    assert row.char_to_token(99) is None
    assert row.word_to_tokens(99) is None


def test_without_encodings(small: GPT2TokenizerFast, rows: BatchEncoding) -> None:
    plain = BatchEncoding({"input_ids": [[1]]})
    assert (plain.is_fast, plain.encodings, plain.n_sequences) == (False, None, None)
    for call in (plain.tokens, plain.word_ids, plain.sequence_ids, lambda: plain.char_to_token(0)):
        with pytest.raises(TokenizerError, match=r"\(\) needs the encodings of a tokenizer call"):
            call()
    with pytest.raises(TokenizerError, match=r"tokens\(\): there is no row 2; the batch has 2"):
        rows.tokens(2)
    with pytest.raises(TokenizerError, match=r"token_to_chars\(\): there is no token 50; row 0 has"):
        rows.token_to_chars(50)


def test_tensors() -> None:
    data = {"input_ids": [[1, 2], [3, 4]]}
    assert torch.equal(BatchEncoding(dict(data), tensor_type="pt").input_ids, torch.tensor([[1, 2], [3, 4]]))
    assert BatchEncoding(dict(data), tensor_type="np").input_ids.dtype == numpy.int64
    assert BatchEncoding({"input_ids": [1, 2]}, tensor_type="pt", prepend_batch_axis=True).input_ids.shape == (1, 2)
    assert BatchEncoding({"input_ids": []}, tensor_type="pt").input_ids.dtype == torch.int64
    assert BatchEncoding({"scores": [0.5]}, tensor_type="pt").scores.dtype == torch.float64
    tensor = torch.tensor([[1, 2]])
    again = BatchEncoding({"input_ids": tensor}).convert_to_tensors("pt")
    assert again.input_ids is tensor
    assert BatchEncoding({"input_ids": [tensor[0], tensor[0]]}, tensor_type="np").input_ids.tolist() == [[1, 2], [1, 2]]
    with pytest.raises(TokenizerError, match="Cannot make a tensor of 'words': it is not made of numbers"):
        BatchEncoding({"words": [["a"]]}, tensor_type="np")
    with pytest.raises(TokenizerError, match="rows have different lengths, from 1 to 2"):
        BatchEncoding({"input_ids": [[1], [2, 3]]}, tensor_type="pt")


def test_to_a_device(small: GPT2TokenizerFast) -> None:
    row = small("The fox", return_tensors="pt")
    row["note"] = "kept"
    assert row.to("cpu") is row
    assert row.to(torch.device("cpu"))["note"] == "kept"
    row.to("meta", non_blocking=True)
    assert row.input_ids.device.type == "meta"
    for bad in (torch.float16, None, True):
        with pytest.raises(TokenizerError, match="moves ids to a device, and .* is none"):
            row.to(bad)  # type: ignore[arg-type]
