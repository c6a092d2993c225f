"""Calls: arguments, shapes, strides, kinds of tensors."""

from __future__ import annotations

import functools
import inspect
import types

import pytest
import torch
from dropin_table import Case, close, row
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import DeviceMismatch, FixedArgumentChanged, InputOutOfProfile, InvalidInput

GROUP = "Calls"


@row(GROUP, "`fast(x)`, `fast(x=x)`, `fast.forward(x)`", "the result", "the same")
def positional_and_keyword(case: Case) -> None:
    for result in (case.fast(case.x), case.fast(x=case.x), case.fast.forward(case.x)):
        case.right(result)


@row(GROUP, "`fast(x, None)`, `fast(x, double=False)`: defaults", "as if left out", "the same")
def defaults_given(case: Case) -> None:
    for result in (case.fast(case.x, None), case.fast(case.x, scale=None, double=False)):
        case.right(result)


@row(GROUP, "`fast(x, double=True)`, a flag of another value", "another result", "`FixedArgumentChanged` that names it")
def another_flag(case: Case) -> None:
    for call in (lambda m: m(case.x, double=True), lambda m: m(case.x, case.x.new_full((4,), 2.0))):
        assert not torch.equal(call(case.model), case.eager())
    with pytest.raises(FixedArgumentChanged, match="'double'"):
        case.fast(case.x, double=True)
    with pytest.raises(FixedArgumentChanged, match="'scale'"):
        case.fast(case.x, case.x.new_full((4,), 2.0))


@row(
    GROUP,
    "a module compiled with `double=True`, then left out",
    "the default",
    "`FixedArgumentChanged` that names it",
)
def a_flag_left_out(case: Case) -> None:
    fast = ttb.compile(case.model, {"x": case.x, "double": True})
    close(fast(case.x, double=True), case.eager(double=True))
    with pytest.raises(FixedArgumentChanged, match="'double'"):
        fast(case.x)


@row(
    GROUP,
    "`fast()`, `fast(x, y, z)`, `fast(x, other=1)`",
    "`TypeError`",
    "`InvalidInput`, a `ValueError`, with the signature",
)
def wrong_arguments(case: Case) -> None:
    for args, kwargs in ((), {}), ((case.x, None, 1), {}), ((case.x,), {"other": 1}), ((), {"inputs": case.x}):
        with pytest.raises(TypeError):
            case.model(*args, **kwargs)
        with pytest.raises(InvalidInput, match="does not fit|lacks"):
            case.fast(*args, **kwargs)


@row(GROUP, "`inspect.signature(fast.forward)` (Trainer), `inspect.signature(fast)`", "the model's", "the model's")
def signature(case: Case) -> None:
    names = list(inspect.signature(case.model.forward).parameters)
    for function in (case.fast.forward, case.fast):
        found = inspect.signature(function)
        assert list(found.parameters) == names == ["x", "scale", "double"]
        assert found.parameters["scale"].default is None and found.parameters["double"].kind.name == "KEYWORD_ONLY"
    assert inspect.getfullargspec(case.fast.forward).args == ["self", "x", "scale"]
    assert "max_contexts" in inspect.signature(ttb.TRTModule).parameters


@row(GROUP, "`fast.forward is a method`, compared and wrapped (accelerate)", "a bound method", "a bound method")
def bound_method(case: Case) -> None:
    assert inspect.ismethod(case.fast.forward) and case.fast.forward == case.fast.forward
    assert case.fast.forward.__self__ is case.fast

    @functools.wraps(case.fast.forward.__func__)
    def wrapped(self: nn.Module, *args: object, **kwargs: object) -> torch.Tensor:
        return original(*args, **kwargs) + 1

    original = case.fast.forward
    case.fast.forward = types.MethodType(wrapped, case.fast)
    close(case.fast(case.x), case.eager() + 1)
    assert list(inspect.signature(case.fast.forward).parameters) == ["x", "scale", "double"]
    del case.fast.forward
    case.right()


@row(
    GROUP,
    "another dtype: `fast(x.double())`, `fast(x.half())`",
    "torch's `RuntimeError`",
    "`InvalidInput` that names the input",
)
def another_dtype(case: Case) -> None:
    for x in (case.x.double(), case.x.half()):
        with pytest.raises(RuntimeError):
            case.model(x)
        with pytest.raises(InvalidInput, match=r"'x' is float.*\.to\(torch\.float32\)"):
            case.fast(x)


