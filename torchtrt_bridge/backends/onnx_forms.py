"""Converters' ONNX forms as functions that torch.onnx calls for the operators that stand for their calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch.export import ExportedProgram

from ..errors import BridgeError, ConverterFailed
from ..forms import FormCall, call_of, tensors_of


def takes(call: FormCall) -> bool:
    """Whether ``call`` has an ONNX form."""
    return call.registration is not None and call.registration.onnx is not None


def translations(program: ExportedProgram) -> dict[Any, Callable[..., Any]]:
    """For each opaque call in ``program`` that has an ONNX form, by its operator, the function that adds its nodes."""
    return {
        node.target: _translation(call, len(node.args), tensors_of(node.meta["val"]))
        for node in program.graph.nodes
        if (call := call_of(node.target)) is not None and takes(call)
    }


def _translation(call: FormCall, count: int, expected: Sequence[Any]) -> Callable[..., Any]:
    def translate(*values: Any) -> Any:
        assert call.registration is not None and call.registration.onnx is not None
        args, kwargs = call.bind(values)
        try:
            made = call.registration.onnx(*args, **kwargs)
        except BridgeError:
            raise
        except Exception as error:
            raise ConverterFailed(f"{call} raised {type(error).__name__} in its ONNX form: {error}") from error
        results = list(made) if isinstance(made, Sequence) else [made]
        if len(results) != len(expected) or any(not hasattr(result, "producer") for result in results):
            raise ConverterFailed(
                f"{call} gives {made!r} in its ONNX form; expected: as many values of onnxscript's as what it converts"
                f" gives tensors, {len(expected)}."
            )
        return made

    # torch.onnx matches a call's arguments with the names of the function's
    parameters = [inspect.Parameter(f"a{i}", inspect.Parameter.POSITIONAL_OR_KEYWORD) for i in range(count)]
    translate.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return translate
