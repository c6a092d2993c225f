"""Which TensorRT is here, for callers that answer a user."""

from __future__ import annotations

from ..errors import BackendUnavailable
from .flavor import Flavor, Unavailable, flavor


def installed() -> Flavor:
    """The TensorRT of this process.

    Raises:
        BackendUnavailable: there is none, with the reason for each name tried and the command that installs it.
    """
    try:
        return flavor()
    except Unavailable as error:
        raise BackendUnavailable(str(error)) from error


def targets() -> tuple[str, ...]:
    """The GPUs that ``torchtrt_bridge.build(target=...)`` can name with the TensorRT here: ``("sm75", "sm80", ...)``.

    Empty where the flavour builds only for the GPU that is present.

    Raises:
        BackendUnavailable: no TensorRT is installed.
    """
    return tuple(installed().targets())
