"""Small artifacts of every shape, for the tests of saving. The engines are made-up bytes: nothing here runs them."""

import torch
from torch import nn
from torch.export import export

from torchtrt_bridge.backends.base import Artifact, Segment, StoredProgram
from torchtrt_bridge.runtime.program import store
from torchtrt_bridge.signature import Dim, Parameter, Signature, TensorSpec

SIGNATURE = Signature(
    parameters=(Parameter("x", "POSITIONAL_OR_KEYWORD"),),
    arguments={"x": {"leaf": 0}},
    inputs=(TensorSpec("x", "float32", ("batch", 4)),),
    outputs=(TensorSpec("y", "float32", ("batch", 4)),),
    result={"tuple": [{"leaf": {"output": 0}}, {"leaf": {"constant": 1}}, {"float": "inf"}]},
    dims={"batch": Dim(1, 2, 8, "batch")},
)
PROVENANCE = {"torch": "2.14", "target": "sm89", "shapes": [[1, 2]], "limit": float("inf"), "none": None}


def plan(size: int = 64, runtime: str = "tensorrt", wires: tuple[str, str] = ("x", "y")) -> Segment:
    engine = torch.randint(0, 256, (size,), dtype=torch.uint8)
    return Segment(runtime, (wires[0],), (wires[1],), engine=engine)


def program() -> StoredProgram:
    return store(export(nn.Linear(4, 4), (torch.ones(2, 4),)).run_decompositions({}))


def artifact(*segments: Segment, **fields) -> Artifact:
    fields = {"constants": (torch.tensor(3), torch.arange(6.0).reshape(2, 3)), "provenance": PROVENANCE, **fields}
    return Artifact(segments or (plan(),), SIGNATURE, "onnx", "fp16", **fields)
