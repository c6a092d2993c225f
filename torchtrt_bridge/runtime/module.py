"""TRTModule: the drop-in module that runs an ``Artifact`` (see :mod:`..backends.base`), saves it and loads it.

How it takes moves, forks, gradients, tracers and questions about layers is in the files beside this one; what people
do to modules, and what comes of it, is the table of ``docs/dropin.md``.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd import forward_ad

from .. import attributes
from ..errors import (
    DeviceMismatch,
    EngineMismatch,
    InvalidFile,
    InvalidInput,
    InvalidOption,
    MoveIgnored,
    NotLoaded,
    StaysInEval,
)
from . import forks, gradients, graphing, moves, tracing
from .checking import InputCheck
from .forwarding import InstanceSignature, OwnSignature
from .layers import OneEngine
from .starting import Execution, Start

if TYPE_CHECKING:
    from ..backends.base import Artifact
    from ..report import Report
    from ..signature import Signature

_Tensor = torch.Tensor
_modes_at_work: Callable[[], int] = torch._C._len_torch_dispatch_stack


class TRTModule(OneEngine):
    """A compiled model. It is called as the model was, and returns what the model did.

    Made by :func:`torchtrt_bridge.compile`; an empty one, ``TRTModule()``, takes its engine from
    :meth:`load_state_dict`.

    Args:
        device: where to run; None means where it was built to run, the current CUDA device for an engine.
        max_contexts: most execution contexts alive at once, that is, streams served without waiting for one another.
            Each takes scratch memory of its own.
        cuda_graph: whether calls go through CUDA graphs, captured at the second call with the same shapes: ``True``;
            ``False``; or ``"auto"``, which follows what ``backend="fastest"`` measured, and otherwise captures where
            all shapes are fixed and the results small. What cannot be captured runs without, or, with ``True``, is an
            :class:`~torchtrt_bridge.errors.InvalidOption`.
        max_graphs: for how many sets of shapes each context keeps a graph.
    """

    _artifact: Artifact | None
    _execution: Execution | None
    _saved_caches: Sequence[torch.Tensor]
    _pickled: Mapping[str, torch.Tensor]
    __signature__ = InstanceSignature()

    accepts_loss_kwargs = False
    """For transformers' Trainer, which otherwise passes ``num_items_in_batch`` to every model that takes
    ``**kwargs``. The loss, where the model returns one, is part of the engine."""

    def __init__(
        self,
        device: torch.device | str | None = None,
        *,
        max_contexts: int = 8,
        cuda_graph: bool | str = "auto",
        max_graphs: int = 4,
        _artifact: Artifact | None = None,
        _caches: Sequence[torch.Tensor] = (),
    ):
        super().__init__()
        if type(max_contexts) is not int or max_contexts < 1:
            raise InvalidOption(f"max_contexts={max_contexts!r}: at least one execution context is needed.")
        graphing.check_options(cuda_graph, max_graphs)
        self.training = False
        self._wanted_device = torch.device(device) if device is not None else None
        self._max_contexts = max_contexts
        self._cuda_graph, self._max_graphs = cuda_graph, max_graphs
        self._lock = threading.Lock()
        self._said: set[type] = set()
        self._clear()
        forks.follow(self)
        if _artifact is not None:
            self._adopt(_artifact, _caches)

    # -- calls ---------------------------------------------------------------------------------------------------------

    @OwnSignature
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model. Arguments and result have the structure, dtypes and device of the model that was compiled.

        Raises:
            InputOutOfProfile: a shape outside the range that the engine was built for.
            FixedArgumentChanged: another value for a flag that the capture fixed.
            DeviceMismatch, InvalidInput: another device, dtype, rank or structure.
            NotLoaded, EngineMismatch: there is no engine yet, or it cannot run here.
            NotTraceable, UsedAfterFork: a tracer, or a forked process, is at work.
        """
        tensors = args if len(args) == self._plain and not kwargs else self._bind(args, kwargs)
        recorded = False  # whether autograd would record this call
        for tensor in tensors:
            if type(tensor) is not _Tensor:
                proxy = tracing.proxy_among(tensors)
                if proxy is not None:
                    return tracing.as_leaf(proxy, self, args, kwargs)
                tensors, recorded = tracing.plain(tensors), True
                break
            if tensor.requires_grad:
                recorded = True
        if _modes_at_work():
            tracing.check_modes()
        try:
            outputs = (self._execution or self._start())(tensors)
        except Exception:
            tracing.explain(tensors)
            raise
        if (recorded or forward_ad._current_level >= 0) and gradients.needed(tensors):
            tracing.explain(tensors)
            outputs = gradients.refused(tensors, outputs)
        return outputs[0] if self._single else self._assemble(outputs, tensors)

    def _slow_forward(self, *args: Any, **kwargs: Any) -> Any:
        tracing.refuse("torch.jit.trace", " Trace the original model; save_onnx() writes what was compiled.")

    def __prepare_scriptable__(self) -> Any:
        tracing.refuse("torch.jit.script")

    @property
    def device(self) -> torch.device:
        """Where the module runs, as ``next(model.parameters()).device`` says of a model."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the original model's parameters, as ``next(model.parameters()).dtype`` says of a model."""
        artifact = self._artifact
        if artifact is None:
            return torch.get_default_dtype()
        specs = (*artifact.signature.inputs, *artifact.signature.outputs)
        named = artifact.origin.dtype or next((s.dtype for s in specs if s.torch_dtype.is_floating_point), "float32")
        return getattr(torch, named)

    @property
    def signature(self) -> Signature:
        """Names, dtypes, shapes and ranges of the inputs and results."""
        return self._loaded().signature

    @property
    def backend(self) -> str:
        """The route that made the engine."""
        return self._loaded().backend

    @property
    def precision(self) -> str:
        """The name of the precision that was asked for; of several, of all layers that no rule names. ``report`` has
        the rules."""
        return self._loaded().precision

    @property
    def report(self) -> Report:
        """How the module was made and how it compared with the eager model."""
        from ..report import Report

        report = Report.from_dict(self._loaded().report)
        copied = sorted(getattr(self._execution, "copied", ()))
        names = ", ".join(repr(self.signature.inputs[index].name) for index in copied)
        if names:
            note = f"{names} came with strides (or an address) that no engine reads: copied, once in every such call"
            report = dataclasses.replace(report, notes=(*report.notes, note))
        return report

    def matches(self, model: nn.Module) -> bool:
        """Whether ``model`` has the weights that this module was built from: names, dtypes, shapes and bytes of its
        parameters and buffers, on any device. A model that was trained further has not.

        Raises:
            InvalidInput: ``model`` is none.
            EngineMismatch: the module was saved by a version that kept no digest.
        """
        from ..origin import digest

        if not isinstance(model, nn.Module):
            raise InvalidInput(f"matches() compares with an nn.Module; it was given a {type(model).__name__}.")
        own = self._loaded().origin.weights
        if not own:
            raise EngineMismatch("This module was saved without a digest of its weights. Compile the model again.")
        return (model._loaded().origin.weights if isinstance(model, TRTModule) else digest(model)) == own

    @property
    def cuda_graph(self) -> str:
        """Whether calls go through CUDA graphs: ``"on"``, ``"off"``, or ``"off: "`` and why, where it was wanted."""
        return graphing.state(self._execution)

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions of torch, TensorRT and the backend, and the GPU or target that the engine was built for."""
        return dict(self._loaded().provenance)

    # -- saving --------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the module to one safetensors file, beside and renamed: an older file stays whole until then.

        :func:`torchtrt_bridge.load` reads it.
        """
        from .files import save_file

        save_file(path, self.tensors())

    def save_plan(self, path: str | os.PathLike[str]) -> None:
        """Write the bare TensorRT plan, as trtexec and the C++ runtime load it.

        Raises:
            EngineMismatch: the module holds no plan (it runs on the CPU).
        """
        from .files import write_atomically

        plans = [segment for segment in self._loaded().segments if segment.runtime == "tensorrt"]
        if len(self._loaded().segments) > 1:
            raise EngineMismatch(
                f"This module is {len(self._loaded().segments)} segments, {len(plans)} of them TensorRT plans: no one"
                " plan computes it. save(path) keeps them all."
            )
        segment = self._loaded().segments[0]
        if not plans or segment.engine is None:
            raise EngineMismatch(
                f"This module runs on {segment.runtime} and holds no TensorRT plan. Compile it on a GPU, or build one"
                " for a GPU elsewhere with torchtrt_bridge.build(model, inputs, precision, target=...)."
            )
        plan = segment.engine
        write_atomically(path, lambda file: file.write(plan.numpy().data))

    def save_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write the ONNX model that the engine is made from, its nodes named after the user's modules.

        Weights go into the file, or beside it (``<name>.weights``) where they exceed ONNX's 2 GB.

        Raises:
            EngineMismatch: the module holds a plan only; compile it with ``source=True`` to keep the program too.
        """
        from ..rebuilding import write_onnx

        write_onnx(self._loaded(), path)

    def rebuild(
        self, device: torch.device | str | None = None, *, target: str | None = None, verify: Any = True
    ) -> TRTModule:
        """A new module from the program that a file saved with ``source=True`` keeps, for the TensorRT and GPU here.

        Args:
            device: where the new module runs; None means the current CUDA device, or the CPU where there is none.
            target: build for this GPU instead (see :func:`torchtrt_bridge.build`).
            verify: as for :func:`torchtrt_bridge.compile`, against the kept program.

        Raises:
            EngineMismatch: the module was compiled without ``source=True``.
        """
        from ..rebuilding import rebuild

        return rebuild(self._loaded(), device=device, target=target, verify=verify)

    def __reduce__(self) -> tuple[Any, ...]:
        # plain data and tensors only, so that torch.load's weights_only takes it. The tensors outlive this call: to a
        # spawned process torch sends their file descriptors, which it opens later
        self._pickled = self.tensors() if self._artifact is not None else {}
        state = {"state": self._pickled, "cuda_graph": self._cuda_graph}
        return (TRTModule, (), {**state, "max_graphs": self._max_graphs})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._cuda_graph = state.get("cuda_graph", "auto")
        self._max_graphs = state.get("max_graphs", 4)
        graphing.check_options(self._cuda_graph, self._max_graphs)
        moved = (t.device for t in state["state"].values() if isinstance(t, torch.Tensor) and t.device.type == "cuda")
        self._wanted_device = next(moved, None)  # torch.load's map_location
        if state["state"]:
            self._load(dict(state["state"]))

    def __deepcopy__(self, memo: dict[int, Any]) -> TRTModule:
        clone = self._like(self._artifact, self._caches(), self._wanted_device)
        memo[id(self)] = clone
        made_anew = (_OF_THE_ENGINE | _OF_THE_INSTANCE) - {"_attributes"}
        hooks_and_more = {key: value for key, value in self.__dict__.items() if key not in made_anew}
        clone.__dict__.update(copy.deepcopy(hooks_and_more, memo))
        return clone

    def _like(
        self, artifact: Artifact | None, caches: Sequence[torch.Tensor], device: torch.device | None
    ) -> TRTModule:
        """Another module of the same settings."""
        return TRTModule(
            device,
            max_contexts=self._max_contexts,
            cuda_graph=self._cuda_graph,
            max_graphs=self._max_graphs,
            _artifact=artifact,
            _caches=caches,
        )

    def __copy__(self) -> TRTModule:
        clone = TRTModule.__new__(TRTModule)
        clone.__dict__.update(self.__dict__)
        forks.follow(clone)
        return clone

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self._artifact is not None:
            destination.update({prefix + name: tensor for name, tensor in self.tensors().items()})

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
        if "manifest" not in own:
            missing_keys.append(prefix + "manifest")
            unexpected_keys.extend(prefix + name for name in own)
            if own:  # with strict=False, torch would say nothing of weights that go nowhere
                error_msgs.append(
                    f"{next(iter(own))!r} is no part of a compiled module, whose weights are fixed in its engine: load"
                    " the weights into the original model, and compile that."
                )
            return
        self._load(own)

    # -- a module among modules ----------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> TRTModule:
        """What to(), cuda(), cpu(), half() and the like come down to, also on a module around this one."""
        lost = self._device.type == "cuda" and forks.gpu_is_lost()  # there is nothing to be shown to fn
        move = moves.wanted(fn, torch.device("cpu") if lost else self._device, self.dtype)
        if move.ignored:
            self._say(
                MoveIgnored,
                f"a compiled module stays as it is under {move.ignored}: dtypes and layouts are fixed in its engine."
                " Convert the original model and compile it again, or give compile() another precision.",
                stacklevel=4,  # whoever called half(), which called _apply()
            )
        if move.device is not None or lost:
            self._move(move.device or torch.device("cpu"))
        return self

    def train(self, mode: bool = True) -> TRTModule:
        """Accepted, and said once: what was compiled is the model in eval mode."""
        if mode:
            self._say(StaysInEval, "a compiled module cannot train; it computes what the model did in eval mode.", 3)
        return self

    def _replicate_for_data_parallel(self) -> TRTModule:
        raise DeviceMismatch(
            f"A compiled module runs on one device, {self._device}, and DataParallel over several wants copies on each."
            " Give DataParallel that one device (device_ids=[...]), or load the module once per device and process."
        )

    def _say(self, category: type[Warning], message: str, stacklevel: int) -> None:
        if category not in self._said:
            self._said.add(category)
            warnings.warn(message, category, stacklevel=stacklevel)

    def _move(self, device: torch.device) -> None:
        """Run on ``device`` from now on. A plan that is moved to the CPU waits there, without memory on the GPU."""
        if device.type not in ("cpu", "cuda"):
            raise DeviceMismatch(f"A compiled module runs on 'cuda' or 'cpu'; it was moved to {str(device)!r}.")
        if self._artifact is not None and device.type == "cuda":
            self._take_over(self._like(self._artifact, self._caches(), device))
        elif self._artifact is not None:
            with self._lock:
                self._settle(device)
                self._saved_caches = self._caches()
                self._execution = None
        self._device = self._wanted_device = device

    # -- what it is ----------------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        if self._artifact is None:
            return "empty: load_state_dict() fills it"
        return ",\n".join(f"{key}: {value}" for key, value in self._facts())

    def _repr_html_(self) -> str:
        from ..tables import facts

        known = self._facts() if self._artifact is not None else [("empty", "load_state_dict() fills it")]
        return "<b>TRTModule</b>" + facts(known)

    def _facts(self) -> list[tuple[str, str]]:
        artifact = self._loaded()
        made = artifact.provenance
        runtime = artifact.runtime
        size = sum(_nbytes(segment) for segment in artifact.segments) / 2**20
        facts = [("route", artifact.backend), ("precision", artifact.precision)]
        facts += [("input", repr(spec)) for spec in artifact.signature.inputs]
        facts += [("result", repr(spec)) for spec in artifact.signature.outputs]
        facts += [("dim", f"{n}: {d.min} to {d.max}, tuned for {d.opt}") for n, d in artifact.signature.dims.items()]
        if artifact.results:
            runtimes = [segment.runtime for segment in artifact.segments]
            facts.append(("segments", ", ".join(f"{runtimes.count(r)} by {r}" for r in dict.fromkeys(runtimes))))
        if runtime == "tensorrt":
            facts.append(("engine", f"{size:.1f} MiB, {made.get('flavour')} {made.get('tensorrt')}"))
            facts.append(("built for", f"{made.get('target')}{', ' + made['gpu'] if made.get('gpu') else ''}"))
        else:
            what = "ONNX Runtime" if runtime == "onnxruntime" else "PyTorch"
            facts.append(("runs on", f"the CPU, by {what}, without TensorRT ({size:.1f} MiB)"))
        return facts

    # -- for the compiler ----------------------------------------------------------------------------------------------

    def run_flat(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Flat inputs, from any device, to the engine's flat outputs: no checks, no structure."""
        execution = self._execution or self._start()
        return execution([t.to(self._device) for t in tensors])

    def run_settled(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """:meth:`run_flat` as later calls will find it: through the CUDA graph, where there is to be one."""
        outputs = self.run_flat(tensors)
        if self.cuda_graph == "on":
            for _ in range(2):  # the first of them is captured
                outputs = self.run_flat(tensors)
        return outputs

    def execution(self, graph: bool) -> Execution | None:
        """What runs this module's engine with CUDA graphs, or without, whatever was asked for; None where there can be
        no graph."""
        execution = self._execution or self._start()
        return graphing.variant(execution, graph, self._max_graphs)

    def settle_graph(self, graph: bool) -> None:
        """Run with CUDA graphs from now on, or without, as was measured to be best; it is saved with the module."""
        execution = self.execution(graph)
        assert execution is not None
        artifact = self._loaded()
        if artifact.segments[0].runtime == "tensorrt":
            provenance = {**artifact.provenance, "cuda_graph": graph}
            self._artifact = dataclasses.replace(artifact, provenance=provenance)
        self._execution = execution

    @property
    def made(self) -> Artifact:
        """What the module runs."""
        return self._loaded()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The saved form: what the state dict holds, and files."""
        from .artifact import to_tensors

        artifact = self._loaded()
        nodes = attributes.nodes(self._attributes)  # as they are now
        origin = dataclasses.replace(artifact.origin, attributes=nodes)
        return to_tensors(dataclasses.replace(artifact, origin=origin), self._caches())

    def measure_segments(self, tensors: Sequence[torch.Tensor]) -> list[float]:
        """Seconds that each of several segments takes for these flat inputs, from any device."""
        from .segments import SegmentedExecution

        execution = self._execution or self._start()
        assert isinstance(execution, SegmentedExecution)
        return execution.measure([t.to(self._device) for t in tensors])

    def inspect_layers(self) -> tuple[str, ...]:
        """What TensorRT's engine inspector says of each plan's layers, as JSON; nothing where no plan runs."""
        layers = getattr(self._execution or self._start(), "layers", None)
        return layers() if layers is not None else ()

    def set_report(self, report: Report) -> None:
        """Replace what :attr:`report` says."""
        self._artifact = dataclasses.replace(self._loaded(), report=report.to_dict())

    # -- inside --------------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        self._artifact = None
        self._execution = None
        self._saved_caches = ()
        self._pickled = {}
        self._constants: tuple[torch.Tensor, ...] = ()
        self._plain = -1
        self._single = False
        self._names: tuple[str, ...] = ()
        self._device = self._wanted_device or torch.device("cpu")
        self._check: InputCheck | None = None
        self._attributes = {}
        self._forward: Any = TRTModule.forward

    def _load(self, tensors: Mapping[str, Any]) -> None:
        """Replace everything by what ``tensors`` hold; on any error the module stays as it was."""
        from .artifact import from_tensors
        from .operators import require

        wrong = [name for name, value in tensors.items() if not isinstance(value, torch.Tensor)]
        if wrong:
            raise InvalidFile(f"{wrong[0]!r} is no tensor; a saved TRTModule is a flat dict of tensors.")
        artifact, caches = from_tensors(tensors)
        require(artifact.provenance.get("operators"))
        self._take_over(self._like(artifact, caches, self._wanted_device))

    def _take_over(self, other: TRTModule) -> None:
        self.__dict__.update({key: value for key, value in other.__dict__.items() if key in _OF_THE_ENGINE})

    def _adopt(self, artifact: Artifact, caches: Sequence[torch.Tensor]) -> None:
        """Take ``artifact``; a plan is loaded at once if a GPU is here, so that what does not fit is said now."""
        graphing.check_runtime(self._cuda_graph, artifact)
        self._artifact = artifact
        self._saved_caches = caches
        runtime = artifact.runtime
        names, count = artifact.signature.plain_names(), len(artifact.signature.inputs)
        self._plain = count if names == artifact.signature.leading_names(count) else -1
        self._names = names or ()
        self._single = artifact.signature.result == {"leaf": {"output": 0}} and not artifact.signature.writes
        self._attributes = attributes.restore(artifact.origin.attributes)
        self._forward = _own_forward.for_signature(artifact.signature)
        on_gpu = runtime == "torch" and artifact.provenance.get("device") == "cuda" and torch.cuda.is_available()
        self._settle(self._place("tensorrt" if on_gpu else runtime))
        tracing.keep_dynamo_out()
        if runtime == "tensorrt" and self._device.type == "cuda":
            self._start()

    def _settle(self, device: torch.device) -> None:
        self._device = device
        self._constants = tuple(t.to(device) for t in self._loaded().constants)
        self._check = InputCheck(self._loaded().signature, device)

    def _place(self, runtime: str) -> torch.device:
        wanted = self._wanted_device
        if runtime != "tensorrt":
            if wanted is not None and wanted.type == "cuda":
                raise EngineMismatch(
                    "The saved module runs on the CPU (it holds no TensorRT plan), so it cannot be loaded on"
                    f" {wanted}. Compile the model on the GPU, or load with source=True kept and call rebuild()."
                )
            return torch.device("cpu")
        if wanted is not None and wanted.type == "cuda":
            if not torch.cuda.is_available():
                raise EngineMismatch(f"device={wanted} was asked for, but torch finds no CUDA device here.")
            return torch.device("cuda", wanted.index if wanted.index is not None else torch.cuda.current_device())
        if wanted is None and torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")  # there a plan can be held, shown and saved, not run

    def _start(self) -> Execution:
        """Make what runs the artifact. Once; other threads wait."""
        artifact = self._loaded()
        with self._lock, torch.inference_mode(False):
            execution = self._execution
            if execution is None:
                execution = self._execution = self._make_execution(artifact)
            return execution

    def _make_execution(self, artifact: Artifact) -> Execution:
        assert self._check is not None
        forks.without_lost_threads()
        if self._device.type == "cuda":
            forks.check_gpu()
        start = Start(artifact, self._device, self._check, self._max_contexts, self._cuda_graph, self._max_graphs)
        return start.execution(self._saved_caches)

    def _loaded(self) -> Artifact:
        if self._artifact is None:
            raise NotLoaded("This TRTModule is empty; fill it with load_state_dict(torch.load(path)) first.")
        return self._artifact

    def _caches(self) -> Sequence[torch.Tensor]:
        """The runtime cache as it is now: kernels that were compiled since loading are worth keeping."""
        kernels = getattr(self._execution, "kernels", None)
        if kernels is None:
            return self._saved_caches
        found = kernels()
        return found if isinstance(found, tuple) else (found,)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        """The flat inputs of a call that is not simply one tensor per captured argument, in order."""
        names = self._names
        if names and len(args) + len(kwargs) == len(names) and (self._plain >= 0 or not args):
            try:  # all by name, or the rest by name
                return [*args, *[kwargs[name] for name in names[len(args) :]]]
            except KeyError:
                pass
        proxy = tracing.proxy_among((args, kwargs))
        if proxy is not None:
            return [proxy]
        return self._loaded().signature.bind(args, kwargs)

    def _assemble(self, outputs: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> Any:
        return self._loaded().signature.assemble(outputs, tensors, self._constants)


_own_forward: OwnSignature = vars(TRTModule)["forward"]
_OF_THE_ENGINE = frozenset(
    "_artifact _execution _saved_caches _pickled _constants _plain _single _names _device _check _attributes"
    " _forward".split()
)
_OF_THE_INSTANCE = frozenset(
    "_wanted_device _max_contexts _cuda_graph _max_graphs _lock _said _compiled_call_impl".split()
)


def _nbytes(segment: Any) -> int:
    size = segment.engine.numel() if segment.engine is not None else 0
    if segment.program is not None:
        size += sum(t.nbytes for t in (*segment.program.state.values(), *segment.program.constants.values()))
    return size


# plain torch.load of a whole pickled module: weights_only refuses classes that nobody vouched for
torch.serialization.add_safe_globals([TRTModule])
