"""CUDA graphs on a GPU: every result right, whatever threads, streams, shapes and addresses do."""

from __future__ import annotations

import copy
import gc
import os
import threading

import pytest
import torch
from torch import nn

import torchtrt_bridge as ttb

pytestmark = pytest.mark.gpu


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x, scale):
        x = torch.relu(self.conv(x)) * scale
        return self.head(x.mean((2, 3))), x.amax(1)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval().cuda()


def inputs(batch=2, size=16):
    return torch.randn(batch, 3, size, size, device="cuda"), torch.rand(batch, 1, 1, 1, device="cuda") + 0.5


def eager(net, *args):
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        return net(*args)


def close(actual, expected, rtol=1e-4):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
        assert ((a - b).norm() / b.norm()).item() < rtol


def graphs_of(module):
    return [slot._graphs for slot in module._execution._slots.values() if slot._graphs is not None]


def captured(module):
    return sum(len(graphs._kept) for graphs in graphs_of(module))


@pytest.fixture(scope="module")
def static(net):
    return ttb.compile(net, inputs(), cuda_graph=True)


@pytest.fixture(scope="module")
def dynamic(net):
    size = ttb.Dim(8, 16, 40, name="size")
    batch = ttb.Dim(1, 4, 16, name="batch")
    shapes = {"x": {0: batch, 2: size, 3: size}, "scale": {0: batch}}
    return ttb.compile(net, inputs(), cuda_graph=True, max_graphs=3, dynamic_shapes=shapes)


def test_verification_runs_through_the_graph(static):
    assert static.cuda_graph == "on" and static.report.cuda_graph == "on" and captured(static) == 1


@pytest.mark.parametrize("precision, rtol", [("fp32", 1e-5), ("fp16", 5e-3), ("bf16", 4e-2)])
def test_each_precision_gives_eagers_numbers(net, precision, rtol):
    module = ttb.compile(net, inputs(), precision, cuda_graph=True)
    for _ in range(6):
        args = inputs()
        close(module(*args), eager(net, *args), rtol)
    assert captured(module) == 1


def test_auto_is_on_for_fixed_shapes_and_small_results_alone(net):
    assert ttb.compile(net, inputs()).cuda_graph == "on"
    assert ttb.compile(net, inputs(), cuda_graph=False).cuda_graph == "off"
    shapes = {"x": {0: ttb.Dim(1, 4, 16, name="b")}, "scale": {0: ttb.Dim(1, 4, 16, name="b")}}
    assert ttb.compile(net, inputs(), dynamic_shapes=shapes).cuda_graph == "off"


def test_results_stay_as_they_were(net, static):
    kept = []
    for _ in range(50):
        args = inputs()
        result = static(*args)
        kept.append((result, [t.clone() for t in result], eager(net, *args)))
    for result, was, expected in kept:
        assert all(torch.equal(a, b) for a, b in zip(result, was))
        close(result, expected)


def test_inputs_that_are_overwritten_or_freed_do_not_show(net, static):
    x, scale = inputs()
    for step in range(20):
        x.normal_()
        expected = eager(net, x, scale)
        result = static(x, scale)
        x.fill_(float("nan"))  # after the call, on the same stream
        close(result, expected)
        if step % 5 == 4:
            x = inputs()[0]
            poison = [torch.full_like(x, float("nan")) for _ in range(4)]
            del poison


def test_views_strides_and_odd_addresses(net, static):
    for _ in range(3):
        base = torch.randn(2, 16, 16, 3, device="cuda")
        odd = torch.randn(2 * 3 * 16 * 16 + 1, device="cuda")[1:].view(2, 3, 16, 16)
        scale = inputs()[1]
        for x in (base.permute(0, 3, 1, 2), odd, odd.transpose(2, 3), inputs()[0]):
            close(static(x, scale), eager(net, x, scale))


def test_a_result_may_be_the_next_input():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(64, 64), nn.Tanh()).eval().cuda()
    module = ttb.compile(layer, torch.randn(8, 64, device="cuda"), cuda_graph=True)
    x = expected = torch.randn(8, 64, device="cuda")
    for _ in range(30):
        x, expected = module(x), eager(layer, expected)
    close([x], [expected], 1e-3)


def test_shapes_may_change_from_call_to_call(net, dynamic):
    generator = torch.Generator().manual_seed(0)
    cases = [(1, 8), (16, 40), (3, 31), (4, 16), (2, 9)]
    for index in torch.randint(0, len(cases), (200,), generator=generator).tolist():
        args = inputs(*cases[index])
        close(dynamic(*args), eager(net, *args))
    assert 0 < captured(dynamic) <= 3


