"""Whether a saved engine fits this process and this GPU, decided from the manifest before TensorRT sees a byte."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import EngineMismatch
from ..trt.flavor import Flavor

_log = logging.getLogger("torchtrt_bridge")
_REBUILD = (
    "Rebuild it here: compile the model again, or load a file that was saved with source=True and call rebuild()."
)


def check(provenance: Mapping[str, Any], flavor: Flavor, device: torch.device) -> None:
    """Raise unless an engine of this ``provenance`` can run on ``device`` with ``flavor``.

    ``provenance`` holds ``flavour`` and ``tensorrt`` (its version), ``target`` (``"sm89"``, or ``"portable"``) and
    ``version_compatible``.

    Raises:
        EngineMismatch: it says what the engine needs, what is here, and how to rebuild.
    """
    flavour, version = str(provenance.get("flavour")), str(provenance.get("tensorrt"))
    if flavour != flavor.name:
        raise EngineMismatch(
            f"The engine was built by {flavour} {version}; this process uses {flavor.name} {flavor.version}, and"
            f" neither loads the other's plans. Install {flavour.replace('_', '-')}=={version} (or choose it with"
            f" TORCHTRT_BRIDGE_TENSORRT={flavour}). {_REBUILD}"
        )
    built, here = _release(version), _release(flavor.version)
    if built != here and not (provenance.get("version_compatible") and built < here):
        which = "its own or an earlier version" if provenance.get("version_compatible") else "its own version"
        raise EngineMismatch(
            f"The engine was built by {flavour} {version}; this process has {flavor.version}, which loads plans of"
            f" {which} only. Install {flavour.replace('_', '-')}=={version}. {_REBUILD}"
        )
    _check_gpu(str(provenance.get("target")), flavor, device)


def _release(version: str) -> tuple[int, ...]:
    """``(10, 16)`` of ``"10.16.1.11"``: plans do not depend on the rest."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _check_gpu(target: str, flavor: Flavor, device: torch.device) -> None:
    major, minor = torch.cuda.get_device_capability(device)
    here = f"sm{major}{minor}"
    if target == here:
        return
    name = torch.cuda.get_device_name(device)
    if target == "portable":
        if major >= 8:
            return
        raise EngineMismatch(f"The engine runs on GPUs from sm80 on; this one is {here} ({name}). {_REBUILD}")
    if major >= 8 and here not in flavor.targets() and flavor.has_compute_capability_targets:
        # Hopper is in no list of RTX's, yet plans for each listed target ran there rightly
        _log.warning("the engine was built for %s; this GPU is %s (%s): check its results", target, here, name)
        return
    raise EngineMismatch(f"The engine was built for {target}; this GPU is {here} ({name}). {_REBUILD}")
