"""The layers of :mod:`layers` without a GPU: some run by ONNX Runtime, some built into a plan."""

from __future__ import annotations

import layers
import pytest
import torch

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import CaptureFailed

RUN = [
    "attention, grouped queries",
    "rotary embedding, complex",
    "deformable convolution",
    "regions of interest",
    "fold",
    "stable sort",
    "FFT and back",
    "FFT in two dims",
]
"""Those whose form is not tried on torch's own samples in ``test_converters.py``."""

BUILT = ["deformable convolution", "FFT in two dims", "fold"]


def shapes(layer: layers.Layer) -> dict[str, dict[int, ttb.Dim]] | None:
    """The first axis of every input dynamic, where it may be."""
    sizes = [x.shape[0] for x in layer.inputs]
    dims = [ttb.Dim(1, size, 2 * size, "n") for size in sizes]
    return {f"args.{i}": {0: dim} for i, dim in enumerate(dims)} if layer.batched else None


@pytest.mark.parametrize("name", RUN)
def test_a_layer_is_eagers(name: str) -> None:
    layer = layers.make(name)
    fast = ttb.compile(
        layer.module, layer.inputs, backend="onnx", hybrid=False, device="cpu", dynamic_shapes=shapes(layer)
    )
    assert fast.report.runtime == "onnxruntime"
    torch.testing.assert_close(fast(*layer.inputs), layer.module(*layer.inputs), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", BUILT)
def test_a_layer_is_built_whole(name: str) -> None:
    layer = layers.make(name)
    fast = ttb.build(layer.module, layer.inputs, backend="onnx", hybrid=False, dynamic_shapes=shapes(layer))
    assert fast.report.runtime == "tensorrt"


def test_packed_sequences_are_refused_by_the_capture() -> None:
    """Their lengths are read on the host while the model runs."""

    class Packed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(4, 6, batch_first=True)

        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            result: torch.Tensor = torch.nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]
            return result

    with pytest.raises(CaptureFailed):
        ttb.compile(Packed().eval(), (torch.randn(3, 5, 4), torch.tensor([5, 2, 3])), device="cpu")
