"""The network that torch2trt's converters add layers to.

It answers for the layers that newer TensorRT knows by another name only, remembers which tensors are constants, and
writes the precision in: products of weights are computed in it, all else in the model's own dtype. (TensorRT 11 and RTX
have no flag that would, and in a strongly typed network nobody else converts.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import UnsupportedLayer

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Network:
    """``network``, TensorRT's, with a ``precision``: ``"fp32"``, ``"fp16"`` or ``"bf16"``.

    ``constants`` are the names of the tensors that are constants. Weights are read when the engine is built, so this
    object must live until then.
    """

    def __init__(self, trt: Any, network: Any, precision: str):
        self.trt = trt
        self.real = network
        self.constants: set[str] = set()
        self.lowered: set[str] = set()
        self._precision = precision
        self._alive: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.real, name)
        if not name.startswith("add_"):
            return value

        def add(*args: Any, **kwargs: Any) -> Any:
            args = tuple(map(self._held, args))
            kwargs = {key: self._held(item) for key, item in kwargs.items()}
            return _made(value(*args, **kwargs), f"a layer: {name}")

        return add

    # -- by the names that are left ------------------------------------------------------------------------------------

    def add_constant(self, shape: Any, weights: Any) -> Any:
        made = self.real.add_constant(_plain(shape), self._held(weights))
        layer = _made(made, f"a constant of shape {tuple(shape)}, {weights.dtype}")
        output = layer.get_output(0)
        output.name = f"torch2trt constant {len(self.constants)}"  # its default follows the layer's, which changes
        self.constants.add(output.name)
        return layer

    def add_padding(self, input: Any, pre_padding: Any, post_padding: Any) -> Any:
        return self.add_padding_nd(input, pre_padding, post_padding)

    def add_pooling(self, input: Any, type: Any, window_size: Any) -> Any:
        return self.add_pooling_nd(input, type, window_size)

    def add_convolution(
        self, input: Any, num_output_maps: int, kernel_shape: Any, kernel: Any, bias: Any = None
    ) -> Any:
        return self.add_convolution_nd(input, num_output_maps, kernel_shape, kernel, bias)

    def add_deconvolution(
        self, input: Any, num_output_maps: int, kernel_shape: Any, kernel: Any, bias: Any = None
    ) -> Any:
        return self.add_deconvolution_nd(input, num_output_maps, kernel_shape, kernel, bias)

    def add_fully_connected(self, input: Any, num_outputs: int, kernel: Any, bias: Any = None) -> Any:
        """What it was: a convolution whose window is the three last axes (channels, height and width)."""
        window = tuple(input.shape)[-2:]
        kernel = np.asarray(kernel).reshape(num_outputs, -1, *window)
        return self.add_convolution_nd(input, num_outputs, window, kernel, bias)

    def add_rnn_v2(self, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedLayer("torch2trt's converter makes an RNN layer, which TensorRT no longer has.")

    def add_plugin_v2(self, inputs: Sequence[Any], plugin: Any) -> Any:
        add: Callable[..., Any] | None = getattr(self.real, "add_plugin_v2", None)
        if add is None:
            raise UnsupportedLayer("torch2trt's converter makes a plugin of version 2, which this TensorRT lacks.")
        return add(inputs, plugin)

    def add_scale(self, input: Any, mode: Any, shift: Any = None, scale: Any = None, power: Any = None) -> Any:
        return self.add_scale_nd(input, mode, shift, scale, power)

    def add_scale_nd(
        self, input: Any, mode: Any, shift: Any = None, scale: Any = None, power: Any = None, channel_axis: int = 1
    ) -> Any:
        """Without a power of one: fused into a convolution, it is computed, and NaN for what is negative."""
        if isinstance(power, np.ndarray) and bool((power == 1).all()):
            power = None
        weights = [self.trt.Weights() if weight is None else self._held(weight) for weight in (shift, scale, power)]
        return _made(self.real.add_scale_nd(input, mode, *weights, channel_axis), "a scale layer")

    def reshape(self, tensor: Any, shape: tuple[int, ...]) -> Any:
        layer = self.real.add_shuffle(tensor)
        layer.reshape_dims = shape
        return layer.get_output(0)

    # -- precision -----------------------------------------------------------------------------------------------------

    def add_convolution_nd(
        self, input: Any, num_output_maps: int, kernel_shape: Any, kernel: Any, bias: Any = None
    ) -> Any:
        return self._weighted("add_convolution_nd", input, num_output_maps, kernel_shape, kernel, bias)

    def add_deconvolution_nd(
        self, input: Any, num_output_maps: int, kernel_shape: Any, kernel: Any, bias: Any = None
    ) -> Any:
        return self._weighted("add_deconvolution_nd", input, num_output_maps, kernel_shape, kernel, bias)

    def add_matrix_multiply(self, input0: Any, op0: Any, input1: Any, op1: Any) -> Any:
        low = self._low(input0)
        if low is None:
            return self.real.add_matrix_multiply(input0, op0, input1, op1)
        self.lowered.add("matrix product")
        layer = self.real.add_matrix_multiply(self._cast(input0, low), op0, self._cast(input1, low), op1)
        return _CastBack(self, layer, input0.dtype)

    def add_einsum(self, inputs: Sequence[Any], equation: str) -> Any:
        low = self._low(inputs[0])
        if low is None:
            return self.real.add_einsum(list(inputs), equation)
        self.lowered.add("einsum")
        return _CastBack(
            self, self.real.add_einsum([self._cast(t, low) for t in inputs], equation), inputs[0].dtype
        )

    def _weighted(self, method: str, input: Any, maps: int, window: Any, kernel: Any, bias: Any) -> Any:
        low = self._low(input)
        absent = self.trt.Weights(input.dtype if low is None else low)
        precision = None if low is None else self._precision
        weights = [absent if weight is None else self._held(weight, precision) for weight in (kernel, bias)]
        source = input if low is None else self._cast(input, low)
        made = getattr(self.real, method)(source, maps, _plain(window), *weights)
        layer = _made(made, f"a convolution of {maps} maps, window {tuple(window)}")
        if low is None:
            return layer
        self.lowered.add("convolution")
        return _CastBack(self, layer, input.dtype)

    def _low(self, tensor: Any) -> Any:
        """TensorRT's dtype of the precision, where it is lower than ``tensor``'s."""
        if self._precision == "fp32" or tensor.dtype != self.trt.float32:
            return None
        return self.trt.float16 if self._precision == "fp16" else self.trt.bfloat16

    def _cast(self, tensor: Any, dtype: Any) -> Any:
        return tensor if tensor.dtype == dtype else self.real.add_cast(tensor, dtype).get_output(0)

    def _held(self, value: Any, precision: str | None = None) -> Any:
        """``value``, kept alive if it is an array; in ``precision`` where one is given."""
        if not isinstance(value, np.ndarray):
            return value
        value = np.ascontiguousarray(value)
        if precision is not None:
            limits = torch.finfo(_DTYPES[precision])
            tensor = torch.from_numpy(value.copy()).clamp(limits.min, limits.max).to(_DTYPES[precision])
            self._alive.append(tensor)
            dtype = self.trt.float16 if precision == "fp16" else self.trt.bfloat16
            return self.trt.Weights(dtype, tensor.data_ptr(), tensor.numel())
        self._alive.append(value)
        return value


class _CastBack:
    """A layer in a lower precision; its outputs come in the dtype that the converter expects."""

    def __init__(self, network: Network, layer: Any, dtype: Any):
        self.__dict__.update(_network=network, _layer=layer, _dtype=dtype, _outputs={})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._layer, name, value)

    def get_output(self, index: int) -> Any:
        if index not in self._outputs:
            self._outputs[index] = self._network._cast(self._layer.get_output(index), self._dtype)
        return self._outputs[index]


def _made(layer: Any, what: str) -> Any:
    """``layer``; None is how TensorRT's bindings say that there is none."""
    if layer is None:
        raise UnsupportedLayer(f"TensorRT refused {what}.")
    return layer


def _plain(sizes: Any) -> tuple[int, ...]:
    return tuple(int.__index__(size) for size in sizes)
