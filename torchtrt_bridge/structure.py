"""Nested arguments and results, as plain data that a file can hold.

``describe`` turns any nest of tensors and Python values into its tensors and a *node*: JSON-able dicts that say how
the nest is put together. ``rebuild`` turns a node and tensors into the nest again. Neither imports anything: a class
that a node names is used only if the process already has it; else a :class:`FallbackResult` with the same fields
stands in. That a file can name a class must never be a way to run code.

Nodes (``leaf`` payloads are the caller's, e.g. ``{"tensor": 3}``)::

    {"leaf": payload}                                        a tensor, or what the caller makes of one
    {"value": v} | {"float": "inf"} | {"torch": "float32"}   None, bool, int, float, str; a dtype, device, layout...
    {"list": [...]} | {"tuple": [...]} | {"size": [...]}     torch.Size is not a plain tuple
    {"dict": [[key, node], ...], "class": "OrderedDict"?}
    {"class": "module:Name", "style": "namedtuple" | "dataclass" | "mapping" | "pytree", "fields": [[name, node], ...]}
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import _pytree

Node = dict[str, Any]
_log = logging.getLogger("torchtrt_bridge")
_warned: set[str] = set()
_registered: dict[str, type] = {}
_PLAIN = (bool, int, str, type(None))
_KEYS = (str, int, bool)
_TORCH_VALUES = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_MAPPINGS: dict[str, Callable[..., Any]] = {"OrderedDict": collections.OrderedDict}


def register_result(cls: type) -> type:
    """Allow saved modules to return ``cls`` where its module was imported under another name; usable as a decorator."""
    _registered[_class_name(cls)] = cls
    return cls


class FallbackResult(dict):
    """Stands for a result class that this process does not have: a dict whose keys are attributes too.

    Integer indices count the values that are not None, as ``transformers`` outputs do.
    """

    class_name: str = ""

    def __getattr__(self, name: str) -> Any:
        try:
            return dict.__getitem__(self, name)
        except KeyError:
            raise AttributeError(f"the result has no field {name!r}; it has {', '.join(map(str, self))}") from None

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, slice)) and key not in self.keys():
            return self.to_tuple()[key]
        return dict.__getitem__(self, key)

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not None, in order."""
        return tuple(v for v in self.values() if v is not None)

    def __repr__(self) -> str:
        return f"{self.class_name or 'FallbackResult'}({', '.join(f'{k}={v!r}' for k, v in self.items())})"


class BadNode(ValueError):
    """Data that is no node."""


class Unstorable(TypeError):
    """A value that is neither a tensor nor plain data; ``path`` says where it stands."""

    def __init__(self, path: str, value: Any):
        self.path, self.value = path, value
        super().__init__(f"{path or 'the value'} is a {type(value).__module__}.{type(value).__qualname__}")


