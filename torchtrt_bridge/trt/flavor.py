"""Which TensorRT is in use, and what it can do.

Two modules offer nearly the same API: ``tensorrt``, for every NVIDIA GPU, and ``tensorrt_rtx``, which builds without a
GPU and compiles kernels where the engine runs. One of them is bound, once, for the life of the process. The rest of
the package asks for features and never for version numbers. Nothing here imports torch: the child process that builds
without a GPU uses this module too.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from .log import make_logger

NAMES = ("tensorrt", "tensorrt_rtx")

#: The environment variable that picks one by name.
VARIABLE = "TORCHTRT_BRIDGE_TENSORRT"


class Unavailable(Exception):
    """No usable TensorRT. ``reasons`` says why not, for each name that was tried."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self.reasons = dict(reasons)
        tried = "".join(f"\n  {name}: {reason}" for name, reason in self.reasons.items())
        commands = " or ".join(f"pip install {name}" for name in NAMES if name in self.reasons) or "unset it"
        super().__init__(f"No usable TensorRT is installed; {commands}.{tried}")


def flavor() -> Flavor:
    """The TensorRT of this process: ``tensorrt`` where it imports and works, else ``tensorrt_rtx``.

    The environment variable ``TORCHTRT_BRIDGE_TENSORRT`` picks one by name. It is read once: a process never changes
    its TensorRT.

    Raises:
        Unavailable: neither is usable, or the one picked is not.
    """
    global _bound
    with _lock:
        if _bound is None:
            _bound = _bind()
        return _bound


def available() -> dict[str, str]:
    """The version of each TensorRT by name, or the reason why it is not usable. Imports both."""
    answers = {}
    for name in NAMES:
        try:
            answers[name] = _load(name).__version__
        except ImportError as error:
            answers[name] = str(error)
    return answers


