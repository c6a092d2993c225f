"""check_converter(): a right converter passes, each kind of mistake is a row with the reason, and nothing is left."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import ConverterFailed, InvalidInput, InvalidOption
from torchtrt_bridge.trt.targets import installed

sys.path.insert(0, str(Path(__file__).parents[1]))
from own_layers import rms_converter  # noqa: E402


@torch.library.custom_op("check_tests::scaled", mutates_args=())
def scaled(x: Tensor, weight: Tensor, factor: float = 2.0) -> Tensor:
    return x * weight * factor


@scaled.register_fake
def _(x: Tensor, weight: Tensor, factor: float = 2.0) -> Tensor:
    return torch.empty_like(x)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x: Tensor, factor: float = 2.0) -> Tensor:
        return x * self.weight * factor


class ScaleFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        return x * factor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None


def total(tensors: list[Tensor], start: float = 0.0) -> Tensor:
    return torch.stack(tensors).sum(0) + start


SAMPLE = torch.linspace(-1, 1, 12).reshape(3, 4), nn.Parameter(torch.rand(4) + 0.5), 3.0
QUICK: dict[str, Any] = {
    "precisions": ["fp32"], "routes": ["onnx"], "dynamic_batch": False, "plans": False, "show": False, "device": "cpu"
}  # fmt: skip


def times(ctx: Any, x: Any, weight: Any, factor: float) -> Any:
    scaled = ctx.network.add_elementwise(*ctx.broadcast(x, weight), ctx.trt.ElementWiseOperation.PROD).get_output(0)
    number = ctx.cast(ctx.constant(factor), scaled.dtype)
    return ctx.network.add_elementwise(*ctx.broadcast(scaled, number), ctx.trt.ElementWiseOperation.PROD)


def onnx_times(x: Any, weight: Any, factor: float) -> Any:
    from onnxscript import opset18 as op

    return op.Mul(op.Mul(x, weight), op.CastLike(op.Constant(value_float=factor), x))


def registered(**forms: Any) -> Any:
    """A converter of the operator that nobody else sees, with these forms."""
    made = ttb.converter("check_tests::scaled", register=False)
    for name, form in forms.items():
        made(form) if name == "aten" else getattr(made, name)(form)
    return made


def test_every_form_is_run_where_it_can_be_and_built_where_not(capsys: pytest.CaptureFixture[str]) -> None:
    right = registered(aten=lambda x, weight, factor: x * factor * weight, onnx=onnx_times, tensorrt=times)
    before = ttb.converter.list()
    options = {"routes": ["onnx"], "precisions": ["fp16"], "dynamic_batch": False}
    check = ttb.check_converter(right, [SAMPLE], **options, device="cpu")
    assert check.passed and not check.unused
    check.raise_if_failed()
    assert {(trial.form, trial.place): trial.outcome for trial in check.trials} == {
        ("aten", "cpu"): "agrees",
        ("aten", "a GPU elsewhere"): "built",
        ("tensorrt", "a GPU elsewhere"): "built",
        ("onnx", "cpu"): "skipped",  # PyTorch runs it there, without ONNX
        ("onnx", "a GPU elsewhere"): "built",
    }
    assert 1e-6 < check.trials[0].error < 1e-2  # the call itself was in 16 bits
    assert capsys.readouterr().out == f"{check!r}\n"
    assert "3 plans built, and not run" in repr(check) and "skipped" in repr(check)
    assert ttb.converter.list() == before


def test_the_layers_of_a_form_reach_torch_tensorrt() -> None:
    sample = torch.randn(3, 8), nn.Parameter(torch.rand(8) + 0.5), 1e-5
    check = ttb.check_converter(rms_converter, [sample], **{**QUICK, "routes": ["torch_tensorrt"], "plans": True})
    assert check.passed
    assert [(t.form, t.place, t.outcome) for t in check.trials] == [
        ("aten", "cpu", "agrees"),
        ("aten", "a GPU elsewhere", "built"),
        ("tensorrt", "a GPU elsewhere", "built"),
    ]


def test_a_form_that_a_route_left_out_is_not_said_to_be_right() -> None:
    local = registered(aten=lambda x, weight, factor: x * factor * weight, tensorrt=times)
    options = {**QUICK, "routes": ["torch_tensorrt"], "forms": ["tensorrt"]}
    check = ttb.check_converter(local, [SAMPLE], **{**options, "plans": True})
    (trial,) = check.trials
    assert trial.outcome == "skipped" and "not to be found in test_check_converter by name" in trial.reason
    assert not check.passed and check.unused == ("tensorrt",)
    with pytest.raises(ConverterFailed, match="nothing here could use its form tensorrt"):
        check.raise_if_failed()


@pytest.mark.skipif(installed().has_plugins, reason="this TensorRT has plugins")
def test_a_plugin_is_not_shown_to_be_right_by_the_layers_beside_it() -> None:
    made = registered(tensorrt=times, plugin=times)
    check = ttb.check_converter(made, [SAMPLE], **{**QUICK, "forms": ["plugin"], "plans": True})
    (trial,) = check.trials
    assert trial.outcome == "skipped" and "makes a plugin, which tensorrt_rtx does not have" in trial.reason
    assert check.unused == ("plugin",)


def prod(ctx: Any, x: Any, y: Any) -> Any:
    return ctx.network.add_elementwise(x, y, ctx.trt.ElementWiseOperation.PROD)


def raising(*_: Any) -> Any:
    raise KeyError("no such weight")


def int8_convolution(ctx: Any, x: Any, weight: Any, factor: float) -> Any:
    """Layers that the network takes, and that TensorRT-RTX 1.6 has no kernel for."""
    scale = ctx.constant(0.1)

    def in_int8(tensor: Any) -> Any:
        quantized = ctx.network.add_quantize(tensor, scale, ctx.trt.int8).get_output(0)
        return ctx.network.add_dequantize(quantized, scale, ctx.trt.float32).get_output(0)

    image, no_weights = in_int8(ctx.reshape(x, [1, 1, 3, 4])), ctx.trt.Weights(ctx.trt.float32)
    convolution = ctx.network.add_convolution_nd(image, 1, (1, 1), no_weights)
    convolution.set_input(1, in_int8(ctx.constant(torch.ones(1, 1, 1, 1))))
    return ctx.reshape(convolution.get_output(0), [3, 4])


WRONG = {
    "aten: number": ("aten", lambda x, w, f: (x * w * f, x), "gives 2 tensors, and what it converts one tensor"),
    "aten: dtype": ("aten", lambda x, w, f: (x * w * f).double(), "a result of torch.float64; expected: torch.float32"),
    "aten: shape": ("aten", lambda x, w, f: (x * w * f).sum(-1), r"a result of shape (3); expected: (3, 4)"),
    "aten: values": ("aten", lambda x, w, f: x * w, "relative L2 6.67e-01"),
    "aten: raises": ("aten", raising, "raised KeyError: 'no such weight'"),
    "onnx: number": ("onnx", lambda x, w, f: [onnx_times(x, w, f)] * 2, "in its ONNX form; expected"),
    "onnx: values": ("onnx", lambda x, w, f: onnx_times(x, w, 1.0), "relative L2 6.67e-01"),
    "onnx: raises": ("onnx", raising, "raised KeyError in its ONNX form"),
    "tensorrt: number": ("tensorrt", lambda ctx, x, w, f: [times(ctx, x, w, f)] * 2, "there are 2 results"),
    "tensorrt: dtype": (
        "tensorrt",
        lambda ctx, x, w, f: ctx.cast(times(ctx, x, w, f).get_output(0), torch.float16),
        "the result is float16[3, 4], and must be float32[3, 4]",
    ),
    "tensorrt: shape": ("tensorrt", lambda ctx, x, w, f: ctx.reshape(x, [4, 3]), "float32[4, 3], and must be"),
    "tensorrt: nothing": ("tensorrt", lambda ctx, x, w, f: None, "the result is a NoneType"),
    "tensorrt: raises": ("tensorrt", raising, "KeyError: 'no such weight'"),
    "tensorrt: fails in the builder": ("tensorrt", int8_convolution, "scaled.convolution"),
    "tensorrt: a layer that TensorRT refuses": (
        "tensorrt",
        lambda ctx, x, w, f: prod(ctx, x, ctx.reshape(x, [12])),
        "",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_a_row_with_the_reason_and_an_error_by_name(mistake: str) -> None:
    form, function, reason = WRONG[mistake]
    forms = {"aten": lambda x, weight, factor: x * weight * factor, form: function}
    options = {**QUICK, "plans": form == "tensorrt", "forms": [form]}
    check = ttb.check_converter(registered(**forms), [SAMPLE], **options)
    (trial,) = check.failures
    assert trial.form == form and reason in trial.reason and "While executing" not in trial.reason
    known_by_name = "values" not in mistake and "builder" not in mistake
    assert "check_tests::scaled" in (trial.reason if known_by_name else repr(check))
    with pytest.raises(ConverterFailed, match="the converter of check_tests::scaled .* is not right"):
        check.raise_if_failed()


@pytest.mark.parametrize("kind", ["module", "function", "autograd function", "operator"])
def test_whatever_is_converted_can_be_checked(kind: str) -> None:
    target: Any
    if kind == "module":
        target, samples = Scale, [(Scale().eval(), torch.randn(3, 4), 1.5)]
        form: Any = lambda module, x, factor: x * (module.weight * factor)  # noqa: E731
    elif kind == "autograd function":
        target, samples, form = ScaleFunction, [(torch.randn(3, 4), 1.5)], lambda x, factor: factor * x
    elif kind == "function":
        target, form = total, lambda tensors, start: sum(tensors) + start
        samples = [([torch.randn(3, 4), torch.randn(3, 4)], 1.0), {"tensors": [torch.randn(3, 4)]}]
    else:
        target, form = "check_tests::scaled", lambda x, weight, factor: factor * x * weight
        samples = [{"x": SAMPLE[0], "weight": SAMPLE[1]}]
    made = ttb.converter(target, register=False)(form)
    check = ttb.check_converter(made, lambda: iter(samples), **{**QUICK, "dynamic_batch": kind == "module"})
    assert check.passed and {trial.outcome for trial in check.trials} == {"agrees"}
    assert {trial.shapes for trial in check.trials} == {"fixed", *["batch 1 to 6"] * (kind == "module")}


def test_dynamic_dims_are_given_by_the_arguments_names() -> None:
    right = registered(aten=lambda x, weight, factor: x * factor * weight)
    dims = {"x": {0: ttb.Dim(1, 3, 9)}}
    check = ttb.check_converter(right, [SAMPLE], **{**QUICK, "dynamic_shapes": dims})
    assert check.passed and {trial.shapes for trial in check.trials} == {"fixed", "dynamic"}
    wrong = registered(aten=lambda x, weight, factor: x * factor * weight.expand(3, 4))
    check = ttb.check_converter(wrong, [SAMPLE], **{**QUICK, "dynamic_shapes": dims})
    assert {trial.shapes for trial in check.failures} == {"dynamic"}
    assert "broadcast" in check.failures[0].reason


def test_a_call_that_when_rejects_was_not_checked() -> None:
    made = ttb.converter("check_tests::scaled", register=False, when=lambda call: call["factor"] < 1)
    made(lambda x, weight, factor: x * factor * weight)
    check = ttb.check_converter(made, [SAMPLE], **QUICK)
    assert not check.passed and "its when= rejects the call" in repr(check)
    assert ttb.check_converter(made, [SAMPLE, (*SAMPLE[:2], 0.5)], **QUICK).passed


def test_where_the_kernel_is_missing_it_says_what_was_compared() -> None:
    library = torch.library.Library("check_tests", "FRAGMENT")
    library.define("only_on_gpus(Tensor x) -> Tensor")
    torch.library.register_fake("check_tests::only_on_gpus", torch.empty_like, lib=library)
    made = ttb.converter("check_tests::only_on_gpus", register=False)(lambda x: x + 1)
    check = ttb.check_converter(made, [SAMPLE[0]], **QUICK)
    assert check.passed and "no kernel for cpu: its converter's ATen form stood in" in repr(check)


def test_what_the_operator_itself_raises_is_a_row() -> None:
    right = registered(aten=lambda x, weight, factor: x * factor * weight)
    check = ttb.check_converter(right, [(torch.randn(3, 4), nn.Parameter(torch.rand(5)))], **QUICK)
    assert not check.passed and "must match the size" in check.failures[0].reason


@pytest.mark.parametrize(
    ("samples", "options", "error", "message"),
    [
        ([SAMPLE], {"forms": ["tensorrt"]}, InvalidOption, "has aten"),
        ([SAMPLE], {"routes": ["onxx"]}, InvalidOption, "Did you mean 'onnx'"),
        ([SAMPLE], {"precisions": ["fp61"]}, InvalidOption, "Did you mean 'fp16'"),
        ([], {}, InvalidInput, "no sample"),
        (torch.randn(3), {}, InvalidInput, "in a list"),
        ([(1.0,)], {}, InvalidInput, "no tensor"),
        ([3], {}, InvalidInput, "a sample is a tensor"),
    ],
)
def test_what_cannot_be_checked_is_refused(samples: Any, options: Any, error: Any, message: str) -> None:
    right = registered(aten=lambda x, weight, factor: x * factor * weight)
    with pytest.raises(error, match=message):
        ttb.check_converter(right, samples, **{**QUICK, **options})


def test_a_module_needs_its_instance_and_a_check_a_converter() -> None:
    made = ttb.converter(Scale, register=False)(lambda module, x, factor: x * module.weight * factor)
    with pytest.raises(InvalidInput, match="a tuple of an instance"):
        ttb.check_converter(made, [torch.randn(3, 4)], **QUICK)
    with pytest.raises(InvalidInput, match="needs what @torchtrt_bridge.converter"):
        ttb.check_converter(times, [SAMPLE], **QUICK)  # type: ignore[arg-type]


def test_the_result_is_a_table_in_notebooks_too() -> None:
    page = _checks()[0]._repr_html_()
    assert "<table>" in page and "&lt;lambda&gt;" in page and "DIFFERS" in page
    assert _checks()[0].table()[0]["form"] == "aten" and _checks()[0].to_dict()["passed"] is False


_kept: list[Any] = []


def _checks() -> list[Any]:
    if not _kept:
        _kept.append(ttb.check_converter(registered(aten=lambda x, weight, factor: x * weight), [SAMPLE], **QUICK))
    return _kept
