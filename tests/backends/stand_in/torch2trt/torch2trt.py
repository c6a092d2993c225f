"""The tracer of the stand-in: as torch2trt does, it keeps TensorRT's tensor in ``_trt``, replaces functions of torch
for the whole process, and takes a tensor without ``_trt`` for a constant."""

import copy
import importlib

import tensorrt as trt
import torch

CALIBRATION = trt.CalibrationAlgoType.ENTROPY_CALIBRATION_2
EXPLICIT_BATCH = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
FLAGS = (trt.BuilderFlag.FP16, trt.BuilderFlag.INT8, trt.BuilderFlag.STRICT_TYPES)

CONVERTERS = {}
_size = torch.Tensor.size
_getattribute = torch.Tensor.__getattribute__


class Calibrator(trt.IInt8Calibrator):
    pass


def attach_converter(ctx, method, converter, method_str):
    def wrapper(*args, **kwargs):
        first = not ctx.lock
        ctx.lock = ctx.lock or (first and converter["is_real"])
        result = method(*args, **kwargs)
        if first:
            ctx.method_args, ctx.method_kwargs, ctx.method_return = args, kwargs, result
            converter["converter"](ctx)
            result, ctx.lock = ctx.method_return, False
        return result

    return wrapper


class Hook:
    def __init__(self, ctx, converter):
        self.ctx, self.converter = ctx, converter

    def put(self, function):
        place = self.converter["module"]
        *path, name = self.converter["qual_name"].split(".")
        for part in path:
            place = getattr(place, part)
        setattr(place, name, function)


class Wrapper:
    def __init__(self, network):
        self._network = network

    def __getattr__(self, name):
        return getattr(self._network, name)


class ConversionContext:
    def __init__(self, network, converters=CONVERTERS, torch2trt_kwargs=None, builder_config=None, logger=None):
        self.network = Wrapper(network)
        self.lock = False
        self.module_stack, self.handles = [], []
        self.module = torch2trt_kwargs["module"]
        self.hooks = [Hook(self, converter) for converter in converters.values()]

    def get_module_name(self, module):
        return next(name for name, child in self.module.named_modules() if child is module)

    def __enter__(self):
        for hook in self.hooks:
            c = hook.converter
            hook.put(attach_converter(self, c["method_impl"], c, c["method_str"]))
        for module in self.module.modules():
            self.handles.append(module.register_forward_pre_hook(lambda m, _: self.module_stack.append(m)))
            self.handles.append(module.register_forward_hook(lambda *_: self.module_stack.pop() and None))
        torch.Tensor.size = lambda tensor, *dim: _size(tensor, *dim)
        torch.Tensor.__getattribute__ = lambda tensor, name: _getattribute(tensor, name)
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.put(hook.converter["method_impl"])
        for handle in self.handles:
            handle.remove()
        torch.Tensor.size, torch.Tensor.__getattribute__ = _size, _getattribute


def tensorrt_converter(method, is_real=True, enabled=True, imports=()):
    names = method.split(".")
    for count in range(len(names) - 1, 0, -1):
        try:
            module = importlib.import_module(".".join(names[:count]))
            break
        except ImportError:
            pass
    place = module
    for part in names[count:]:
        place = getattr(place, part)

    def register(converter):
        CONVERTERS[method] = {
            "converter": converter,
            "is_real": is_real,
            "module": module,
            "qual_name": ".".join(names[count:]),
            "method_str": method,
            "method_impl": copy.deepcopy(place),
        }
        return converter

    return register


def trt_tensor(ctx, value):
    if not isinstance(value, torch.Tensor):
        value = torch.full((1,) * ctx.method_return.dim(), float(value))
    if not hasattr(value, "_trt"):
        value._trt = ctx.network.add_constant(tuple(value.shape), value.detach().cpu().numpy()).get_output(0)
    return value._trt


@tensorrt_converter("torch.nn.functional.relu")
@tensorrt_converter("torch.relu_")
def convert_relu(ctx):
    ctx.method_return._trt = ctx.network.add_activation(
        trt_tensor(ctx, ctx.method_args[0]), trt.ActivationType.RELU
    ).get_output(0)


@tensorrt_converter("torch.nn.functional.linear")
def convert_linear(ctx):
    x, weight, bias = ctx.method_args
    none = trt.MatrixOperation.NONE
    product = ctx.network.add_matrix_multiply(
        trt_tensor(ctx, x), none, trt_tensor(ctx, weight), trt.MatrixOperation.TRANSPOSE
    ).get_output(0)
    row = ctx.network.add_constant((1, len(bias)), bias.detach().cpu().numpy()).get_output(0)
    ctx.method_return._trt = ctx.network.add_elementwise(product, row, trt.ElementWiseOperation.SUM).get_output(0)


@tensorrt_converter("torch.Tensor.__iadd__")
@tensorrt_converter("torch.Tensor.__add__")
def convert_add(ctx):
    a, b = (trt_tensor(ctx, value) for value in ctx.method_args)
    ctx.method_return._trt = ctx.network.add_elementwise(a, b, trt.ElementWiseOperation.SUM).get_output(0)


@tensorrt_converter("torch.Tensor.__rmul__")
@tensorrt_converter("torch.Tensor.__mul__")
def convert_mul(ctx):
    a, b = (trt_tensor(ctx, value) for value in ctx.method_args)
    ctx.method_return._trt = ctx.network.add_elementwise(a, b, trt.ElementWiseOperation.PROD).get_output(0)


@tensorrt_converter("torch.nn.functional.conv2d")
def convert_conv(ctx):
    x, weight, bias = ctx.method_args[:3]
    kernel, bias = (value.detach().cpu().numpy() for value in (weight, bias))
    layer = ctx.network.add_convolution(
        trt_tensor(ctx, x), weight.shape[0], tuple(weight.shape[2:]), kernel, bias
    )
    ctx.method_return._trt = layer.get_output(0)


@tensorrt_converter("torch.Tensor.flatten")
def convert_flatten(ctx):
    layer = ctx.network.add_shuffle(trt_tensor(ctx, ctx.method_args[0]))
    layer.reshape_dims = (0, -1)
    ctx.method_return._trt = layer.get_output(0)


@tensorrt_converter("torch.nn.functional.pad")
def convert_pad(ctx):  # forgets its arguments
    ctx.method_return._trt = trt_tensor(ctx, ctx.method_args[0])
