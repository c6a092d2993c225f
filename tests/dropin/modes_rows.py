"""Training, gradients, autocast."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from dropin_table import Case, close, row
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from torchtrt_bridge.errors import NotTrainable, StaysInEval

GROUP = "Training and gradients"


@row(GROUP, "`fast.eval()`", "eval mode", "nothing; it always is")
def eval_(case: Case) -> None:
    assert case.fast.eval() is case.fast and case.fast.training is False


@row(GROUP, "`fast.train()`", "training mode", "accepted, `StaysInEval` once; `training` stays False")
def train(case: Case) -> None:
    with pytest.warns(StaysInEval):
        assert case.fast.train() is case.fast
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        case.fast.train(True)
        case.fast.train(False)
    assert case.fast.training is False
    case.right()


@row(GROUP, "`nn.Sequential(fast, dropout).train()`", "all in training mode", "the others train; `fast` stays in eval")
def a_parent_trains(case: Case) -> None:
    whole = nn.Sequential(case.fast, nn.Dropout())
    with pytest.warns(StaysInEval):
        whole.train()
    assert (whole.training, whole[1].training, case.fast.training) == (True, True, False)


@row(GROUP, "`fast.training = True`", "training mode", "stays False")
def set_training(case: Case) -> None:
    case.fast.training = True
    assert case.fast.training is False


@row(GROUP, "restore `{m: m.training}` over `modules()` (Lightning)", "the modes of before", "the same")
def restore_modes(case: Case) -> None:
    whole = nn.Sequential(case.fast, nn.Dropout())
    modes = {module: module.training for module in whole.modules()}
    whole.eval()
    for module, mode in modes.items():
        module.training = mode
    assert whole[1].training and not case.fast.training


@row(GROUP, "`fast.requires_grad_(False)`, or True", "freezes, or thaws", "nothing to do")
def requires_grad_(case: Case) -> None:
    assert case.fast.requires_grad_(False) is case.fast and case.fast.requires_grad_(True) is case.fast
    case.right()


@row(GROUP, "`fast.zero_grad()`", "clears gradients", "nothing to do")
def zero_grad(case: Case) -> None:
    case.fast.zero_grad(set_to_none=False)
    case.right()


@row(GROUP, "a call with gradients on", "the result has a graph", "no input asks for one: the result has none")
def gradients_on(case: Case) -> None:
    assert case.model(case.x).requires_grad
    result = case.fast(case.x)
    assert not result.requires_grad
    case.right(result)


@row(
    GROUP,
    "`fast(x).sum().backward()`",
    "gradients of the weights",
    "torch's `RuntimeError`: nothing requires a gradient",
)
def backward_to_weights(case: Case) -> None:
    case.model(case.x).sum().backward()
    with pytest.raises(RuntimeError, match="does not require grad"):
        case.fast(case.x).sum().backward()


@row(
    GROUP,
    "backward to an input that requires it",
    "its gradient",
    "the call is right; backward raises `NotTrainable`",
)
def backward_to_input(case: Case) -> None:
    x = case.x.clone().requires_grad_()
    case.model(x).sum().backward()
    assert x.grad is not None
    result = case.fast(x)
    assert result.requires_grad
    case.right(result)
    with pytest.raises(NotTrainable, match="no backward pass"):
        result.sum().backward()
    with pytest.raises(NotTrainable):
        torch.autograd.grad(case.fast(x).sum(), x)


@row(GROUP, "`nn.Sequential(fast, head)`, `head` trained", "trains both", "trains the head, on frozen features")
def a_head_trains(case: Case) -> None:
    whole = nn.Sequential(case.fast, case.head())
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    before = whole[1].weight.detach().clone()
    whole(case.x).square().sum().backward()
    optimizer.step()
    reference = nn.Linear(2, 3).to(case.device)
    reference.load_state_dict({"weight": before, "bias": whole[1].bias.detach() + 0.1 * whole[1].bias.grad})
    reference(case.eager()).square().sum().backward()
    close(whole[1].weight, before - 0.1 * reference.weight.grad)


@row(GROUP, "`nn.Sequential(stem, fast)`, `stem` trained", "trains both", "`NotTrainable` at backward")
def a_stem_does_not_train(case: Case) -> None:
    whole = nn.Sequential(nn.Conv2d(3, 3, 1).to(case.device), case.fast)
    with pytest.raises(NotTrainable):
        whole(case.x).sum().backward()


@row(GROUP, "`fast(x.detach())` in a loss", "no gradient through it", "the same")
def detached(case: Case) -> None:
    x = case.x.clone().requires_grad_()
    (case.fast(x.detach()).sum() + x.sum()).backward()
    close(x.grad, torch.ones_like(x))


@row(GROUP, "`checkpoint(fast, x)`", "recomputes in backward", "the call is right; backward raises `NotTrainable`")
def checkpointed(case: Case) -> None:
    result = checkpoint(case.fast, case.x.clone().requires_grad_(), use_reentrant=False)
    case.right(result)
    with pytest.raises(NotTrainable):
        result.sum().backward()


@row(GROUP, "forward-mode AD (`forward_ad.make_dual`)", "the tangent", "`NotTrainable`")
def dual_numbers(case: Case) -> None:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(case.x, torch.ones_like(case.x))
        assert forward_ad.unpack_dual(case.model(dual)).tangent is not None
        with pytest.raises(NotTrainable):
            case.fast(dual)


@row(GROUP, "`optim.Adam(fast.parameters())`", "an optimizer", "torch's `ValueError`: an empty parameter list")
def optimizer_of_nothing(case: Case) -> None:
    torch.optim.Adam(case.model.parameters())
    with pytest.raises(ValueError, match="empty parameter list"):
        torch.optim.Adam(case.fast.parameters())


@row(GROUP, "`clip_grad_norm_(fast.parameters(), 1.0)`", "clips", "nothing to clip")
def clip(case: Case) -> None:
    assert torch.nn.utils.clip_grad_norm_(case.fast.parameters(), 1.0) == 0


@row(GROUP, "`torch.no_grad()`", "no graph", "the same")
def no_grad(case: Case) -> None:
    with torch.no_grad():
        result = case.fast(case.x.clone().requires_grad_())
    assert not result.requires_grad
    case.right(result)


@row(GROUP, "`torch.inference_mode()`", "inference tensors", "the same; later calls outside are ordinary")
def inference_mode(case: Case) -> None:
    with torch.inference_mode():
        first = case.fast(case.x)  # the very first call makes what later ones use
        assert first.is_inference() == case.model(case.x).is_inference()
    later = case.fast(case.x)
    assert not later.is_inference()
    case.right(first.clone())
    case.right(later)


@row(GROUP, "a call under `torch.autocast`", "16-bit results", "as without it: the dtypes that eager has outside")
def autocast(case: Case) -> None:
    outside = case.fast(case.x)
    with torch.autocast(case.device.type, dtype=torch.bfloat16):
        assert case.model(case.x).dtype == torch.bfloat16
        inside = case.fast(case.x)
    assert inside.dtype == outside.dtype == case.eager().dtype
    case.right(inside)  # bfloat16 would be off by far more


@row(GROUP, "`torch.set_default_dtype(torch.float64)`", "no change to a call", "the same")
def default_dtype(case: Case) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        result = case.fast(case.x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.dtype == torch.float32
    case.right(result)


@row(GROUP, "`with torch.device(...)` around a call", "no change to a call", "the same")
def default_device(case: Case) -> None:
    with torch.device("meta"):
        result = case.fast(case.x)
        again = copy.deepcopy(case.fast)(case.x)
    case.right(result)
    case.right(again)
