"""CUDA graphs: which memory a replay reads and writes. A simulated driver stands for the GPU: it records what is
enqueued while it captures, and a launch reads and writes the recorded addresses. The rest is in test_graphs_gpu.py."""

from __future__ import annotations

import contextlib
import ctypes

import pytest
import torch

from torchtrt_bridge.trt import execution, graphs
from torchtrt_bridge.trt.cudart import GraphFailed
from torchtrt_bridge.trt.engine import Binding, Context

WIDTH = 64


class Driver:
    """What :class:`~torchtrt_bridge.trt.cudart.Runtime` does, at once and on the CPU."""

    def __init__(self):
        self.capturing: list | None = None
        self.captures = self.launches = self.waits = 0
        self.executables: dict[int, list] = {}
        self.graphs: dict[int, list] = {}

    def do(self, work):
        work() if self.capturing is None else self.capturing.append(work)

    @contextlib.contextmanager
    def stream(self):
        yield -1

    def begin(self, stream):
        assert stream == -1
        self.capturing = []
        self.captures += 1

    def end(self, stream):
        made, self.capturing = self.capturing, None
        self.graphs[self.captures] = made
        return self.captures

    def executable(self, graph, before, after):
        def copy(to, source, size):
            return lambda: ctypes.memmove(to, source, size)

        number = len(self.executables) + 1000
        self.executables[number] = [*[copy(*c) for c in before], *self.graphs[graph], *[copy(*c) for c in after]]
        return number

    def launch(self, executable, stream):
        self.launches += 1
        for work in self.executables[executable]:
            work()
        return 0

    def destroy(self, graph):
        del self.graphs[graph]

    def destroy_executable(self, executable):
        self.executables[executable] = [lambda: pytest.fail("a graph that was destroyed is launched")]


class SimulatedContext:
    """An execution context of an engine that computes ``y = a * rows + b``, from whatever lies at the addresses."""

    def __init__(self, driver, dynamic_result=False):
        self.driver, self.dynamic_result = driver, dynamic_result
        self.addresses, self.shapes, self.scratch = {}, {}, 0

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name):
        return (-1, WIDTH) if self.dynamic_result else self.shapes["a"]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def set_device_memory(self, address, size):
        self.scratch = address

    def set_output_allocator(self, name, allocator):
        pass

    def is_stream_capturable(self, stream):
        return True

    def execute_async_v3(self, stream):
        rows = self.shapes["a"][0]
        addresses = [self.addresses[name] for name in "aby"]

        def kernel():
            with torch.inference_mode(False):
                a, b, y = (at(address, rows) for address in addresses)
                y.copy_(a * rows + b)

        self.driver.do(kernel)
        return True


def at(address, rows):
    return torch.frombuffer((ctypes.c_float * (rows * WIDTH)).from_address(address), dtype=torch.float32).view(rows, -1)


class SimulatedEngine:
    device = torch.device("cpu")

    def __init__(self, driver, **kinds):
        self.driver, self.kinds, self.contexts = driver, kinds, 0
        self.copied = set()
        self.inputs = [Binding("a", torch.float32, (-1, WIDTH), False), Binding("b", torch.float32, (-1, WIDTH), False)]
        self.outputs = [Binding("y", torch.float32, (-1, WIDTH), False)]

    def create_context(self, kernels, settled=False):
        self.contexts += 1
        return Context(SimulatedContext(self.driver, **self.kinds), None)

    def scratch_size(self, context):
        return 512


@pytest.fixture
def driver(monkeypatch):
    driver = Driver()

    class Stream:
        cuda_stream = 0

        def synchronize(self):
            driver.waits += 1

    class Device:
        def __init__(self, device):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *exception):
            pass

    monkeypatch.setattr(graphs, "runtime", lambda: driver)
    for module in (graphs, execution):
        monkeypatch.setattr(module, "allocator", lambda device: poisoned)
    monkeypatch.setattr(execution, "_current_device", lambda: None)
    driver.users_capture = False
    for module in (graphs, execution):
        monkeypatch.setattr(module, "capturing", lambda: driver.users_capture)
    monkeypatch.setattr(graphs, "_direct", lambda tensor: tensor.is_contiguous())
    monkeypatch.setattr(execution, "_ALIGNMENT", 1)
    monkeypatch.setattr(execution, "_current_stream", lambda index: 0)
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream())
    return driver


