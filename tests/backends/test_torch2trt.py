"""The torch2trt route around a stand-in for that package: what it refuses, and that nothing of it stays behind."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from comparing import nothing_changes
from torch import nn
from torch.nn import functional as F

import torchtrt_bridge as ttb
from torchtrt_bridge import selection
from torchtrt_bridge.backends import torch2trt_library
from torchtrt_bridge.backends.torch2trt_library import Library
from torchtrt_bridge.errors import BackendUnavailable, BuildCrashed, ConversionFailed, InvalidOption, UnsupportedLayer
from torchtrt_bridge.trt import probe
from torchtrt_bridge.trt.request import Crashed

pytest.importorskip("tensorrt_rtx")
HERE = Path(__file__).parent


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE / "stand_in"))
    monkeypatch.setattr(torch2trt_library, "_loaded", [])


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


class Model(nn.Module):
    """A layer, and a function behind it in the submodule ``tail.1``."""

    def __init__(self, function=lambda x: F.relu(x)):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.tail = nn.Sequential(nn.ReLU(), Function(function))

    def forward(self, x):
        return self.tail(self.stem(x))


def build(model, *inputs, precision="fp32", **options):
    return ttb.build(model.eval(), inputs, precision, backend="torch2trt", **options)


def layers(module) -> int:
    return module.provenance["layers"]


def test_a_model_becomes_a_plan_with_our_names(stand_in):
    made = build(Model(), torch.randn(2, 4), dynamic_batch=(1, 2, 8))
    assert (made.backend, made.report.runtime) == ("torch2trt", "tensorrt")
    assert [s.name for s in made.signature.inputs] == ["x"]
    assert made.signature.outputs[0].shape == ("batch", 4)
    assert made.provenance["torch2trt"] == "unknown"  # installed from nowhere


@pytest.mark.parametrize("supported", [True, False])
def test_nothing_stays_behind(stand_in, supported):
    model, x = Model(lambda x: F.relu(x) if supported else F.hardshrink(x)).eval(), torch.randn(2, 4)
    attributes = {place: dict(place.__dict__) for place in (torch, torch.Tensor, torch._C.TensorBase, F)}
    modules = {name: module for name, module in sys.modules.items() if "torchtrt_bridge" not in name}
    with nothing_changes(model, x):
        try:
            build(model, x)
        except UnsupportedLayer:
            assert not supported
        else:
            assert supported
    for place, before in attributes.items():
        assert {k: v for k, v in place.__dict__.items() if k in before} == before, place
        assert {k for k in set(place.__dict__) - set(before) if not k.startswith("__")} == set(), place
    assert "__getattribute__" not in torch.Tensor.__dict__
    assert {name for name in sys.modules if name.split(".")[0] in ("tensorrt", "torch2trt")} == {
        name for name in modules if name.split(".")[0] in ("tensorrt", "torch2trt")
    }
    assert not [t for t in (x, *model.parameters()) if hasattr(t, "_trt")]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def add_in_place(x):
    y = x * 2
    y.add_(1)
    return F.relu(y)


def write_to_a_view(x):
    y = x * 2
    y[0].fill_(1)
    return F.relu(y)


def fill_a_buffer(x):
    y = torch.zeros(2, 4)
    y.copy_(F.relu(x))
    return x + y


@torch.library.custom_op("bridge_tests_torch2trt::mixed", mutates_args=())
def mixed(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x) * x.flip(-1)  # one converted function, and one result that would be a constant


@mixed.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: torch.ops.bridge_tests_torch2trt.mixed(x), "bridge_tests_torch2trt.mixed"),
        (lambda x: F.hardshrink(x), "aten.hardshrink"),
        (lambda x: F.hardshrink(x) + 1, "aten.hardshrink"),  # a constant to whoever does not look where it is from
        (lambda x: F.relu(F.logsigmoid(x).abs()), "aten.log_sigmoid_forward"),
        (add_in_place, "aten.add_"),
        (write_to_a_view, "aten.fill_"),
        (fill_a_buffer, "aten.copy_"),
    ],
)
def test_what_has_no_converter_is_named_with_its_module(stand_in, function, operator):
    with pytest.raises(UnsupportedLayer, match=rf"{operator}\b.* in module 'tail.1' \(Function\)"):
        build(Model(function), torch.randn(2, 4))


def test_a_converter_that_forgets_something_is_caught_by_the_shape(stand_in):
    with pytest.raises(UnsupportedLayer, match=r"shape \(2, 4\), where torch gives \(2, 6\), in module 'tail.1'"):
        build(Model(lambda x: F.pad(x, (1, 1))), torch.randn(2, 4))


def test_constants_of_the_model_are_no_layers_to_convert(stand_in):
    table = torch.randn(2, 4)
    made = build(Model(lambda x: x + torch.hardshrink(table) + torch.ones_like(x)), torch.randn(2, 4))
    assert made.backend == "torch2trt"


def test_detach_is_no_layer(stand_in):
    made = build(Model(lambda x: F.relu(x.detach()) + x), torch.randn(2, 4))
    assert layers(made) == layers(build(Model(lambda x: F.relu(x) + x), torch.randn(2, 4)))


def test_in_place_operators_with_a_converter(stand_in):
    def function(x):
        y = x * 2
        y += x
        return F.relu(y, inplace=True) + y

    def functional(x):
        y = x * 2 + x
        y = F.relu(y)
        return y + y

    inputs = torch.randn(2, 4)
    assert layers(build(Model(function), inputs)) == layers(build(Model(functional), inputs))


def test_nested_and_integer_inputs_and_results(stand_in):
    class Nested(nn.Module):
        def forward(self, pair, scale, flag=True):
            a, b = pair
            return {"sum": a + b, "more": [b * b, a if flag else b], "number": 3}

    ints = torch.ones(2, 4, dtype=torch.int64)
    made = build(Nested(), (ints, ints), torch.ones(2), False)
    assert [spec.dtype for spec in made.signature.inputs] == ["int64", "int64", "float32"]
    assert [spec.dtype for spec in made.signature.outputs] == ["int64", "int64"]


def test_a_size_that_became_a_constant_is_refused(stand_in):
    def convert(ctx):
        layer = ctx.network.add_shuffle(ctx.method_args[0]._trt)
        layer.reshape_dims = tuple(ctx.method_return.shape)
        ctx.method_return._trt = layer.get_output(0)

    from torchtrt_bridge.backends import torch2trt_converters

    torch2trt_converters.register("torch.Tensor.unsqueeze", convert, True, ())
    try:
        assert build(Model(lambda x: x.unsqueeze(1)), torch.randn(2, 4)).backend == "torch2trt"
        with pytest.raises(ConversionFailed, match="fixed axis 0 of the result 'output' at 2, where the model gives b"):
            build(Model(lambda x: x.unsqueeze(1)), torch.randn(2, 4), dynamic_batch=(1, 2, 8))
    finally:
        torch2trt_converters.CONVERTERS.clear()
    with pytest.raises(UnsupportedLayer, match="aten.unsqueeze"):
        build(Model(lambda x: x.unsqueeze(1)), torch.randn(2, 4))


FUNCTIONS = (lambda x: F.relu(x), lambda x: x * 2 + x)


def test_other_threads_calls_are_not_recorded(stand_in):
    def function(x):
        results = []

        def elsewhere():
            y = F.relu(torch.ones(2, 4)) * 2
            results.append((hasattr(y, "_trt"), y.shape, y.numpy().sum()))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert results == [(False, (2, 4), 16.0)]
        return F.relu(x)

    assert layers(build(Model(function), torch.randn(2, 4))) == layers(build(Model(), torch.randn(2, 4)))


def test_two_threads_build_at_once(stand_in):
    alone = [layers(build(Model(f), torch.randn(2, 4))) for f in FUNCTIONS]
    found = [0, 0]

    def work(index, function):
        found[index] = layers(build(Model(function), torch.randn(2, 4)))

    threads = [threading.Thread(target=work, args=(i, f)) for i, f in enumerate(FUNCTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_lower_precision_is_written_into_the_layers_with_weights(stand_in, precision):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    made = build(model, torch.randn(2, 1, 4, 4), precision=precision)
    assert made.precision == precision
    assert any(f"convolutions and matrix products in {precision}" in note for note in made.report.notes)


def test_a_user_who_imported_torch2trt_keeps_it(stand_in, monkeypatch):
    with Library.open() as library:
        own = dict(library.modules)
    monkeypatch.setattr(torch2trt_library, "_loaded", [])
    for name, module in own.items():
        monkeypatch.setitem(sys.modules, name, module)
    with Library.open() as library:
        assert library.module is own["torch2trt.torch2trt"]
    build(Model(), torch.randn(2, 4))
    assert sys.modules["torch2trt"] is own["torch2trt"]
    assert not torch2trt_library._loaded


def test_without_it_the_reason_says_how_to_install(monkeypatch):
    monkeypatch.setattr(torch2trt_library, "_loaded", [])
    if Library.missing() is None:
        pytest.skip("torch2trt is installed here")
    with pytest.raises(BackendUnavailable, match="torch2trt is not installed: pip install git"):
        build(Model(), torch.randn(2, 4))


def test_a_checkout_in_the_current_folder_is_no_installation(monkeypatch, tmp_path):
    (tmp_path / "torch2trt" / "torch2trt").mkdir(parents=True)
    (tmp_path / "torch2trt" / "torch2trt" / "__init__.py").write_text("import torch2trt.flattener\n")
    monkeypatch.syspath_prepend(os.fspath(tmp_path))
    monkeypatch.setattr(torch2trt_library, "_loaded", [])
    reason = Library.missing()
    assert reason is None or f"not installed, there is only a folder {tmp_path / 'torch2trt'}" in reason


def test_a_broken_one_is_a_reason_too(monkeypatch, tmp_path):
    (tmp_path / "torch2trt.py").write_text("import tensorrt\ntensorrt.NoSuchName\n")
    monkeypatch.syspath_prepend(os.fspath(tmp_path))
    monkeypatch.setattr(torch2trt_library, "_loaded", [])
    with pytest.raises(BackendUnavailable, match="installed, but does not import: AttributeError.*'NoSuchName'"):
        build(Model(), torch.randn(2, 4))
    assert "torch2trt" not in sys.modules and "tensorrt" not in sys.modules


def test_the_cpu_is_refused_with_a_reason(stand_in):
    with pytest.raises(ConversionFailed, match="makes TensorRT plans only"):
        ttb.compile(Model().eval(), torch.randn(2, 4), backend="torch2trt")


def test_a_builder_that_would_end_the_process_is_not_tried(stand_in, monkeypatch):
    def crash(request, *_):
        assert request.fill is None, "the process would be gone now"
        raise Crashed("The build process ended")

    monkeypatch.setattr(probe, "_survives", False)
    monkeypatch.setattr(probe, "build_in_child", crash)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BuildCrashed):
        build(Model(), torch.randn(2, 4))


def test_it_is_tried_last():
    assert selection.BACKENDS[-1].name == "torch2trt"


def test_a_setting_that_the_flavour_lacks_is_refused(stand_in):
    with pytest.raises(InvalidOption, match="timing_cache"):
        build(Model(), torch.randn(2, 4), build=ttb.BuildOptions(timing_cache="cache"))
