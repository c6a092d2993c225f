"""Converters' forms in captured programs: what is spelled out, what stays opaque, what is refused by name."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchtrt_bridge as ttb
from torchtrt_bridge.capture import CapturedModel, capture
from torchtrt_bridge.errors import ArgumentWritten, ConverterFailed
from torchtrt_bridge.fx_nodes import module_path
from torchtrt_bridge.lowering import lower, serving
from torchtrt_bridge.precision import Precision, cast_program


@torch.library.custom_op("lowering_tests::norm", mutates_args=())
def norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


@norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return torch.empty_like(x)


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.lowering_tests.norm(x, self.weight)


class Gate(nn.Module):
    """A layer with nested results, a parameter and an attribute."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.3]))
        self.factor = factor

    def forward(self, x: Tensor, shift: float = 0.5) -> dict[str, Any]:
        return {"out": x * torch.sigmoid(self.slope * x) * self.factor + shift, "unused": None}


def wave(x: Tensor, scale: float = 1.0) -> Tensor:
    return x.sin() * scale


class Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float) -> tuple[Tensor, Tensor]:
        return x.clamp(min=low), x + 1

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None


class Model(nn.Module):
    """Every kind of target once."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.gate = nn.Linear(4, 4), Norm(), Gate()

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate(self.norm(self.linear(x)))["out"]
        low, more = Clip.apply(wave(x, scale=2.0), 0.1)
        return low + more


@pytest.fixture(autouse=True)
def _own_converters() -> Iterator[None]:
    with ttb.converter.scope():
        yield


def lowered(model: nn.Module, x: Any, **options: Any) -> CapturedModel:
    snapshot = ttb.converter.snapshot()
    return lower(capture(model.eval(), x, converters=snapshot, **options), snapshot)


def operators(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def assert_computes(captured: CapturedModel, x: Tensor) -> None:
    program = captured.program.module()
    torch.testing.assert_close(program(x)[0], captured.eager([x])[0])


def test_every_kind_of_target_becomes_plain_operators() -> None:
    @ttb.converter("lowering_tests::norm")
    def of_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        out.copy_(x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight)  # writes in place
        return out

    @ttb.converter(Gate)
    def of_gate(gate: Gate, x: Tensor, shift: float) -> dict[str, Any]:
        return {"out": torch.nn.functional.silu(x * gate.slope) / gate.slope * gate.factor + shift, "unused": None}

    @ttb.converter(wave)
    def of_wave(x: Tensor, scale: float) -> Tensor:
        return torch.cos(x - torch.pi / 2) * scale

    @ttb.converter(Clip)
    def of_clip(x: Tensor, low: float) -> tuple[Tensor, Tensor]:
        return torch.relu(x - low) + low, x + 1

    captured = lowered(Model(), torch.randn(3, 4), dynamic_batch=(1, 3, 8))
    names = operators(captured.program)
    assert {"aten.silu.default", "aten.cos.default", "aten.relu.default", "aten.rsqrt.default"} <= set(names)
    assert {name.partition(".")[0] for name in names} == {"aten"}
    assert captured.formed is None and not captured.calls
    assert_computes(captured, torch.randn(5, 4))
    assert "silu" in [n.name for n in captured.program.graph.nodes if module_path(n) == "gate"]


def test_a_call_with_a_tensorrt_form_is_one_opaque_operator_beside_the_plain_program() -> None:
    @ttb.converter("lowering_tests::norm")
    def of_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight

    @of_norm.tensorrt
    def _(ctx: Any, x: Any, weight: Any, eps: float) -> Any: ...

    captured = lowered(Model(), torch.randn(3, 4), dynamic_batch=(1, 3, 8))
    assert captured.formed is not None
    ((name, call),) = captured.calls.items()
    assert operators(captured.formed).count(name) == 1
    assert call.place == "norm" and call.registration is of_norm.registration
    assert call.bind(["x", "weight"]) == (("x", "weight", 1e-5), {})  # the schema's default among them
    assert all(operator.startswith("aten.") for operator in operators(captured.program))
    assert serving(captured, lambda call: False) is captured.program
    assert serving(captured, lambda call: True) is captured.formed
    x = torch.randn(2, 4)
    torch.testing.assert_close(captured.formed.module()(x)[0], captured.eager([x])[0])


def test_an_opaque_module_gives_its_attributes_and_the_values_of_its_parameters() -> None:
    of_gate = ttb.converter(Gate)

    @of_gate.tensorrt
    def _(ctx: Any, gate: Any, x: Any, shift: float) -> Any: ...

    captured = lowered(Model(), torch.randn(3, 4))
    ((_, call),) = captured.calls.items()
    (gate, x, shift), kwargs = call.bind(["x", "slope"])
    assert (gate.slope, gate.factor, x, shift, kwargs) == ("slope", 2.0, "x", 0.5, {})
    assert "aten.sigmoid.default" in operators(captured.program)  # without an ATen form, the module's own forward
    assert_computes(captured, torch.randn(3, 4))


def test_opaque_operators_go_when_nobody_holds_the_captured_model() -> None:
    of_wave = ttb.converter(wave)
    of_wave.tensorrt(lambda ctx, x, scale: None)
    captured = lowered(Model(), torch.randn(3, 4))
    (name,) = captured.calls
    full = name.removesuffix(".default").replace(".", "::")
    assert full in torch._C._dispatch_get_all_op_names()
    del captured
    gc.collect()
    assert full not in torch._C._dispatch_get_all_op_names()


@pytest.mark.parametrize(
    ("precision", "inside"), [("follow", torch.float16), ("low", torch.float16), ("fp32", torch.float32)]
)
def test_an_opaque_call_is_cast_as_its_registration_wants(precision: str, inside: torch.dtype) -> None:
    @ttb.converter("lowering_tests::norm", precision=precision)
    def of_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight

    of_norm.tensorrt(lambda ctx, x, weight, eps: None)
    captured = lowered(Model(), torch.randn(3, 4))
    assert captured.formed is not None
    cast = cast_program(captured.formed, Precision.parse("fp16"))
    (node,) = [n for n in cast.program.graph.nodes if str(n.target) in captured.calls]
    assert [n.meta["val"].dtype for n in node.all_input_nodes] == [inside, inside]
    assert node.meta["val"].dtype == inside
    assert (cast.kept.get("lowering_tests::norm") == ["norm"]) == (precision == "fp32")


def spelled(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def two_results(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x, x


def other_dtype(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.double()


def other_shape(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x[:, :2]


def raising(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    raise ZeroDivisionError("no way")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (two_results, "gives 2 tensors, and what it converts one tensor"),
        (other_dtype, "gives a result of torch.float64; expected: torch.float32"),
        (other_shape, r"gives a result of shape \(.*, 2\); expected: \(.*, 4\)"),
        (raising, "raised ZeroDivisionError: no way"),
    ],
)
def test_a_form_that_gives_something_else_is_refused_by_name_and_place(form: Any, message: str) -> None:
    ttb.converter("lowering_tests::norm")(form)
    with pytest.raises(
        ConverterFailed, match=rf"converter of lowering_tests::norm in norm \(.*{form.__name__}, .*{message}\.?$"
    ):
        lowered(Model(), torch.randn(3, 4), dynamic_batch=(1, 3, 8))


def writing(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x.view(-1).mul_(2)
    return x


def test_a_form_that_writes_to_its_argument_is_refused_by_name() -> None:
    ttb.converter("lowering_tests::norm")(writing)
    with pytest.raises(ArgumentWritten, match="of lowering_tests::norm in norm .*writing.* writes to one of its"):
        lowered(Model(), torch.randn(3, 4))


def test_a_module_that_writes_to_its_argument_keeps_its_own_lowering() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inplace, self.outside = nn.SiLU(inplace=True), nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            x = x + 1
            return self.inplace(x) + x + self.outside(x)

    ttb.converter(nn.SiLU)(lambda module, x: x * torch.sigmoid(x))
    captured = lowered(Both(), torch.randn(3, 4))
    assert [(c.place, "writes to its argument" in c.rejected) for c in captured.conversions] == [
        ("inplace", True),
        ("outside", False),
    ]
    assert_computes(captured, torch.randn(3, 4))


def test_calls_inside_of_torch_cond_keep_their_own_lowering() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = Gate()

        def forward(self, x: Tensor) -> Tensor:
            inside = torch.cond(x.sum() > 0, lambda x: wave(x) + 1, lambda x: self.gate(x)["out"] - 1, (x,))
            return inside + wave(x)

    ttb.compile(nn.ReLU().eval(), torch.randn(3))  # tells Dynamo, which traces the branches, not to follow
    ttb.converter(wave)(lambda x, scale: torch.cos(x - torch.pi / 2) * scale)
    ttb.converter(Gate)(lambda gate, x, shift: {"out": gate.slope + shift, "unused": None})
    captured = lowered(Either(), torch.randn(3, 4))
    assert [c.rejected for c in captured.conversions] == [""]
    for x in (torch.ones(3, 4), -torch.ones(3, 4)):
        assert_computes(captured, x)


def test_a_kept_module_may_hold_others_of_its_class() -> None:
    class Nest(nn.Module):
        def __init__(self, inner: nn.Module | None = None) -> None:
            super().__init__()
            self.inner, self.slope = inner or nn.Identity(), nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.slope

    @ttb.converter(Nest, when=lambda call: isinstance(call.module.inner, nn.Identity))
    def of_nest(module: Nest, x: Tensor) -> Tensor:
        return torch.maximum(x, x) * module.slope

    captured = lowered(Nest(Nest(Nest())), torch.randn(3, 4))
    assert operators(captured.program).count("aten.maximum.default") == 1
    assert [c.place for c in captured.conversions if not c.rejected] == ["inner.inner"]
    assert_computes(captured, torch.randn(3, 4))


def test_when_decides_call_by_call() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten.leaky_relu(x, 0.5) + torch.ops.aten.leaky_relu(x, 0.25)

    @ttb.converter("aten::leaky_relu", when=lambda call: call["slope"] == 0.5 or "its slope is not a half")
    def of_leaky_relu(x: Tensor, slope: float) -> Tensor:
        return torch.maximum(x, x * slope)

    captured = lowered(Two(), torch.randn(3, 4))
    names = operators(captured.program)
    assert names.count("aten.leaky_relu.default") == names.count("aten.maximum.default") == 1
    assert [c.rejected for c in captured.conversions] == ["its slope is not a half", ""]
    assert_computes(captured, torch.randn(3, 4))


def test_when_sees_a_module_and_its_attributes() -> None:
    class Gates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Gate(1.0), Gate(3.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)["out"])["out"]

    @ttb.converter(Gate, when=lambda call: call.module.factor == 3.0)
    def of_gate(gate: Gate, x: Tensor, shift: float) -> dict[str, Any]:
        return {"out": torch.nn.functional.silu(x * gate.slope) / gate.slope * gate.factor + shift, "unused": None}

    captured = lowered(Gates(), torch.randn(3, 4))
    assert [(c.place, c.rejected) for c in captured.conversions] == [
        ("first", "its when= rejects the call"),
        ("second", ""),
    ]
    assert operators(captured.program).count("aten.silu.default") == 1
    assert_computes(captured, torch.randn(3, 4))


@pytest.mark.parametrize(
    ("when", "message"),
    [(lambda call: call["slop"], "raised KeyError.*the arguments are x, slope"), (lambda call: None, "answered None")],
)
def test_a_when_that_fails_is_named(when: Any, message: str) -> None:
    ttb.converter("aten::leaky_relu", when=when)(lambda x, slope: x)
    with pytest.raises(ConverterFailed, match=f"when= of the converter of aten::leaky_relu.*{message}"):
        lowered(nn.LeakyReLU(), torch.randn(3, 4))


def test_a_converter_of_one_route_leaves_the_others_alone() -> None:
    ttb.converter("lowering_tests::norm", routes=("onnx",))(spelled)
    captured = lowered(Model(), torch.randn(3, 4))
    own = "lowering_tests.norm.default"
    assert own in operators(captured.program)
    assert own not in operators(captured.for_route("onnx").program)
    assert own not in operators(captured.for_route("hybrid").program)
    assert captured.for_route("torch_tensorrt") is captured


def test_a_form_may_call_what_another_converter_is_for_but_not_itself_without_end() -> None:
    @ttb.converter("lowering_tests::norm")
    def of_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return torch.ops.aten.leaky_relu(torch.ops.lowering_tests.norm(x, weight, eps), 1.0)

    @ttb.converter("aten::leaky_relu")
    def of_leaky_relu(x: Tensor, slope: float) -> Tensor:
        return torch.maximum(x, x * slope)

    names = operators(lowered(Model(), torch.randn(3, 4)).program)
    assert names.count("lowering_tests.norm.default") == names.count("aten.maximum.default") == 1


def test_what_the_capture_replaced_is_as_it_was() -> None:
    before = Gate.forward, Clip.__dict__["forward"], wave
    for target in (Gate, Clip, wave):
        ttb.converter(target, when=lambda call: False)(lambda *args: None)
    lowered(Model(), torch.randn(3, 4))
    assert (Gate.forward, Clip.__dict__["forward"], wave) == before
    model = Model()
    model.gate.__class__ = type("Fails", (Gate,), {})  # inherits forward, so that it is kept whole, too
    with pytest.raises(ConverterFailed):
        with ttb.converter.scope():
            ttb.converter(Gate)(raising)
            lowered(model, torch.randn(3, 4))
    assert (Gate.forward, Clip.__dict__["forward"], wave) == before


def test_an_operator_without_a_kernel_here_is_captured_by_its_aten_form() -> None:
    with torch.library._scoped_library("lowering_tests_gpu", "DEF") as library:
        library.define("plus(Tensor x, float y=1.) -> Tensor")
        library.impl("plus", lambda x, y=1.0: x + y, "CUDA")
        torch.library.register_fake("lowering_tests_gpu::plus", lambda x, y=1.0: torch.empty_like(x), lib=library)

        class Plus(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.ops.lowering_tests_gpu.plus(x) * 2

        with pytest.raises(ttb.errors.InvalidInput, match="plus"):
            lowered(Plus(), torch.randn(3))
        ttb.converter("lowering_tests_gpu::plus")(lambda x, y: y + x)
        captured = lowered(Plus(), torch.randn(3))
        torch.testing.assert_close(captured.eager([torch.ones(3)])[0], torch.full((3,), 4.0))
        assert operators(captured.program) == ["aten.add.Tensor", "aten.mul.Tensor"]
        assert any("plus has no kernel for cpu" in note for note in captured.notes)