def make(driver, graphs=4, must=False, **kinds):
    engine = SimulatedEngine(driver, **kinds)
    nothing = torch.empty(0, dtype=torch.uint8)
    run = execution.Execution(engine, "ab", "y", lambda t: None, nothing, 8, graphs=graphs, must_graph=must)
    return lambda a, b: run([a, b])[0], run


def poisoned(shape, strides, dtype):
    return torch.full(shape, float("nan"), dtype=dtype)


def tensors(rows=2, count=2):
    return [torch.randn(rows, WIDTH) for _ in range(count)]


def right(result, a, b):
    assert torch.equal(result, a * a.shape[0] + b)


def test_the_first_call_is_plain_the_second_is_captured_and_the_rest_are_launched(driver):
    call, run = make(driver)
    a, b = tensors()
    for expected in [(0, 0), (1, 0), (1, 1), (1, 2)]:
        right(call(a, b), a, b)
        assert (driver.captures, driver.launches) == expected
    assert run.graphs == 4 and run.graph_refusal is None


def test_without_graphs_nothing_is_captured(driver):
    call, run = make(driver, graphs=0)
    a, b = tensors()
    for _ in range(4):
        right(call(a, b), a, b)
    assert not driver.captures and run.graphs == 0


def test_results_are_the_callers_to_keep(driver):
    call, _ = make(driver)
    a, b = tensors()
    kept = []
    for step in range(12):
        a.fill_(step)
        kept.append((call(a, b), a.clone()))
    for result, was in kept:
        right(result, was, b)


def test_inputs_are_read_anew_in_every_call(driver):
    call, _ = make(driver)
    a, b = tensors()
    for step in range(6):
        a.fill_(step)
        right(call(a, b), a, b)
    assert driver.captures == 1  # the same addresses: no copies, nothing captured again


def test_an_input_at_other_addresses_is_copied_from_then_on_and_only_that_one(driver):
    call, run = make(driver)
    cases = [tensors(count=1)[0] for _ in range(30)]
    b = tensors(count=1)[0]
    for a in cases:
        right(call(a, b), a, b)
    assert driver.captures == 2
    graph = run._slots[0]._graphs.current
    assert list(graph._own) == [0]
    for poisoned in cases[:5]:  # freed memory of the caller's, as it were: nobody reads it
        poisoned.fill_(float("nan"))
    right(call(cases[-1], b), cases[-1], b)


def test_addresses_that_come_again_have_their_copies_in_the_graph(driver, monkeypatch):
    blocks = tensors(count=3)  # as an allocator gives the same memory again once it was freed
    taken = iter(range(1000))
    monkeypatch.setattr(
        graphs, "allocator", lambda _: lambda *layout: blocks[next(taken) % 3].fill_(float("nan")).view(2, WIDTH)
    )
    call, run = make(driver)
    cases, b = tensors(count=2), tensors(count=1)[0]
    kept = None
    for step in range(40):
        a = cases[step % 2]
        result = call(a, b)
        right(result, a, b)
        if kept is not None:
            right(*kept)
        kept = (result, a, b)
    graph = run._slots[0]._graphs.current
    assert driver.captures == 2 and len(graph._executables) == 6


def test_ever_new_addresses_do_not_make_ever_new_executables(driver):
    call, _ = make(driver)
    kept = []
    for _ in range(200):
        a, b = tensors()
        kept.append((a, b, call(a, b)))
    for a, b, result in kept:
        right(result, a, b)
    assert driver.captures <= 3 and len(driver.executables) <= 4


def test_views_and_odd_strides(driver):
    call, _ = make(driver)
    base = torch.randn(WIDTH, 2)
    b = tensors(count=1)[0]
    plain = torch.randn(2, WIDTH)
    for a in [plain, plain, plain, base.T, base.T, plain, base.T, base[:, :2].T, plain]:
        right(call(a, b), a, b)


def test_a_result_may_be_the_next_calls_input(driver):
    call, _ = make(driver)
    a, b = tensors()
    expected = a.clone()
    for _ in range(12):
        a, expected = call(a, b), expected * 2 + b
        assert torch.equal(a, expected)


