"""Several segments in one module: wires, memory, threads, sizes of 0, and files that mean harm."""

from __future__ import annotations

import dataclasses
import gc
import json
import pickle
import threading
import weakref

import pytest
import torch
from saved import SIGNATURE

import torchtrt_bridge as ttb
from torchtrt_bridge.backends.base import Artifact, Segment, StoredProgram, Wiring
from torchtrt_bridge.errors import InputOutOfProfile, InvalidFile
from torchtrt_bridge.runtime.artifact import from_tensors, to_tensors
from torchtrt_bridge.runtime.files import save_file
from torchtrt_bridge.runtime.program import store
from torchtrt_bridge.runtime.segments import SegmentedExecution
from torchtrt_bridge.signature import TensorSpec

CPU = torch.device("cpu")


class Sine(torch.nn.Module):
    def forward(self, x):
        return torch.sin(x * 2)


def segment(wiring):
    program = torch.export.export(Sine(), (torch.ones(2, 4),)).run_decompositions({})
    return Segment("torch", wiring.inputs, wiring.outputs, program=store(program), wiring=wiring)


def chain(*wirings, results=("c",)):
    wirings = wirings or (Wiring(("input.0",), ("b",)), Wiring(("b",), ("c",)))
    constants = (torch.ones(1), torch.ones(1))
    return Artifact(tuple(map(segment, wirings)), SIGNATURE, "onnx", "fp32", results=results, constants=constants)


def execution(artifact, *runs, check=lambda tensors: None):
    return SegmentedExecution(artifact, runs, check, CPU)


# -- calls -------------------------------------------------------------------------------------------------------------


def test_values_follow_their_wires():
    branches = chain(
        Wiring(("input.0",), ("double", "half")),
        Wiring(("half", "input.0"), ("sum",)),
        results=("sum", "double", "sum"),
    )
    branches = dataclasses.replace(branches, signature=dataclasses.replace(SIGNATURE, outputs=SIGNATURE.outputs * 3))
    run = execution(branches, lambda x: (x[0] * 2, x[0] / 2), lambda x: (x[0] + 10 * x[1],))
    x = torch.tensor([1.0, 2.0])
    total, double, again = run([x])
    assert total.tolist() == [10.5, 21.0] and double.tolist() == [2.0, 4.0] and again is total


def test_a_value_is_freed_after_its_last_use():
    alive = []

    def first(tensors):
        value = tensors[0] + 1
        alive.append(weakref.ref(value))
        return [value]

    def last(tensors):
        gc.collect()
        assert alive[0]() is None
        return [tensors[0] + 1]

    three = chain(Wiring(("input.0",), ("a",)), Wiring(("a",), ("b",)), Wiring(("b",), ("c",)))
    (result,) = execution(three, first, lambda t: [t[0] * 2], last)([torch.zeros(2)])
    assert result.tolist() == [3.0, 3.0]


def test_the_check_is_asked_when_something_changes():
    asked = []
    run = execution(chain(), lambda t: t, lambda t: t, check=lambda tensors: asked.append(len(asked)))
    wide = torch.ones(3, 4)
    for x in (torch.ones(2, 4), torch.zeros(2, 4), wide, wide.double(), wide.double()):
        run([x])
    assert len(asked) == 3


def test_what_the_check_returns_is_the_result():
    empty = [torch.empty(0, 4)]
    run = execution(chain(), lambda t: pytest.fail("ran"), lambda t: t, check=lambda tensors: empty)
    assert run([torch.empty(0, 4)]) is empty


def test_no_gradients():
    run = execution(chain(), lambda t: [t[0] * 2], lambda t: [t[0] + 1])
    assert not run([torch.ones(2, requires_grad=True)])[0].requires_grad


COUNTED = (
    (TensorSpec("a", "float32", ("u0", 4)), TensorSpec("b", "float32", ("batch", 4))),
    (TensorSpec("c", "int64", ("u0", "2*batch")), TensorSpec("d", "float32", ("Min(300, u0)",))),
)


def test_a_segment_whose_size_is_zero_is_skipped_and_its_results_are_empty():
    artifact = chain(
        Wiring(("input.0",), ("a",)), Wiring(("a", "input.0"), ("c", "d"), COUNTED), results=("c",)
    )
    run = execution(artifact, lambda t: [t[0][:0]], lambda t: pytest.fail("ran"))
    (result,) = run([torch.ones(3, 4)])
    assert result.shape == (0, 6) and result.dtype == torch.int64
    counts = execution(artifact, lambda t: [t[0]], lambda t: [t[0].long(), t[0]])
    assert counts([torch.ones(3, 4)])[0].shape == (3, 4)


def test_a_result_that_would_not_be_empty_is_an_error():
    wiring = Wiring(("a",), ("c",), (COUNTED[0][:1], (TensorSpec("c", "float32", (2,)),)))
    run = execution(chain(Wiring(("input.0",), ("a",)), wiring), lambda t: [t[0][:0]], lambda t: t)
    with pytest.raises(InputOutOfProfile, match="empty"):
        run([torch.ones(3, 4)])


