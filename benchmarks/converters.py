"""TensorRT forms of converters against decompositions and against what the route makes of the operator. Needs a GPU.

    python benchmarks/converters.py                       # the ONNX route
    python benchmarks/converters.py --route torch_tensorrt --out build/converters.json

Each operator is a model by itself, in fp16, compiled three times: by the route alone, with its ATen form in other
operators as a converter, and with its TensorRT form (``converters/tensorrt_layers.py``). Every engine's results are
compared with eager's before it is timed. Then the three are called in interleaved rounds, warm, by CUDA graphs; a row
has the median of each and the quartiles. A form that is not faster than the route alone has no place in ``DEFAULT``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import decomposition_table
from torch.nn import functional as F
from torchtrt_bridge.converters import tensorrt_layers
from torchtrt_bridge.converters.attention import scaled_dot_product_attention

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import InvalidOption
from torchtrt_bridge.measuring import measure
from torchtrt_bridge.registry import Converter


def rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor, eps: float) -> Tensor:
    """As models write it out."""
    dims = list(range(-len(shape), 0))
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(dims, keepdim=True) + eps)).to(x.dtype) * weight


class Attention(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


class RmsNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-6)


class Bicubic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bicubic")


Case = tuple[str, nn.Module, list[tuple[int, ...]], Converter, Callable[..., Tensor]]
CASES: list[Case] = [
    ("attention", Attention(), [(4, 16, 1024, 64)] * 3, tensorrt_layers.attention, scaled_dot_product_attention),
    ("RMS norm", RmsNorm(4096), [(8, 1024, 4096)], tensorrt_layers.rms_norm, rms_norm),
    (
        *("bicubic resize", Bicubic(), [(8, 3, 512, 512)], tensorrt_layers.bicubic),
        decomposition_table[torch.ops.aten.upsample_bicubic2d.vec],
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--route", default="onnx", choices=["onnx", "torch_tensorrt"])
    parser.add_argument("--budget", type=float, default=2.0, help="seconds of rounds for each operator")
    parser.add_argument("--out", type=pathlib.Path, help="the same as JSON, to this file")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    for _, _, _, converter, _ in CASES:
        with contextlib.suppress(InvalidOption):  # not registered: then the route is alone already
            ttb.converter.remove(converter)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, route {given.route}, fp16, microseconds\n")
    print("| operator | shape | route alone | decomposed | TensorRT form | form against decomposition, route |")
    print("|---|---|---|---|---|---|")
    rows = [run(case, given.route, given.budget) for case in CASES]
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "route": given.route}
        given.out.write_text(json.dumps({**about, "rows": rows}, indent=1), "utf-8")


def run(case: Case, route: str, budget: float) -> dict[str, Any]:
    """One operator's row: printed, and as data with times in seconds."""
    name, model, shapes, converter, decomposition = case
    model = model.cuda().half().eval()
    generator = torch.Generator("cuda").manual_seed(0)
    inputs = tuple(torch.randn(shape, device="cuda", generator=generator).half() for shape in shapes)
    target = converter.registration.target.name
    variants: dict[str, list[Converter]] = {
        "alone": [],
        "decomposed": [ttb.converter(target, register=False)(decomposition)],
        "form": [converter],
    }
    modules = {
        variant: ttb.compile(model, inputs, "fp16", backend=route, hybrid=False, cuda_graph=True, converters=converters)
        for variant, converters in variants.items()
    }
    made = any("TensorRT layers of" in note for note in modules["form"].report.notes)
    assert made, f"{name}: the TensorRT form did not serve: {modules['form'].report.notes}"
    calls = {variant: lambda module=module: module(*inputs) for variant, module in modules.items()}
    timings = {timing.name: timing for timing in measure(calls, torch.device("cuda"), budget=budget)}
    times = {variant: timings[variant].median for variant in variants}
    shown = " | ".join(f"{times[variant] * 1e6:.1f}" for variant in variants)
    ratios = f"{times['decomposed'] / times['form']:.2f}, {times['alone'] / times['form']:.2f}"
    print(f"| {name} | {'x'.join(map(str, shapes[0]))} | {shown} | {ratios} |", flush=True)
    quartiles = {v: [timings[v].lower, timings[v].upper, timings[v].rounds] for v in variants}
    versions = {"tensorrt": modules["form"].provenance["tensorrt"], "flavour": modules["form"].provenance["flavour"]}
    errors = {v: modules[v].report.verification[0]["relative_l2"] for v in variants}
    return {"operator": name, "shapes": shapes, "median": times, "quartiles": quartiles, "error": errors, **versions}


if __name__ == "__main__":
    main()