@dataclasses.dataclass(frozen=True, eq=False)
class Flavor:
    """A TensorRT module ``trt``, its ``name`` and ``version``, its one ``logger``, and its features."""

    name: str
    version: str
    trt: Any = dataclasses.field(repr=False)
    logger: Any = dataclasses.field(repr=False)

    @property
    def has_strongly_typed_flag(self) -> bool:
        """A network is strongly typed only if asked to be (where the flag is missing, it always is)."""
        return hasattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def has_fp16_flag(self) -> bool:
        """The builder can be told to use fp16 in a network that is not strongly typed."""
        return hasattr(self.trt.BuilderFlag, "FP16")

    @property
    def has_tf32_flag(self) -> bool:
        """The builder's TF32 flag is heeded; else see :mod:`.tf32`."""
        return self._measures and hasattr(self.trt.BuilderFlag, "TF32")

    @property
    def has_runtime_config(self) -> bool:
        return hasattr(self.trt, "IRuntimeConfig")

    @property
    def has_runtime_cache(self) -> bool:
        """Kernels compiled when an engine is first run can be kept."""
        return self.has_runtime_config and hasattr(self.trt.IRuntimeConfig, "create_runtime_cache")

    @property
    def has_initializer_loading(self) -> bool:
        """The ONNX parser takes weights from memory, apart from the model."""
        return hasattr(self.trt.OnnxParser, "load_initializer")

    @property
    def has_plan_streaming(self) -> bool:
        """The builder writes the plan out piece by piece."""
        return hasattr(self.trt.Builder, "build_serialized_network_to_stream") and hasattr(self.trt, "IStreamWriter")

    @property
    def has_data_dependent_sizes(self) -> bool:
        """A result's size may depend on the data (RTX parses NonZero, and has no kernel for it)."""
        return self._measures

    @property
    def has_attention_layer(self) -> bool:
        """Attention is one layer, which may be fused or decomposed."""
        return hasattr(self.trt, "IAttentionBoundaryLayer")

    @property
    def has_plugins(self) -> bool:
        """Kernels of the user's own can be part of an engine (RTX has the classes, and no way to add one)."""
        return hasattr(self.trt.INetworkDefinition, "add_plugin")

    # TensorRT for RTX carries the names of the next three and none of their work: its timing cache is documented as a
    # no-op and holds a header only, its hardware level warns that it is unsupported, and a version compatible build
    # looks for a lean runtime that is not shipped.

    @property
    def has_timing_cache(self) -> bool:
        """Measured kernels can be kept between builds."""
        return self._measures and hasattr(self.trt.IBuilderConfig, "create_timing_cache")

    @property
    def has_version_compatible(self) -> bool:
        """A plan can be built that later versions load."""
        return self._measures and hasattr(self.trt.BuilderFlag, "VERSION_COMPATIBLE")

    @property
    def has_hardware_compatible(self) -> bool:
        """A plan for one GPU can be asked to run on every later one."""
        return self._measures and hasattr(self.trt, "HardwareCompatibilityLevel")

    @property
    def has_compute_capability_targets(self) -> bool:
        """A plan can be built for a GPU that is not here; :meth:`targets` names them."""
        return bool(self.targets()) and hasattr(self.trt.IBuilderConfig, "set_compute_capability")

    @property
    def can_build_without_gpu(self) -> bool:
        return not self._measures

    @property
    def loses_fp8_scales(self) -> bool:
        """fp8 convolutions come out without the scales of their operands, 1,000 to 1,000,000 times too large (RTX 1.4
        and 1.6, on an H100; later ones are not known to)."""
        return self.name == "tensorrt_rtx" and tuple(map(int, self.version.split(".")[:2])) < (1, 7)

    @property
    def may_end_the_process(self) -> bool:
        """Building may be a segmentation fault: with RTX it has been, of some versions where there is no GPU, and of
        some attentions where there is one."""
        return self.name == "tensorrt_rtx"

    def targets(self) -> dict[str, Any]:
        """The GPUs that a plan can be built for: ``{"sm89": ComputeCapability.SM89, ...}``."""
        capabilities = getattr(self.trt, "ComputeCapability", None)
        members = capabilities.__members__ if capabilities is not None else {}
        return {name.lower(): value for name, value in members.items() if name.startswith("SM")}

    @property
    def _measures(self) -> bool:
        """Whether the builder chooses kernels by running them, on the GPU that the plan is for."""
        return self.name == "tensorrt"


_lock = threading.Lock()
_bound: Flavor | None = None


def _bind() -> Flavor:
    picked = os.environ.get(VARIABLE)
    if picked and picked not in NAMES:
        raise Unavailable({f"{VARIABLE}={picked}": f"names no TensorRT; use {' or '.join(NAMES)}"})
    reasons = {}
    for name in (picked,) if picked else NAMES:
        try:
            module = _load(name)
        except ImportError as error:
            reasons[name] = str(error) + (f" ({VARIABLE} picks it)" if picked else "")
        else:
            return Flavor(name, module.__version__, module, make_logger(module))
    raise Unavailable(reasons)


def _load(name: str) -> ModuleType:
    """The module ``name``. Raises ImportError with a reason for a person."""
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError("not installed")
        if spec.origin is None:
            # A folder of type stubs imports as an empty namespace package, and would then hide that there is nothing.
            raise ImportError(f"only a folder without code ({', '.join(spec.submodule_search_locations or ())})")
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a broken install raises anything: OSError for a library, RuntimeError, KeyError, ...
        raise ImportError(f"installed, but does not import: {type(error).__name__}: {error}") from error
    if not hasattr(module, "Builder") or not hasattr(module, "OnnxParser"):
        raise ImportError(f"{module!r} has no Builder or no OnnxParser: an incomplete install")
    if name == "tensorrt" and module.Builder.__module__.startswith("tensorrt_rtx"):
        raise ImportError("another package made the name an alias of tensorrt_rtx in this process")
    return module
