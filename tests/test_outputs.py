"""A result is read by attribute, key, index and slice; what is None is left out; the order is that of the fields."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from torch.utils import _pytree

from quintet import outputs
from quintet.outputs import CausalLMOutputWithPast, ModelOutput

CLASSES = [getattr(outputs, name) for name in outputs.__all__ if name != "ModelOutput"]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_class(cls: type[ModelOutput]) -> None:
    names = [field.name for field in dataclasses.fields(cls)]
    assert all(field.default is None for field in dataclasses.fields(cls))
    out = cls(**{names[0]: torch.ones(1), names[-1]: (torch.zeros(1),)})
    assert list(out) == list(out.keys()) == [names[0], names[-1]]
    assert out[names[0]] is out[0] is getattr(out, names[0])
    assert out[-1] is out[1] is out[names[-1]]
    assert out[:2] == out.to_tuple() == tuple(out.values())
    assert names[1] not in out
    assert getattr(out, names[1]) is None
    assert len(cls()) == 0
    assert cls().to_tuple() == ()


def test_fields_are_set_in_their_order() -> None:
    out = CausalLMOutputWithPast(logits=torch.ones(2))
    out.loss = torch.tensor(3.0)
    assert list(out) == ["loss", "logits"]
    assert out[0] == 3
    out["loss"] = None
    assert list(out) == ["logits"]
    out["attentions"] = (torch.ones(1),)
    out["loss"] = torch.tensor(4.0)
    assert list(out) == ["loss", "logits", "attentions"]
    late = CausalLMOutputWithPast()
    late.logits = torch.ones(1)
    assert late.to_tuple() == (late.logits,)


def test_what_is_no_field() -> None:
    out = CausalLMOutputWithPast(logits=torch.ones(2))
    out.remark = "mine"
    assert "remark" not in out
    with pytest.raises(KeyError, match="CausalLMOutputWithPast has no field 'remark'; it has loss, logits"):
        out["remark"] = 1
    with pytest.raises(KeyError):
        out["loss"]
    with pytest.raises(IndexError):
        out[1]
    with pytest.raises(TypeError, match="unexpected keyword argument 'remark'"):
        CausalLMOutputWithPast(remark=1)  # type: ignore[call-arg]


def test_a_record_loses_nothing() -> None:
    out = CausalLMOutputWithPast(logits=torch.ones(2))
    for call in (
        lambda: out.__delitem__("logits"),
        lambda: out.pop("logits"),
        out.popitem,
        out.clear,
        lambda: out.update(loss=1),
        lambda: out.setdefault("loss", 1),
        lambda: out.move_to_end("logits"),
    ):
        with pytest.raises(TypeError, match="is a record: set a field to None"):
            call()


def test_it_unpacks_and_copies() -> None:
    out = CausalLMOutputWithPast(loss=torch.tensor(1.0), logits=torch.ones(2))
    assert set(dict(**out)) == {"loss", "logits"}
    first, second = out.to_tuple()
    assert (first, second) == (out.loss, out.logits)
    for other in (copy.copy(out), copy.deepcopy(out), pickle.loads(pickle.dumps(out))):
        assert type(other) is CausalLMOutputWithPast
        assert list(other) == ["loss", "logits"]
        assert torch.equal(other.logits, out.logits)
    assert "logits=tensor" in repr(out)


def test_torch_sees_the_tensors_inside() -> None:
    out = CausalLMOutputWithPast(logits=torch.ones(2), attentions=(torch.ones(1), torch.ones(1)))
    leaves, spec = _pytree.tree_flatten(out)
    assert len(leaves) == 3
    back = _pytree.tree_unflatten([leaf * 2 for leaf in leaves], spec)
    assert type(back) is CausalLMOutputWithPast
    assert back.logits.tolist() == [2, 2]
    assert back.loss is None
