"""ttb.compare() names the layer that is off: on the CPU by ONNX Runtime (fp32) and the cast program (fp16)."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from comparing import nothing_changes
from faulty import CASES, made, overflowing, perturbed
from parts import Twisted
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import EngineMismatch, InvalidInput, InvalidOption
from torchtrt_bridge.tools import debug_build
from torchtrt_bridge.tools.points import counterparts

ORT = ("residual CNN", "MLP mixer")  # the others in fp16: their ONNX models take long to make


@pytest.mark.parametrize("name", CASES)
def test_a_layer_with_other_weights_is_found(name):
    model, inputs = made(CASES[name])
    compiled = ttb.compile(perturbed(model, CASES[name].layer), inputs, "fp32" if name in ORT else "fp16")
    found = ttb.compare(model, compiled, inputs)
    assert found.runtime == ("onnxruntime" if name in ORT else "torch")
    assert found.first.place == found.worst.place == CASES[name].layer
    assert sum(layer.departs for layer in found.layers) == 1
    assert found.first.own_error > 0.02


@pytest.mark.parametrize("name", CASES)
def test_a_layer_that_overflows_is_found(name):
    model, inputs = made(CASES[name])
    model = overflowing(model, CASES[name].layer, inputs)
    compiled = ttb.compile(model, inputs, "fp16", verify=False)
    found = ttb.compare(model, compiled, inputs)
    assert found.first.place == CASES[name].layer and found.first.nonfinite > 0
    assert found.first.largest == pytest.approx(1.3e5, rel=0.1) and found.first in found.overflows
    assert "NaN or Inf" in found.verdict


class Chain(nn.Module):
    """A batch norm to fold, a layer that is called twice, a split, an operator between modules, a dict of results."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8)
        self.norm.running_mean.normal_(), self.norm.running_var.uniform_(0.5, 2)
        self.twice, self.head = nn.Linear(6, 6), nn.Linear(3, 2)

    def forward(self, x):
        h = self.twice(torch.relu(self.twice(self.norm(self.stem(x)))))
        a, b = h.chunk(2, -1)
        return {"y": self.head(a * b.sigmoid()), "sum": h.sum()}


@pytest.fixture(scope="module")
def chain():
    torch.manual_seed(0)
    return Chain().eval(), torch.randn(2, 4, 8)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_layer_of_a_dynamic_module_is_in_line(chain, precision):
    model, x = chain
    compiled = ttb.compile(model, x, precision, dynamic_batch=(1, 2, 8))
    with nothing_changes(model, x):
        found = ttb.compare(model, compiled, x[:1].repeat(5, 1, 1), level="operator")
    assert found.first is None and all(row.passed for row in found.results)
    assert [(layer.place, layer.operator) for layer in found.layers] == [
        ("stem", "conv1d + batch_norm"), ("twice", "linear"), ("", "relu"), ("twice", "linear"), ("", "split[0]"),
        ("", "split[1]"), ("", "sigmoid"), ("", "mul"), ("head", "linear"), ("", "sum"),
    ]  # fmt: skip
    assert all(layer.shape[0] == 5 for layer in found.layers[:-1])
    assert max(layer.own_error for layer in found.layers) < (1e-5 if precision == "fp32" else 2e-3)


def test_a_fault_before_a_folded_norm_or_in_a_shared_layer_has_its_place(chain):
    model, x = chain
    for layer in ("stem", "twice"):
        compiled = ttb.compile(perturbed(model, layer), x, "fp16")
        departing = [row for row in ttb.compare(model, compiled, x).layers if row.departs]
        assert {row.place for row in departing} == {layer}
        assert len(departing) == (2 if layer == "twice" else 1)


def test_what_a_file_holds_is_compared_not_what_the_model_would_become(chain, tmp_path):
    model, x = chain
    ttb.compile(perturbed(model, "head"), x, "fp16").save(tmp_path / "m.safetensors")
    found = ttb.compare(model, ttb.load(tmp_path / "m.safetensors"), x)
    assert found.first.place == "head" and found.notes == (
        "the intermediate results are those of the module's own cast program, run by PyTorch",
    )


def test_a_quantized_module_is_compared_in_its_own_graph():
    pytest.importorskip("torchao")
    model, x = (
        nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4)).eval(),
        torch.randn(64, 16),
    )
    compiled = ttb.compile(perturbed(model, "2"), x, "int8", calibration=[x], verify=False)
    found = ttb.compare(model, compiled, x)
    assert found.runtime == "onnxruntime" and [layer.place for layer in found.layers] == ["0", "1", "2", "3"]
    assert 1e-3 < found.layers[0].own_error < found.layers[2].own_error and found.worst.place == "2"


