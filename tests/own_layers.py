"""Custom operators with converters that make TensorRT layers, as a package of a user's has them: an RMS norm, and an
attention over queries and keys of length one with a learned temperature.

A module of its own, so that a child process can import it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import torchtrt_bridge as ttb

library = torch.library.Library("own_layers", "DEF")
library.define("rms(Tensor x, Tensor weight, float eps=1e-6) -> Tensor")
library.define("attention(Tensor query, Tensor key, Tensor value, Tensor scale) -> Tensor")


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps).to(x.dtype) * weight


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    scores = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)
    return torch.softmax(scores * scale, -1) @ value


library.impl("rms", rms, "CompositeExplicitAutograd")
library.impl("attention", attention, "CompositeExplicitAutograd")
torch.library.register_fake("own_layers::rms", lambda x, weight, eps=1e-6: torch.empty_like(x), lib=library)
torch.library.register_fake(
    "own_layers::attention", lambda query, key, value, scale: torch.empty_like(query), lib=library
)

rms_converter = ttb.converter("own_layers::rms", register=False)(rms)
attention_converter = ttb.converter("own_layers::attention", register=False)(attention)
CONVERTERS = [rms_converter, attention_converter]
seen: list[str] = []


@rms_converter.tensorrt
def rms_layers(ctx, x, weight, eps):
    """The mean is taken in fp32, whatever x is in."""
    seen.append(f"{ctx.place} {ctx.name_of(x.dtype)}{list(x.shape)} eps {eps}")
    operation = ctx.trt.ElementWiseOperation
    scaled = ctx.cast(_over_root(ctx, ctx.cast(x, torch.float32), ctx.trt.ReduceOperation.AVG, eps), x.dtype)
    return ctx.network.add_elementwise(*ctx.broadcast(scaled, weight), operation.PROD)


@attention_converter.tensorrt
def attention_layers(ctx, query, key, value, scale):
    """``scale`` is a parameter: it is read while the network is made, and multiplied into the queries."""
    matrix, operation = ctx.trt.MatrixOperation, ctx.trt.ElementWiseOperation
    query, key = (_over_root(ctx, each, ctx.trt.ReduceOperation.SUM, 1e-12) for each in (query, key))
    factor = ctx.constant(ctx.weights(scale))
    query = ctx.network.add_elementwise(*ctx.broadcast(query, factor), operation.PROD).get_output(0)
    scores = ctx.network.add_matrix_multiply(query, matrix.NONE, key, matrix.TRANSPOSE).get_output(0)
    softmax = ctx.network.add_softmax(scores)
    softmax.axes = 1 << (len(scores.shape) - 1)
    return ctx.network.add_matrix_multiply(softmax.get_output(0), matrix.NONE, value, matrix.NONE)


def _over_root(ctx, x, reduction, eps):
    """``x`` over the root of its squares' sum or mean in the last axis."""
    operation, last = ctx.trt.ElementWiseOperation, 1 << (len(x.shape) - 1)
    square = ctx.network.add_elementwise(x, x, operation.PROD).get_output(0)
    reduced = ctx.network.add_reduce(square, reduction, last, True).get_output(0)
    eps = ctx.cast(ctx.constant(eps), x.dtype)
    shifted = ctx.network.add_elementwise(*ctx.broadcast(reduced, eps), operation.SUM).get_output(0)
    root = ctx.network.add_unary(shifted, ctx.trt.UnaryOperation.SQRT)
    return ctx.network.add_elementwise(x, root.get_output(0), operation.DIV).get_output(0)


class Norm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(1 + torch.arange(width) / width)

    def forward(self, x):
        return torch.ops.own_layers.rms(x, self.weight)


class Attention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.project = nn.Linear(width, 3 * width)
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        return torch.ops.own_layers.attention(*self.project(x).chunk(3, -1), self.scale)


class Model(nn.Module):
    """Two norms around an attention. Two results, one of which is a norm's."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.attention, self.last = Norm(width), Attention(width), Norm(width)

    def forward(self, x):
        normal = self.first(x)
        return {"out": self.last(self.attention(normal)), "normal": normal}


class Several(nn.Module):
    """A module that is kept whole, with a parameter, an attribute, a size and two results."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.offset = nn.Linear(4, 4), 2.5

    def forward(self, x, rows: int):
        return self.inner(x) + self.offset, x.sum(-1) * rows


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.several = Several()

    def forward(self, x):
        return self.several(x, x.shape[0])


several_converter = ttb.converter(Several, register=False)(lambda module, x, rows: Several.forward(module, x, rows))


@several_converter.tensorrt
def several_layers(ctx, module, x, rows):
    seen.append(f"{ctx.place} offset {module.offset} weight {list(ctx.weights(module.inner.weight).shape)}")
    matrix, operation = ctx.trt.MatrixOperation, ctx.trt.ElementWiseOperation
    product = ctx.network.add_matrix_multiply(x, matrix.NONE, module.inner.weight, matrix.TRANSPOSE).get_output(0)
    for term in (module.inner.bias, ctx.constant(module.offset)):
        product = ctx.network.add_elementwise(*ctx.broadcast(product, term), operation.SUM).get_output(0)
    total = ctx.network.add_reduce(x, ctx.trt.ReduceOperation.SUM, 2, False).get_output(0)
    return product, ctx.network.add_elementwise(total, ctx.cast(rows, torch.float32), operation.PROD)


wrong_converter = ttb.converter("own_layers::rms", register=False)(lambda x, weight, eps: rms(x, weight, eps))


@wrong_converter.tensorrt
def wrong_layers(ctx, x, weight, eps):
    return ctx.reshape(x, [-1])
