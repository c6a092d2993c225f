"""Tracers, transforms and wrappers of torch and of others."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest
import torch
from dropin_table import Case, close, row
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from torchtrt_bridge.errors import DeviceMismatch, NoLayers, NotTraceable

GROUP = "Tracers, transforms, wrappers"


@row(GROUP, "`torch.compile(nn.Sequential(fast, head))`", "one graph", "a graph break at `fast`; right")
def compile_around(case: Case) -> None:
    class Whole(nn.Module):
        def __init__(self, inner: nn.Module, head: nn.Module):
            super().__init__()
            self.inner, self.head = inner, head

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.inner(x + 1)) * 2

    whole = Whole(case.fast, case.head())
    graphs = []

    def backend(graph: torch.fx.GraphModule, examples: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(whole, backend=backend)
    with torch.no_grad():
        for _ in range(2):
            close(compiled(case.x), whole(case.x))
    assert len(graphs) == 2  # before the engine and after it
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(whole, backend=backend, fullgraph=True)(case.x)
    torch._dynamo.reset()


@row(GROUP, "`torch.compile(fast)`, `fast.compile()`", "compiled", "runs as it is")
def compile_itself(case: Case) -> None:
    with torch.no_grad():
        close(torch.compile(case.fast, backend="eager")(case.x), case.eager())
    case.fast.compile(backend="eager")
    case.right()


@row(GROUP, "`fast.forward = torch.compile(fast.forward)`", "compiled", "runs as it is")
def compile_forward(case: Case) -> None:
    case.fast.forward = torch.compile(case.fast.forward, backend="eager")
    with torch.no_grad():
        close(case.fast(case.x), case.eager())


@row(
    GROUP,
    "`torch.fx.symbolic_trace` of a model around it",
    "every layer a node",
    "`fast` is a leaf, as torch's layers are",
)
def fx_leaf(case: Case) -> None:
    class Whole(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        def forward(self, a: torch.Tensor) -> torch.Tensor:
            return self.inner(a * 2) + self.inner(x=a)

    whole = Whole(case.fast)
    traced = torch.fx.symbolic_trace(whole)
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert called == ["inner", "inner"] and traced.inner is case.fast
    close(traced(case.x), whole(case.x))


@row(
    GROUP,
    "`torch.fx.symbolic_trace(fast)`",
    "every layer a node",
    "torch's `RuntimeError`: there is nothing to trace",
)
def fx_root(case: Case) -> None:
    with pytest.raises(RuntimeError, match="symbolic tracing"):
        torch.fx.symbolic_trace(case.fast)


@row(
    GROUP,
    "`torch.jit.trace(...)`, of `fast` or around it",
    "a script module",
    "`NotTraceable`; a constant otherwise, unseen",
)
def jit_trace(case: Case) -> None:
    for module in (case.fast, nn.Sequential(case.fast, case.head())):
        with pytest.raises(NotTraceable, match=r"torch\.jit\.trace.*save_onnx"):
            torch.jit.trace(module, case.x)


@row(GROUP, "`torch.jit.script(...)`, of `fast` or around it", "a script module", "`NotTraceable`")
def jit_script(case: Case) -> None:
    for module in (case.fast, nn.Sequential(case.fast, case.head())):
        with pytest.raises(NotTraceable, match=r"torch\.jit\.script"):
            torch.jit.script(module)


@row(GROUP, "`torch.export.export` of a model around it", "a program", "`NotTraceable`")
def export(case: Case) -> None:
    with pytest.raises(NotTraceable, match=r"torch\.export"):
        torch.export.export(nn.Sequential(case.fast, case.head()), (case.x,))


@row(
    GROUP,
    "`torch.onnx.export` of a model around it",
    "an ONNX file",
    "an error; `fast.save_onnx()` writes what was compiled",
)
def onnx_export(case: Case) -> None:
    with pytest.raises(NotTraceable, match="save_onnx"):
        torch.onnx.export(nn.Sequential(case.fast, case.head()), (case.x,), io.BytesIO(), dynamo=False)


@row(GROUP, "`make_fx(fast)(x)`, AOTAutograd", "a graph", "`NotTraceable`; a constant otherwise, unseen")
def aot(case: Case) -> None:
    with pytest.raises(NotTraceable, match="make_fx"):
        make_fx(nn.Sequential(case.fast))(case.x)


@row(GROUP, "a `FakeTensor` (memory planners)", "its shape", "`NotTraceable`")
def fake_tensor(case: Case) -> None:
    mode = torch._subclasses.FakeTensorMode()
    with pytest.raises(NotTraceable, match="FakeTensor"):
        case.fast(mode.from_tensor(case.x))


@row(GROUP, "`FlopCounterMode`, `TorchDispatchMode`s", "counts", "runs; the engine's work is not counted")
def flop_counter(case: Case) -> None:
    with FlopCounterMode(display=False) as counter:
        result = case.fast(case.x)
    case.right(result)
    assert counter.get_total_flops() == 0


@row(GROUP, "`torch.profiler.profile()`", "every operator", "runs")
def profiler(case: Case) -> None:
    with torch.profiler.profile():
        result = case.fast(case.x)
    case.right(result)


@row(
    GROUP,
    "`torch.func.functional_call(fast, params, x)`",
    "with those weights",
    "with its own: `named_parameters()` is empty",
)
def functional_call(case: Case) -> None:
    with torch.no_grad():
        case.right(torch.func.functional_call(case.fast, dict(case.fast.named_parameters()), (case.x,)))
    whole = nn.Sequential(case.fast, case.head())
    zeros = {name: torch.zeros_like(p) for name, p in whole.named_parameters()}
    assert torch.func.functional_call(whole, zeros, (case.x,)).abs().sum() == 0


@row(GROUP, "`functional_call(fast, fast.state_dict(), x)`", "with those weights", "`NoLayers`: the engine is fixed")
def functional_state(case: Case) -> None:
    with pytest.raises(NoLayers, match="the engine is fixed"):
        torch.func.functional_call(case.fast, case.fast.state_dict(), (case.x,))
    case.right()


@row(GROUP, "`torch.vmap(fast)`", "maps", "`NotTraceable`: an engine runs whole batches")
def vmap(case: Case) -> None:
    with pytest.raises(NotTraceable, match="whole batches"):
        torch.vmap(case.fast)(case.x.expand(3, *case.x.shape))


@row(GROUP, "`torch.func.grad`, `jvp`, `jacrev`", "derivatives", "`NotTraceable`")
def func_grad(case: Case) -> None:
    for transform in (
        lambda m: torch.func.grad(lambda x: m(x).sum())(case.x),
        lambda m: torch.func.jvp(m, (case.x,), (case.x,)),
        lambda m: torch.func.jacrev(m)(case.x),
    ):
        transform(case.model)
        with pytest.raises(NotTraceable):
            transform(case.fast)


@row(GROUP, "`nn.ModuleList`, `nn.ModuleDict`, `nn.Sequential`", "hold it", "hold it")
def containers(case: Case) -> None:
    listed, named = nn.ModuleList([case.fast]), nn.ModuleDict({"a": case.fast})
    case.right(listed[0](case.x))
    case.right(named["a"](case.x))
    case.right(nn.Sequential(nn.Identity(), case.fast)(case.x))


@row(GROUP, "`nn.DataParallel(fast)` on one device", "runs", "runs")
def data_parallel(case: Case) -> None:
    if case.device.type == "cpu" and torch.cuda.is_available():
        pytest.skip("DataParallel takes the GPU that is here")
    devices = None if case.device.type == "cpu" else [case.device]
    case.right(nn.DataParallel(case.fast, device_ids=devices)(case.x))


@row(GROUP, "`nn.DataParallel(fast)` over several devices", "copies on each", "`DeviceMismatch`")
def replicas(case: Case) -> None:
    with pytest.raises(DeviceMismatch, match="DataParallel over several"):
        nn.parallel.replicate(case.fast, [0, 1])


@row(
    GROUP,
    "`DistributedDataParallel(nn.Sequential(fast, head))`",
    "trains both",
    "trains the head; the engine is not broadcast",
)
def distributed(case: Case) -> None:
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # there may be no network
    dist.init_process_group("gloo", init_method=f"file://{case.folder}/store", rank=0, world_size=1)
    try:
        whole = nn.parallel.DistributedDataParallel(nn.Sequential(case.fast, case.head()))
        whole(case.x).sum().backward()
        close(whole.module[1].bias.grad, torch.full((3,), 4.0, device=case.device))
        assert "module.0.manifest" in whole.state_dict()
        with pytest.raises(RuntimeError, match="doesn't require a gradient|not needed when a module"):
            nn.parallel.DistributedDataParallel(case.fast)
    finally:
        dist.destroy_process_group()


@row(GROUP, "`accelerator.prepare(fast)`, `unwrap_model` (accelerate)", "wrapped, unwrapped", "the same")
def accelerate(case: Case) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=case.device.type == "cpu", mixed_precision="bf16")
    try:
        prepared = accelerator.prepare_model(case.fast, evaluation_mode=True)
        close(prepared(case.x), case.eager())
        unwrapped = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        assert unwrapped is case.fast and list(unwrapped.state_dict())
        case.right(unwrapped(case.x))
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@row(GROUP, "a submodule of a `LightningModule`", "moved, saved, summarized with it", "the same")
def lightning(case: Case) -> None:
    pytorch = pytest.importorskip("lightning.pytorch")

    class Task(pytorch.LightningModule):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

    task = Task(case.fast)
    task.eval().to(case.device)
    case.right(task.inner(case.x))
    summary = pytorch.utilities.model_summary.summarize(task)
    assert summary.total_parameters == 0 and "TRTModule" in str(summary)
