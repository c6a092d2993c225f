"""``precision={"default": ..., layer: ...}``: which layer gets which precision, on every route, and what it says."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.backends.base import Place
from torchtrt_bridge.backends.onnx import OnnxBackend
from torchtrt_bridge.backends.torch2trt import Torch2TrtBackend
from torchtrt_bridge.capture import capture
from torchtrt_bridge.errors import ConversionFailed, InvalidFile, InvalidOption
from torchtrt_bridge.fingerprint import fingerprint
from torchtrt_bridge.fx_nodes import module_path, operator_name
from torchtrt_bridge.precision import Precision, cast_program


class OwnLinear(nn.Linear):
    pass


class Block(nn.Module):
    def __init__(self, kind=nn.Linear):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(16, 32), kind(32, 16), nn.LayerNorm(16)

    def forward(self, x):
        return self.norm(x + self.down(self.up(x).relu()))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(Block(), Block(OwnLinear), Block())
        self.head = nn.Linear(16, 4)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.encoder(x))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model().eval()


@functools.cache
def captured():
    torch.manual_seed(0)
    return capture(Model().eval(), torch.randn(3, 16))


def bound(mapping):
    return Precision.parse(mapping).bind(captured().program.graph, captured().model)


def asked(mapping):
    """The precision that each linear layer was asked to have, by its path."""
    precision = bound(mapping)
    return {module_path(n): precision.of(n) for n in captured().program.graph.nodes if operator_name(n) == "linear"}


LINEARS = [*(f"encoder.{i}.{name}" for i in range(3) for name in ("up", "down")), "head"]


@pytest.mark.parametrize(
    ("mapping", "raised"),
    [
        ({"head": "fp32"}, {"head"}),
        ({"encoder.1": "fp32"}, {"encoder.1.up", "encoder.1.down"}),
        ({"encoder.*": "fp32"}, set(LINEARS) - {"head"}),
        ({"encoder.*.up": "fp32"}, {f"encoder.{i}.up" for i in range(3)}),
        ({"encoder.[02].up": "fp32"}, {"encoder.0.up", "encoder.2.up"}),
        ({"**.down": "fp32"}, {f"encoder.{i}.down" for i in range(3)}),
        ({re.compile(r"encoder\.[12]"): "fp32"}, {p for p in LINEARS if p[:9] in ("encoder.1", "encoder.2")}),
        ({re.compile(r"ENCODER\.0\.up", re.IGNORECASE): "fp32"}, {"encoder.0.up"}),
        ({Block: "fp32"}, set(LINEARS) - {"head"}),
        ({OwnLinear: "fp32"}, {"encoder.1.down"}),
        ({nn.Linear: "fp32"}, set(LINEARS)),  # its subclass too
        ({Model: "fp32"}, set(LINEARS)),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_a_key_names_modules_and_all_below_them(mapping, raised):
    found = asked({"default": "fp16", **mapping})
    assert found == {path: "fp32" if path in raised else "fp16" for path in LINEARS}


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        # the innermost module that is named decides, whatever names it and wherever in the mapping
        ({"encoder.0.up": "fp32", "encoder.0": "bf16"}, "fp32"),
        ({nn.Linear: "fp32", "encoder.0": "bf16"}, "fp32"),
        ({re.compile("encoder.*up"): "fp32", "encoder.0": "bf16"}, "fp32"),
        # of one module: its path, then wildcards, then an expression, then its class
        ({"encoder.0.up": "fp32", "encoder.*.up": "bf16"}, "fp32"),
        ({"encoder.*.up": "fp32", re.compile("encoder.0.up"): "bf16"}, "fp32"),
        ({re.compile("encoder.0.up"): "fp32", nn.Linear: "bf16"}, "fp32"),
        # of one kind: the last
        ({"encoder.*.up": "bf16", "encoder.0.*": "fp32"}, "fp32"),
        ({re.compile("encoder.0.up"): "bf16", re.compile(".*"): "fp32"}, "fp32"),
    ],
    ids=str,
)
def test_which_key_decides(mapping, expected):
    assert asked({"default": "fp16", **mapping})["encoder.0.up"] == expected


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("encoder.0.upp", "Nearest: 'encoder.0.up'"),
        ("*.up", "'**' for any number"),
        (re.compile("up"), "must match a whole path"),
        (nn.Conv2d, "no module of this class"),
        ("unused", "computes nothing by itself"),
        (3, "a key is 'default', a module's path"),
        (torch.Tensor, "a key is 'default', a module's path"),
    ],
    ids=str,
)
def test_a_key_that_names_nothing_is_an_error(model, key, says):
    with pytest.raises(InvalidOption, match=re.escape(says)):
        ttb.compile(model, torch.randn(3, 16), {"default": "fp16", key: "fp32"}, device="cpu")


def test_a_part_that_never_runs_by_itself_is_said_to_be_in_the_one_around_it():
    model = nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True)).eval()

    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner[0](x, x, x)[0]

    with pytest.raises(InvalidOption, match="'inner.0.out_proj' is a module .* is in 'inner.0'"):
        bound_to = capture(Attend().eval(), torch.randn(1, 3, 8))
        Precision.parse({"inner.0.out_proj": "fp16"}).bind(bound_to.program.graph, bound_to.model)


def test_a_value_that_names_no_precision_is_an_error():
    with pytest.raises(InvalidOption, match="'fp61' is unknown.*Did you mean 'fp16'"):
        Precision.parse({"encoder": "fp61"})


def test_the_default_is_fp32_where_none_is_given():
    assert asked({"head": "fp16"}) == {path: "fp16" if path == "head" else "fp32" for path in LINEARS}


def test_each_layer_computes_in_its_own_dtype():
    mapping = {"default": "fp16", "encoder.0": "fp32", "encoder.1": "bf16", "encoder.1.up": "fp16"}
    cast = cast_program(captured().program, bound(mapping))
    found = {module_path(n): n.meta["val"].dtype for n in cast.program.graph.nodes if operator_name(n) == "linear"}
    assert found == {
        "encoder.0.up": torch.float32, "encoder.0.down": torch.float32,
        "encoder.1.up": torch.float16, "encoder.1.down": torch.bfloat16,
        "encoder.2.up": torch.float16, "encoder.2.down": torch.float16,
        "head": torch.float16,
    }  # fmt: skip
    stored = {name.removeprefix("model."): tensor.dtype for name, tensor in cast.program.state_dict.items()}
    assert stored["encoder.0.up.weight"] == torch.float32
    assert stored["encoder.1.down.weight"] == torch.bfloat16
    assert stored["encoder.2.down.weight"] == torch.float16


def test_a_layer_that_overflows_is_saved_by_its_rule():
    class Overflows(nn.Module):
        def __init__(self):
            super().__init__()
            self.big, self.small, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            nn.init.constant_(self.big.weight, 3e4)
            nn.init.constant_(self.small.weight, 1e-5)

        def forward(self, x):
            return self.head(self.small(self.big(x)))

    torch.manual_seed(0)
    model, x = Overflows().eval(), torch.rand(2, 8) + 1
    with pytest.raises(ttb.errors.VerificationFailed, match="NaN or Inf where eager is finite"):
        ttb.compile(model, x, "fp16", device="cpu", backend="onnx")
    mapping = {"default": "fp16", "big": "fp32", "small": "fp32"}
    fast = ttb.compile(model, x, mapping, device="cpu", backend="onnx")
    torch.testing.assert_close(fast(x), model(x), rtol=5e-3, atol=5e-3)


def test_the_report_and_the_file_have_the_mapping(model, tmp_path):
    x = torch.randn(3, 16)
    mapping = {"default": "fp16", "encoder.1": "fp32", nn.Linear: "fp16", re.compile("head", re.IGNORECASE): "fp32"}
    fast = ttb.compile(model, x, mapping, device="cpu", backend="onnx", source=True)
    assert fast.report.precision == "fp16; encoder.1: fp32; Linear: fp16; re:head: fp32"
    fast.save(tmp_path / "fast.safetensors")
    loaded = ttb.load(tmp_path / "fast.safetensors", device="cpu")
    assert loaded.report.precision == fast.report.precision
    rebuilt = loaded.rebuild(device="cpu")
    assert rebuilt.report.precision == fast.report.precision
    assert torch.equal(rebuilt(x), fast(x))
    assert not torch.equal(fast(x), ttb.compile(model, x, "fp16", device="cpu", backend="onnx")(x))


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": "place"},
        {"pattern": 3},
        {"pattern": "(", "kind": "regex"},
        {"precision": "fp61"},
        {"flags": "i"},
        {"subclasses": [1]},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_damaged_mapping_in_a_file_is_found(damage):
    data = bound({"default": "fp16", "head": "fp32"}).to_dict()
    assert Precision.from_dict(data) == bound({"default": "fp16", "head": "fp32"})
    data["rules"][0].update(damage)
    with pytest.raises(InvalidFile, match="The saved precision is damaged"):
        Precision.from_dict(data)


def test_the_fingerprint_knows_the_mapping():
    texts = {
        fingerprint(captured(), Place(torch.device("cpu")), {"precision": Precision.parse(value)})
        for value in ("fp16", {"default": "fp16", "head": "fp32"}, {"default": "fp16", "head": "bf16"})
    }
    assert len(texts) == 3


def test_explain_takes_a_mapping(model, monkeypatch):
    monkeypatch.setattr("torchtrt_bridge.explaining.candidates", lambda backend: (OnnxBackend(),))
    found = ttb.explain(model, torch.randn(3, 16), {"default": "fp16", "head": "fp32"})
    assert found.precision == "fp16; head: fp32"
    with pytest.raises(InvalidOption, match="Nearest: 'head'"):
        ttb.explain(model, torch.randn(3, 16), {"heads": "fp32"})


def test_torch2trt_refuses_layers_of_their_own_by_name():
    precision = bound({"default": "fp16", "head": "fp32"})
    place = Place(torch.device("cpu"), "portable")
    with pytest.raises(ConversionFailed, match=r"torch2trt writes one precision .*fp16; head: fp32"):
        Torch2TrtBackend().convert(captured(), precision, ttb.BuildOptions(), place, lambda *_: None)
