"""``ctx``: what a function that adds TensorRT layers by hand is given, on every route.

    @fused_norm.tensorrt
    def _(ctx, x, weight, eps):
        square = ctx.network.add_elementwise(x, x, ctx.trt.ElementWiseOperation.PROD).get_output(0)
        ...

The network itself is TensorRT's own, so that all of its documentation holds; the rest is what its Python bindings leave
to the caller: weights that must live until the engine is built, equal ranks, dtypes, sizes that are not known yet.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .flavor import Flavor

if TYPE_CHECKING:
    import torch

#: torch's dtypes that TensorRT has, by their names in both.
DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")


class ConversionContext:
    """A network that is being made, and the means to add to it.

    Attributes:
        network: TensorRT's ``INetworkDefinition``. It is strongly typed: nothing converts dtypes but :meth:`cast`.
        flavor: the :class:`~torchtrt_bridge.trt.flavor.Flavor` in use; it answers for features.
        trt: its module, ``tensorrt`` or ``tensorrt_rtx``.
        place: the user's module that is converted (``"encoder.layer.3"``), ``""`` for the model itself.
        name: what is converted there (``"mylib::fused_norm"``).
    """

    def __init__(self, flavor: Flavor, network: Any, place: str = "", name: str = ""):
        self.flavor, self.trt, self.network = flavor, flavor.trt, network
        self.place, self.name = place, name
        self._constants: dict[str, Any] = {}  # torch's tensors by the name of TensorRT's: they live as long as this
        self._scopes: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"ConversionContext({self.name or 'a network'} in {self.place or 'the model'}, {self.flavor.name})"

    @property
    def plugins(self) -> Any:
        """TensorRT's module of quickly deployable plugins, ``tensorrt.plugin``, for a plugin form:
        ``ctx.network.add_plugin(ctx.plugins.op.mylib.norm(x, weight), aot=True)``. The author registers the plugin; one
        compiled ahead of time is part of the engine, another must be registered wherever the engine is loaded.

        Raises:
            AttributeError: TensorRT's flavour has none.
        """
        if not self.flavor.has_plugins:
            raise AttributeError(f"{self.flavor.name} has no plugins")
        return importlib.import_module(f"{self.trt.__name__}.plugin")

    def constant(self, value: Any, dtype: torch.dtype | None = None) -> Any:
        """``value`` (a tensor, an array, a number, nested lists of numbers) as a constant of the same shape.

        Numbers and lists become float32 or int64 unless ``dtype`` says otherwise. The weights are kept alive until the
        engine is built.

        Raises:
            TypeError: TensorRT has no such dtype (float64 among them): give ``dtype``.
        """
        import torch

        given = isinstance(value, torch.Tensor) or hasattr(value, "__array__")
        tensor = torch.as_tensor(value).detach()
        if dtype is None and not given and tensor.is_floating_point():
            dtype = torch.float32
        tensor = tensor.to("cpu", dtype or tensor.dtype).contiguous()
        weights = self.trt.Weights(self.dtype(tensor.dtype), tensor.data_ptr(), tensor.numel())
        made = self.network.add_constant(tuple(tensor.shape), weights).get_output(0)
        made.name = f"torchtrt_bridge constant {len(self._constants)}"  # its default follows the layer's, which changes
        self._constants[made.name] = tensor
        return made

    def weights(self, tensor: Any) -> torch.Tensor:
        """A copy of a constant's values (a parameter's of the model, mostly), to compute with while the network is
        made.

        Raises:
            ValueError: the tensor depends on the network's inputs; :meth:`is_constant` tells.
            TypeError: TensorRT does not show values of this dtype (bfloat16), and nobody else knows them.
        """
        import torch

        if tensor.name in self._constants:
            return self._constants[tensor.name].clone()
        layer = self._constant_layer(tensor)
        if layer is None:
            raise ValueError(f"{tensor.name!r} is no constant: its values are known only when the engine runs")
        if not hasattr(layer.weights, "reshape"):
            raise TypeError(f"TensorRT does not show the values of a constant of {layer.weights.dtype.name}")
        return torch.from_numpy(layer.weights.reshape(tuple(layer.shape))).clone()

    def know(self, tensor: Any, values: torch.Tensor) -> None:
        """``values`` are those of ``tensor``, a constant of the network's."""
        self._constants[tensor.name] = values

    def is_constant(self, tensor: Any) -> bool:
        """Whether :meth:`weights` has an answer."""
        return tensor.name in self._constants or self._constant_layer(tensor) is not None

    def cast(self, tensor: Any, dtype: Any) -> Any:
        """``tensor`` in ``dtype`` (torch's or TensorRT's); itself where it has that already."""
        wanted = self.dtype(dtype)
        return tensor if tensor.dtype == wanted else self.network.add_cast(tensor, wanted).get_output(0)

    def dtype(self, dtype: Any) -> Any:
        """TensorRT's dtype for torch's.

        Raises:
            TypeError: it has none.
        """
        name = str(dtype).removeprefix("torch.")
        if isinstance(dtype, self.trt.DataType):
            return dtype
        if name not in DTYPES:
            raise TypeError(f"TensorRT has no {name}; it has {', '.join(DTYPES)}")
        return getattr(self.trt, name)

    def name_of(self, dtype: Any) -> str:
        """torch's name for TensorRT's ``dtype``.

        Raises:
            TypeError: torch's tensors do not come in it.
        """
        for name in DTYPES:
            if getattr(self.trt, name) == dtype:
                return name
        raise TypeError(f"no tensor of torch's can be {dtype.name}; cast it to one of {', '.join(DTYPES)}")

    def broadcast(self, *tensors: Any) -> list[Any]:
        """The tensors with leading dimensions of 1 added until all have the same rank, which is what TensorRT's
        elementwise layers need; they stretch dimensions of 1 by themselves, as torch does."""
        rank = max(len(tensor.shape) for tensor in tensors)
        return [self._with_rank(tensor, rank) for tensor in tensors]

    def shape(self, tensor: Any) -> Any:
        """The shape, as a one-dimensional int64 tensor of the network's."""
        return self.cast(self.network.add_shape(tensor).get_output(0), self.trt.int64)

    def size(self, tensor: Any, axis: int) -> Any:
        """The size of one axis: an int where it is known, else a one-element int64 tensor, for :meth:`reshape`."""
        axis %= len(tensor.shape)
        known = tensor.shape[axis]
        if known >= 0:
            return known
        return self.network.add_slice(self.shape(tensor), (axis,), (1,), (1,)).get_output(0)

    def reshape(self, tensor: Any, sizes: Sequence[Any]) -> Any:
        """``tensor`` with other sizes: ints (one may be -1) and one-element tensors, as :meth:`size` gives them."""
        layer = self.network.add_shuffle(tensor)
        layer.zero_is_placeholder = False
        known = [size if isinstance(size, int) else -1 for size in sizes]
        if known.count(-1) > 1:
            layer.set_input(1, self.shape_of(sizes))
        else:  # the one that is not known follows from the rest
            layer.reshape_dims = tuple(known)
        return layer.get_output(0)

    def shape_of(self, sizes: Sequence[Any]) -> Any:
        """Ints and one-element tensors as one shape, a one-dimensional int64 tensor, for a layer's ``set_input``."""
        import torch

        parts = [
            self.constant([size], torch.int64) if isinstance(size, int) else self.cast(size, self.trt.int64)
            for size in sizes
        ]
        flat = [part if len(part.shape) == 1 else self.reshape(part, [1]) for part in parts]
        return self.network.add_concatenation(flat).get_output(0)

    @contextlib.contextmanager
    def scope(self, place: str, name: str) -> Iterator[None]:
        """Within, ``place`` and ``name`` are those given, and layers are named after them when the block ends:
        ``encoder.layer.3/fused_norm.reduce``. A layer that was named by hand has that name at the end."""
        before, began = (self.place, self.name), self.network.num_layers
        self.place, self.name = place, name
        try:
            yield
            self._name_layers(began)
        finally:
            self.place, self.name = before

    def _constant_layer(self, tensor: Any) -> Any:
        for index in range(self.network.num_layers):
            layer = self.network.get_layer(index)
            if layer.type == self.trt.LayerType.CONSTANT and layer.get_output(0).name == tensor.name:
                layer.__class__ = self.trt.IConstantLayer  # the bindings hand out a plain ILayer
                return layer
        return None

    def _with_rank(self, tensor: Any, rank: int) -> Any:
        missing = rank - len(tensor.shape)
        if not missing:
            return tensor
        return self.reshape(tensor, [1] * missing + [self.size(tensor, axis) for axis in range(rank - missing)])

    def _name_layers(self, began: int) -> None:
        local = self.name.rpartition("::")[2] if "::" in self.name else self.name.rpartition(".")[2]
        scope = "/".join(part for part in (self.place, local) if part)
        count = self._scopes[scope] = self._scopes.get(scope, -1) + 1
        scope = f"{scope}.{count}" if count else scope
        taken: dict[str, int] = {}
        for index in range(began, self.network.num_layers):
            layer = self.network.get_layer(index)
            unnamed = layer.name.startswith("(Unnamed Layer*")
            own = layer.type.name.lower() if unnamed else layer.name
            number = taken[own] = taken.get(own, -1) + 1
            layer.name = f"{scope}.{own}.{number}" if number else f"{scope}.{own}"
