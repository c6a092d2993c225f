"""One ONNX model in, one plan out: the whole conversation with TensorRT's parser and builder.

Used in this process and in a child process, so it raises the plain exceptions of :mod:`.request` and
:mod:`.flavor`; :mod:`.build` turns them into the package's own.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import difflib
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from .diagnosis import failed, require_right_kernels
from .engine_layers import from_log
from .flavor import Flavor, flavor
from .log import Messages, listening, logger
from .progress import make_monitor, make_writer
from .request import Cancelled, Failure, NoGpu, Plan, Problem, Progress, Refused, Request, Shape
from .tf32 import settle
from .work import Work, as_built, label, work_of


def build_plan(
    request: Request,
    *,
    progress: Progress = lambda phase, fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Plan:
    """Build ``request`` on this thread.

    Args:
        progress: called with a phase's name and the fraction that is done, also from TensorRT's own threads.
        cancelled: asked at each step; once true, the build ends there.

    Raises:
        Unavailable: there is no TensorRT.
        Refused: this TensorRT cannot honour one of the request's options.
        NoGpu: this TensorRT finds no GPU and needs one.
        Failure: the parser or the builder refused the model; it says what they said.
        Cancelled: ``cancelled()`` was true before the plan was there.
    """
    bound = flavor()
    check(request, bound)
    trt = bound.trt
    with listening() as messages:
        began = time.perf_counter()
        progress("Parsing the model", 0.0)
        builder = make_builder(request, bound, messages)
        typed = bound.has_strongly_typed_flag
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if typed else 0)
        # The network's weights are the parser's, or the caller's: all three live until the plan is there.
        if request.fill is not None:
            parser = request.fill(trt, network)
        else:
            parser = trt.OnnxParser(network, bound.logger)
            _parse(request, bound, parser, messages)
        edited: Any = None
        if request.edit is not None:
            edited = request.edit(bound, network, {weight.name: weight for weight in request.initializers})
        if request.decomposable_attention and bound.has_attention_layer:
            _make_attention_decomposable(trt, network)
        label(network)
        config = builder.create_builder_config()
        configure(request, bound, config)
        add_profile(request, builder, network, config, messages)
        config.progress_monitor = make_monitor(trt, progress, cancelled)
        parsed = time.perf_counter()
        if cancelled():
            raise Cancelled
        with timing_cache(request, config), tempfile.TemporaryFile(prefix="torchtrt_bridge-") as file:
            serialized = serialize(bound, builder, network, config, file)
            if cancelled():
                raise Cancelled
            if serialized is None:
                raise failed(request, bound, messages, network)
            layers = collections.Counter(network.get_layer(i).type.name.lower() for i in range(network.num_layers))
            work = measured(trt, network, request.profile, messages)
            if isinstance(serialized, int):  # TensorRT's copies of the weights go before the plan comes into memory
                del parser, edited, network, config, builder
                data = memoryview(bytearray(serialized))
                file.seek(0)
                file.readinto(data)  # type: ignore[attr-defined]
            else:
                data = memoryview(serialized).cast("B")
    return Plan(
        data=data,
        flavor=bound.name,
        version=bound.version,
        target=request.target,
        layers=dict(layers.most_common()),
        parse_seconds=parsed - began,
        build_seconds=time.perf_counter() - parsed,
        warnings=tuple(messages.warnings),
        work=tuple(work),
    )


def measured(
    trt: Any, network: Any, profile: Mapping[str, tuple[Shape, Shape, Shape]], messages: Messages
) -> list[Work]:
    """The work in a network that was just built, and in which precision the engine does it."""
    heard = messages.engines
    engine = from_log(heard[0]) if len(heard) == 1 else []  # several builds at once: whose is whose is not said
    return as_built(work_of(trt, network, profile), engine)


def serialize(bound: Flavor, builder: Any, network: Any, config: Any, file: IO[bytes]) -> Any:
    """The plan as TensorRT's own buffer, or, where TensorRT can write it out piece by piece (a fifth less memory at
    the peak), its size in ``file``. None if the build failed.

    Raises:
        NoKernel: see :func:`.diagnosis.require_right_kernels`.
    """
    require_right_kernels(bound, network)
    if not bound.has_plan_streaming:
        return builder.build_serialized_network(network, config)
    writer = make_writer(bound.trt, file)
    built = builder.build_serialized_network_to_stream(network, config, writer)
    if writer.error is not None:  # TensorRT need not say so
        folder = tempfile.gettempdir()
        raise Failure(f"The plan could not be written to {folder}: {writer.error}. TMPDIR names another place.")
    if not built:
        return None
    file.flush()
    return writer.size


def check(request: Request, bound: Flavor) -> None:
    """Raise :class:`Refused` for the first option that ``bound`` cannot honour. Needs no GPU and builds nothing."""
    this = f"TensorRT's flavour {bound.name!r} ({bound.version})"
    if request.target is not None and not bound.has_compute_capability_targets:
        raise Refused(
            f"target={request.target!r}: {this} builds only for the GPU that is here; build on a machine with that GPU"
            " and leave target out, or install tensorrt_rtx."
        )
    if request.target is not None and request.target not in bound.targets():
        names = list(bound.targets())
        near = difflib.get_close_matches(request.target, names, n=1)
        raise Refused(
            f"target={request.target!r}: {this} builds for {', '.join(names)}."
            + (f" Did you mean {near[0]!r}?" if near else "")
            + " Leave target out for a portable plan, which runs on every GPU from Ampere (sm80) on."
        )
    if request.timing_cache is not None and not bound.has_timing_cache:
        raise Refused(
            f"timing_cache: {this} measures no kernels while it builds, so there are no timings to keep; leave it out."
            " Kernels compiled at the first run are saved with the module."
        )
    if request.timing_cache is not None and not pathlib.Path(request.timing_cache).absolute().parent.is_dir():
        raise Refused(f"timing_cache={os.fspath(request.timing_cache)!r}: the folder does not exist; make it first.")
    if request.version_compatible and not bound.has_version_compatible:
        raise Refused(
            f"version_compatible: {this} has no version compatible plans; leave it out, and build again when"
            " TensorRT's version changes."
        )
    if request.hardware_compatible and not bound.has_hardware_compatible:
        raise Refused(
            f"hardware_compatible: {this} has no such setting; leave it and target out: the plan then runs on every GPU"
            " from Ampere (sm80) on."
        )


def make_builder(request: Request, bound: Flavor, messages: Messages) -> Any:
    try:
        if request.tf32 and not settle(bound, True):
            raise Refused(
                f"tf32=True: {bound.name} decides on TF32 once a process, and this one has decided against it, for an"
                " engine made or loaded earlier. Compile in a process of its own, or with precision='fp16'."
            )
        settle(bound, request.tf32)
        return bound.trt.Builder(bound.logger)
    except TypeError as error:  # pybind's way to say that TensorRT's factory returned nothing
        summary = f"TensorRT ({bound.name} {bound.version}) could not start here; it needs a GPU and a working driver."
        raise NoGpu(summary, messages=tuple(messages.errors)) from error


def _parse(request: Request, bound: Flavor, parser: Any, messages: Messages) -> None:
    if isinstance(request.model, (str, os.PathLike)):
        path = os.path.abspath(request.model)
        if not os.path.isfile(path):
            raise Failure(f"There is no ONNX model at {path}.")
        parsed = parser.parse_from_file(path)
    elif not request.initializers:
        parsed = parser.parse(request.model)
    elif bound.has_initializer_loading:
        parsed = parser.load_model_proto(request.model)
        for weight in request.initializers if parsed else ():
            if not parser.load_initializer(weight.name, weight.address, weight.nbytes):
                summary = f"TensorRT refused the {weight.nbytes} bytes of the ONNX model's weight {weight.name!r}."
                raise Failure(summary, messages=tuple(messages.errors))
        parsed = parsed and parser.parse_model_proto()
    else:
        with _with_weights_beside(request) as path:
            parsed = parser.parse_from_file(path)
    if parsed:
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    problems = tuple(Problem(e.node_name(), e.node_operator(), e.code().name, e.desc().strip()) for e in errors)
    raise Failure(
        f"TensorRT's ONNX parser ({bound.name} {bound.version}) does not take the model:",
        problems,
        messages=() if problems else tuple(messages.errors),
    )


@contextlib.contextmanager
def _with_weights_beside(request: Request) -> Iterator[str]:
    """The path of the model as a file with external data, for a parser that takes no weights from memory."""
    import onnx

    model = onnx.load_model_from_string(bytes(request.model))  # type: ignore[arg-type]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    with tempfile.TemporaryDirectory(prefix="torchtrt_bridge-") as folder:
        with open(os.path.join(folder, "weights"), "wb") as file:
            for weight in request.initializers:
                if weight.name not in tensors:
                    raise Failure(f"The ONNX model has no weight named {weight.name!r}.")
                tensor = tensors[weight.name]
                del tensor.external_data[:]
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, value in ("location", "weights"), ("offset", file.tell()), ("length", weight.nbytes):
                    tensor.external_data.add(key=key, value=str(value))
                file.write((ctypes.c_char * weight.nbytes).from_address(weight.address))
        path = os.path.join(folder, "model.onnx")
        with open(path, "wb") as file:
            file.write(model.SerializeToString())
        yield path


def _make_attention_decomposable(trt: Any, network: Any) -> None:
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionBoundaryLayer  # the bindings hand out a plain ILayer
            layer.attention.decomposable = True


def configure(request: Request, bound: Flavor, config: Any) -> None:
    trt = bound.trt
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # costs nothing, and lets an engine be inspected
    if not request.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if request.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace)
    if request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
    if request.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if request.target is not None:
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(bound.targets()[request.target], 0):
            raise Refused(f"target={request.target!r}: TensorRT ({bound.name} {bound.version}) did not accept it.")


def add_profile(request: Request, builder: Any, network: Any, config: Any, messages: Messages) -> None:
    inputs = {tensor.name: tuple(tensor.shape) for tensor in (network.get_input(i) for i in range(network.num_inputs))}
    unknown = [name for name in request.profile if name not in inputs]
    lacking = [name for name, shape in inputs.items() if -1 in shape and name not in request.profile]
    if unknown or lacking:
        raise Failure(
            f"The ranges of the dynamic inputs do not fit the ONNX model, whose inputs are {inputs}:"
            + (f" it has no input {', '.join(map(repr, unknown))};" if unknown else "")
            + (f" no range was given for {', '.join(map(repr, lacking))};" if lacking else "")
        )
    if not request.profile:
        return
    profile = builder.create_optimization_profile()
    for name, (smallest, usual, largest) in request.profile.items():
        profile.set_shape(name, tuple(smallest), tuple(usual), tuple(largest))
    if config.add_optimization_profile(profile) < 0:
        raise Failure(f"TensorRT refused the ranges {dict(request.profile)}.", messages=tuple(messages.errors))


@contextlib.contextmanager
def timing_cache(request: Request, config: Any) -> Iterator[None]:
    """Read the timing cache before the build and replace its file after it."""
    if request.timing_cache is None:
        yield
        return
    path = pathlib.Path(request.timing_cache)
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        logger.warning("The timing cache %s is damaged or of another GPU or TensorRT: it is started anew.", path)
        config.set_timing_cache(config.create_timing_cache(b""), False)
    yield
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        beside.write_bytes(config.get_timing_cache().serialize())
        os.replace(beside, path)
    except OSError as error:  # the plan is worth more than the cache
        beside.unlink(missing_ok=True)
        logger.warning("The timing cache %s could not be written: %s.", path, error)
