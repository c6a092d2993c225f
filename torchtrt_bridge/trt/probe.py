"""Whether this TensorRT can build at all where there is no GPU: some versions end the process."""

from __future__ import annotations

import threading

from .flavor import Flavor
from .isolation import build_in_child
from .request import Request

_lock = threading.Lock()
_survives = False


def require_a_builder_that_survives(bound: Flavor) -> None:
    """Let a child process build one layer, once. What Python functions add to a network cannot be handed to a child,
    so this is all that can be known before this process tries.

    Raises:
        Crashed: the child ended.
    """
    from onnx import TensorProto, helper

    global _survives
    with _lock:
        if not _survives:
            ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
            graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", ends[:1], ends[1:])
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
            build_in_child(Request(model=model.SerializeToString()), bound, lambda phase, fraction: None, None)
            _survives = True