def describe(value: Any, leaf: Callable[[str, Any], Node | None], path: str = "") -> Node:
    """The node of ``value``. ``leaf(path, v)`` is asked first at every level and answers a payload, or None to go on.

    Raises:
        Unstorable: at a value that is neither taken by ``leaf`` nor plain data nor a known container.
    """
    payload = leaf(path, value)
    if payload is not None:
        return {"leaf": payload}
    if isinstance(value, _PLAIN) and type(value) in _PLAIN:
        return {"value": value}
    if type(value) is float:
        return {"value": value} if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, _TORCH_VALUES):
        return {"torch": str(value).removeprefix("torch."), "kind": type(value).__name__}

    def fields(pairs: Any) -> list[list[Any]]:
        return [[key, describe(item, leaf, f"{path}.{key}" if path else str(key))] for key, item in pairs]

    cls = type(value)
    if cls in (list, tuple, torch.Size):
        kind = "list" if cls is list else "tuple" if cls is tuple else "size"
        return {kind: [node for _, node in fields(enumerate(value))]}
    if cls in (dict, collections.OrderedDict):
        if not all(isinstance(key, _KEYS) for key in value):
            raise Unstorable(path, next(k for k in value if not isinstance(k, _KEYS)))
        node: Node = {"dict": fields(value.items())}
        return node if cls is dict else {**node, "class": "OrderedDict"}
    if isinstance(value, tuple) and hasattr(cls, "_fields"):
        return {"class": _class_name(cls), "style": "namedtuple", "fields": fields(zip(cls._fields, value))}
    if isinstance(value, collections.abc.Mapping) and dataclasses.is_dataclass(cls):  # transformers' ModelOutput
        return {"class": _class_name(cls), "style": "mapping", "fields": fields(value.items())}
    if dataclasses.is_dataclass(value):
        pairs = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
        return {"class": _class_name(cls), "style": "dataclass", "fields": fields(pairs)}
    if cls in _pytree.SUPPORTED_NODES:
        children, context = _pytree.SUPPORTED_NODES[cls].flatten_fn(value)
        return {
            "class": _class_name(cls),
            "style": "pytree",
            "fields": fields(enumerate(children)),
            "context": describe(context, lambda *_: None, path),
        }
    if isinstance(value, collections.abc.Mapping) and all(isinstance(key, str) for key in value):  # BatchEncoding
        return {"class": _class_name(cls), "style": "mapping", "fields": fields(value.items())}
    raise Unstorable(path, value)


def rebuild(node: Node, leaf: Callable[[Any], Any]) -> Any:
    """The nest that ``node`` describes, each leaf being ``leaf(payload)``."""
    if "leaf" in node:
        return leaf(node["leaf"])
    if "value" in node:
        return node["value"]
    if "float" in node:
        return float(node["float"])
    if "torch" in node:
        return torch.device(node["torch"]) if node["kind"] == "device" else getattr(torch, node["torch"])
    if "list" in node:
        return [rebuild(child, leaf) for child in node["list"]]
    if "tuple" in node:
        return tuple([rebuild(child, leaf) for child in node["tuple"]])
    if "size" in node:
        return torch.Size([rebuild(child, leaf) for child in node["size"]])
    if "dict" in node:
        return _MAPPINGS.get(node.get("class", ""), dict)((key, rebuild(child, leaf)) for key, child in node["dict"])
    return _instance(node, [(name, rebuild(child, leaf)) for name, child in node["fields"]])


def check(node: Any, leaf: Callable[[Any], bool], depth: int = 0) -> None:
    """Pass a node that :func:`rebuild` can take; ``leaf`` says whether a payload is what the caller can use.

    Raises:
        BadNode: a node of a file that was altered, or is none at all.
    """
    if depth > 100 or type(node) is not dict:
        raise BadNode("nested too deep" if depth > 100 else f"{type(node).__name__} in place of a node")
    kinds = [kind for kind in _KINDS if kind in node]
    if len(kinds) != 1 or not set(node) <= _KINDS[kinds[0]]:
        raise BadNode(f"a node with the keys {', '.join(map(str, node))[:80]}")
    if not _CHECKS.get(kinds[0], lambda node: True)(node) or (kinds[0] == "leaf" and not leaf(node["leaf"])):
        raise BadNode(f"a node with a wrong {kinds[0]}")
    content = node[kinds[0]]
    for child in content if kinds[0] in ("list", "tuple", "size") else ():
        check(child, leaf, depth + 1)
    for _, child in content if kinds[0] in ("dict", "fields") else ():
        check(child, leaf, depth + 1)
    if "context" in node:
        check(node["context"], lambda payload: False, depth + 1)


def leaves(node: Node) -> Iterator[Any]:
    """Every leaf payload of ``node``, in order."""
    if "leaf" in node:
        yield node["leaf"]
    for key in ("list", "tuple", "size"):
        for child in node.get(key, ()):
            yield from leaves(child)
    for key in ("dict", "fields"):
        for _, child in node.get(key, ()):
            yield from leaves(child)


