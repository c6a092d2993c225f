"""Which route makes the module: by name, or the first in order that converts and verifies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .backends.base import Artifact, Backend, Place
from .backends.onnx import OnnxBackend
from .backends.torch2trt import Torch2TrtBackend
from .errors import BridgeError, ConversionFailed, InvalidOption, nearest
from .progress import Stages

if TYPE_CHECKING:
    from .capture import CapturedModel
    from .options import BuildOptions
    from .precision import Precision
    from .runtime.module import TRTModule

BACKENDS: tuple[Backend, ...] = (OnnxBackend(), Torch2TrtBackend())
"""In the order in which ``backend="auto"`` tries them."""


def convert_and_check(
    captured: CapturedModel,
    precision: Precision,
    options: BuildOptions,
    place: Place,
    backend: str,
    stages: Stages,
    finish: Callable[[Artifact], TRTModule],
) -> TRTModule:
    """The module of the first route that converts and whose module ``finish`` makes and verifies.

    Raises:
        InvalidOption: no route has that name.
        BridgeError: the own error of the only route that could try; where several failed, ConversionFailed with every
            reason.
    """
    failures: list[BridgeError] = []
    unable: list[BridgeError] = []
    for route in candidates(backend):
        support = route.supports(captured, place)
        if not support.possible:
            unable.append(ConversionFailed(f"{route.name}: {'; '.join(support.reasons)}"))
            continue
        try:
            with stages("converting") as progress:
                artifact = route.convert(captured, precision, options, place, progress)
            return finish(artifact)
        except InvalidOption:
            raise  # the caller's mistake is the same on every route
        except BridgeError as error:
            failures.append(error)
    if len(failures or unable) == 1:
        raise (failures or unable)[0]
    reasons = "\n".join(f"  {failure}" for failure in (*failures, *unable))
    raise ConversionFailed(f"No route could compile the model:\n{reasons}")


def candidates(backend: str) -> tuple[Backend, ...]:
    """The routes that ``backend`` names, in the order in which they are tried.

    Raises:
        InvalidOption: none has that name.
    """
    if backend == "auto":
        return BACKENDS
    names = [route.name for route in BACKENDS]
    if backend not in names:
        raise InvalidOption(
            f"backend={backend!r}: there is 'auto' and {', '.join(map(repr, names))}.{nearest(str(backend), names)}"
        )
    return tuple(route for route in BACKENDS if route.name == backend)
