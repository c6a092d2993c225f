"""Programs in a file: exact, without paths, and never a way to run code."""

import builtins
import copy
import getpass
import json
import operator
import os
import pickle
import socket
import threading
import time

import pytest
import torch
from torch import nn
from torch._export.serde import schema, serialize
from torch.export import Dim, export

from torchtrt_bridge.backends.base import StoredProgram
from torchtrt_bridge.errors import BackendUnavailable, ConversionFailed, InvalidFile, InvalidInput, StateMutated
from torchtrt_bridge.runtime import program as program_module
from torchtrt_bridge.runtime.program import restore, run_callable, store
from torchtrt_bridge.runtime.symbolic import BadSymbolic, check_symbolic


class Mixed(nn.Module):
    """Parameters, a buffer of each kind, a lifted constant, sizes as results, None, and a returned input."""

    def __init__(self):
        super().__init__()
        self.layer = nn.ModuleDict({"a-b": nn.Linear(4, 4)})
        self.register_buffer("kept", torch.randn(4))
        self.register_buffer("lost", torch.randn(4), persistent=False)

    def forward(self, x, y):
        rows = x.shape[0]
        z = self.layer["a-b"](x) * self.kept + self.lost + torch.tensor([1.0, 2, 3, 4])
        z = torch.cat([z, z * rows**0.5])
        return z, y[: rows // 2 + 1] // 2, rows * 8, torch.sym_max(rows, y.shape[0]) - 1, None, x


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return torch.softmax(self.conv(x).half().flatten(1).float(), -1).to(torch.bfloat16)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.lstm(x)


class Branching(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t.sin(), (x,)), x.nonzero().shape[0] * 2


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, ids):
        return self.table(ids), (ids + 1).to(torch.int32), ids > 3


def bert():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def captured(model, inputs, shapes=None):
    return export(model.eval(), inputs, dynamic_shapes=shapes).run_decompositions({})


BATCH, LENGTH = Dim("batch", min=2, max=64), Dim("length", min=40, max=500)
CASES = {
    "static": (Half, [(torch.randn(2, 3, 8, 8),)], None),
    "two dims": (
        Mixed,
        [(torch.randn(6, 4), torch.arange(50)), (torch.randn(9, 4), torch.arange(41))],
        ({0: BATCH}, {0: LENGTH}),
    ),
    "derived": (
        Recurrent,
        [(torch.randn(8, 5, 4),), (torch.randn(4, 5, 4),)],
        ({0: 2 * Dim("half", min=1, max=16)},),
    ),
    "branches": (Branching, [(torch.ones(3, 4),), (-torch.ones(3, 4),)], None),
    "integers": (Embedding, [(torch.randint(0, 10, (3, 7)),), (torch.randint(0, 10, (2, 7)),)], ({0: BATCH},)),
}


def same(result, expected):
    flat, _ = torch.utils._pytree.tree_flatten(expected)
    assert len(result) == len(flat)
    for ours, theirs in zip(result, flat):
        if isinstance(theirs, torch.Tensor):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        else:
            assert type(ours) is type(theirs) and ours == theirs


@pytest.mark.parametrize("case", CASES)
def test_a_restored_program_computes_exactly_the_same(case):
    make, calls, shapes = CASES[case]
    model = make()
    exported = captured(model, calls[0], shapes)
    restored = restore(store(exported))
    if case != "branches":  # torch gives a branch's arguments back as a list
        assert str(restored.graph) == str(exported.graph)
    assert {str(k): v for k, v in restored.range_constraints.items()} == {
        str(k): v for k, v in exported.range_constraints.items() if k.is_symbol
    }
    run = run_callable(restored)
    for inputs in calls:
        with torch.no_grad():
            expected = model(*inputs)
        same(run(inputs), expected)
        same(torch.utils._pytree.tree_leaves(restored.module()(*inputs)), expected)
    assert store(restored).graph == store(exported).graph
    same(run_callable(restored.run_decompositions({}))(calls[-1]), expected)


