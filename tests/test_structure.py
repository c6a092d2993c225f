"""Nested arguments and results as plain data, there and back."""

import collections
import dataclasses
import json
import math
import sys
import types
from typing import NamedTuple

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from torchtrt_bridge import structure
from torchtrt_bridge.structure import BadNode, FallbackResult, Unstorable, check, describe, leaves, rebuild


class Pair(NamedTuple):
    first: object
    second: object


@dataclasses.dataclass
class Record:
    hidden: object
    label: str = "x"


def there_and_back(value):
    """Through JSON, with the tensors beside it."""
    tensors = []

    def leaf(path, item):
        if not isinstance(item, torch.Tensor):
            return None
        tensors.append(item)
        return {"output": len(tensors) - 1}

    node = json.loads(json.dumps(describe(value, leaf)))
    check(node, lambda payload: True)
    assert [payload["output"] for payload in leaves(node)] == list(range(len(tensors)))
    return rebuild(node, lambda payload: tensors[payload["output"]])


A, B = torch.arange(3.0), torch.ones(2)


@pytest.mark.parametrize(
    "value",
    [
        A,
        [A, (B, None), []],
        (A,),
        {"b": A, "a": [B], 3: True},
        collections.OrderedDict(z=A, a=B),
        Pair(A, (B, "text")),
        Record(A, "label"),
        torch.Size([2, 3]),
        {"dtype": torch.bfloat16, "device": torch.device("cuda:1"), "layout": torch.strided},
        [1, True, None, "s", 0.1, math.inf, -math.inf, torch.channels_last],
        BaseModelOutputWithPooling(last_hidden_state=A, pooler_output=B),
        torch.max(torch.eye(3), dim=1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_nest_comes_back_as_it_was(value):
    result = there_and_back(value)
    assert type(result) is type(value)
    first = describe(value, lambda p, v: str(v) if torch.is_tensor(v) else None)
    second = describe(result, lambda p, v: str(v) if torch.is_tensor(v) else None)
    assert first == second


def test_nan_comes_back_as_nan():
    assert math.isnan(there_and_back([math.nan])[0])


def test_tensors_are_the_very_same_objects():
    result = there_and_back({"a": [A, B]})
    assert result["a"][0] is A and result["a"][1] is B


def test_an_unstorable_value_is_named_by_its_path():
    with pytest.raises(Unstorable, match=r"outer\.1\.inner is a builtins\.object"):
        describe({"outer": [1, {"inner": object()}]}, lambda *_: None)
    with pytest.raises(Unstorable):
        describe({(1, 2): 3}, lambda *_: None)


def test_a_class_that_is_not_here_becomes_a_fallback_with_the_same_fields():
    node = {
        "class": "never_imported_module:Output",
        "style": "mapping",
        "fields": [["logits", {"leaf": 0}], ["empty", {"value": None}], ["hidden", {"leaf": 1}]],
    }
    result = rebuild(node, [A, B].__getitem__)
    assert isinstance(result, FallbackResult) and result.logits is A and result["hidden"] is B
    assert result[1] is B and result.to_tuple() == (A, B) and "never_imported_module" not in sys.modules
    with pytest.raises(AttributeError, match="no field 'other'; it has logits, empty, hidden"):
        result.other  # noqa: B018


def test_naming_a_class_imports_nothing(monkeypatch):
    asked = []
    lazy = types.ModuleType("lazy_module")
    lazy.__getattr__ = asked.append
    monkeypatch.setitem(sys.modules, "lazy_module", lazy)
    node = {"class": "lazy_module:Thing", "style": "mapping", "fields": []}
    assert isinstance(rebuild(node, lambda payload: payload), FallbackResult)
    assert asked == []


@pytest.mark.parametrize(
    "name", ["os:system", "builtins:eval", "subprocess:Popen", "shelve:DbfilenameShelf", "builtins:dict.fromkeys"]
)
@pytest.mark.parametrize("style", ["mapping", "dataclass", "namedtuple", "pytree"])
def test_a_callable_that_is_no_result_class_is_never_called(name, style, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    node = {"class": name, "style": style, "fields": [["filename", {"value": "x"}]], "context": {"value": None}}
    assert type(rebuild(node, lambda payload: payload)) is FallbackResult
    assert list(tmp_path.iterdir()) == []


def test_a_registered_class_is_used_under_its_old_name(monkeypatch):
    monkeypatch.setattr(structure, "_registered", {})

    @structure.register_result
    @dataclasses.dataclass
    class Local:
        a: object

    result = there_and_back(Local(A))
    assert type(result) is Local and result.a is A


DEEP = {"leaf": 0}
for _ in range(200):
    DEEP = {"list": [DEEP]}


@pytest.mark.parametrize(
    "node",
    [
        None,
        [],
        {},
        {"leaf": 0, "value": 1},
        {"value": []},
        {"value": {}},
        {"float": "1.0"},
        {"float": 3},
        {"torch": "os", "kind": "dtype"},
        {"torch": "float32", "kind": "layout"},
        {"torch": "nowhere", "kind": "device"},
        {"torch": "float32"},
        {"torch": "float32", "kind": []},
        {"list": {}},
        {"list": [3]},
        {"size": [{"value": "3"}]},
        {"dict": [["a"]]},
        {"dict": [[None, {"value": 1}]]},
        {"dict": [], "class": "shelve"},
        {"dict": [], "class": []},
        {"fields": []},
        {"fields": [], "class": 3, "style": "mapping"},
        {"fields": [], "class": "a:b", "style": "callable"},
        {"fields": [], "class": "a:b", "style": []},
        {"fields": [], "class": "a:b", "style": "pytree"},
        {"fields": [], "class": "a:b", "style": "mapping", "context": {"value": 1}},
        {"fields": [[["x"], {"value": 1}]], "class": "a:b", "style": "mapping"},
        {"fields": [], "class": "a:b", "style": "pytree", "context": {"leaf": 0}},
        {"value": 1, "extra": 2},
        {"leaf": "refused"},
        DEEP,
    ],
    ids=lambda node: str(node)[:40],
)
def test_what_is_no_node_is_refused(node):
    with pytest.raises(BadNode):
        check(node, lambda payload: payload == 0)
