"""A change of anything in a model, or in what is asked for, is another fingerprint; the same again is the same."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchtrt_bridge as ttb
from torchtrt_bridge import fingerprint as module
from torchtrt_bridge.backends.base import Place
from torchtrt_bridge.capture import capture
from torchtrt_bridge.fingerprint import Indescribable, fingerprint

CPU = Place(torch.device("cpu"))


class Net(nn.Module):
    """Every kind of thing that a mutation may change."""

    def __init__(self, part="whole", **changes):
        super().__init__()
        self.part = part
        have = dict(
            kernel=3, stride=1, padding=1, dilation=1, groups=1, bias=True, padding_mode="zeros", width=8, slope=0.1,
            norm_eps=1e-5, pool=2, ceil=False, heads=2, scale=1.5, shift=1, power=2, dim=1, keepdim=True, align=None,
            approximate="none", mode="nearest", factor=2.0, epsilon=1e-5, count_include_pad=True, clamp=(0.0, 6.0),
            use="relu", order="add_mul", causal=False, offset=0, alpha=1.0, dtype=torch.float32,
            fill=0.0, name="head", residual=True, inner="sum", normalized=(8,), softmax_dim=-1, largest=True,
            table=(1.0, 2.0),
        )  # fmt: skip
        assert not set(changes) - set(have)
        self.have = have = {**have, **changes}
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(
            4, have["width"], have["kernel"], have["stride"], have["padding"], have["dilation"], have["groups"],
            have["bias"], have["padding_mode"],
        )  # fmt: skip
        self.norm = nn.BatchNorm2d(have["width"], eps=have["norm_eps"])
        self.layer_norm = nn.LayerNorm(have["normalized"], eps=have["epsilon"])
        setattr(self, have["name"], nn.Linear(8, 8))
        self.register_buffer("table", torch.tensor(have["table"]))
        with torch.no_grad():
            for tensor in (*self.parameters(), self.norm.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))

    def forward(self, x):
        return getattr(self, self.part)(x)

    def whole(self, x):
        return self.convolution(x), self.head_of(x), self.numbers(x), self.attention(x), self.pooling(x)

    def convolution(self, x):
        y = self.norm(self.conv(x))
        return {"relu": F.relu, "silu": F.silu}[self.have["use"]](y)

    def head_of(self, x):
        have = self.have
        z = self.layer_norm(x)
        z = getattr(self, have["name"])(z) + (z if have["residual"] else 0)
        return F.gelu(z, approximate=have["approximate"]).to(have["dtype"]).float()

    def numbers(self, x):
        have = self.have
        y = F.leaky_relu(x, have["slope"]).clamp(*have["clamp"])
        y = (y + have["shift"]) * have["scale"] if have["order"] == "add_mul" else y * have["scale"] + have["shift"]
        y = torch.add(y, y.pow(have["power"]), alpha=have["alpha"]) + torch.full((), have["fill"]) + self.table.sum()
        return y.roll(have["offset"], 1).amax(have["dim"], keepdim=have["keepdim"])

    def attention(self, x):
        have = self.have
        q = x.flatten(1, 2).view(x.shape[0], -1, have["heads"], 8 // have["heads"]).transpose(1, 2)
        z = F.scaled_dot_product_attention(q, q, q, is_causal=have["causal"]).softmax(have["softmax_dim"])
        return z.topk(2, largest=have["largest"]).values

    def pooling(self, x):
        have = self.have
        include = have["count_include_pad"]
        y = F.avg_pool2d(x, have["pool"], ceil_mode=have["ceil"], padding=1, count_include_pad=include)
        y = F.interpolate(y, scale_factor=have["factor"], mode=have["mode"], align_corners=have["align"])
        return y.mean(3) if have["inner"] == "mean" else y.sum(3)


PARTS = {
    "convolution": "kernel stride padding dilation groups bias padding_mode norm_eps use",
    "head_of": "epsilon approximate dtype name residual",
    "numbers": "slope scale shift power dim keepdim clamp order offset alpha fill table",
    "attention": "heads causal softmax_dim largest",
    "pooling": "pool ceil mode align factor count_include_pad inner",
}


def part_of(change):
    return next(part for part, names in PARTS.items() if set(change) <= set(names.split()))


X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))

ATTRIBUTES = [
    dict(kernel=1, padding=0), dict(stride=2), dict(padding=2), dict(dilation=2, padding=2), dict(groups=2),
    dict(bias=False), dict(padding_mode="reflect"), dict(padding_mode="circular"), dict(padding_mode="replicate"),
    dict(norm_eps=1.0000001e-5), dict(epsilon=1e-6), dict(slope=0.2), dict(pool=3), dict(ceil=True), dict(heads=4),
    dict(scale=1.5000000000000002), dict(shift=1.0), dict(shift=True), dict(power=2.0), dict(power=3), dict(dim=2),
    dict(keepdim=False), dict(approximate="tanh"), dict(mode="bilinear"), dict(mode="bilinear", align=True),
    dict(factor=3.0), dict(count_include_pad=False), dict(clamp=(0.0, 6.5)), dict(clamp=(-0.0, 6.0)),
    dict(use="silu"), dict(order="mul_add"), dict(causal=True), dict(offset=1), dict(alpha=2.0),
    dict(dtype=torch.float16), dict(dtype=torch.bfloat16), dict(fill=1e-30), dict(name="tail"), dict(residual=False),
    dict(inner="mean"), dict(softmax_dim=1), dict(largest=False), dict(table=(1.0, 2.0000002)), dict(table=(2.0, 1.0)),
]  # fmt: skip

OPTIONS = {"precision": "fp32", "backend": "fastest", "build": ttb.BuildOptions(), "source": False}


def one(net=None, x=X, **capturing):
    return fingerprint(capture((net or Net()).eval(), x, **capturing), CPU, OPTIONS)


@functools.cache
def captured():
    return capture(Net().eval(), X)


def asked(options=OPTIONS, place=CPU):
    """The same model, asked for in another way."""
    return fingerprint(captured(), place, options)


def changed(change):
    net = Net().eval()
    with torch.no_grad():
        change(net)
    return net


def other_options(**changes):
    return {**OPTIONS, **changes}


def build_options(**changes):
    return other_options(build=dataclasses.replace(ttb.BuildOptions(), **changes))


OTHERS = {
    "one weight by one bit": lambda: one(changed(lambda n: n.conv.weight.view(-1)[5].mul_(1 + 2**-23))),
    "two weights swapped": lambda: one(changed(lambda n: n.head.weight.copy_(n.head.weight.flip(0)))),
    "a running mean": lambda: one(changed(lambda n: n.norm.running_mean[0].add_(1))),
    "a NaN among the weights": lambda: one(changed(lambda n: n.head.bias[0].fill_(float("nan")))),
    "the sign of a zero": lambda: one(changed(lambda n: n.table[0].mul_(0))) + one(
        changed(lambda n: n.table[0].mul_(-0.0))
    ),
    "the batch": lambda: one(x=X[:1]),
    "the size": lambda: one(x=torch.randn(2, 4, 10, 8)),
    "strides of the input": lambda: one(x=X.contiguous(memory_format=torch.channels_last)),
    "strides of a weight": lambda: one(Net().to(memory_format=torch.channels_last)),
    "the dtype": lambda: one(Net().double(), X.double()),
    "a dynamic batch": lambda: one(dynamic_batch=(1, 2, 4)),
    "another range": lambda: one(dynamic_batch=(1, 2, 5)),
    "another usual size": lambda: one(dynamic_batch=(1, 3, 4)),
    "the precision": lambda: asked(options=other_options(precision="fp16")),
    "the route": lambda: asked(options=other_options(backend="auto")),
    "tf32": lambda: asked(options=build_options(tf32=True)),
    "the workspace": lambda: asked(options=build_options(workspace=1 << 20)),
    "the optimization level": lambda: asked(options=build_options(optimization_level=3)),
    "the kernels' choice": lambda: asked(options=build_options(kernel_specialization="none")),
    "the source": lambda: asked(options=other_options(source=True)),
    "the target": lambda: asked(place=Place(torch.device("cpu"), "sm89")),
    "another target": lambda: asked(place=Place(torch.device("cpu"), "sm120")),
}


def test_at_least_50_mutations_of_a_model_are_as_many_fingerprints():
    found = {f"{part} as it is": one(Net(part)) for part in ("whole", *PARTS)}
    for change in ATTRIBUTES:
        found[str(change)] = one(Net(part_of(change), **change))
    for name, make in OTHERS.items():
        found[name] = make()
    same = [(a, b) for i, a in enumerate(found) for b in list(found)[:i] if found[a] == found[b]]
    assert not same
    assert len(found) > 60


def test_the_same_model_made_again_has_the_same_in_another_process_too(tmp_path):
    assert one() == one(Net()) == one(x=torch.randn_like(X))
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_fingerprint as t; print(t.one())"
    folder = __file__.rpartition("/")[0]
    other = subprocess.run([sys.executable, "-c", code, folder], check=True, capture_output=True, text=True).stdout
    assert other.split()[-1] == one()


@pytest.mark.parametrize(
    "name, value",
    [("_versions", {"torch": "9.9"}), ("_code", "another version of the package"), ("_here", {"gpu": "another"})],
)
def test_versions_code_and_gpu_are_in_it(monkeypatch, name, value):
    before = one()
    monkeypatch.setattr(module, name, lambda *args: value)
    assert one() != before


def test_what_cannot_be_described_has_none():
    captured = capture(Net().eval(), X)
    node = next(n for n in captured.program.graph.nodes if n.op == "call_function")
    node.meta["val"] = object()
    with pytest.raises(Indescribable, match="object"):
        fingerprint(captured, CPU, OPTIONS)
    with pytest.raises(Indescribable):
        fingerprint(capture(Net().eval(), X), CPU, {"converter": lambda x: x})


def layers_of(form):
    """The fingerprint of a model whose GELU has ``form`` for TensorRT."""
    from torchtrt_bridge.lowering import lower

    with ttb.converter.scope():
        ttb.converter("aten::gelu").tensorrt(form)
        snapshot = ttb.converter.snapshot()
        captured = capture(nn.GELU().eval(), torch.ones(2), converters=snapshot)
        return fingerprint(lower(captured, snapshot), CPU, {})


def helper(ctx, x):
    return ctx.network.add_identity(x)


def making(number, function=helper):
    return lambda ctx, x, approximate: (ctx.cast(x, torch.float16), number, function(ctx, x), F.gelu)


def test_a_converters_form_is_part_of_it():
    plain = fingerprint(capture(nn.GELU().eval(), torch.ones(2)), CPU, {})
    one = layers_of(making(1))
    assert one == layers_of(making(1))  # another function object, of the same code and constants
    others = [
        layers_of(making(2)),
        layers_of(making(1.0)),
        layers_of(making(1, lambda ctx, x: ctx.network.add_shape(x))),
        layers_of(lambda ctx, x, approximate: helper(ctx, x)),
        layers_of(lambda ctx, x, approximate: ctx.network.add_identity(x)),
    ]
    assert len({plain, one, *others}) == 2 + len(others)


def test_a_form_that_reads_what_has_no_text_is_never_found_again():
    with pytest.raises(Indescribable):
        layers_of(making(object()))
    with pytest.raises(Indescribable):
        layers_of(making(1, functools.partial(helper, 1)))