def test_a_tiny_bert_with_two_dynamic_dims():
    model = bert()
    ids, mask = torch.randint(0, 50, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    shapes = {"input_ids": {0: BATCH, 1: Dim("length", min=2, max=32)}}
    shapes["attention_mask"] = shapes["input_ids"]
    with torch.no_grad():
        exported = export(
            model, (), {"input_ids": ids, "attention_mask": mask}, dynamic_shapes=shapes
        ).run_decompositions({})
    run = run_callable(restore(store(exported)))
    for batch, length in ((2, 7), (5, 12)):
        ids, mask = torch.randint(0, 50, (batch, length)), torch.ones(batch, length, dtype=torch.int64)
        mask[0, length // 2 :] = 0
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(run([ids, mask])[0], expected, rtol=0, atol=1e-6)


def test_tensors_are_shared():
    model = Mixed()
    stored = store(captured(model, (torch.randn(6, 4), torch.arange(50))))
    assert set(stored.state) == {"layer.a-b.weight", "layer.a-b.bias", "kept"}
    assert set(stored.constants) == {"lost", "lifted_tensor_0"}
    weight = stored.state["layer.a-b.weight"]
    assert weight.data_ptr() == model.layer["a-b"].weight.data_ptr() and type(weight) is torch.Tensor
    restored = restore(stored)
    assert restored.state_dict["layer.a-b.weight"].data_ptr() == weight.data_ptr()
    assert isinstance(restored.state_dict["layer.a-b.weight"], nn.Parameter)


def test_no_path_host_or_user_is_stored():
    stored = store(captured(Mixed(), (torch.randn(6, 4), torch.arange(50))))
    text = stored.graph.decode()
    for secret in (os.path.dirname(__file__), "test_program.py", "site-packages", os.path.expanduser("~") + "/"):
        assert secret not in text
    assert "stack_trace" not in text and "from_node" not in text
    assert socket.gethostname() not in text and f'"{getpass.getuser()}"' not in text


def test_the_modules_paths_survive():
    restored = restore(store(captured(Mixed(), (torch.randn(6, 4), torch.arange(50)))))
    linear = next(n for n in restored.graph.nodes if n.target is torch.ops.aten.linear.default)
    assert [path for path, _ in linear.meta["nn_module_stack"].values()] == ["", "layer.a-b"]


# -- the callable ------------------------------------------------------------------------------------------------------


def test_a_constant_argument_takes_no_input():
    class Flagged(nn.Module):
        def forward(self, x, flag, y):
            return x - y if flag else x + y

    x, y = torch.ones(2), torch.full((2,), 3.0)
    run = run_callable(restore(store(captured(Flagged(), (x, True, y)))))
    assert torch.equal(run([x, y])[0], x - y)
    with pytest.raises(InvalidInput, match="takes 2 inputs; this call gives 3"):
        run([x, True, y])


def test_results_carry_no_gradient():
    run = run_callable(captured(nn.Linear(4, 4), (torch.randn(2, 4),)))
    assert not run([torch.randn(2, 4)])[0].requires_grad


def test_many_threads_call_one_function():
    model = Recurrent().eval()
    run = run_callable(restore(store(captured(model, (torch.randn(2, 5, 4),)))))
    inputs = [torch.randn(2, 5, 4) for _ in range(8)]
    with torch.no_grad():
        expected = [model(x)[0] for x in inputs]
    wrong = []

    def work(index):
        for _ in range(20):
            if not torch.equal(run([inputs[index]])[0], expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_many_threads_restore_at_once():
    stored = store(captured(nn.Linear(4, 4), (torch.randn(2, 4),)))
    results = []
    threads = [threading.Thread(target=lambda: results.append(restore(stored))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4


def test_map_replaces_every_tensor_and_leaves_the_first_function_alone():
    model = Mixed().eval()
    x, y = torch.randn(6, 4), torch.arange(50)
    run = run_callable(captured(model, (x, y)))
    before = run([x, y])[0]
    zeros = run.map(torch.zeros_like)
    assert not zeros([x, y])[0].any() and torch.equal(run([x, y])[0], before)


def test_to_moves_the_devices_that_the_graph_names():
    class Making(nn.Module):
        def forward(self, x):
            made = torch.zeros(3, device="cpu")
            return torch.cond(x.sum() > 0, lambda t: t + torch.ones(3, device="cpu"), lambda t: t - 1, (x,)) + made

    run = run_callable(restore(store(captured(Making(), (torch.ones(3),)))))
    assert torch.equal(run.to("cpu")([torch.ones(3)])[0], torch.full((3,), 2.0))
    moved = run.to("meta").graph
    devices = [n.kwargs["device"] for n in moved.graph.nodes if "device" in n.kwargs]
    branch = [n.kwargs["device"] for n in moved.true_graph_0.graph.nodes if "device" in n.kwargs]
    assert devices and branch and {d.type for d in devices + branch} == {"meta"}
    assert torch.equal(run([torch.ones(3)])[0], torch.full((3,), 2.0))


def test_a_call_costs_little_more_than_the_graph():
    exported = captured(nn.Linear(4, 4), (torch.randn(2, 4),))
    run, module, x = run_callable(exported), exported.module(), torch.randn(2, 4)

    def best(call):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(200):
                call()
            times.append(time.perf_counter() - start)
        return min(times)

    assert best(lambda: run([x])) < best(lambda: module(x)) / 2


def test_a_program_that_writes_to_a_buffer_is_refused():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x):
            self.count.add_(1)
            return x + self.count

    exported = captured(Counting(), (torch.ones(2),))
    with pytest.raises(StateMutated, match="count"):
        run_callable(exported)
    with pytest.raises(ConversionFailed, match="writes to no input, buffer"):
        store(exported)


# -- hostile files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def innocent():
    stored = store(captured(Mixed(), (torch.randn(6, 4), torch.arange(50)), ({0: BATCH}, {0: LENGTH})))
    return stored, json.loads(stored.graph)


def altered(innocent, change):
    """The innocent program with ``change(document)`` done to its JSON."""
    stored, document = innocent
    document = copy.deepcopy(document)
    result = change(document)
    document = document if result is None else result
    graph = document if isinstance(document, bytes) else json.dumps(document).encode()
    names = {part["buffer"]["buffer_name"] for part in specs(graph) if "buffer" in part}
    state = dict(stored.state)
    for name in names - {*stored.state, *stored.constants}:  # a buffer that was renamed: its tensor goes with it
        state[name] = state.pop("kept")
    return StoredProgram(graph, state, stored.constants)


def specs(graph):
    try:
        return json.loads(graph)["graph_module"]["signature"]["input_specs"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return []


def test_nothing_is_unpickled_and_only_checked_text_is_evaluated(innocent, monkeypatch):
    stored = innocent[0]
    restore(stored)  # what torch and sympy evaluate once, when first used, is not the file's
    evaluated, executed = [], []
    real_eval, real_exec = builtins.eval, builtins.exec

    def forbidden(*args, **kwargs):
        raise AssertionError("a pickle was about to be read")

    def watched_eval(code, *scope):
        evaluated.append(code)
        return real_eval(code, *scope)

    def watched_exec(code, *scope):
        executed.append(code)
        return real_exec(code, *scope)

    monkeypatch.setattr(torch, "load", forbidden)
    monkeypatch.setattr(pickle, "loads", forbidden)
    monkeypatch.setattr(pickle, "load", forbidden)
    monkeypatch.setattr(pickle, "Unpickler", forbidden)
    monkeypatch.setattr(builtins, "eval", watched_eval)
    monkeypatch.setattr(builtins, "exec", watched_exec)
    checked = []
    monkeypatch.setattr(program_module.__name__.rpartition(".")[0] + ".program_check.check_symbolic", checked.append)
    program = restore(stored)
    monkeypatch.undo()
    run_callable(program)([torch.randn(6, 4), torch.arange(50)])
    assert checked and evaluated
    known = {name for text in checked for name in compile(text, "", "eval").co_names}
    known |= set(dir(schema))  # annotations of torch's own classes
    for code in evaluated:
        code = compile(code, "", "eval") if isinstance(code, str) else code
        assert set(code.co_names) <= known | {"Integer", "Float"}, code.co_names
    for code in executed:
        if code == "from sympy import *":  # how sympy fills the scope of every text
            continue
        code = compile(code, "", "exec") if isinstance(code, str) else code
        assert set(code.co_names) <= {"torch", "device", "forward", "inf", "nan", "fx_pytree"}, code.co_names


def graph(document):
    return document["graph_module"]["graph"]


def node(document, target="torch.ops.aten.mul.Tensor"):
    return next(n for n in graph(document)["nodes"] if n["target"] == target)


def put(path, value):
    def change(document):
        at = document
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return change


def target(name):
    return lambda document: operator.setitem(node(document), "target", name)


def expression(text):
    def change(document):
        values = graph(document)["sym_int_values"]
        values[next(iter(values))] = {"as_expr": {"expr_str": text, "hint": {"as_int": 6}}}

    return change


def argument(value):
    return lambda document: operator.setitem(node(document)["inputs"][1], "arg", value)


def renamed(old, new):
    """The name of a placeholder, a node or a buffer, everywhere."""
    return lambda document: json.dumps(document).replace(json.dumps(old), json.dumps(new)).encode()


def deep(document):
    at = {"as_tensor": {"name": "x"}}
    for index in range(60):
        inner = {"target": "torch.ops.higher_order.cond", "inputs": [{"name": "", "arg": at, "kind": 1}]}
        inner |= {"outputs": [], "metadata": {}, "name": f"n{index}"}
        g = {"inputs": [], "outputs": [], "nodes": [inner], "tensor_values": {}}
        g |= {"sym_int_values": {}, "sym_bool_values": {}}
        at = {"as_graph": {"name": "g", "graph": g}}
    node(document)["inputs"][1]["arg"] = at


TOUCH = '__import__("os").system("touch hacked")'
TOWER = "Pow(Integer(9), Integer(8))"
for _ in range(6):
    TOWER = f"Pow({TOWER}, Integer(8))"
HOSTILE = {
    "os.system": target("os.system"),
    "builtins.eval": target("builtins.eval"),
    "torch.os.system": target("torch.os.system"),
    "torch.load": target("torch.load"),
    "torch.hub.load": target("torch.hub.load"),
    "_operator.attrgetter": target("_operator.attrgetter"),
    "_operatorx.add": target("_operatorx.add"),
    "math.os": target("math.__loader__.load_module"),
    "aten.save": target("torch.ops.aten.from_file.default"),
    "inductor": target("torch.ops.inductor.resize_storage_bytes_.default"),
    "load_library": target("torch.ops.load_library"),
    "aoti": target("torch.ops.higher_order.aoti_call_delegate"),
    "triton": target("torch.ops.higher_order.triton_kernel_wrapper_functional"),
    "extension": target("#pwn:run"),
    "overload packet": target("torch.ops.aten.mul"),
    "dunder": target("torch.ops.aten.mul.__init__.__globals__"),
    "no text": target(3),
    "operator argument": argument({"as_operator": "torch.os.system"}),
    "object argument": argument({"as_custom_obj": {"name": "x", "class_fqn": "os.system"}}),
    "named arguments": argument({"as_string_to_argument": {"x": {"as_int": 3}}}),
    "two kinds": argument({"as_int": 3, "as_float": 1.0}),
    "unknown kind": argument({"as_code": "x"}),
    "text for an integer": argument({"as_int": "3"}),
    "true for an integer": argument({"as_int": True}),
    "huge integer": argument({"as_int": 10**30}),
    "unknown dtype": argument({"as_scalar_type": 999}),
    "device": argument({"as_device": {"type": "os", "index": None}}),
    "name of a node": lambda d: operator.setitem(node(d), "name", f"x = {TOUCH}"),
    "name of a subgraph": argument({"as_graph": {"name": f"x = {TOUCH}", "graph": {}}}),
    "name of a placeholder": renamed("p_layer_a_b_weight", f"p=({TOUCH})"),
    "name of a value": renamed("sym_size_int_4", TOUCH),
    "name of a buffer": renamed("kept", f'x"), {TOUCH}, ("'),
    "dunder buffer": renamed("kept", "__class__"),
    "argument name": lambda d: operator.setitem(node(d)["inputs"][0], "name", f"a={TOUCH}"),
    "call": expression(TOUCH),
    "attribute": expression("Integer.__class__"),
    "lambda": expression("(lambda: 0)()"),
    "method": expression("Symbol('s77').__class__('x')"),
    "keyword code": expression(f"Symbol('s77', integer={TOUCH})"),
    "symbol text": expression(f"Symbol({TOUCH!r})"),
    "nested text": expression(f"Integer({TOUCH!r})"),
    "sympify text": expression("sympify('1')"),
    "tower": expression(TOWER),
    "huge exponent": expression("Pow(Integer(9), Integer(999999999))"),
    "symbolic exponent": expression("Pow(Integer(9), Pow(Integer(9), Integer(8)))"),
    "huge shift": expression("LShift(Integer(1), Integer(99999999999))"),
    "huge float": expression("Float('1e999999999')"),
    "huge number": expression(f"Integer({10**100})"),
    "factorial": expression("factorial(Integer(99999999))"),
    "deep expression": expression("Identity(" * 200 + "Integer(1)" + ")" * 200),
    "long expression": expression("Add(" + "Integer(1), " * 9000 + "Integer(1))"),
    "range of text": put(("range_constraints",), {"s77": {"min_val": "0", "max_val": 3}}),
    "dialect": put(("verifiers",), ["os"]),
    "object": lambda d: graph(d).update(custom_obj_values={"x": {"name": "x", "class_fqn": "os.system"}}),
    "graph": put(("graph_module", "graph"), []),
    "no nodes": lambda d: graph(d).pop("nodes") and None,
    "schema": put(("schema_version", "major"), 99),
    "fewer inputs": lambda d: d["graph_module"]["signature"]["input_specs"].pop() and None,
    "missing tensor": renamed("lost", "gone"),
    "unknown value": put(("graph_module", "graph", "outputs", 0), {"as_tensor": {"name": "nowhere"}}),
    "other shape": lambda d: operator.setitem(graph(d)["tensor_values"]["b_kept"], "sizes", [{"as_int": 4000}]),
    "deep graph": deep,
    "deep json": lambda d: b'{"a":' * 100000 + b"1" + b"}" * 100000,
    "deep list": lambda d: b"[" * 100000 + b"]" * 100000,
    "long digits": lambda d: b"[" + b"9" * 10000 + b"]",
    "nan": lambda d: b'{"graph_module": NaN}',
    "no json": lambda d: b"cos\nsystem\n(S'touch hacked'\ntR.",
    "no utf-8": lambda d: b"\xff\xfe{}",
    "empty": lambda d: b"",
    "null": lambda d: b"null",
}


SEEN_LATER = {"fewer inputs", "unknown value", "other shape"}  # harmless to torch, which finds that they do not fit


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_refused_before_anything_runs(name, innocent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored = altered(innocent, HOSTILE[name])
    assert stored.graph != innocent[0].graph
    start = time.monotonic()
    if name not in SEEN_LATER:
        monkeypatch.setattr(serialize, "deserialize", lambda *_: pytest.fail("torch was given the program"))
    with pytest.raises(InvalidFile):
        restore(stored)
    assert time.monotonic() - start < 5
    assert list(tmp_path.iterdir()) == []


STRIPPED = {
    "guards": put(("guards_code",), [TOUCH]),
    "tree": put(
        ("graph_module", "module_call_graph"),
        [{"fqn": "", "signature": {"inputs": [], "outputs": [], "in_spec": "[9]", "out_spec": TOUCH}}],
    ),
    "metadata": put(("graph_module", "metadata"), {"custom": "{"}),
    "named tuples": put(("graph_module", "treespec_namedtuple_fields"), {"os.system": {"field_names": ["x"]}}),
    "source functions": lambda d: node(d)["metadata"].update(source_fn_stack="x,torch.os.system"),
    "stack trace": lambda d: node(d)["metadata"].update(stack_trace=f'"""\n{TOUCH}'),
    "module stack": lambda d: node(d)["metadata"].update(nn_module_stack=f'a,b,"\n{TOUCH}'),
    "range of code": put(("range_constraints",), {TOUCH: {"min_val": 0, "max_val": 3}}),
    "range far away": put(("range_constraints",), {"u99999999999": {"min_val": 0, "max_val": 3}}),
    "unknown field": put(("anything",), TOUCH),
}


@pytest.mark.parametrize("name", STRIPPED)
def test_what_has_no_place_in_a_file_is_dropped(name, innocent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = restore(altered(innocent, STRIPPED[name]))
    inputs = torch.randn(6, 4), torch.arange(50)
    expected = run_callable(restore(innocent[0]))(inputs)
    same(run_callable(program)(inputs), expected)
    same(program.module()(*inputs), expected)
    assert program._guards_code == [] and program.graph_module.meta.get("custom") is None
    assert all(set(n.meta) <= {"val", "nn_module_stack"} for n in program.graph.nodes)
    assert "touch" not in str(program.graph_module.code) and list(tmp_path.iterdir()) == []


def test_every_field_of_the_document_may_be_anything(innocent):
    """Each place of a small program's JSON, replaced by values of each kind: an InvalidFile, or the program."""
    stored = store(captured(nn.Linear(2, 2), (torch.ones(2, 2),), ({0: BATCH},)))
    document = json.loads(stored.graph)

    def places(at, path=()):
        items = at.items() if isinstance(at, dict) else enumerate(at) if isinstance(at, list) else ()
        for key, value in items:
            yield (*path, key)
            yield from places(value, (*path, key))

    tried = 0
    for path in places(document):
        for value in (None, 0, -1, "x", [], {}, [None], {"x": None}):
            changed = copy.deepcopy(document)
            put(path, value)(changed)
            tried += 1
            try:
                restore(StoredProgram(json.dumps(changed).encode(), stored.state, stored.constants))
            except InvalidFile:
                pass
    assert tried > 500


def test_a_missing_custom_operator_is_named(innocent):
    with pytest.raises(BackendUnavailable, match=r"somewhere::twist, torchvision::unheard\.of.*Import the package"):

        def change(document):
            node(document)["target"] = "torch.ops.somewhere.twist.default"
            node(document, "torch.ops.aten.cat.default")["target"] = "torch.ops.torchvision.unheard.of"

        restore(altered(innocent, change))


def test_a_registered_custom_operator_is_called():
    @torch.library.custom_op("bridge_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)

    class Custom(nn.Module):
        def forward(self, x):
            return torch.ops.bridge_tests.twice(x)

    x = torch.randn(3)
    assert torch.equal(run_callable(restore(store(captured(Custom(), (x,)))))([x])[0], x * 2)


def test_a_jit_only_operator_is_not_found_in_the_dispatcher(innocent):
    assert hasattr(torch.ops.aten, "save")  # what walking attributes would find, and it writes a file
    with pytest.raises(BackendUnavailable, match="aten::save"):
        restore(altered(innocent, target("torch.ops.aten.save.default")))


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Add(Mul(Integer(2), Symbol('u0', integer=True)), Integer(-1))",
        "FloatPow(ToFloat(Symbol('s77', positive=True, integer=True)), Float('0.5', precision=53))",
        "Max(Integer(1), FloorDiv(Symbol('s0', integer=True), Integer(2)))",
        "Equality(Mod(Symbol('s0', integer=True), Integer(8)), Integer(0))",
        "Pow(Symbol('s0', integer=True), Rational(1, 2))",
        "true",
    ],
)
def test_what_torch_writes_for_sizes_passes(text):
    check_symbolic(text)


@pytest.mark.parametrize("text", ["1", "s0", "Rational(1, 0)", "Symbol('s0', zero=1)", "Symbol('s0', **x)", "Add(*x)"])
def test_other_sizes_do_not(text):
    with pytest.raises(BadSymbolic):
        check_symbolic(text)
