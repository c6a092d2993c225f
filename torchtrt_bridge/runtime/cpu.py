"""Running a compiled model where there is no GPU: ONNX Runtime for fp32, PyTorch for what it computes otherwise.

ONNX Runtime's CPU kernels compute fp16 in fp32 and lack most of bf16, so they would prove nothing about either; there
the cast program itself runs, in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..errors import BackendUnavailable, ConversionFailed
from .tracing import outside_dynamo


class CheckedExecution:
    """What runs on the CPU, with what stands before it."""

    def __init__(
        self,
        check: Callable[[Sequence[Any]], list[torch.Tensor] | None],
        run: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]],
    ):
        self._check, self._run = check, run

    @property
    def copied(self) -> set[int]:
        """Indices of the inputs that were copied before a call, because of their strides."""
        return getattr(self._run, "copied", set())

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return outside_dynamo(self._call, tensors)

    def _call(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        empty = self._check(tensors)
        return self._run(tensors) if empty is None else empty


class OnnxExecution:
    """An ONNX model on ONNX Runtime's CPU provider.

    Args:
        model: the ONNX file's bytes, a uint8 tensor.
        inputs, outputs: names of the flat inputs and outputs, in the order in which they come and are wanted.

    Raises:
        BackendUnavailable: onnxruntime is missing.
        ConversionFailed: ONNX Runtime refuses the model, with its message.
    """

    def __init__(self, model: torch.Tensor, inputs: Sequence[str], outputs: Sequence[str]):
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendUnavailable(
                f"Running on the CPU needs ONNX Runtime ({error}); pip install onnxruntime, or use a GPU."
            ) from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # its warnings are about its own optimizer; errors come as exceptions
        options.intra_op_num_threads = torch.get_num_threads()
        # weights in few bits do not make the activations so
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        content = model.numpy().tobytes()
        # it would make a float32 Gemm of a quantized product and its bias
        unwanted = ["MatMulAddFusion"] if b"DequantizeLinear" in content else []
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"], disabled_optimizers=unwanted
            )
        except Exception as error:
            raise ConversionFailed(f"ONNX Runtime cannot run the model: {error}") from error
        present = {value.name for value in self._session.get_inputs()}
        self._inputs = [(i, name) for i, name in enumerate(inputs) if name in present]  # an unused one may be gone
        self._outputs = list(outputs)
        self.copied: set[int] = set()

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.copied.update(i for i, _ in self._inputs if not tensors[i].is_contiguous())
        feed = {name: tensors[i].detach().contiguous().resolve_neg().numpy() for i, name in self._inputs}
        try:
            results = self._session.run(self._outputs, feed)
        except Exception as error:
            raise ConversionFailed(f"ONNX Runtime failed while running the model: {error}") from error
        return [torch.from_numpy(result) for result in results]
