"""The layers that public routes were known to lack, each as a small module with inputs: what the built-in converters,
or a route by itself, must take whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

attention = F.scaled_dot_product_attention


class Call(nn.Module):
    """``function`` of the layer's inputs and of ``parts``, its submodules."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args, *self.parts)


@dataclasses.dataclass(frozen=True)
class Layer:
    """``module(*inputs)``; with ``batched``, the first axis of every input may be made dynamic."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    batched: bool = True


def _layer(
    function: Callable[..., Any], *inputs: Tensor, parts: tuple[nn.Module, ...] = (), batched: bool = True
) -> Layer:
    return Layer(Call(function, *parts).eval(), inputs, batched)


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _rotary(x: Tensor, angles: Tensor) -> Tensor:
    turned = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2)


def make(name: str) -> Layer:
    """The layer of that name, one of :data:`NAMES`. ImportError where it is torchvision's, and that is missing."""
    found = _LAYERS[name]
    return found() if callable(found) else found


def _all() -> dict[str, Layer | Callable[[], Layer]]:
    q, k = _normal(2, 4, 6, 8), _normal(2, 2, 6, 8)
    image, grid = _normal(2, 3, 7, 9), _normal(2, 5, 4, 2).clamp(-1.3, 1.3)
    found: dict[str, Layer | Callable[[], Layer]] = {
        "attention, mask": _layer(lambda q, m: attention(q, q, q, attn_mask=m > -1), q, _normal(2, 1, 6, 6)),
        "attention, bias": _layer(lambda q, b: attention(q, q, q, attn_mask=b), q, _normal(2, 4, 6, 6)),
        "attention, causal": _layer(lambda q: attention(q, q, q, is_causal=True), q),
        "attention, grouped queries": _layer(lambda q, k: attention(q, k, k, enable_gqa=True), q, k),
        "attention, one key": _layer(lambda q, k: attention(q, k, k, enable_gqa=True), q, k[:, :1]),
        "RMS norm": _layer(lambda x, norm: norm(x), _normal(2, 5, 16), parts=(nn.RMSNorm(16),)),
        "rotary embedding, complex": _layer(_rotary, _normal(2, 5, 8), _normal(5, 4), batched=False),
        "deformable convolution": _deformable,
        "regions of interest": _regions,
        "LSTM, both directions": _layer(
            lambda x, lstm: lstm(x)[0],
            _normal(2, 5, 4),
            parts=(nn.LSTM(4, 6, 2, bidirectional=True, batch_first=True),),
        ),
        "GRU, both directions": _layer(
            lambda x, gru: gru(x)[0], _normal(2, 5, 4), parts=(nn.GRU(4, 6, bidirectional=True, batch_first=True),)
        ),
        "unfold": _layer(lambda x: F.unfold(x, 3, padding=1, stride=2), image),
        "fold": _layer(lambda x: F.fold(x, (6, 6), 2, stride=2), _normal(2, 12, 9)),
        "adaptive pooling, mean": _layer(lambda x: F.adaptive_avg_pool2d(x, (3, 5)), image),
        "adaptive pooling, maximum": _layer(lambda x: F.adaptive_max_pool2d(x, (3, 5)), image),
        "bicubic resize": _layer(lambda x: F.interpolate(x, (5, 13), mode="bicubic"), image),
        "antialiased resize": _layer(lambda x: F.interpolate(x, (4, 5), mode="bicubic", antialias=True), image),
        "embedding_bag": _layer(
            lambda i, bag: bag(i), torch.randint(0, 9, (3, 4)), parts=(nn.EmbeddingBag(9, 5, mode="mean"),)
        ),
        "scatter with a maximum": _layer(
            lambda x, i, s: x.scatter_reduce(1, i, s, "amax"), _normal(2, 5), torch.randint(0, 5, (2, 7)), _normal(2, 7)
        ),
        "index_put that adds": _layer(
            lambda x, i, v: x.index_put((i,), v, accumulate=True),
            *(_normal(5, 3), torch.tensor([1, 1, 4]), _normal(3, 3)),
            batched=False,
        ),
        "cumsum": _layer(lambda x: x.cumsum(-1), _normal(2, 9)),
        "cumprod": _layer(lambda x: x.cumprod(-1), _normal(2, 9)),
        "stable sort": _layer(lambda x: torch.sort(x.round(), dim=-1, stable=True), _normal(2, 30)),
        "topk": _layer(lambda x: torch.topk(x, 4), _normal(2, 30)),
        "searchsorted": _layer(lambda x: torch.searchsorted(torch.arange(-2, 2.0, device=x.device), x), _normal(2, 5)),
        "einsum": _layer(lambda x, y: torch.einsum("b...i,bji->b...j", x, y), _normal(2, 3, 4), _normal(2, 5, 4)),
        "cdist": _layer(torch.cdist, _normal(2, 3, 4), _normal(2, 5, 4)),
        "weight_norm": _layer(
            lambda x, a: a(x), _normal(2, 4), parts=(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),)
        ),
        "spectral_norm": _layer(
            lambda x, a: a(x), _normal(2, 4), parts=(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)),)
        ),
        "FFT": _layer(lambda x: torch.view_as_real(torch.fft.rfft(x, norm="ortho")), _normal(2, 12)),
        "FFT and back": _layer(lambda x: torch.fft.irfft(torch.fft.rfft(x) * 2, n=12), _normal(2, 12)),
        "FFT in two dims": _layer(lambda x: torch.fft.fft2(x).abs(), _normal(2, 6, 5)),
        "rounding whole numbers": _layer(lambda x: (x.floor(), x.isnan()), torch.arange(6).reshape(2, 3)),
        "argmax of all": _layer(torch.argmax, _normal(2, 3)),
        "a dim of size 1": _layer(lambda x: x.squeeze().cumsum(0), _normal(1, 4, 1), batched=False),
        "an empty part": _layer(lambda x: torch.cat([x[:, :0], x], 1) + x[:, 3:].sum(), _normal(2, 3)),
    }
    for mode in ("bilinear", "nearest", "bicubic"):
        for padding in ("zeros", "border", "reflection"):
            for corners in (False, True):
                found[f"grid_sample, {mode}, {padding}, {'corners' if corners else 'centers'}"] = _layer(
                    lambda x, g, mode=mode, padding=padding, corners=corners: F.grid_sample(
                        x, g, mode, padding, corners
                    ),
                    image,
                    grid,
                )
    return found


def _deformable() -> Layer:
    from torchvision.ops import deform_conv2d

    return _layer(
        lambda x, offset, mask, conv: deform_conv2d(x, offset, conv.weight, conv.bias, padding=1, mask=mask.sigmoid()),
        _normal(2, 4, 6, 6), _normal(2, 18, 6, 6), _normal(2, 9, 6, 6), parts=(nn.Conv2d(4, 5, 3),),
    )  # fmt: skip


def _regions() -> Layer:
    from torchvision.ops import roi_align

    boxes = torch.tensor([[0, 1.0, 1, 6, 7], [1, 0.5, 2, 4.2, 6], [0, 2, 2, 3, 3]])
    return _layer(lambda x, b: roi_align(x, b, (3, 2), 0.5, 2, True), _normal(2, 3, 8, 8), boxes, batched=False)


_LAYERS = _all()
NAMES = list(_LAYERS)
