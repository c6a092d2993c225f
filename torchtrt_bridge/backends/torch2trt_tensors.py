"""Which TensorRT tensor stands for which torch tensor while torch2trt traces, and where a tensor came from.

torch2trt keeps the TensorRT tensor as an attribute ``_trt`` of the torch tensor, and takes a torch tensor without one
for a constant. So an operator without a converter turns what depends on the input into a constant, silently; and the
attribute stays on the user's parameters. Here ``_trt`` is a property of ``torch.Tensor`` for the time of the trace. It
keeps nothing on any tensor, is seen by one thread only, and knows, by watching every operator, which tensors depend on
the inputs. One that does and is asked for as a constant is an UnsupportedLayer that names the operator and the module.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import UnsupportedLayer

_shape = torch._C.TensorBase.shape.__get__  # type: ignore[attr-defined]

# Their result depends on an input's shape only.
_BY_SHAPE = frozenset(
    "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_empty_strided".split()
)
# Their result is the tensor itself.
_ALIASES = frozenset("detach alias lift_fresh".split())
# What reads a tensor's values into Python, where they are constants.
_READS = frozenset("_local_scalar_dense equal is_nonzero".split())


class Tensors(TorchDispatchMode):
    """Active in the tracing thread, as a context; ``where()`` names the module that runs.

    ``is_constant(trt_tensor)`` says whether TensorRT's tensor is a constant of the network, ``reshape(trt_tensor,
    shape)`` adds a layer that gives it another shape.
    """

    def __init__(
        self,
        where: Callable[[], str],
        is_constant: Callable[[Any], bool],
        reshape: Callable[[Any, tuple[int, ...]], Any],
        dynamic: bool,
    ):
        super().__init__()
        self._reshape = reshape
        self._where = where
        self._is_constant = is_constant
        self._dynamic = dynamic
        self._thread = threading.get_ident()
        self._held: Any = WeakIdKeyDictionary()  # tensor -> TensorRT's tensor
        self._origin: Any = WeakIdKeyDictionary()  # tensor that depends on the inputs -> the operator it is from
        self._stale: Any = WeakIdKeyDictionary()  # tensor written to since -> (operator, the converted call that wrote)
        self._storages: dict[int, tuple[str, Any]] = {}  # written to with what depends on the inputs -> (operator, it)
        self._calls: list[object] = []
        self._fresh: list[tuple[torch.Tensor, Any]] = []  # what the converter that is running has given so far
        self.in_operator = False
        self.convert: Callable[[Any, Any, Any, Any], object] | None = None  # is told of operators that nobody converts
        self.missed: UnsupportedLayer | None = None
        self.failed_in: str | None = None

    # -- the attribute -------------------------------------------------------------------------------------------------

    def property(self) -> property:
        """``torch.Tensor._trt``."""

        def get(tensor: torch.Tensor) -> Any:
            if threading.get_ident() != self._thread or not self.has(tensor):
                raise AttributeError("_trt")
            return self.get(tensor)

        def put(tensor: torch.Tensor, value: Any) -> None:
            if threading.get_ident() != self._thread:
                raise AttributeError("another thread is tracing a model by torch2trt")
            self.put(tensor, value)

        return property(get, put)

    def has(self, tensor: torch.Tensor) -> bool:
        known = tensor in self._held
        if not known and (origin := self._depends(tensor)) is not None:
            self.missed = self._unsupported(origin)
        return known

    def get(self, tensor: torch.Tensor) -> Any:
        if tensor in self._stale:
            operator, call = self._stale[tensor]
            if call is None or call not in self._calls:  # nobody converted the write
                raise self._unsupported(operator)
        return self._held[tensor]

    def put(self, tensor: torch.Tensor, value: Any) -> None:
        if value is None:
            return
        if self._is_constant(value):
            if tensor not in self._held and (origin := self._depends(tensor)) is not None:
                raise self._unsupported(origin)
        else:
            self._fresh.append((tensor, value))
        self._held[tensor] = value
        self._stale.pop(tensor, None)

    def begin(self, tensor: torch.Tensor, value: Any) -> None:
        """``tensor`` is an input of the model."""
        self._held[tensor] = value
        self._origin[tensor] = "the input"

    def find(self, tensor: torch.Tensor) -> Any:
        """TensorRT's tensor for ``tensor``; None for a constant."""
        if tensor in self._held:
            return self.get(tensor)
        if (origin := self._depends(tensor)) is not None:
            raise self._unsupported(origin)
        return None

    def result(self, tensor: torch.Tensor) -> Any:
        """TensorRT's tensor for a result of the model."""
        if tensor in self._held:
            return self.get(tensor)
        raise self._unsupported(self._depends(tensor) or "the result, which no input reaches")

    # -- calls of converted functions ----------------------------------------------------------------------------------

    def during(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call`` with a mark that it is running: what it writes to is its converter's to read as it was; and when it
        ends, what its converter gave must have the shapes of torch's tensors."""

        def marked(*args: Any, **kwargs: Any) -> Any:
            self._calls.append(object())
            try:
                result = call(*args, **kwargs)
            finally:
                self._calls.pop()
            if not self._calls:
                self._check_shapes()
            return result

        return marked

    def reading(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """``method`` of a tensor, which reads its values with no operator that could be watched, as numpy does."""

        def read(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == self._thread and self._depends(tensor) is not None:
                origin = self._unconverted(tensor)
                what = f"Tensor.{method.__name__}"
                raise self._read(what) if origin is None else self._unsupported(origin)
            return method(tensor, *args, **kwargs)

        return read

    def _check_shapes(self) -> None:
        for tensor, value in self._fresh:
            wrong = _mismatch(value, tensor) if self._held.get(tensor) is value else None  # else it was replaced
            if wrong is None:
                continue
            if not _same_but_for_ones(value, tensor):
                raise UnsupportedLayer(f"torch2trt's converter gives {wrong}, in {self._where()}.")
            self._held[tensor] = self._reshape(value, tuple(_shape(tensor)))
        self._fresh.clear()

    # -- watching ------------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        depends = [tensor for tensor in inputs if self._depends(tensor) is not None]
        name = func._schema.name.replace("::", ".")
        short = name.rsplit(".", 1)[-1]
        if depends and short in _READS:
            raise self._read(name)
        written = list(_written(func, args, kwargs))
        # an operator of the user's own may be written in torch's functions: watched is it, not what it calls
        inside = self.in_operator
        with self.aside():
            result = func(*args, **kwargs)
        if not depends or (short in _BY_SHAPE and not self._dynamic):
            return result
        lacking = [origin for origin in map(self._unconverted, depends) if origin is not None]
        origin = lacking[0] if lacking else f"{name} in {self._where()}"
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not any(tensor is one for one in written):
                self._origin[tensor] = origin
        if short in _ALIASES and not lacking and isinstance(result, torch.Tensor):
            self._held[result] = self._held[depends[0]]
        for tensor in written:
            self._write(tensor, origin, f"{name} on a view of a tensor in {self._where()}")
        if self.convert is not None and not inside and not self._calls:
            self.convert(func, args, kwargs, result)
        return result

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Within, torch2trt's converters are not called: what runs is somebody else's to convert as a whole."""
        before, self.in_operator = self.in_operator, True
        try:
            yield
        finally:
            self.in_operator = before

    def _write(self, tensor: torch.Tensor, origin: str, aside: str) -> None:
        self._origin[tensor] = origin
        storage = tensor.untyped_storage()._cdata
        self._storages[storage] = (origin, tensor)
        for other in list(self._held):
            if other is tensor:
                self._stale[other] = (origin, self._calls[0] if self._calls else None)
            elif other.untyped_storage()._cdata == storage:
                self._stale[other] = (aside, None)

    def _unconverted(self, tensor: torch.Tensor) -> str | None:
        """The operator that made ``tensor`` what it is, if nobody has converted it."""
        if tensor in self._stale:
            return self._stale[tensor][0]
        return None if tensor in self._held else self._depends(tensor)

    def _depends(self, tensor: torch.Tensor) -> str | None:
        """The operator through which ``tensor`` depends on the inputs; None if it does not."""
        origin = self._origin.get(tensor)
        if origin is None and self._storages:  # perhaps through another view of the same memory
            origin, _ = self._storages.get(tensor.untyped_storage()._cdata, (None, None))
        return origin

    def _read(self, what: str) -> UnsupportedLayer:
        return UnsupportedLayer(
            f"{self._where()}, or torch2trt's converter there, reads the values of a tensor that depends on the inputs"
            f" ({what}); in an engine they would be the example's for ever."
        )

    @staticmethod
    def _unsupported(origin: str) -> UnsupportedLayer:
        return UnsupportedLayer(f"torch2trt has no converter for {origin}.")


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[torch.Tensor]:
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _same_but_for_ones(value: Any, tensor: torch.Tensor) -> bool:
    """Whether the shapes differ only in sizes of 1, with none dynamic: then the elements are in the same order."""
    try:
        shape = tuple(value.shape)
    except ValueError:
        return False
    return [size for size in shape if size != 1] == [size for size in _shape(tensor) if size != 1]


def _mismatch(value: Any, tensor: torch.Tensor) -> str | None:
    """What is wrong with TensorRT's tensor as a stand-in for ``tensor``; None if nothing that can be seen."""
    wanted = tuple(_shape(tensor))
    try:
        shape = tuple(value.shape)
    except ValueError:  # TensorRT's way to say that the layer is impossible
        return f"a layer that TensorRT refuses, for a result of shape {wanted}"
    if len(shape) == len(wanted) and all(a in (-1, b) for a, b in zip(shape, wanted)):
        return None
    return f"a result of shape {shape}, where torch gives {wanted}"
