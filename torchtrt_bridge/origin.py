"""What a compiled module remembers of the model that it was made from."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .attributes import checked, collect
from .errors import InvalidFile
from .structure import Node
from .tensor_digests import TensorDigests


@dataclasses.dataclass(frozen=True)
class Origin:
    """``dtype`` is that of the model's first floating-point parameter (``"float32"``), ``weights`` a digest of its
    parameters and buffers (see :func:`digest`); both are ``""`` where they are not known. ``attributes`` are the
    copied ones, as nodes of :mod:`.attributes`."""

    dtype: str = ""
    weights: str = ""
    attributes: Mapping[str, Node] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, attributes: Sequence[str] | None, known: TensorDigests | None = None) -> Origin:
        """See :func:`.attributes.collect` for the first two arguments, and for what is raised. ``known`` takes the
        digests of the model's tensors."""
        copied = collect(model, attributes)
        floating = (t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
        dtype = next(floating, None)
        return cls("" if dtype is None else str(dtype).removeprefix("torch."), digest(model, known), copied)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {"dtype": self.dtype, "weights": self.weights, "attributes": dict(self.attributes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Origin:
        """The origin that :meth:`to_dict` wrote; an empty one where a file has none.

        Raises:
            InvalidFile: the data is not what :meth:`to_dict` writes.
        """
        if not data:
            return cls()
        dtype, weights = data.get("dtype"), data.get("weights")
        known = dtype == "" or (type(dtype) is str and isinstance(vars(torch).get(dtype), torch.dtype))
        if set(data) != {"dtype", "weights", "attributes"} or not known or type(dtype) is not str:
            raise InvalidFile(f"What the saved module says of its model is damaged: dtype {str(dtype)[:40]!r}.")
        if type(weights) is not str or not re.fullmatch(r"([0-9a-f]{64})?", weights):
            raise InvalidFile("What the saved module says of its model is damaged: the digest of its weights is none.")
        return cls(dtype, weights, checked(data["attributes"]))


def digest(model: nn.Module, known: TensorDigests | None = None) -> str:
    """SHA-256 of the names, dtypes, shapes and digests (see :mod:`.digests`) of a model's parameters and buffers,
    wherever they are.

    What the model computes depends on more (its code, plain attributes); that is not in it.

    Args:
        known: takes the digests of the tensors.
    """
    rows = [
        (kind, name, tensor)
        for kind, named in (("parameter", model.named_parameters), ("buffer", model.named_buffers))
        for name, tensor in sorted(named(remove_duplicate=False), key=lambda pair: pair[0])
    ]
    unlike = {id(tensor): [_dense(part) for part in _parts(tensor)] for _, _, tensor in rows}  # tied ones are read once
    found = iter((known or TensorDigests()).of([part for parts in unlike.values() for part in parts]))
    inside = {one: "".join(next(found).hex() for _ in parts) for one, parts in unlike.items()}
    whole = hashlib.sha256()
    for kind, name, tensor in rows:
        whole.update(f"{kind} {name} {tensor.dtype} {list(tensor.shape)} {inside[id(tensor)]}\n".encode())
    return whole.hexdigest()


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that ``tensor`` is made of: of a subclass that wraps others (a quantized weight), those."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()