def _instance(node: Node, fields: list[tuple[Any, Any]]) -> Any:
    """The object of a ``class`` node, of its own class where this process has it, else a FallbackResult."""
    name, style = node["class"], node["style"]
    cls: Any = _known_class(name, style)
    if cls is not None:
        try:
            if style == "namedtuple":
                return cls._make([value for _, value in fields])
            if style == "pytree":
                context = rebuild(node["context"], lambda payload: payload)
                return _pytree.SUPPORTED_NODES[cls].unflatten_fn([value for _, value in fields], context)
            return cls(**dict(fields))
        except Exception as error:  # a class of another version: its fields are still worth having
            _once(name, "rebuilding %s failed (%s); its fields come back as a FallbackResult", name, error)
    else:
        _once(name, "this process has not imported %s; results come back as a FallbackResult with its fields", name)
    result = FallbackResult(fields)
    object.__setattr__(result, "class_name", name.rpartition(":")[2])
    return result


def _known_class(name: str, style: str) -> type | None:
    """The class called ``module:Qualname`` if it is registered, or already imported and really such a container."""
    cls: Any = _registered.get(name)
    if cls is None:
        module, _, qualname = name.partition(":")
        cls = sys.modules.get(module)
        for part in qualname.split("."):  # not getattr: a lazy module would import what the file names
            cls = getattr(cls, "__dict__", {}).get(part)
    if not isinstance(cls, type):
        return None
    fits = {
        "namedtuple": issubclass(cls, tuple) and hasattr(cls, "_fields"),
        "dataclass": dataclasses.is_dataclass(cls),
        # dict subclasses only: a constructor such as shelve's, also a Mapping, would open files that a node names
        "mapping": issubclass(cls, dict),
        "pytree": cls in _pytree.SUPPORTED_NODES,
    }
    return cls if fits.get(style) else None


def _class_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _once(key: str, message: str, *args: Any) -> None:
    if key not in _warned:
        _warned.add(key)
        _log.warning(message, *args)


def _is_torch_value(node: Node) -> bool:
    name, kind = node["torch"], node.get("kind")
    if kind == "device":
        try:
            return isinstance(name, str) and bool(torch.device(name))
        except RuntimeError:
            return False
    cls = {c.__name__: c for c in _TORCH_VALUES}.get(kind) if isinstance(kind, str) else None
    return cls is not None and isinstance(name, str) and isinstance(vars(torch).get(name), cls)


def _is_size(node: Any) -> bool:
    return type(node) is dict and ("leaf" in node or type(node.get("value")) is int)


def _is_list(value: Any) -> bool:
    return type(value) is list


def _are_pairs(value: Any, keys: tuple[type, ...]) -> bool:
    return _is_list(value) and all(_is_list(pair) and len(pair) == 2 and type(pair[0]) in keys for pair in value)


def _is_class(node: Node) -> bool:
    named = isinstance(node.get("class"), str) and node.get("style") in ("namedtuple", "dataclass", "mapping", "pytree")
    return named and ("context" in node) == (node["style"] == "pytree") and _are_pairs(node["fields"], _KEYS)


_KINDS: dict[str, set[str]] = {
    "leaf": {"leaf"},
    "value": {"value"},
    "float": {"float"},
    "torch": {"torch", "kind"},
    "list": {"list"},
    "tuple": {"tuple"},
    "size": {"size"},
    "dict": {"dict", "class"},
    "fields": {"fields", "class", "style", "context"},
}
_CHECKS: dict[str, Callable[[Node], bool]] = {
    "value": lambda node: type(node["value"]) in (*_PLAIN, float),
    "float": lambda node: node["float"] in ("inf", "-inf", "nan"),
    "torch": _is_torch_value,
    "list": lambda node: _is_list(node["list"]),
    "tuple": lambda node: _is_list(node["tuple"]),
    "size": lambda node: _is_list(node["size"]) and all(map(_is_size, node["size"])),
    "dict": lambda node: _are_pairs(node["dict"], _KEYS) and node.get("class", "OrderedDict") in list(_MAPPINGS),
    "fields": _is_class,
}
