"""backend="fastest" on the CPU, where ONNX Runtime and a program that PyTorch runs compete."""

from __future__ import annotations

import time

import pytest
import torch
from comparing import assert_same
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge import errors, measuring, selection
from torchtrt_bridge.backends.base import Artifact, Segment
from torchtrt_bridge.backends.onnx import OnnxBackend
from torchtrt_bridge.cache import Cache
from torchtrt_bridge.precision import cast_program
from torchtrt_bridge.runtime.program import store

X = torch.randn(3, 8)


class Program(OnnxBackend):
    """The captured program, run by PyTorch: made in no time."""

    def __init__(self, name="program"):
        self.name, self.calls = name, 0

    def convert(self, captured, precision, build, place, progress):
        self.calls += 1
        cast = cast_program(captured.program, precision)
        segment = Segment("torch", ("x",), ("y",), program=store(cast.program).owned())
        return Artifact((segment,), captured.signature, self.name, precision.name, captured.constants)


class Failing(OnnxBackend):
    name = "failing"

    def convert(self, *args):
        raise errors.BuildFailed("no kernel for this layer")


@pytest.fixture
def route(monkeypatch, tmp_path):
    """One route among others, an empty cache, and short measurements."""
    route = Program("first")
    monkeypatch.setattr(selection, "BACKENDS", (Failing(), route, Program("second")))
    monkeypatch.setenv("TORCHTRT_BRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("torchtrt_bridge.fastest.BUDGET_S", 0.1)
    return route


@pytest.fixture
def real(monkeypatch, route):
    """ONNX Runtime against a program."""
    monkeypatch.setattr(selection, "BACKENDS", (Failing(), OnnxBackend(), Program()))


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2)).eval()


def fastest(model, x=X, **options):
    return ttb.compile(model, x, backend="fastest", **options)


def test_every_route_is_measured_and_the_fastest_is_kept(real):
    model = make()
    fast = fastest(model)
    assert_same(fast(X), model(X))
    rows = fast.report.routes
    measured = [row for row in rows if row["milliseconds"] is not None]
    assert {row["route"] for row in measured} == {"onnx", "program"}
    assert measured[0]["outcome"] == "chosen" and measured[0]["route"] == fast.backend
    assert measured[0]["milliseconds"] == min(row["milliseconds"] for row in measured)
    assert measured[1]["outcome"] == "slower" and "times as long as" in measured[1]["reason"]
    failed = next(row for row in rows if row["route"] == "failing")
    assert failed["outcome"] == "failed" and "no kernel" in failed["reason"]
    assert fast.report.verification and "ms" in repr(fast.report)


def test_the_slower_one_is_not_kept(real, monkeypatch):
    """A program that sleeps loses, whichever that is."""
    from torchtrt_bridge.runtime import cpu, program

    run = program.FlatProgram.__call__
    monkeypatch.setattr(program.FlatProgram, "__call__", lambda self, inputs: time.sleep(0.1) or run(self, inputs))
    assert fastest(make()).backend == "onnx"
    monkeypatch.setattr(program.FlatProgram, "__call__", run)
    monkeypatch.setenv("TORCHTRT_BRIDGE_CACHE", "off")
    call = cpu.OnnxExecution.__call__
    monkeypatch.setattr(cpu.OnnxExecution, "__call__", lambda self, inputs: time.sleep(0.1) or call(self, inputs))
    assert fastest(make()).backend == "program"


def test_the_second_compilation_builds_nothing_and_chooses_the_same(route):
    first = fastest(make())
    assert route.calls == 1
    model = make()
    second = fastest(model)
    assert route.calls == 1 and second.backend == first.backend
    assert_same(second(X), model(X))
    assert second.report.routes == first.report.routes
    assert "nothing was built" in repr(second.report) and "nothing was built" not in repr(first.report)
    assert second.report.seconds["looking it up"] < 1 and "converting" not in second.report.seconds
    assert second.report.verification  # compared with eager again


CHANGES = [
    lambda model: model[0].weight.data[0, 0].add_(1e-3),
    lambda model: model[2].bias.data[1].mul_(1.0001),
    lambda model: setattr(model[1], "approximate", "tanh"),
    lambda model: model.append(nn.ReLU().eval()),
]


def test_another_model_is_never_answered_from_the_cache(route):
    fastest(make())
    for count, change in enumerate(CHANGES, 2):
        model = make()
        change(model)
        fast = fastest(model)
        assert route.calls == count
        assert_same(fast(X), model(X))


def test_other_options_are_another_question(route):
    fastest(make())
    for options in ({"precision": "fp16"}, {"dynamic_batch": (1, 3, 8)}, {"source": True}, {"cuda_graph": False}):
        before = route.calls
        fastest(make(), **options)
        assert route.calls == before + 1
    fastest(make(), source=True)
    assert route.calls == before + 1


def test_what_is_kept_belongs_to_the_graph_and_the_rest_to_the_model_at_hand(route):
    fastest(make())
    model = make()
    model.labels = ["cat", "dog"]
    assert fastest(model, attributes=("labels",)).labels == ["cat", "dog"] and route.calls == 1


def test_an_entry_that_does_not_hold_is_left_aside(route, tmp_path, monkeypatch, caplog):
    fastest(make())
    whole = Cache.get
    monkeypatch.setattr(Cache, "get", lambda self, key: whole(self, key)[:-1])
    model = make()
    assert_same(fastest(model)(X), model(X))
    assert route.calls == 2 and "does not hold any more" in caplog.text
    monkeypatch.setattr(Cache, "get", whole)
    other = fastest(make(1))  # another model's entry under this one's key: its results are wrong
    from safetensors.torch import save

    monkeypatch.setattr(Cache, "get", lambda self, key: save({k: v.clone() for k, v in other.state_dict().items()}))
    before = route.calls
    assert_same(fastest(model)(X), model(X))
    assert route.calls == before + 1


def test_without_a_cache_every_compilation_measures(route, monkeypatch):
    monkeypatch.setenv("TORCHTRT_BRIDGE_CACHE", "off")
    for count in (1, 2):
        fastest(make())
        assert route.calls == count


def test_where_no_route_can_there_is_one_error_with_every_reason(route, monkeypatch):
    other = Failing()
    other.name = "other"
    monkeypatch.setattr(selection, "BACKENDS", (Failing(), other))
    with pytest.raises(errors.BuildFailed, match="(?s)failing: no kernel.*other: no kernel"):
        fastest(make(), hybrid=False)


def test_a_gpu_elsewhere_cannot_be_measured():
    with pytest.raises(errors.InvalidOption, match="backend='fastest' measures on the GPU that is here"):
        ttb.build(make(), X, backend="fastest")


def test_rounds_go_on_until_the_order_is_settled():
    def busy(seconds):
        def call():
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                pass

        return call

    calls = {"slow": busy(0.002), "fast": busy(0.001), "hopeless": busy(0.01)}
    timings = measuring.measure(calls, torch.device("cpu"), budget=10.0)
    assert [timing.name for timing in timings] == ["fast", "slow", "hopeless"]
    assert measuring._LEAST <= timings[0].rounds < 500
    assert timings[0].lower <= timings[0].median <= timings[0].upper
    again = measuring.measure({"one": busy(0.2)}, torch.device("cpu"), budget=0.5)
    assert again[0].rounds == 3  # the budget is spent