def test_a_module_in_parts_is_built_again_from_the_program_that_it_keeps():
    model, x = Twisted().eval(), torch.randn(3, 8)
    other = perturbed(model, "head.0")
    found = ttb.compare(model, ttb.compile(other, x, "fp16", hybrid=True, source=True), x)
    assert found.first.place == "head.0"
    assert found.notes[0].startswith("the intermediate results are those of a debug build") and len(found.notes) == 1
    blind = ttb.compare(model, ttb.compile(other, x, "fp16", hybrid=True), x)
    assert blind.first is None and not blind.results[0].passed
    assert "built from other weights than this model's" in blind.notes[1]
    assert "the debug build's own results are not the module's" in blind.notes[2]


def test_what_is_built_again_gives_each_tensor_in_the_dtype_that_it_is_computed_in(monkeypatch):
    model, x = Twisted().eval(), torch.randn(3, 8)
    model = overflowing(model, "head.0", x)
    built = []
    monkeypatch.setattr(debug_build, "_make", lambda *a, make=debug_build._make: built.append(make(*a)) or built[-1])
    found = ttb.compare(model, ttb.compile(model, x, "fp16", hybrid=True, verify=False), x)
    assert found.first.place == "head.0" and found.first.nonfinite
    dtypes = dict(zip([layer.name for layer in found.layers], [s.dtype for s in built[0].signature.outputs[2:]]))
    assert dtypes["head.0/linear"] == "float16" and dtypes["body.2/layer_norm"] == "float32"


def test_a_converter_that_computes_something_else_is_found():
    @ttb.converter(torch.ops.bridge_tests.twist, register=False)
    def twisted(x):
        return torch.sin(x) + 1.01 * x.flip(-1)

    model, x = Twisted().eval(), torch.randn(3, 8)
    compiled = ttb.compile(model, x, "fp16", converters=twisted, verify=False)
    found = ttb.compare(model, compiled, x, converters=twisted)
    assert found.runtime == "torch" and (found.first.place, found.first.operator) == ("", "twist")
    assert sum(layer.departs for layer in found.layers) == 1


def test_underflow_and_lost_bits_show_by_layer():
    class Faint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Linear(16, 16), nn.Linear(16, 16)
            self.down.weight.data *= 1e-6
            self.down.bias.data.zero_()
            self.up.bias.data.zero_()

        def forward(self, x):
            return self.up(self.down(x)) * 1e6

    model, x = Faint().eval(), torch.randn(4, 16)
    found = ttb.compare(model, ttb.compile(model, x, "fp16", verify=False), x)
    assert found.layers[0].place == "down" and found.layers[0].subnormal > 0.95
    assert found.first.place == "down" and found.first.own_error > 1e-2
    assert "too small for fp16" in found.verdict


def test_the_result_prints_as_text_table_html_and_plot(chain):
    model, x = chain
    found = ttb.compare(model, ttb.compile(perturbed(model, "head"), x, "fp16"), x)
    text, page = repr(found), found._repr_html_()
    assert "head/linear departs first: an error of its own of" in text and "\n> head/linear" in text
    assert page.count("<tr style=") == 1 and "head/linear" in page
    assert [row["place"] for row in found.table()] == [layer.place for layer in found.layers]
    json.dumps(found.to_dict())
    errors, ranges = pytest.importorskip("matplotlib") and found.plot().axes
    assert [label.get_text() for label in ranges.get_xticklabels()] == [layer.name for layer in found.layers]
    assert len(errors.patches) == 1  # the layer that departs


def test_names_that_changed_are_paired_by_kind_and_order():
    own = [("add", ("a", "Add")), ("add_1", ("b", "Add")), ("mul", ("b", "Mul")), ("add_2", ("b", "Add"))]
    others = [("x", ("a", "Add")), ("y", ("b", "Add")), ("z", ("b", "Add")), ("u", ("b", "Mul")), ("v", ("b", "Mul"))]
    assert counterparts(["add_2", "mul", "add"], own, others) == {"add_2": "z", "add": "x"}


def test_a_model_in_16_bits_is_judged_by_what_they_hold():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)).eval().bfloat16()
    x = torch.randn(2, 8).bfloat16()
    found = ttb.compare(model, ttb.compile(model, x), x)
    assert found.precision == "fp32" and found.first is None and found.expected >= 0.015


def test_what_cannot_be_compared_is_said(chain):
    model, x = chain
    compiled = ttb.compile(model, x, "fp16")
    with pytest.raises(InvalidOption, match="level='modules'.*Did you mean 'module'"):
        ttb.compare(model, compiled, x, level="modules")
    with pytest.raises(InvalidInput, match="compiled module second; it was given a Chain"):
        ttb.compare(model, copy.deepcopy(model), x)
    with pytest.raises(InvalidInput, match="original nn.Module first; it was given a TRTModule"):
        ttb.compare(compiled, compiled, x)
    with pytest.raises(InvalidInput, match="not of this model"):
        ttb.compare(nn.Linear(8, 2).eval(), compiled, x)


def test_a_plan_needs_a_gpu():
    pytest.importorskip("tensorrt_rtx")
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    model, x = nn.Linear(8, 4).eval(), torch.randn(2, 8)
    with pytest.raises(EngineMismatch, match="needs a GPU to be compared"):
        ttb.compare(model, ttb.build(model, x, "fp16"), x)
