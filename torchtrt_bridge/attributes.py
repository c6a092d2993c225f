"""The plain data that people read from a model itself: ``model.config.id2label``, ``model.pretrained_cfg``.

It is copied when the model is compiled, and goes into the file. What comes back is plain data, and a :class:`Record`
in the place of an object, in the process that compiled as in one that loaded: no class is looked up by a name that
a file gives. A path of the machine that compiled has no business in a file, so a text that is an absolute path comes
back as None.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .errors import InvalidFile, InvalidOption, nearest
from .structure import Node, Unstorable, check, describe, rebuild

DEFAULT = (
    # transformers: Trainer and pipelines
    *("config", "generation_config", "main_input_name", "base_model_prefix", "name_or_path"),
    *("loss_type", "num_labels", "input_modalities", "output_modalities"),
    # timm
    *("default_cfg", "pretrained_cfg", "num_classes", "num_features", "head_hidden_size", "in_chans", "global_pool"),
    "output_fmt",
)
"""What :func:`torchtrt_bridge.compile` copies unless told otherwise: what ``transformers`` and ``timm`` read."""

_PRIVATE = ("_name_or_path", "_commit_hash", "_attn_implementation")  # of a configuration, and read all the same
_OLD_NAMES = {"torch_dtype": "dtype", "use_return_dict": "return_dict"}  # transformers warns where they are read
_DEPTH = 12


class Record:
    """A configuration object as plain data: its values by attribute and by key, for reading and for writing.

    ``to_dict()`` gives what the original object held itself. What its class added (properties, class attributes) can
    be read as well, with the values that it had when the model was compiled.
    """

    def __init__(self, name: str, fields: Mapping[str, Any], also: Mapping[str, Any], left_out: Sequence[str] = ()):
        self.__dict__.update(also)
        self.__dict__.update(fields)
        self.__dict__["_record"] = (name, tuple(fields), tuple(left_out))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_record" not in self.__dict__:
            raise AttributeError(name)
        if _OLD_NAMES.get(name) in self.__dict__:
            return self.__dict__[_OLD_NAMES[name]]
        original, _, left_out = self._record
        why = "it is no plain data, so it was not copied" if name in left_out else "the original had none"
        raise AttributeError(f"this copy of {original} has no {name!r}: {why}")

    def to_dict(self) -> dict[str, Any]:
        """What the original held itself and what was set since, Records as dicts and dtypes as texts."""
        _, fields, _ = self._record
        own = {name: value for name, value in self.__dict__.items() if name in fields or name in self._added()}
        return {name: _as_json(value) for name, value in own.items()}

    to_diff_dict = to_dict

    def to_json_string(self, use_diff: bool = True) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def update(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def get(self, name: str, default: Any = None) -> Any:
        return self.__dict__.get(name, default)

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> Any:
        """transformers asks for the part of a configuration that is about text: ``text_config``, or the whole."""
        return self.__dict__.get("text_config", self)

    def keys(self) -> list[str]:
        return list(self)

    def values(self) -> list[Any]:
        return [self.__dict__[name] for name in self]

    def items(self) -> list[tuple[str, Any]]:
        return [(name, self.__dict__[name]) for name in self]

    def __iter__(self) -> Iterator[str]:
        _, fields, _ = self._record
        return (name for name in self.__dict__ if name in fields or name in self._added())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(f"{self._record[0]} has no {name!r}")
        return self.__dict__[name]

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> Record:
        other = Record.__new__(Record)
        memo[id(self)] = other
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other

    def __repr__(self) -> str:
        return f"{self._record[0]}({', '.join(f'{name}={value!r}' for name, value in self.items())})"

    def _added(self) -> set[str]:
        return self.__dict__.get("_set", set())

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__.setdefault("_set", set()).add(name)
        self.__dict__[name] = value


def collect(model: nn.Module, names: Sequence[str] | None) -> dict[str, Node]:
    """The attributes of ``model`` as nodes (see :mod:`.structure`), Records as leaves.

    Args:
        names: None means those of :data:`DEFAULT` that the model has and that are plain data; of names that were
            asked for, each must be.

    Raises:
        InvalidOption: the model lacks such an attribute, it is no plain data, or its name is taken.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names or ()):
        raise InvalidOption(f"attributes={names!r}: give a tuple of names, as ('config', 'num_classes').")
    found = {}
    for name in DEFAULT if names is None else names:
        if _is_taken(name):
            raise InvalidOption(f"attributes: {name!r} means something else in a compiled module, so it stays its own.")
        if name.startswith("_") or not name.isidentifier():
            raise InvalidOption(f"attributes: {name!r} is private, or no name; only public attributes are copied.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = to_node(getattr(model, name), name)
        except (AttributeError, Unstorable) as error:
            if names is not None:
                known = [key for key in (*vars(model), *dir(type(model))) if not key.startswith("_")]
                hint = nearest(name, known) if isinstance(error, AttributeError) else " Only plain data is copied."
                raise InvalidOption(f"attributes: the model's {name!r} cannot be copied: {error}.{hint}") from None
    return found


def _is_taken(name: str) -> bool:
    """Whether a compiled module has something of its own by that name."""
    from .runtime.module import TRTModule

    return hasattr(TRTModule, name)


def to_node(value: Any, path: str) -> Node:
    """``value`` as a node. Raises Unstorable at what is no plain data (inside a Record it is left out instead)."""

    def leaf(where: str, item: Any) -> Node | None:
        if isinstance(item, str) and len(item) > 1 and (os.path.isabs(item) or item.startswith("~")):
            return {"path": None}
        if isinstance(item, Record):
            original, _, left_out = item._record
            also = [(key, v) for key, v in vars(item).items() if key not in ("_record", "_set") and key not in item]
            return _record(original, item.items(), also, list(left_out), where)
        if isinstance(item, type) or type(item) in (dict, list, tuple):
            return None
        cls = type(item)
        if isinstance(item, Mapping):
            return _record(cls.__name__, item.items(), (), [], where)
        if dataclasses.is_dataclass(item) or hasattr(cls, "to_dict") or isinstance(item, types.SimpleNamespace):
            own = {name: v for name, v in vars(item).items() if not name.startswith("_") or name in _PRIVATE}
            if callable(getattr(cls, "to_dict", None)):  # transformers writes class attributes there too (model_type)
                said = item.to_dict()
                own |= {name: getattr(item, name, None) or said[name] for name in said if own.get(name) is None}
                # private ones that it does not say, which versions of transformers differ about: read all the same
                unsaid = [(name, own.pop(name)) for name in _PRIVATE if name in own and name not in said]
            else:
                unsaid = []
            also = [*_of_class(item, {*own, *dict(unsaid)}), *unsaid]
            return _record(cls.__name__, own.items(), also, [], where)
        return None

    return describe(value, leaf, path)


def _record(name: str, fields: Any, also: Any, left_out: list[str], where: str) -> Node:
    if where.count(".") > _DEPTH:
        raise Unstorable(where, fields)
    parts: dict[str, list[list[Any]]] = {"fields": [], "also": []}
    for kind, pairs in (("fields", fields), ("also", also)):
        for key, value in pairs:
            if type(key) is not str:
                raise Unstorable(where, key)
            try:
                parts[kind].append([key, to_node(value, f"{where}.{key}")])
            except Unstorable:
                left_out.append(key)
    return {"record": name, **parts, "left_out": sorted(set(left_out))}


def _of_class(item: Any, own: set[str]) -> list[tuple[str, Any]]:
    """What can be read from ``item`` besides what it holds: properties, class attributes, other names of its values."""
    names = {*dir(type(item)), *getattr(item, "attribute_map", {})} - own - set(_OLD_NAMES)
    found = []
    for name in sorted(names):
        if name.startswith("_") and name not in _PRIVATE:
            continue
        try:
            value = getattr(item, name)
        except Exception:  # noqa: BLE001 - a property that has no value here is none to copy
            continue
        if not callable(value):
            found.append((name, value))
    return found


def nodes(attributes: Mapping[str, Any]) -> dict[str, Node]:
    """What :func:`restore` gave, and a user may have changed, as nodes again.

    Raises:
        InvalidOption: one is no plain data any more.
    """
    try:
        return {name: to_node(value, name) for name, value in attributes.items()}
    except Unstorable as error:
        raise InvalidOption(
            f"An attribute cannot be saved with the module: {error}. Give it plain data, or delete it (del"
            f" fast.{error.path.partition('.')[0]})."
        ) from None


def restore(nodes: Mapping[str, Node]) -> dict[str, Any]:
    """The attributes that ``nodes`` describe."""
    return {name: rebuild(node, _from_leaf) for name, node in nodes.items()}


def _from_leaf(payload: Mapping[str, Any]) -> Any:
    if "path" in payload:
        return None
    fields, also = ({key: rebuild(node, _from_leaf) for key, node in payload[kind]} for kind in ("fields", "also"))
    return Record(payload["record"], fields, also, payload["left_out"])


def checked(nodes: Any) -> dict[str, Node]:
    """``nodes`` of a file, if they are what :func:`collect` makes.

    Raises:
        InvalidFile: they are not.
    """
    try:
        if type(nodes) is not dict:
            raise ValueError("they are no dict")
        for name, node in nodes.items():
            if not name.isidentifier() or name.startswith("_") or _is_taken(name):
                raise ValueError(f"one is called {name[:40]!r}")
            check(node, _is_leaf)
        return nodes
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"The saved attributes are damaged: {error}. Compile and save the model again.") from None


def _is_leaf(payload: Any) -> bool:
    if payload == {"path": None}:
        return True
    if type(payload) is not dict or set(payload) != {"record", "fields", "also", "left_out"}:
        return False
    for kind in ("fields", "also"):
        for pair in payload[kind] if type(payload[kind]) is list else [None]:
            if type(pair) is not list or len(pair) != 2 or not _is_field(pair[0]):
                return False
            check(pair[1], _is_leaf)
    texts = [payload["record"], *payload["left_out"]] if type(payload["left_out"]) is list else [None]
    return all(type(text) is str for text in texts)


def _is_field(name: Any) -> bool:
    """A key of a Record: none that would replace what a Record is made of."""
    return type(name) is str and not name.startswith("__") and name not in ("_record", "_set")


def _as_json(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    return str(value).removeprefix("torch.") if isinstance(value, (torch.dtype, torch.device)) else value
