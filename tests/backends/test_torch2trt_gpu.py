"""The torch2trt route on a GPU: by a stand-in for the package, and, where it can be imported, by torch2trt itself."""

from __future__ import annotations

import copy
import threading
from pathlib import Path

import own_layers
import pytest
import torch
from comparing import assert_same, nothing_changes
from torch import nn
from torch.nn import functional as F

import torchtrt_bridge as ttb
from torchtrt_bridge.backends import torch2trt_library
from torchtrt_bridge.backends.torch2trt_library import Library
from torchtrt_bridge.errors import ConversionFailed, UnsupportedLayer, VerificationFailed
from torchtrt_bridge.verify import TF32

pytestmark = pytest.mark.gpu
HERE = Path(__file__).parent


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE / "stand_in"))
    monkeypatch.setattr(torch2trt_library, "_loaded", [])


@pytest.fixture
def real():
    if (reason := Library.missing()) is not None:
        pytest.skip(reason)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8 * 36, 5)

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.head(x.flatten(1))


def compile(model, *inputs, precision="fp32", **options):
    return ttb.compile(model.eval().cuda(), inputs, precision, backend="torch2trt", **options)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 5e-3), ("bf16", 3e-2)])
def test_its_numbers(stand_in, precision, tolerance):
    model, x = Net(), torch.randn(2, 3, 8, 8, device="cuda")
    made = compile(model, x, precision=precision, dynamic_batch=(1, 2, 6))
    for size in (1, 6):
        x = torch.randn(size, 3, 8, 8, device="cuda")
        with torch.no_grad():
            assert_same(made(x), model(x), rtol=tolerance, atol=tolerance)


def test_a_model_that_writes_to_its_input(stand_in):
    def function(x, y):
        x += y
        return F.relu(x) * 2

    model, x, y = Function(function).eval(), torch.randn(2, 4, device="cuda"), torch.randn(2, 4, device="cuda")
    with nothing_changes(model, x, y):
        made = compile(model, x, y)
    expected = x.clone()
    assert_same(made(x, y), model(expected, y))
    assert_same(x, expected)


def test_threads_that_compute_meanwhile_are_not_disturbed(stand_in):
    stop, wrong = threading.Event(), []
    x = torch.randn(64, 64, device="cuda")
    expected = F.relu(x) + x

    def compute():
        while not stop.is_set():
            if not torch.equal(F.relu(x) + x, expected):
                wrong.append(1)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        for _ in range(5):
            inputs = torch.randn(2, 3, 8, 8, device="cuda")
            model = Net()
            made = compile(model, inputs)
            with torch.no_grad():
                assert_same(made(inputs), model(inputs))
    finally:
        stop.set()
        thread.join()
    assert not wrong


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, groups=2),
            nn.GroupNorm(2, channels),
        )

    def forward(self, x):
        y = self.body(x)
        y += x
        return F.relu(y, inplace=True)


def real_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.LeakyReLU(),
        Block(8),
        nn.MaxPool2d(2),
        Block(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
        nn.Softmax(dim=1),
    )


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 1e-2), ("bf16", 5e-2)])
def test_torch2trt_itself(real, precision, tolerance):
    model, x = real_net(), torch.randn(2, 3, 32, 32, device="cuda")
    model.eval().cuda()
    with nothing_changes(model, x):
        made = compile(model, x, precision=precision)
    assert not [t for t in (x, *model.parameters(), *model.buffers()) if hasattr(t, "_trt")]
    again = ttb.TRTModule()
    again.load_state_dict(copy.deepcopy(made.state_dict()))
    with torch.no_grad():
        assert_same(made(x), model(x), rtol=tolerance, atol=tolerance)
        assert_same(again(x), made(x), rtol=tolerance, atol=tolerance)


def test_torch2trt_itself_with_a_dynamic_size(real):
    model = Function(lambda x: F.interpolate(x.view(x.size(0), -1, x.size(2), x.size(3)), size=(x.size(2) * 2, 12)))
    made = compile(model, torch.randn(2, 3, 4, 5, device="cuda"), dynamic_batch=(1, 2, 4))
    x = torch.randn(4, 3, 4, 5, device="cuda")
    assert_same(made(x), model(x))


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (lambda x: F.hardshrink(x) + 1, UnsupportedLayer),
        (lambda x: torch.tensor(x) * 1, UnsupportedLayer),
        (lambda x: x.mul_(2).add_(1) * 1, UnsupportedLayer),
        (lambda x: F.pad(x, (1, 1, 1, 1), value=3.0), VerificationFailed),  # the converter ignores the value
        (lambda x: F.pad(x, (1, 1)), ConversionFailed),
    ],
)
def test_torch2trt_itself_is_never_silently_wrong(real, function, error):
    with pytest.raises(error):
        compile(Function(function), torch.randn(2, 3, 4, 4, device="cuda"))


class Normed(nn.Module):
    """Linear layers, which the stand-in has, around a norm and an attention, which converters have."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 8), own_layers.Norm(8), nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        x = self.norm(self.first(x))
        return self.last(torch.ops.own_layers.attention(x, x, x, self.scale))


def test_converters_layers_compute_what_eager_does(stand_in, tmp_path):
    model = Normed()
    x = torch.randn(3, 8, device="cuda")
    fast = compile(model, x, converters=own_layers.CONVERTERS, dynamic_batch=(1, 3, 6), verify=TF32)
    assert any("TensorRT layers of own_layers::rms (1 time)" in note for note in fast.report.notes)
    fast.save(tmp_path / "fast.safetensors")
    for module in (fast, ttb.load(tmp_path / "fast.safetensors")):
        for rows in (1, 3, 6):
            x = torch.randn(rows, 8, device="cuda")
            assert_same(module(x), model(x), 1e-2, 1e-2)
