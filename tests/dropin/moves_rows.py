"""Moves: devices, dtypes, memory formats."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from dropin_table import Case, close, row
from torch import nn

from torchtrt_bridge.errors import DeviceMismatch, EngineMismatch, MoveIgnored

GROUP = "Moves"


def quietly(case: Case, move: Any) -> None:
    """``move`` neither warns nor changes anything, and gives the module itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert move(case.fast) is case.fast and move(case.model) is case.model
    case.right()


def ignored(case: Case, move: Any) -> None:
    """``move`` is a no-op, said once, also by way of a parent."""
    dtype = case.fast.dtype
    with pytest.warns(MoveIgnored, match="fixed in its engine"):
        assert move(case.fast) is case.fast
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        move(case.fast)
        move(nn.Sequential(case.fast))
    assert case.fast.dtype == dtype
    case.right()


@row(GROUP, "`fast.to(fast.device)`", "nothing", "nothing")
def to_its_own_device(case: Case) -> None:
    quietly(case, lambda m: m.to(case.device))


@row(GROUP, "`fast.cpu()`", "moves", "moves; a plan waits there, without GPU memory, and a call says so")
def cpu(case: Case) -> None:
    assert case.model.cpu() is case.model and case.fast.cpu() is case.fast
    assert case.fast.device == torch.device("cpu")
    if case.device.type == "cpu":
        case.right()
        return
    with pytest.raises(DeviceMismatch, match=r"\.cuda\(\)"):
        case.fast(case.x.cpu())
    case.model.to(case.device)
    case.fast.cuda()
    case.right()


@row(
    GROUP,
    "`fast.cuda()`",
    "moves, or torch's error without a GPU",
    "a plan moves; else torch's error, or `EngineMismatch`",
)
def cuda(case: Case) -> None:
    if case.device.type == "cuda":
        quietly(case, lambda m: m.cuda())
    elif torch.cuda.is_available():
        with pytest.raises(EngineMismatch, match="on the CPU"):
            case.fast.cuda()
    else:
        for module in (case.model, case.fast):
            with pytest.raises((RuntimeError, AssertionError), match="(?i)cuda|nvidia"):
                module.cuda()
    case.right()


@row(GROUP, "`fast.to('cuda:0')`, `fast.to(other)` around again", "moves", "moves; the engine is loaded again there")
def there_and_back(case: Case) -> None:
    for module in (case.model, case.fast):
        module.to("cpu").to(case.device)
    assert case.fast.device == case.device
    case.right()


@row(GROUP, "`fast.half()`", "converts the weights", "no-op, `MoveIgnored` once")
def half(case: Case) -> None:
    ignored(case, lambda m: m.half())


@row(GROUP, "`fast.bfloat16()`", "converts the weights", "no-op, `MoveIgnored` once")
def bfloat16(case: Case) -> None:
    ignored(case, lambda m: m.bfloat16())


@row(GROUP, "`fast.double()`", "converts the weights", "no-op, `MoveIgnored` once")
def double(case: Case) -> None:
    ignored(case, lambda m: m.double())


@row(GROUP, "`fast.float()`, which it is", "nothing", "nothing")
def float_(case: Case) -> None:
    quietly(case, lambda m: m.float())


@row(GROUP, "`fast.to(torch.float16)`", "converts the weights", "no-op, `MoveIgnored` once")
def to_dtype(case: Case) -> None:
    ignored(case, lambda m: m.to(torch.float16))


@row(GROUP, "`fast.to(device, dtype)`", "moves and converts", "moves; the dtype is a no-op, `MoveIgnored` once")
def to_device_and_dtype(case: Case) -> None:
    ignored(case, lambda m: m.to(case.device, torch.bfloat16))


@row(GROUP, "`fast.to(other_tensor)`", "device and dtype of the tensor", "its device; the dtype is a no-op")
def to_tensor(case: Case) -> None:
    quietly(case, lambda m: m.to(case.x))


@row(GROUP, "`fast.type(torch.float64)`", "converts the weights", "no-op, `MoveIgnored` once")
def type_(case: Case) -> None:
    ignored(case, lambda m: m.type(torch.float64))


@row(
    GROUP,
    "`fast.to(memory_format=torch.channels_last)`",
    "new strides",
    "no-op, `MoveIgnored` once; inputs may be so",
)
def channels_last(case: Case) -> None:
    case.model.to(memory_format=torch.channels_last)
    ignored(case, lambda m: m.to(memory_format=torch.channels_last))
    close(case.fast(case.x.to(memory_format=torch.channels_last)), case.eager())


@row(GROUP, "`fast.to(memory_format=torch.channels_last_3d)`", "an error for 2-d weights", "no-op, `MoveIgnored` once")
def channels_last_3d(case: Case) -> None:
    with pytest.raises(RuntimeError, match="rank 5"):
        case.copies()[0].to(memory_format=torch.channels_last_3d)
    ignored(case, lambda m: m.to(memory_format=torch.channels_last_3d))


@row(GROUP, "`fast.to('meta')`", "loses the weights", "`DeviceMismatch`; the module stays as it was")
def meta(case: Case) -> None:
    assert case.copies()[0].to("meta").head.weight.is_meta
    with pytest.raises(DeviceMismatch, match="'cuda' or 'cpu'"):
        case.fast.to("meta")
    case.right()


@row(GROUP, "`fast.to_empty(device=...)`", "new memory, weights lost", "a move; the engine keeps its weights")
def to_empty(case: Case) -> None:
    assert case.fast.to_empty(device=case.device) is case.fast
    case.right()


@row(
    GROUP,
    "`fast.share_memory()`",
    "weights into shared memory",
    "accepted; the engine's bytes go there when it is sent",
)
def share_memory(case: Case) -> None:
    quietly(case, lambda m: m.share_memory())


@row(GROUP, "`nn.Sequential(fast, head).to(...)`, `.half()`, `.cpu()`", "moves everything", "`fast` as if moved itself")
def a_parents_moves(case: Case) -> None:
    whole = nn.Sequential(case.fast, case.head())
    with pytest.warns(MoveIgnored):
        whole.half()
    assert whole[1].weight.dtype == torch.float16
    whole.float().cpu()
    assert case.fast.device.type == "cpu"
    whole.to(case.device)
    close(whole(case.x), whole[1](case.eager()))


@row(GROUP, "`fast._apply(fn)` of a library", "`fn` of each weight", "`fn` is shown one tensor, to see what it wants")
def apply_of_tensors(case: Case) -> None:
    quietly(case, lambda m: m._apply(lambda t: t))


@row(GROUP, "`next(fast.parameters()).device`", "the device", "`StopIteration` that names `fast.device`")
def the_usual_question(case: Case) -> None:
    assert next(case.model.parameters()).device == case.fast.device == case.device
    with pytest.raises(StopIteration, match=r"\.device and \.dtype"):
        next(case.fast.parameters())


@row(GROUP, "`fast.device`, `fast.dtype`", "`AttributeError`, but in transformers", "those of the model's parameters")
def device_and_dtype(case: Case) -> None:
    parameter = next(case.model.parameters())
    assert (case.fast.device, case.fast.dtype) == (parameter.device, parameter.dtype)
