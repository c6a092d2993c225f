"""The surroundings in which a model is run and traced: the same whatever the caller's are, which are put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """No autograd, no autocast, true fp32, and the caller's random state afterwards."""
    devices = [device] if device.type == "cuda" else []
    kinds = {"cpu", device.type}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.inference_mode(False))  # whose tensors keep no count of the writes to them
        stack.enter_context(torch.no_grad())
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_true_fp32())
        yield


@contextlib.contextmanager
def _true_fp32() -> Iterator[None]:
    """No TF32 or bf16 inside fp32 products. torch has an old and a new setting, and refuses to read the old one after a
    use of the new; each that can be read is set, and set back."""
    operators: list[Any] = [
        getattr(getattr(torch.backends, backend), operator, None)
        for backend, operator in (("cuda", "matmul"), ("cudnn", "conv"), ("cudnn", "rnn"), ("mkldnn", "matmul"))
    ]
    operators = [operator for operator in operators if hasattr(operator, "fp32_precision")]
    new = [operator.fp32_precision for operator in operators]
    matmul: str | None = None
    convolution: bool | None = None
    with contextlib.suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with contextlib.suppress(RuntimeError):
        convolution = torch.backends.cudnn.allow_tf32

    def apply(old_matmul: str | None, old_convolution: bool | None, precisions: Sequence[str]) -> None:
        if old_matmul is not None:
            torch.set_float32_matmul_precision(old_matmul)
        if old_convolution is not None:
            torch.backends.cudnn.allow_tf32 = old_convolution
        for operator, precision in zip(operators, precisions):
            operator.fp32_precision = precision

    apply(matmul and "highest", convolution and False, ["ieee"] * len(operators))
    try:
        yield
    finally:
        apply(matmul, convolution, new)