@row(GROUP, "another batch size", "any", "within the range; else `InputOutOfProfile`")
def another_batch(case: Case) -> None:
    for size in (1, 8, 3):
        x = torch.randn(size, 3, 6, 6, device=case.device)
        close(case.fast(x), case.eager(x))
    with pytest.raises(InputOutOfProfile, match=r"axis 0 \(batch\) must be 0 to 8"):
        case.fast(torch.randn(9, 3, 6, 6, device=case.device))


@row(GROUP, "another image size, or rank", "any that fits", "`InputOutOfProfile`, `InvalidInput`, unless made dynamic")
def another_size(case: Case) -> None:
    case.eager(torch.randn(4, 3, 7, 6, device=case.device))
    with pytest.raises(InputOutOfProfile, match="axis 2 must be 6"):
        case.fast(torch.randn(4, 3, 7, 6, device=case.device))
    with pytest.raises(InvalidInput, match="3 dimensions"):
        case.fast(case.x[0])


@row(GROUP, "an empty batch", "an empty result", "the same, where the range begins at 0")
def empty_batch(case: Case) -> None:
    result = case.fast(case.x[:0])
    assert result.shape == case.eager(case.x[:0]).shape == (0, 2) and result.device == case.device


@row(GROUP, "an input on another device", "torch's `RuntimeError`", "`DeviceMismatch` that names it")
def another_device(case: Case) -> None:
    other = "meta" if case.device.type == "cpu" else "cpu"
    with pytest.raises(DeviceMismatch, match=f"'x' is on {other}"):
        case.fast(case.x.to(other))


@row(GROUP, "a NumPy array, a list, None in place of a tensor", "`TypeError`", "`InvalidInput` that names it")
def no_tensor(case: Case) -> None:
    for value in (case.x.cpu().numpy(), case.x.tolist(), None):
        with pytest.raises((TypeError, AttributeError)):
            case.model(value)
        with pytest.raises(InvalidInput, match="'x' is a"):
            case.fast(value)


@row(GROUP, "`x.to(memory_format=torch.channels_last)`", "right", "right; copied once per call, said in `fast.report`")
def a_channels_last_input(case: Case) -> None:
    case.right()
    assert "copied" not in repr(case.fast.report)
    case.right(case.fast(case.x.to(memory_format=torch.channels_last)))
    assert "'x' came with strides" in repr(case.fast.report)


@row(GROUP, "slices, transposes, `expand`, negative views", "right", "right; copied once per call")
def views(case: Case) -> None:
    whole = torch.randn(8, 3, 6, 12, device=case.device)
    imaginary = torch.view_as_complex(torch.randn(4, 3, 6, 6, 2, device=case.device)).conj().imag
    odd = torch.randn(4 * 3 * 36 + 1, device=case.device)[1:].view(4, 3, 6, 6)
    for x in (whole[::2, :, :, 3:9], case.x.transpose(2, 3), case.x[:1].expand(4, -1, -1, -1), imaginary, odd, case.x):
        close(case.fast(x), case.eager(x))


@row(
    GROUP,
    "an `nn.Parameter` as an input (prompt tuning)",
    "right, with a gradient",
    "right; backward raises `NotTrainable`",
)
def a_parameter(case: Case) -> None:
    result = case.fast(nn.Parameter(case.x))
    case.right(result)
    with pytest.raises(ttb.errors.NotTrainable):
        result.sum().backward()


@row(GROUP, "a tensor subclass (torchvision's `tv_tensors.Image`)", "right", "right; a plain tensor comes back")
def a_subclass(case: Case) -> None:
    class Image(torch.Tensor):
        pass

    result = case.fast(case.x.as_subclass(Image))
    assert type(result) is torch.Tensor
    case.right(result)


@row(GROUP, "the input changed in place after the call", "the result stays", "the same")
def input_changed_later(case: Case) -> None:
    expected, result = case.eager(), case.fast(case.x)
    case.x.zero_()
    close(result, expected)


@row(GROUP, "the result changed in place, kept over later calls", "the caller's own", "the same")
def results_are_the_callers(case: Case) -> None:
    first = case.fast(case.x)
    kept = first.clone()
    case.fast(case.x * 2).zero_()
    close(first, kept)
    first.add_(1)
    case.right()


@row(GROUP, "`TRTModule()` called before it is filled", "", "`NotLoaded`")
def an_empty_module(case: Case) -> None:
    empty = ttb.TRTModule()
    for ask in (lambda: empty(case.x), lambda: empty.signature, lambda: empty.report, lambda: empty.matches(empty)):
        with pytest.raises(ttb.errors.NotLoaded, match="load_state_dict"):
            ask()
    assert empty.to(case.device).device == case.device and list(empty.parameters()) == [] and "empty" in repr(empty)
    empty.load_state_dict(case.fast.state_dict())
    close(empty(case.x), case.eager())