def test_many_threads_call_one_module():
    module = ttb.TRTModule(_artifact=chain())
    expected = [torch.sin(torch.sin(torch.full((2, 4), float(i)) * 2) * 2) for i in range(8)]
    wrong = []

    def work(index):
        for _ in range(30):
            output = module.run_flat([torch.full((2, 4), float(index))])[0]
            if not torch.allclose(output, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_times_of_segments():
    run = execution(chain(), lambda t: [t[0] @ t[0].T @ t[0]], lambda t: t)
    slow, fast = run.measure([torch.randn(300, 300)], rounds=3)
    assert slow > fast > 0


# -- saved wires -------------------------------------------------------------------------------------------------------

BAD = {
    "nothing writes": chain(Wiring(("input.0",), ("a",)), Wiring(("b",), ("c",))),
    "written twice": chain(Wiring(("input.0",), ("c",)), Wiring(("c",), ("c",))),
    "input.1": chain(Wiring(("input.1",), ("a",)), Wiring(("a",), ("c",))),
    "which nothing writes": chain(results=("nowhere",)),
    "2 results": chain(results=("b", "c")),
    "not its inputs": dataclasses.replace(chain(), segments=(dataclasses.replace(chain().segments[0], inputs=()),)),
}


@pytest.mark.parametrize("message", BAD)
def test_wires_that_lead_nowhere_are_refused_at_loading(message):
    with pytest.raises(InvalidFile, match=message):
        from_tensors(to_tensors(BAD[message]))


@pytest.mark.parametrize(
    "change",
    [
        lambda wiring: wiring.pop("sizes"),
        lambda wiring: wiring.update(sizes=[[], []]),
        lambda wiring: wiring.update(sizes=[[{"name": "x", "dtype": "os", "shape": []}], []]),
        lambda wiring: wiring.update(inputs=[3]),
        lambda wiring: wiring.update(more=1),
    ],
)
def test_a_damaged_wiring_is_refused(change):
    from torchtrt_bridge.runtime import manifest

    tensors = to_tensors(chain())
    fields = json.loads(tensors["manifest"].numpy().tobytes())
    change(fields["segments"][0]["wiring"])
    fields = {key: value for key, value in fields.items() if key not in ("format", "version", "digest")}
    with pytest.raises(InvalidFile, match="wiring"):
        from_tensors({**tensors, "manifest": manifest.write(fields)})


# -- files that mean harm ----------------------------------------------------------------------------------------------

TOUCH = '__import__("os").system("touch hacked")'


def node(document):
    return next(n for n in document["graph_module"]["graph"]["nodes"] if "mul" in n["target"])


def evil_target(document):
    node(document)["target"] = "torch.os.system"


def evil_file(document):
    node(document)["target"] = "torch.ops.aten.from_file.default"


def evil_name(document):
    node(document)["name"] = f"x = {TOUCH}\n    y"


def evil_guard(document):
    document["guards_code"] = [TOUCH]


def evil_size(document):
    document["graph_module"]["graph"]["sym_int_values"]["s"] = {"as_expr": {"expr_str": TOUCH, "hint": None}}


def evil_object(document):
    node(document)["inputs"][1]["arg"] = {"as_custom_obj": {"name": "x", "class_fqn": "os.system"}}


def evil_tree(document):
    document["graph_module"]["module_call_graph"] = [{"fqn": TOUCH, "signature": None}]


def evil_pickle(document):
    return pickle.dumps(eval)


@pytest.mark.parametrize(
    "change", [evil_target, evil_file, evil_name, evil_guard, evil_size, evil_object, evil_tree, evil_pickle]
)
def test_no_code_of_a_hostile_segment_runs(change, tmp_path, monkeypatch):
    """The file is altered and all its digests are made right again: what is left is what loading itself refuses."""
    monkeypatch.chdir(tmp_path)
    made = chain()
    program = made.segments[1].program
    document = json.loads(program.graph)
    replaced = change(document)
    graph = replaced if isinstance(replaced, bytes) else json.dumps(document).encode()
    evil = dataclasses.replace(made.segments[1], program=StoredProgram(graph, program.state, program.constants))
    save_file(tmp_path / "evil", to_tensors(dataclasses.replace(made, segments=(made.segments[0], evil))))

    def forbidden(*args, **kwargs):
        raise AssertionError("something was unpickled, or the shell was called")

    for owner, name in ((torch, "load"), (pickle, "loads"), (pickle, "load"), (pickle, "Unpickler")):
        monkeypatch.setattr(owner, name, forbidden)
    monkeypatch.setattr("os.system", forbidden)
    if change in (evil_guard, evil_tree):  # these fields are not read at all
        assert ttb.load(tmp_path / "evil").run_flat([torch.ones(2, 4)])[0].shape == (2, 4)
    else:
        with pytest.raises(InvalidFile, match=r"damaged or was altered"):
            ttb.load(tmp_path / "evil").run_flat([torch.ones(2, 4)])
    assert [path.name for path in tmp_path.iterdir()] == ["evil"]
