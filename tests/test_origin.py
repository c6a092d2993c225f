"""What a compiled module remembers of its model: the digest of its weights, its attributes, and files that lie."""

from __future__ import annotations

import copy
import dataclasses
import types

import pytest
import torch
from torch import nn

from torchtrt_bridge.attributes import Record, collect, restore, to_node
from torchtrt_bridge.errors import InvalidFile, InvalidOption
from torchtrt_bridge.origin import Origin, digest
from torchtrt_bridge.runtime import manifest
from torchtrt_bridge.structure import Unstorable


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("ids", torch.arange(3), persistent=False)


def test_the_digest_is_of_names_dtypes_shapes_and_bytes():
    model = Tied()
    before = digest(model)
    assert digest(copy.deepcopy(model)) == before == digest(model.eval())
    changes = [
        lambda m: m.first.weight.data.view(-1)[0:1].add_(1e-3),
        lambda m: m.second.bias.data.neg_(),
        lambda m: m.ids.add_(1),
        lambda m: m.half(),
        lambda m: m.register_buffer("extra", torch.zeros(0)),
        lambda m: setattr(m, "third", nn.Linear(1, 1)),
        lambda m: setattr(m.second, "weight", nn.Parameter(torch.zeros(9, 1))),
    ]
    found = {before}
    for change in changes:
        other = copy.deepcopy(model)
        change(other)
        found.add(digest(other))
    assert len(found) == len(changes) + 1


def test_the_digest_does_not_depend_on_strides_ties_or_gradients():
    model = Tied()
    untied = copy.deepcopy(model)
    untied.second.weight = nn.Parameter(untied.first.weight.detach().clone(), requires_grad=False)
    assert digest(untied) == digest(model)
    model.first.weight.data = model.first.weight.data.t().contiguous().t()
    assert digest(untied) == digest(model)


@pytest.mark.parametrize("make", [torch.Tensor.to_sparse, lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)])
def test_the_digest_of_buffers_that_are_not_dense(make):
    found = set()
    for values in (torch.eye(3), torch.zeros(3, 3)):
        model = nn.Module()
        model.register_buffer("odd", make(values))
        found.add(digest(model))
    assert len(found) == 2


def test_an_origin_survives_its_manifest():
    model = nn.Linear(2, 2)
    model.config = types.SimpleNamespace(width=float("inf"), names={0: "a"}, sizes=(1, 2), dtype=torch.float16)
    origin = Origin.of(model, ("config",))
    fields = {"origin": origin.to_dict()}
    data = manifest._plain(fields, "manifest")["origin"]  # as JSON has it
    assert Origin.from_dict(data) == origin
    config = restore(Origin.from_dict(data).attributes)["config"]
    assert (config.width, config.names, config.sizes, config.dtype) == (float("inf"), {0: "a"}, (1, 2), torch.float16)
    assert Origin.from_dict({}) == Origin()  # a file of before


RECORD = {"leaf": {"record": "C", "fields": [["a", {"value": 1}]], "also": [], "left_out": []}}


@pytest.mark.parametrize(
    "attributes",
    [
        [],
        {"forward": {"value": 1}},
        {"_artifact": {"value": 1}},
        {"__class__": {"value": 1}},
        {"device": {"value": "cpu"}},
        {"a b": {"value": 1}},
        {"config": {"value": {}}},
        {"config": {"leaf": {"record": 1, "fields": [], "also": [], "left_out": []}}},
        {"config": {"leaf": {**RECORD["leaf"], "more": 1}}},
        {"config": {"leaf": {**RECORD["leaf"], "fields": [["__class__", {"value": 1}]]}}},
        {"config": {"leaf": {**RECORD["leaf"], "also": [["_record", {"value": 1}]]}}},
        {"config": {"leaf": {**RECORD["leaf"], "fields": [["a", {"torch": "load", "kind": "dtype"}]]}}},
        {"config": {"leaf": {**RECORD["leaf"], "left_out": [1]}}},
        {"config": {"leaf": {"path": "/etc/passwd"}}},
    ],
)
def test_damaged_attributes_of_a_file_are_refused(attributes):
    good = {"dtype": "float32", "weights": "0" * 64, "attributes": {"config": RECORD}}
    assert restore(Origin.from_dict(good).attributes)["config"].a == 1
    with pytest.raises(InvalidFile, match="damaged"):
        Origin.from_dict({**good, "attributes": attributes})


@pytest.mark.parametrize("change", [{"dtype": "load"}, {"dtype": 1}, {"weights": "0"}, {"weights": None}, {"more": 1}])
def test_a_damaged_origin_is_refused(change):
    with pytest.raises(InvalidFile, match="damaged"):
        Origin.from_dict({"dtype": "", "weights": "", "attributes": {}, **change})


def test_attributes_nested_deep_or_in_a_circle_are_refused():
    circle = types.SimpleNamespace(depth=1)
    circle.again = circle
    model = nn.Linear(1, 1)
    model.config = circle
    copied = restore(collect(model, ("config",)))["config"]
    while hasattr(copied, "again"):  # as deep as it goes
        copied = copied.again
    assert copied.depth == 1
    model.names = [object()]
    with pytest.raises(InvalidOption, match="'names' cannot be copied"):
        collect(model, ("names",))
    assert collect(model, None) == collect(model, ("config",))  # what cannot be is left out of the default


def test_a_record_reads_and_writes_as_an_object_and_as_a_dict():
    @dataclasses.dataclass
    class Settings:
        width: int = 3
        inner: dict = dataclasses.field(default_factory=dict)
        kind = "plain"

        @property
        def doubled(self) -> int:
            return 2 * self.width

        @property
        def broken(self) -> int:
            raise ValueError

    record = restore({"s": to_node(Settings(inner={"a": [1, 2.5, None]}), "s")})["s"]
    assert type(record) is Record and repr(record).startswith("Settings(width=3")
    assert (record.width, record.doubled, record.kind, record["inner"]) == (3, 6, "plain", {"a": [1, 2.5, None]})
    assert dict(record) == {"width": 3, "inner": {"a": [1, 2.5, None]}} == record.to_dict() and len(record) == 2
    assert "width" in record and "doubled" not in record and record.get("nothing", 7) == 7
    assert not hasattr(record, "broken") and list(record.items())[0] == ("width", 3)
    record.update({"width": 4})
    record["height"] = 5
    assert record.to_dict()["width"] == 4 and record.height == 5 and record == copy.deepcopy(record)
    again = restore({"s": to_node(record, "s")})["s"]
    assert again.to_dict() == record.to_dict() and again.doubled == 6
    with pytest.raises(KeyError, match="Settings has no 'nothing'"):
        record["nothing"]
    with pytest.raises(Unstorable):
        to_node({"a": object()}, "x")
