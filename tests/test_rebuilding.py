"""A program that was captured on a GPU is rebuilt, and written as ONNX, wherever it is loaded."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.rebuilding import rebuild, write_onnx


def on_a_gpu(document: Any) -> Any:
    """The JSON of a program as a capture on a GPU writes it."""
    if isinstance(document, dict):
        if set(document) == {"type", "index"} and document["type"] == "cpu":
            return {"type": "cuda", "index": 0}
        return {key: on_a_gpu(value) for key, value in document.items()}
    return [on_a_gpu(value) for value in document] if isinstance(document, list) else document


@pytest.fixture(scope="module")
def saved():
    """The model, and its artifact as if it had been made on a GPU."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    made = ttb.compile(model, torch.randn(3, 8), source=True, dynamic_batch=(1, 3, 6)).made
    graph = json.dumps(on_a_gpu(json.loads(bytes(made.source.graph)))).encode()
    assert b'"cuda"' in graph
    segment = dataclasses.replace(made.segments[0], runtime="tensorrt")
    return model, dataclasses.replace(
        made, source=dataclasses.replace(made.source, graph=graph), segments=(segment,)
    )


def test_it_becomes_a_module_again(saved):
    model, made = saved
    again = rebuild(made, device="cpu", target=None, verify=True)
    x = torch.randn(5, 8)
    torch.testing.assert_close(again(x), model(x))


def test_it_becomes_an_onnx_file(saved, tmp_path):
    model, made = saved
    write_onnx(made, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    x = torch.randn(2, 8)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x))
