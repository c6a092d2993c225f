"""ttb.load(): a saved module from a file."""

from __future__ import annotations

import os

import torch

from .errors import InvalidFile
from .runtime.artifact import no_manifest
from .runtime.files import load_file
from .runtime.module import TRTModule
from .tracebacks import leaves_no_memory


@leaves_no_memory
def load(
    path: str | os.PathLike[str], *, device: torch.device | str | None = None, max_contexts: int = 8
) -> TRTModule:
    """The module in a file written by :meth:`TRTModule.save`, or by ``torch.save(module.state_dict(), path)``.

    Args:
        path: the file.
        device: where to run; None means the current CUDA device for an engine, the CPU for what was compiled there.
        max_contexts: see :class:`TRTModule`.

    Raises:
        InvalidFile: the file is damaged, incomplete, or of another format version.
        EngineMismatch: the engine does not fit the TensorRT or the GPU here.
        FileNotFoundError: there is no such file.
    """
    module = TRTModule(device, max_contexts=max_contexts)
    tensors = load_file(path)
    if "manifest" not in tensors:  # load_state_dict() would say so in torch's way, which is for models
        raise InvalidFile(f"{os.fspath(path)}: {no_manifest(tensors)}")
    module.load_state_dict(tensors)
    return module
