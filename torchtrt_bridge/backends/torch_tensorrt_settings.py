"""Which of Torch-TensorRT's settings a build may have, under which names, and why not the others.

``BuildOptions`` has the settings of TensorRT's builder by our names; those are put into the builder's configuration by
:mod:`torchtrt_bridge.trt.builder`, for this route as for the others. What is left of Torch-TensorRT's
``CompilationSettings`` is how the graph is lowered and converted, and a few builder settings of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidOption, nearest

#: Given through ``BuildOptions(torch_tensorrt={...})``, as they are.
HONOURED = (
    "assume_dynamic_shape_support",
    "decompose_attention",
    "disabled_constant_fold_exclusions",
    "enable_experimental_decompositions",
    "l2_limit_for_tiling",
    "max_aux_streams",
    "num_avg_timing_iters",
    "sparse_weights",
    "tiling_optimization_level",
    "truncate_double",
    "use_complex_decomposition",
    "use_fp32_acc",
)

#: Theirs: what to say in its place.
RENAMED = {
    "disable_tf32": "BuildOptions(tf32=...)",
    "hardware_compatible": "BuildOptions(hardware_compatible=...)",
    "optimization_level": "BuildOptions(optimization_level=...)",
    "timing_cache_path": "BuildOptions(timing_cache=...)",
    "version_compatible": "BuildOptions(version_compatible=...)",
    "workspace_size": "BuildOptions(workspace=...)",
    "device": "compile(device=...)",
}

_PRECISION = "the precision is written into the graph; give compile(precision=...)"
_CUT = "it says how a graph is cut between TensorRT and PyTorch, which this route does not do"
_RUN = "it belongs to Torch-TensorRT's own runtime; a compiled module has another"
_REFIT = "a compiled module's weights are not changed after the build"
_DLA = "a compiled module runs on a GPU, not on a DLA"

#: Refused, and why.
REFUSED = {
    **dict.fromkeys(("enabled_precisions", "use_explicit_typing", "enable_autocast"), _PRECISION),
    **dict.fromkeys(("min_block_size", "torch_executed_ops", "require_full_compilation"), _CUT),
    **dict.fromkeys(("use_fast_partitioner", "enable_resource_partitioning", "cpu_memory_budget"), _CUT),
    **dict.fromkeys(("fallback_data_dependent_ops", "dryrun", "pass_through_build_failures"), _CUT),
    **dict.fromkeys(("use_python_runtime", "lazy_engine_init", "dynamically_allocate_resources"), _RUN),
    **dict.fromkeys(("enable_weight_streaming", "offload_module_to_cpu", "use_distributed_mode_trace"), _RUN),
    **dict.fromkeys(("cache_built_engines", "reuse_cached_engines", "enable_cross_compile_for_windows"), _RUN),
    **dict.fromkeys(("immutable_weights", "strip_engine_weights", "refit_identical_engine_weights"), _REFIT),
    **dict.fromkeys(("dla_sram_size", "dla_local_dram_size", "dla_global_dram_size", "engine_capability"), _DLA),
    "attn_bias_is_causal": "it takes any mask of an attention for a causal one, and the results would be wrong",
}


def check_route(given: Mapping[str, Any], backend: str) -> None:
    """Raises InvalidOption for settings that the route ``backend`` would not heed, or that no route would."""
    if given and backend not in ("auto", "fastest", "torch_tensorrt"):
        raise InvalidOption(
            f"BuildOptions(torch_tensorrt=...) has settings of the route 'torch_tensorrt'; with backend={backend!r}"
            " nothing would heed them."
        )
    check_names(given)


def check_names(given: Mapping[str, Any]) -> None:
    """Raises InvalidOption for a setting that is refused whatever the version of Torch-TensorRT."""
    for name, value in given.items():
        setting = f"BuildOptions(torch_tensorrt={{{name!r}: {value!r}}})"
        if name in RENAMED:
            raise InvalidOption(f"{setting}: give {RENAMED[name]}.")
        reason = REFUSED.get(name) or (_PRECISION if name.startswith("autocast_") else None)
        if reason is not None:
            raise InvalidOption(f"{setting}: {reason}.")
        if not _is_plain(value):
            raise InvalidOption(f"{setting}: a value may be a number, a text, a bool, None, or a list of texts.")


def compilation_settings(given: Mapping[str, Any], *, tf32: bool, flavour: str) -> Any:
    """Torch-TensorRT's ``CompilationSettings`` with ``given``.

    Raises:
        InvalidOption: the installed version has no setting of that name, or refuses the value.
    """
    from torch_tensorrt.dynamo._settings import CompilationSettings

    check_names(given)
    fields = {field.name for field in dataclasses.fields(CompilationSettings)}
    known = [name for name in HONOURED if name in fields]
    for name, value in given.items():
        setting = f"BuildOptions(torch_tensorrt={{{name!r}: {value!r}}})"
        if name not in known:
            what = "has it, but torchtrt_bridge does not know it" if name in fields else "has no such setting"
            raise InvalidOption(
                f"{setting}: the installed torch_tensorrt {what}.{nearest(name, known)} There is {', '.join(known)}."
            )
        if name == "num_avg_timing_iters" and flavour == "tensorrt_rtx":
            raise InvalidOption(f"{setting}: TensorRT's flavour 'tensorrt_rtx' measures no kernels while it builds.")
    # Always ours. An attention's mask is what the model says; a network is typed by its tensors.
    fixed = {"attn_bias_is_causal": False, "disable_tf32": not tf32, "use_explicit_typing": True}
    try:
        return CompilationSettings(**{**{k: v for k, v in fixed.items() if k in fields}, **given})
    except (TypeError, ValueError) as error:
        raise InvalidOption(f"BuildOptions(torch_tensorrt={dict(given)!r}): {error}") from None


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, str) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))
