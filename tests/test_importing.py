"""Files in, modules out: an ONNX model, an exported program, a saved module; and nothing of a hostile one is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.archive import read_archive
from torchtrt_bridge.errors import BridgeError, InvalidFile, InvalidOption
from torchtrt_bridge.exported import ProgramModule
from torchtrt_bridge.importing import kind_of


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("offset", torch.arange(3.0), persistent=False)
        self.tied = self.layer.weight

    def forward(self, x, mask=None, *, extra):
        y = self.norm(self.layer(x)) + self.offset + torch.arange(3, device=x.device)
        return {"y": y, "pair": [extra["a"] * 2, x], "none": None}, y.shape[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The path of an archive, and the program in it."""
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    model = Nested().eval()
    batch = torch.export.Dim("batch", min=2, max=16)
    program = torch.export.export(
        model,
        (torch.randn(4, 4),),
        {"extra": {"a": torch.randn(2)}},
        dynamic_shapes={"x": {0: batch}, "extra": {"a": None}},
    )
    torch.export.save(program, path)
    return path, program


def compare(fast, program, batch):
    x, extra = torch.randn(batch, 4), {"a": torch.randn(2)}
    (result, size), (expected, wanted) = fast(x, extra=extra), program.module()(x, extra=extra)
    assert list(result) == list(expected) and result["none"] is None and size == wanted == batch
    torch.testing.assert_close(result["y"], expected["y"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result["pair"], expected["pair"])


# -- exported programs -------------------------------------------------------------------------------------------------


def test_an_exported_program_runs_as_the_model_did(exported):
    path, program = exported
    fast = ttb.compile_file(path, device="cpu")
    for batch in (2, 7, 16):
        compare(fast, program, batch)
    assert fast.report.verification and [p.name for p in fast.signature.parameters] == ["x", "extra"]
    (dim,) = fast.signature.dims.values()
    assert (dim.min, dim.max) == (2, 16)


def test_a_narrower_range_and_the_program_kept(exported, tmp_path):
    path, program = exported
    fast = ttb.compile_file(path, device="cpu", ranges={"x": ((2, 4), (3, 4), (8, 4))}, source=True)
    (dim,) = fast.signature.dims.values()
    assert (dim.min, dim.opt, dim.max) == (2, 3, 8)
    fast.save(tmp_path / "kept.safetensors")
    again = ttb.compile_file(tmp_path / "kept.safetensors", device="cpu")  # the third kind of file
    compare(again, program, 5)
    with pytest.raises(InvalidOption, match="the saved module is in fp32"):
        ttb.compile_file(tmp_path / "kept.safetensors", "fp16", device="cpu")


def test_the_weights_keep_their_names(exported):
    path, program = exported
    model = ProgramModule.of(read_archive(path))
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in ("layer.weight", "norm.running_mean", "offset"):
        original = program.state_dict[name] if name in program.state_dict else program.constants[name]
        torch.testing.assert_close(held[name], original.detach(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranges": {"z": ((1,),) * 3}}, "no input 'z'; there is x, extra.a"),
        ({"ranges": {"x": ((1, 4), (1, 4), (8, 4))}}, "may be 2 to 16"),
        ({"ranges": {"x": ((2, 5), (2, 5), (8, 5))}}, "Axis 1 of 'x' is 4"),
        ({"ranges": {"x": ((2,), (2,), (8,))}}, "has 2 dimensions"),
        ({"dynamic_batch": (1, 2, 64)}, "may be 2 to 16"),
        ({"device": "cpu", "target": "sm89"}, "give one of them"),
        ({"backend": "onxx"}, "Did you mean 'onnx'"),
    ],
)
def test_what_does_not_fit_the_program_is_said(exported, options, message):
    with pytest.raises(InvalidOption, match=message):
        ttb.compile_file(exported[0], **{"device": "cpu", **options})


def test_an_endless_size_needs_a_range(tmp_path):
    program = torch.export.export(
        nn.Linear(4, 2).eval(), (torch.randn(3, 4),), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    torch.export.save(program, tmp_path / "endless.pt2")
    with pytest.raises(InvalidOption, match="has no upper end; give its range"):
        ttb.compile_file(tmp_path / "endless.pt2", device="cpu")
    fast = ttb.compile_file(tmp_path / "endless.pt2", device="cpu", dynamic_batch=(1, 2, 4))
    x = torch.randn(4, 4)
    torch.testing.assert_close(fast(x), program.module()(x), rtol=1e-4, atol=1e-5)


# -- hostile archives --------------------------------------------------------------------------------------------------


class Harmful:
    def __reduce__(self):
        return (os.system, ("touch hacked",))


def harmful() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": Harmful()}, buffer)
    return buffer.getvalue()


def altered(path, folder, change, **settings):
    """The archive with its entries as ``change(name, data)`` has them."""
    target = folder / "altered.pt2"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", **settings) as written:
        for entry in source.infolist():
            written.writestr(entry.filename, change(entry.filename, source.read(entry)))
    return target


def in_json(name, edit):
    """A change to the JSON in the entry whose name ends with ``name``."""

    def change(entry, data):
        if not entry.endswith(name):
            return data
        document = json.loads(data)
        edit(document)
        return json.dumps(document).encode()

    return change


def first_node(**fields):
    return in_json("models/model.json", lambda d: d["graph_module"]["graph"]["nodes"][0].update(fields))


def call(**fields):
    return in_json("models/model.json", lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(fields))


def weight(**fields):
    return in_json("weights_config.json", lambda d: d["config"]["layer.weight"].update(fields))


def meta(**fields):
    return in_json("weights_config.json", lambda d: d["config"]["layer.weight"]["tensor_meta"].update(fields))


EVIL = "__import__('os').system('touch hacked')"


@pytest.mark.parametrize(
    "change",
    [
        weight(use_pickle=True),
        weight(use_pickle=1),
        weight(path_name="../../../etc/passwd"),
        weight(tensor_meta=None),
        meta(sizes=[{"as_int": 2**40}, {"as_int": 2**40}]),
        meta(strides=[{"as_int": 400}, {"as_int": 1}]),
        meta(sizes=[{"as_int": 2**30}, {"as_int": 4}], strides=[{"as_int": 0}, {"as_int": 1}]),
        meta(storage_offset={"as_int": -1}),
        meta(sizes=[{"as_expr": {"expr_str": EVIL}}, {"as_int": 4}]),
        meta(dtype="os"),
        first_node(target="torch.os.system"),
        first_node(target="torch.ops.aten.from_file.default"),
        first_node(target="builtins.eval"),
        first_node(name=f"x = {EVIL} #"),
        call(forward_arg_names=["x): " + EVIL + " #", "extra"], in_spec="[1, []]"),
        call(in_spec="[1, " * 200),
        call(out_spec=json.dumps([1, {"type": "builtins.dict", "context": EVIL, "children_spec": []}])),
        in_json("models/model.json", lambda d: d.update(guards_code=[EVIL], range_constraints={EVIL: {}})),
        in_json("models/model.json", lambda d: d["graph_module"].update(signature=[])),
        lambda name, data: harmful() if name.endswith("models/model.json") else data,
        lambda name, data: harmful() if name.endswith("weights_config.json") else data,
        lambda name, data: b"[" * 100_000 if name.endswith("models/model.json") else data,
    ],
)
def test_a_hostile_archive_is_refused_or_harmless(exported, tmp_path, monkeypatch, change):
    path, program = exported
    monkeypatch.chdir(tmp_path)
    target = altered(path, tmp_path, change)
    try:
        model = ProgramModule.of(read_archive(target))
    except InvalidFile:
        pass
    else:  # what was changed was never looked at
        extra = {"a": torch.ones(2)}
        x = torch.ones(2, 4)
        torch.testing.assert_close(model(x, extra=extra)[0]["y"], program.module()(x, extra=extra)[0]["y"])
    assert not (tmp_path / "hacked").exists()


def test_pickled_example_inputs_are_never_read(exported, tmp_path, monkeypatch):
    path, program = exported
    monkeypatch.chdir(tmp_path)
    target = altered(path, tmp_path, lambda name, data: harmful() if "sample_inputs" in name else data)
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    model = ProgramModule.of(read_archive(target))
    extra = {"a": torch.ones(2)}
    torch.testing.assert_close(
        model(torch.ones(2, 4), extra=extra)[0]["y"], program.module()(torch.ones(2, 4), extra=extra)[0]["y"]
    )
    assert not (tmp_path / "hacked").exists()


def test_the_harm_is_real(exported, tmp_path, monkeypatch):
    """What the tests above keep from happening does happen with torch.load() as torch.export.load() calls it."""
    monkeypatch.chdir(tmp_path)
    torch.load(io.BytesIO(harmful()), weights_only=False)
    assert (tmp_path / "hacked").exists()


def test_a_compressed_archive_is_refused(exported, tmp_path):
    target = altered(exported[0], tmp_path, lambda name, data: data, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InvalidFile, match="compressed"):
        read_archive(target)


def test_accidents_to_an_archive_are_refused_or_harmless(exported, tmp_path):
    data = exported[0].read_bytes()
    choose = random.Random(0)
    refused = 0
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(choose.randint(1, 3)):
            at = choose.randrange(len(changed))
            length = choose.choice([1, 4, 100])
            if choose.random() < 0.5:
                changed[at : at + length] = choose.randbytes(length)
            else:
                del changed[at : at + length]
        target = tmp_path / "accident.pt2"
        target.write_bytes(changed)
        try:
            if kind_of(target) == "exported program":
                ProgramModule.of(read_archive(target))
        except BridgeError:
            refused += 1
    assert refused > 75


# -- ONNX files --------------------------------------------------------------------------------------------------------


def onnx_model(path, batch="batch", dtype=TensorProto.FLOAT, outputs=1):
    """``input.1 [batch, 4]`` and ``mask [batch, 4]`` to ``1_out = relu(input.1 @ w) + mask``, and its square."""
    array = np.random.default_rng(0).standard_normal((4, 4), dtype=np.float32)
    array = array.astype(helper.tensor_dtype_to_np_dtype(dtype))
    nodes = [
        helper.make_node("MatMul", ["input.1", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Add", ["r", "mask"], ["1_out"]),
        helper.make_node("Mul", ["1_out", "1_out"], ["square"]),
    ]
    values = [helper.make_tensor_value_info(name, dtype, [batch, 4]) for name in ("input.1", "mask", "1_out", "square")]
    graph = helper.make_graph(
        nodes[: 2 + outputs], "test", values[:2], values[2 : 2 + outputs], [numpy_helper.from_array(array, "w")]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return torch.from_numpy(array.astype(np.float32))


@pytest.mark.parametrize("batch", ["batch", "N 1", None, 3])
def test_an_onnx_file_on_the_cpu(tmp_path, batch):
    path = tmp_path / "model.onnx"
    w = onnx_model(path, batch, outputs=2)
    options = {} if batch == 3 else {"dynamic_batch": (1, 2, 8)}
    fast = ttb.compile_file(path, device="cpu", **options)
    assert [parameter.name for parameter in fast.signature.parameters] == ["input_1", "mask"]
    x, mask = torch.randn(3, 4), torch.randn(3, 4)
    expected = torch.relu(x @ w) + mask
    for result in (fast(x, mask), fast(input_1=x, mask=mask)):
        torch.testing.assert_close(result, {"1_out": expected, "square": expected**2}, rtol=1e-4, atol=1e-5)
    fast.save(tmp_path / "model.safetensors")
    torch.testing.assert_close(ttb.load(tmp_path / "model.safetensors")(x, mask)["1_out"], expected)
    assert "nothing to compare it with" in repr(fast.report) and "verify=False" not in repr(fast.report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Axis 0 of the input input.1: float32.batch, 4. is dynamic; give its range"),
        ({"ranges": {"x": ((1, 4),) * 3}}, "no input 'x'; there is input.1, mask"),
        ({"ranges": {"mask": ((1, 4), (2, 4), (8, 4))}}, "input.1.* is dynamic"),
        ({"dynamic_batch": (1, 2, 8), "precision": "fp16"}, "is in fp32, which TensorRT follows"),
        ({"dynamic_batch": (1, 2, 8), "source": True}, "holds no exported program"),
        ({"dynamic_batch": (1, 2, 8), "ranges": {"mask": ((1, 4), (2, 4), (9, 4))}}, "has two ranges"),
        ({"ranges": {"mask": ((1, 5), (2, 5), (9, 5))}, "dynamic_batch": (1, 2, 9)}, "Axis 1 .* is fixed"),
    ],
)
def test_what_does_not_fit_the_onnx_file_is_said(tmp_path, options, message):
    onnx_model(tmp_path / "model.onnx")
    with pytest.raises(InvalidOption, match=message):
        ttb.compile_file(tmp_path / "model.onnx", device="cpu", **options)


def test_a_plan_from_an_onnx_file(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    for dtype, precision in ((TensorProto.FLOAT, "fp32"), (TensorProto.FLOAT16, "fp16")):
        onnx_model(tmp_path / "model.onnx", dtype=dtype)
        plan = ttb.compile_file(tmp_path / "model.onnx", target="sm89", dynamic_batch=(1, 2, 8))
        assert plan.precision == precision and plan.provenance["target"] == "sm89"
        plan.save_plan(tmp_path / "model.plan")
        assert (tmp_path / "model.plan").read_bytes()[:4] == b"vtrt"
        with pytest.raises(InvalidFile, match="is a TensorRT plan"):
            ttb.compile_file(tmp_path / "model.plan")


@pytest.mark.gpu
def test_an_onnx_file_on_the_gpu_is_compared_with_onnx_runtime(tmp_path):
    w = onnx_model(tmp_path / "model.onnx")
    fast = ttb.compile_file(tmp_path / "model.onnx", dynamic_batch=(1, 2, 8), build=ttb.BuildOptions(tf32=True))
    x, mask = torch.randn(5, 4), torch.randn(5, 4)
    torch.testing.assert_close(fast(x.cuda(), mask.cuda()).cpu(), torch.relu(x @ w) + mask, rtol=5e-3, atol=5e-3)
    assert fast.report.verification and "compared with ONNX Runtime" in repr(fast.report)


@pytest.mark.gpu
def test_an_exported_program_on_the_gpu(exported):
    path, program = exported
    fast = ttb.compile_file(path, "fp16")
    x, extra = torch.randn(6, 4), {"a": torch.randn(2)}
    result, size = fast(x.cuda(), extra={"a": extra["a"].cuda()})
    torch.testing.assert_close(result["y"].cpu(), program.module()(x, extra=extra)[0]["y"], rtol=2e-2, atol=2e-2)
    assert size == 6 and fast.report.verification


@pytest.mark.parametrize("data", [b"", b"  \n", b"hello, world", b"\x08\x01" * 50, b"PK\x03\x04", b"\0" * 8 + b"{}"])
def test_what_is_no_such_file(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(InvalidFile):
        ttb.compile_file(tmp_path / "file")
    with pytest.raises(InvalidFile):
        ttb.inspect(tmp_path / "file")