def test_shapes_change_and_the_longest_unused_graph_goes(driver):
    call, run = make(driver, graphs=2)
    inputs = {rows: tensors(rows) for rows in (1, 2, 3)}
    for rows in [1, 1, 1, 2, 2, 1, 2, 3, 3, 3, 1, 2, 3] + [3] * 20 + [1, 2, 3, 1]:
        right(call(*inputs[rows]), *inputs[rows])
    kept = [shapes[0][0] for shapes in run._slots[0]._graphs._kept]
    assert len(kept) == 2 and 3 in kept


def test_a_graph_has_a_context_of_its_own_which_nothing_changes(driver):
    call, run = make(driver)
    one, three = tensors(1), tensors(3)
    for _ in range(3):
        right(call(*three), *three)
    before = dict(run._slots[0]._graphs.current.context.trt.addresses)
    graph = run._slots[0]._graphs.current
    for _ in range(3):
        right(call(*one), *one)
    right(call(*three), *three)
    assert graph.context.trt.addresses == before and graph.context.trt.shapes["a"] == (3, WIDTH)


def test_inside_the_callers_own_capture_calls_are_plain_and_the_context_is_the_callers_graphs_then(driver):
    call, run = make(driver)
    a, b = tensors()
    for _ in range(3):
        call(a, b)
    context = run._slots[0].context.trt
    driver.users_capture, launches = True, driver.launches
    driver.capturing = []
    captured = call(a, b)
    users_graph, driver.capturing, driver.users_capture = driver.capturing, None, False
    assert driver.launches == launches and len(users_graph) == 1
    addresses, shapes = dict(context.addresses), dict(context.shapes)
    for rows in (2, 1, 1, 3, 3, 2):
        other = tensors(rows)
        right(call(*other), *other)
    assert (context.addresses, context.shapes) == (addresses, shapes)
    assert run._slots[0].context.trt is not context and run._captured[0].context.trt is context
    a.fill_(7.0)
    users_graph[0]()
    right(captured, a, b)


def test_the_callers_own_capture_needs_a_call_before(driver):
    from torchtrt_bridge.errors import NotTraceable

    call, run = make(driver)
    driver.users_capture = True
    with pytest.raises(NotTraceable, match="Call the module once with them before"):
        call(*tensors())
    assert not run._slots
    driver.users_capture = False
    call(*tensors(1))
    driver.users_capture = True
    with pytest.raises(NotTraceable, match="with these shapes"):
        call(*tensors(2))


def test_inference_mode_and_gradients_come_and_go(driver):
    call, _ = make(driver)
    for step in range(12):
        a, b = (torch.nn.Parameter(t) if step % 3 == 0 else t for t in tensors())
        with torch.inference_mode(step % 2 == 0):
            right(call(a, b).clone().detach(), a.detach(), b.detach())


def test_what_cannot_be_captured_runs_without_and_says_why(driver, monkeypatch):
    call, run = make(driver)
    a, b = tensors()
    monkeypatch.setattr(SimulatedContext, "is_stream_capturable", lambda self, stream: False)
    for _ in range(4):
        right(call(a, b), a, b)
    assert run.graphs == 0 and "cannot be captured" in run.graph_refusal
    assert not driver.captures


def test_a_graph_that_is_a_must_and_cannot_be_is_an_error(driver, monkeypatch):
    from torchtrt_bridge.errors import InvalidOption

    def refuse(stream):
        driver.capturing = None
        raise GraphFailed("the driver said no")

    monkeypatch.setattr(driver, "end", refuse)
    call, _ = make(driver, must=True)
    a, b = tensors()
    right(call(a, b), a, b)
    with pytest.raises(InvalidOption, match="cuda_graph=True, but .* the driver said no"):
        call(a, b)
    host = SimulatedEngine(driver)
    host.inputs[0] = Binding("a", torch.int64, (1,), True)
    with pytest.raises(InvalidOption, match="'a' is read on the host"):
        execution.Execution(host, "ab", "y", lambda t: None, torch.empty(0), 8, graphs=1, must_graph=True)


def test_everything_is_destroyed_with_the_execution(driver):
    call, run = make(driver)
    a, b = tensors()
    for _ in range(5):
        call(a, b)
    assert driver.graphs
    alive = [number for number, work in driver.executables.items() if work]
    del call, run
    assert not driver.graphs
    for number in alive:
        with pytest.raises(pytest.fail.Exception):
            driver.executables[number][0]()