def test_kernels_are_settled_before_the_capture(net, dynamic):
    """RTX starts a new shape with general kernels, and swaps special ones in when they are compiled: what a graph of
    the former would do then is not said anywhere. The graph's own context takes the special ones first."""
    args = inputs(7, 24)
    expected = eager(net, *args)
    results = [dynamic(*args) for _ in range(20)]
    torch.cuda.synchronize()
    for result in results:
        close(result, expected)
    assert all(torch.equal(a, b) for a, b in zip(results[-3], results[-1]))  # both through the graph, at last


@pytest.mark.parametrize("max_contexts", [8, 3])
@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_8_threads_8_streams_changing_shapes(net, kind, max_contexts):
    batch = ttb.Dim(1, 4, 16, name="batch")
    shapes = {"x": {0: batch}, "scale": {0: batch}} if kind == "dynamic" else None
    module = ttb.compile(
        net, inputs(), cuda_graph=True, dynamic_shapes=shapes, max_contexts=max_contexts, max_graphs=3
    )
    sizes = (1, 2, 3, 5, 8, 16) if kind == "dynamic" else (2,) * 6
    cases = [inputs(size) for size in sizes]
    expected = [eager(net, *case) for case in cases]
    torch.cuda.synchronize()
    failures = []

    def work(index):
        try:
            stream = torch.cuda.Stream()
            generator = torch.Generator().manual_seed(index)
            with torch.cuda.stream(stream):
                wrong = torch.zeros((), device="cuda")
                for step in range(400):
                    case = int(torch.randint(0, len(cases), (), generator=generator))
                    args = cases[case] if step % 3 else tuple(t.clone() for t in cases[case])
                    for a, b in zip(module(*args), expected[case]):
                        wrong += ((a - b).norm() / b.norm() > 1e-4).float()
                stream.synchronize()
            assert wrong.item() == 0
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert captured(module) >= 3


def test_others_may_use_the_gpu_and_its_random_numbers_while_a_graph_is_captured(net):
    module = ttb.compile(net, inputs(), cuda_graph=False)
    stop, failures = threading.Event(), []

    def disturb():
        try:
            while not stop.is_set():
                torch.nn.functional.dropout(torch.randn(64, 64, device="cuda"), 0.5).sum().item()
                torch.cuda.empty_cache()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=disturb) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            copied = ttb.TRTModule(cuda_graph=True)
            copied.load_state_dict(module.state_dict())
            for _ in range(6):
                args = inputs()
                close(copied(*args), eager(net, *args))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures


def test_copies_pickles_and_state_dicts_of_a_module_with_graphs(net, static, tmp_path):
    for _ in range(4):
        static(*inputs())
    torch.save(static, tmp_path / "whole.pth")
    copies = [copy.deepcopy(static), torch.load(tmp_path / "whole.pth")]
    loaded = ttb.TRTModule()
    loaded.load_state_dict(static.state_dict())
    for module in [*copies, loaded, static]:
        for _ in range(5):
            args = inputs()
            close(module(*args), eager(net, *args))
        assert module.cuda_graph == "on" and captured(module) >= 1


def test_a_forked_child_lets_go_of_it_without_harm(net):
    module = ttb.compile(net, inputs(), cuda_graph=True)
    args = inputs()
    for _ in range(3):
        module(*args)
    graph = next(iter(graphs_of(module)[0]._kept.values()))
    child = os.fork()
    if child == 0:
        try:
            graph.__del__()
            os._exit(0 if graph._base is not None else 1)  # not this process's to destroy
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    close(module(*args), eager(net, *args))


def test_memory_goes_with_the_module(net):
    def used():
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    plain = ttb.compile(net, inputs(), cuda_graph=False)
    state = plain.state_dict()
    before = used()
    for _ in range(3):
        module = ttb.TRTModule(cuda_graph=True)
        module.load_state_dict(state)
        for _ in range(6):
            module(*inputs())
        assert captured(module) == 1
        del module
        assert used() == before


def test_the_callers_own_capture_holds_the_call(net, static):
    args = inputs()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            static(*args)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        result = static(*args)
    for _ in range(3):
        args[0].normal_()
        graph.replay()
        close(result, eager(net, *args))


def test_graphs_come_and_go(net):
    """Each shape is used until it is worth a graph; with room for one, every graph is thrown out by the next."""
    batch = ttb.Dim(1, 4, 16, name="batch")
    module = ttb.compile(
        net, inputs(), cuda_graph=True, max_graphs=1, dynamic_shapes={"x": {0: batch}, "scale": {0: batch}}
    )
    for size in [3, 5, 7, 2] * 2:
        for _ in range(20):
            args = inputs(size)
            close(module(*args), eager(net, *args))
        assert captured(module) == 1
