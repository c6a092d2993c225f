"""Whether a module's engine is to run through CUDA graphs: what was asked for, what was measured, or what is known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..errors import InvalidOption

if TYPE_CHECKING:
    from ..backends.base import Artifact
    from ..signature import Signature

SMALL_RESULTS = 2**20
"""Bytes. Results are copied out of a graph's own buffers; at most a microsecond or two on the GPU for so much."""


def check_options(cuda_graph: Any, max_graphs: Any) -> None:
    """Raises InvalidOption for what neither can be."""
    if cuda_graph not in ("auto", True, False) or isinstance(cuda_graph, int) and not isinstance(cuda_graph, bool):
        raise InvalidOption(f"cuda_graph={cuda_graph!r}: it is 'auto', True or False.")
    if type(max_graphs) is not int or max_graphs < 1:
        raise InvalidOption(f"max_graphs={max_graphs!r}: a positive number is needed; cuda_graph=False is off.")


def graphs(cuda_graph: bool | str, max_graphs: int, artifact: Artifact) -> int:
    """For how many sets of shapes each context is to keep a graph; 0 for none.

    ``"auto"`` follows what ``backend="fastest"`` measured, where it did. Otherwise it is for fixed shapes and small
    results, where a graph was never seen slower: with dynamic shapes each shape would cost a capture and a context, and
    what lies between the segments of a cut model may be large.
    """
    if cuda_graph == "auto" and artifact.results:  # of several segments: sizes between them may depend on the data
        return 0
    if cuda_graph == "auto":
        measured = artifact.provenance.get("cuda_graph")
        cuda_graph = len(artifact.segments) == 1 and suits(artifact.signature) if measured is None else bool(measured)
    return max_graphs if cuda_graph else 0


def check_runtime(cuda_graph: bool | str, artifact: Artifact) -> None:
    """Raises InvalidOption where a CUDA graph is a must and nothing runs on TensorRT."""
    if cuda_graph is True and all(segment.runtime != "tensorrt" for segment in artifact.segments):
        raise InvalidOption(
            "cuda_graph=True, but the module runs on the CPU, where there are no CUDA graphs. Leave it at 'auto', or"
            " compile for a GPU."
        )


def variant(execution: Any, graph: bool, max_graphs: int) -> Any:
    """``execution`` with CUDA graphs, or without; None where it cannot have them."""
    if not hasattr(execution, "with_graphs"):
        return None if graph else execution
    other = execution.with_graphs(max_graphs if graph else 0)
    return None if graph and other.graph_refusal is not None else other


def state(execution: Any) -> str:
    """For a report: ``"on"``, ``"off"``, or ``"off: "`` and why, where it was wanted."""
    if getattr(execution, "graph_refusal", None) is not None:
        return f"off: {execution.graph_refusal}"
    return "on" if getattr(execution, "graphs", 0) else "off"


def suits(signature: Signature) -> bool:
    """Whether a graph is known to pay: fixed shapes, and results that cost nothing to copy."""
    shapes = [spec.shape for spec in (*signature.inputs, *signature.outputs)]
    if any(isinstance(size, str) for shape in shapes for size in shape):
        return False
    sizes = (math.prod(map(int, spec.shape)) * spec.torch_dtype.itemsize for spec in signature.outputs)
    return sum(sizes) <= SMALL_RESULTS
