"""Every exception that a user of this package can meet.

Each message says what happened, where (the input, the layer, the file) and what to do. The first line is a summary
that stands alone; what follows is detail. All derive from :class:`BridgeError`; those that mean "the argument is
wrong" derive from ``ValueError`` too, so that code written for plain PyTorch catches them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class BridgeError(Exception):
    """Base of every error that torchtrt_bridge raises on purpose."""

    def _render_traceback_(self) -> list[str]:
        # what IPython and Jupyter show in the place of a traceback
        from .tracebacks import render

        return render(self)


class InvalidOption(BridgeError, ValueError):
    """An option is unknown, has a wrong value, or cannot be honoured by the chosen route or TensorRT flavour."""


class InvalidInput(BridgeError, ValueError):
    """A call's arguments do not fit what was captured: their number, structure, dtype, rank or device."""


class InputOutOfProfile(InvalidInput):
    """An input's shape lies outside the range that the engine was built for."""


class DeviceMismatch(InvalidInput):
    """An input, or the call, is on another device than the engine."""


class FixedArgumentChanged(InvalidInput):
    """An argument that the capture fixed (a flag, None, a number) has another value in this call."""


class CalibrationMismatch(InvalidInput):
    """A calibration is for another model than the one that is compiled."""


class CaptureFailed(BridgeError):
    """torch.export could not capture the model."""


class ModelInTraining(CaptureFailed):
    """The model is in training mode; what it computes then (dropout, batch statistics) is not what to deploy."""


class StateMutated(CaptureFailed):
    """The model writes to a buffer or a parameter, or reshapes an input in place, which no engine can do."""


class PythonSideEffect(CaptureFailed):
    """The model changes a Python attribute when called, which an exported graph would silently drop."""


class DimSpecialized(CaptureFailed):
    """A dimension that was to be dynamic is fixed, or restricted, by the model's own code."""


class ConversionFailed(BridgeError):
    """A route could not turn the captured model into something TensorRT takes."""


class UnsupportedLayer(ConversionFailed):
    """A route has no converter for a layer or operator."""


class ConverterFailed(ConversionFailed):
    """A converter, or a function of the user's that adds TensorRT layers, raised, or made other results than it must:
    another number, dtype or shape."""


class ArgumentWritten(ConverterFailed):
    """A converter's form writes to one of its arguments, which the rest of the model would see changed."""


class ConverterClash(BridgeError, ValueError):
    """Two converters are registered for the same thing; the message names both places."""


class NothingInTensorRT(ConversionFailed):
    """The model was cut, and no part of it is left that TensorRT takes."""


class BackendUnavailable(BridgeError):
    """A package that this route, or this device, needs is missing or broken."""


class BuildFailed(BridgeError):
    """TensorRT refused to build an engine from the network."""


class BuildCrashed(BuildFailed):
    """The build process ended without an answer (a fault inside TensorRT, or the system was out of memory)."""


class VerificationFailed(BridgeError):
    """The compiled module's results differ from the eager model's by more than the tolerance.

    Args:
        message: what differs, with the table.
        rows: the table as data: rows of :class:`~torchtrt_bridge.verify.Row`, as dicts.
    """

    def __init__(self, message: str, rows: Sequence[Mapping[str, Any]] = ()):
        super().__init__(message)
        self.rows = tuple(rows)

    def _repr_html_(self) -> str:
        from .tables import comparison, paragraph

        return paragraph(f"{type(self).__name__}: {self}".partition("\n")[0]) + comparison(self.rows)


class TargetUnreachable(BridgeError):
    """The error or metric that was asked for cannot be had, whichever layers are raised to the higher precision."""


class PrecisionNotApplied(BridgeError):
    """Less of the matrix and convolution work than was promised runs in the precision that was asked for.

    Args:
        message: how much, the layers that do not, the likely reasons.
        rows: those layers as data: fields of :class:`~torchtrt_bridge.applied.Missed`.
    """

    def __init__(self, message: str, rows: Sequence[Mapping[str, Any]] = ()):
        super().__init__(message)
        self.rows = tuple(rows)


class InvalidFile(BridgeError, ValueError):
    """A saved module is damaged, incomplete, of another format version, or no saved module at all."""


class EngineMismatch(BridgeError):
    """An intact engine does not fit here: another TensorRT flavour or version, another GPU, or no GPU."""


class NotTrainable(BridgeError, RuntimeError):
    """A gradient was asked for through a compiled module, which has none."""


class NotTraceable(BridgeError, RuntimeError):
    """A tracer or transform (torch.jit, torch.export, torch.func) cannot see into a compiled module."""


class NoLayers(BridgeError, AttributeError):
    """A layer, parameter or method of the original model was asked for, or a new one set: there is one engine."""


class UsedAfterFork(BridgeError, RuntimeError):
    """A process forked from one that was using the GPU called a module that runs there."""


class NotLoaded(BridgeError):
    """The module holds no engine yet."""


class RunsOnCPU(UserWarning):
    """The compiled module runs on the CPU: TensorRT itself is not in use."""


ON_CPU = (
    "the compiled module runs on the CPU, without TensorRT: the model's parameters are there. Move it with"
    " model.cuda() first, pass device='cuda', or use torchtrt_bridge.build(target=...) for a GPU elsewhere."
)
"""What that warning says."""


class ConvertersMissing(UserWarning):
    """The converters of an installed package could not be loaded."""


class StaysInEval(UserWarning):
    """A compiled module was told to train; it computes what the model did in eval mode, and nothing else."""


class MoveIgnored(UserWarning):
    """A compiled module was moved to another dtype or memory format; those are fixed in its engine."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """`` Did you mean 'precision'?`` for a near miss of one of ``candidates``, else ``""``."""
    match = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""
