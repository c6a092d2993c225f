"""Compiled modules in a process that was forked from the one that used them.

What runs an engine holds threads (ONNX Runtime, OpenMP) or a CUDA context, and neither comes along. So the child starts
anew: on the CPU it makes another session when the module is next called; on a GPU that is an error, as for all of CUDA.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UsedAfterFork

if TYPE_CHECKING:
    from .module import TRTModule

_forked: list[bool] = []
_living: weakref.WeakSet[TRTModule] = weakref.WeakSet()


def follow(module: TRTModule) -> None:
    """Have ``module`` start anew in a forked child."""
    _living.add(module)


def check_gpu() -> None:
    """Raise UsedAfterFork where CUDA was in use before this process was forked."""
    if gpu_is_lost():
        raise UsedAfterFork(
            "This process was forked from one that was already using the GPU, and CUDA does not work across a fork."
            " Start processes with multiprocessing.set_start_method('spawn') (DataLoader: multiprocessing_context="
            "'spawn'), or load the module in the child and nowhere else."
        )


def gpu_is_lost() -> bool:
    """Whether this process was forked from one that was using the GPU."""
    return torch.cuda._is_in_bad_fork()


def without_lost_threads() -> None:
    """Keep PyTorch from waiting for OpenMP's threads, which a forked child lacks; DataLoader does so in its workers."""
    if _forked and torch.get_num_threads() > 1:
        torch.set_num_threads(1)


def _in_child() -> None:
    _forked.append(True)
    for module in list(_living):
        module._lock = threading.Lock()  # another thread of the parent's may have held it
        execution, module._execution = module._execution, None
        if execution is not None:
            _leak(execution)


def _leak(value: Any) -> None:
    """Never destroy ``value``: its destructor would wait for threads that are not here."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
