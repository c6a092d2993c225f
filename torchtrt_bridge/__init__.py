"""torchtrt_bridge: three routes into TensorRT, one module out.

    fast = torchtrt_bridge.compile(model, (x,), precision="fp16")

Importing this imports neither TensorRT nor ONNX; each is imported where it is used.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from . import errors
from .options import BuildOptions
from .version import __version__

with contextlib.suppress(ImportError, OSError):
    # torch.load() of a whole module asks that its class be known once this package is imported. Where torch is missing
    # or broken, doctor() must still come up; whoever asks for these names then gets torch's own error.
    from .runtime.module import TRTModule
    from .signature import Dim

if TYPE_CHECKING:
    from .compiler import build, compile
    from .explaining import Explanation, explain
    from .importing import compile_file
    from .loading import load
    from .network import from_network
    from .precision import Precision
    from .quantization.calibrating import calibrate
    from .quantization.calibration import Calibration
    from .quantization.settings import Quantization
    from .registry import Call, Converter, Registration, converter
    from .report import Report
    from .structure import register_result
    from .tools.benchmark import Benchmark, benchmark
    from .tools.check_converter import check_converter
    from .tools.compare import compare
    from .tools.comparison import Comparison
    from .tools.converter_check import ConverterCheck
    from .tools.doctor import doctor
    from .tools.inspect import inspect
    from .tools.tune import tune_precision
    from .tools.tuned import TunedPrecision
    from .trt.targets import targets
    from .verify import Tolerance

__all__ = [
    "Benchmark",
    "BuildOptions",
    "Calibration",
    "Call",
    "Comparison",
    "Converter",
    "ConverterCheck",
    "Dim",
    "Explanation",
    "Precision",
    "Quantization",
    "Registration",
    "Report",
    "TRTModule",
    "Tolerance",
    "TunedPrecision",
    "__version__",
    "benchmark",
    "build",
    "calibrate",
    "check_converter",
    "compare",
    "compile",
    "compile_file",
    "converter",
    "doctor",
    "errors",
    "explain",
    "from_network",
    "inspect",
    "load",
    "register_result",
    "targets",
    "tune_precision",
]

_LAZY = {
    "Benchmark": "tools.benchmark",
    "Calibration": "quantization.calibration",
    "Call": "registry",
    "Comparison": "tools.comparison",
    "Converter": "registry",
    "ConverterCheck": "tools.converter_check",
    "Dim": "signature",
    "Explanation": "explaining",
    "Precision": "precision",
    "Quantization": "quantization.settings",
    "Registration": "registry",
    "Report": "report",
    "TRTModule": "runtime.module",
    "Tolerance": "verify",
    "TunedPrecision": "tools.tuned",
    "benchmark": "tools.benchmark",
    "build": "compiler",
    "calibrate": "quantization.calibrating",
    "check_converter": "tools.check_converter",
    "compare": "tools.compare",
    "compile": "compiler",
    "compile_file": "importing",
    "converter": "registry",
    "doctor": "tools.doctor",
    "explain": "explaining",
    "from_network": "network",
    "inspect": "tools.inspect",
    "load": "loading",
    "register_result": "structure",
    "targets": "trt.targets",
    "tune_precision": "tools.tune",
}


def __getattr__(name: str) -> Any:
    # torch.export alone takes longer to import than the rest of this package; it waits for the first compile
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
