"""The command torchtrt-bridge: what it writes, what it says, and how it ends."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import onnx
import pytest
import torch

import torchtrt_bridge as ttb
from torchtrt_bridge import cli

testing = pytest.importorskip("click.testing")
from torchtrt_bridge.commands import commands  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parent / "trt"))
import networks  # noqa: E402


@pytest.fixture
def run(monkeypatch, capfd):
    """``run("compile", ...)``: exit code, standard output and standard error, as a shell has them."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["torchtrt-bridge", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    return call


@pytest.fixture
def model(tmp_path):
    onnx.save(networks.mlp(8, 2), tmp_path / "mlp.onnx")
    return tmp_path / "mlp.onnx"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved module with its program, in each form; and what it computes."""
    folder = tmp_path_factory.mktemp("saved")
    linear, x = torch.nn.Linear(4, 3).eval(), torch.randn(2, 4)
    fast = ttb.compile(linear, x, source=True, dynamic_batch=(1, 2, 8))
    fast.save(folder / "saved.safetensors")
    torch.save(fast.state_dict(), folder / "saved.pth")
    torch.save(torch.nn.Sequential(fast, torch.nn.Linear(3, 2)).state_dict(), folder / "nested.pth")
    torch.save(fast, folder / "whole.pth")
    torch.save(linear.state_dict(), folder / "other.pth")
    torch.export.save(torch.export.export(linear, (x,)), folder / "program.pt2")
    return folder, linear, x


def test_without_a_command_it_says_what_there_is(run):
    code, out, err = run()
    assert code == 2 and "compile" in out + err and "inspect" in out + err and "doctor" in out + err
    assert run("--version") == (0, f"torchtrt-bridge, version {ttb.__version__}\n", "")
    code, out, _ = run("compile", "--help")
    assert code == 0 and "--minShapes" in out and "nothing of it is run as code" in out


def test_the_module_is_a_command_too():
    done = subprocess.run([sys.executable, "-m", "torchtrt_bridge", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and ttb.__version__ in done.stdout


def test_compile_an_onnx_model_for_the_cpu(run, model):
    code, out, err = run("compile", model, "--device", "cpu", "--dynamic-batch", "1,4,8")
    assert (code, err) == (0, "") and "onnxruntime" in out and "wrote" in out
    fast = ttb.load(model.with_suffix(".safetensors"))
    x = torch.randn(5, 8)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(model).graph.initializer}
    expected = x
    for index in range(2):
        expected = torch.relu(expected @ torch.tensor(weights[f"layers.{index}.weight"]))
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="without a GPU, a plan for every GPU is what is built")
@pytest.mark.parametrize("name", ["mlp.plan", "mlp.engine", "mlp.pth"])
def test_compile_a_plan_with_trtexecs_shapes(run, model, name):
    pytest.importorskip("tensorrt_rtx")
    target = model.with_name(name)
    code, out, err = run("compile", model, "--minShapes=x:1x8", "--optShapes=x:4x8", "--maxShapes=x:8x8", "-o", target)
    assert code == 0 and "a GPU elsewhere, portable" in out
    if target.suffix == ".pth":
        plan = ttb.TRTModule()
        plan.load_state_dict(torch.load(target))
        assert (plan.signature.dims["batch"].opt, plan.signature.dims["batch"].max) == (4, 8)
    else:
        assert target.read_bytes()[:4] == b"vtrt"


@pytest.mark.parametrize("name", ["ranges.calibration", "ranges.cache"])
def test_compile_an_exported_program_in_int8_with_ranges_from_a_file(run, tmp_path, name):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8)).eval()
    x = torch.randn(64, 16)
    program = torch.export.export(model, (x,))
    torch.export.save(program, tmp_path / "program.pt2")
    found = ttb.calibrate(program.module(), x, [x])
    if name.endswith(".cache"):
        (tmp_path / name).write_bytes(found.to_table())
    else:
        found.save(tmp_path / name)
    code, out, err = run(
        "compile", tmp_path / "program.pt2", "--precision", "int8", "--calib", tmp_path / name, "--device", "cpu",
        "--output", tmp_path / "int8.safetensors",
    )  # fmt: skip
    assert code == 0, err
    fast = ttb.load(tmp_path / "int8.safetensors", device="cpu")
    assert fast.precision == "int8" and 1e-4 < (fast(x) - model(x)).norm() / model(x).norm() < 0.1


def test_compile_an_exported_program_and_rebuild_a_saved_module(run, saved, tmp_path):
    folder, linear, x = saved
    for source in ("program.pt2", "saved.safetensors"):
        target = tmp_path / f"{source}.safetensors"
        code, out, err = run("compile", folder / source, "--device", "cpu", "-o", target)
        assert (code, err) == (0, "") and "verified" in out
        torch.testing.assert_close(ttb.load(target)(x), linear(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--device", "cpu"], 2, "InvalidOption: Axis 0 of the input x: float32[batch, 8] is dynamic"),
        (["--device", "cpu", "--dynamic-batch", "1,2"], 2, "'1,2' is no range, such as 1,8,32"),
        (["--device", "tpu"], 2, "InvalidOption: device='tpu'"),
        (["--minShapes", "x"], 2, "'x' is no input with a shape"),
        (["--minShapes", "x:1x8"], 2, "must name the same inputs"),
        (["--shapes", "x:1x8", "--minShapes", "x:1x8", "--maxShapes", "x:1x8"], 2, "not both"),
        (["--precision", "fp17"], 2, "'fp17' is not one of"),
        (["--precision", "fp16", "--dynamic-batch", "1,2,4"], 2, "is in fp32, which TensorRT follows"),
        (["--output", "model.onnx"], 2, "its ending must be one of"),
        (["--output", "none/model.plan"], 2, "the folder none does not exist"),
        (["--optimization-level", "9"], 2, "9 is not in the range"),
        (["--wokspace", "9"], 2, "--workspace"),
        (["--device", "cpu", "--dynamic-batch", "1,2,4", "-o", "x.plan"], 1, "EngineMismatch: This module runs on"),
    ],
)
def test_wrong_use_is_said_without_a_traceback(run, model, arguments, code, message):
    ended, _, err = run("compile", model, *arguments)
    assert ended == code and message in err and "Traceback" not in err and "\n  File" not in err


def test_a_failure_ends_with_one_and_debug_shows_where(run, tmp_path, monkeypatch):
    (tmp_path / "bad.onnx").write_bytes(b"hello")
    code, out, err = run("compile", tmp_path / "bad.onnx")
    assert code == 1 and err.startswith("torchtrt-bridge: InvalidFile: ") and "Traceback" not in err
    assert run("inspect", tmp_path / "bad.onnx")[0] == 1
    assert run("inspect", tmp_path / "none.onnx")[0] == 2
    monkeypatch.setattr(sys, "argv", ["torchtrt-bridge", "--debug", "compile", str(tmp_path / "bad.onnx")])
    with pytest.raises(ttb.errors.InvalidFile):
        cli.main()


# -- inspect -----------------------------------------------------------------------------------------------------------


def looked(path):
    done = testing.CliRunner().invoke(commands, ["inspect", "--json", str(path)])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


@pytest.mark.parametrize("name", ["saved.safetensors", "saved.pth"])
def test_inspect_a_saved_module(saved, name):
    found = looked(saved[0] / name)
    assert found["kind"] == "saved module" and found["size"] == (saved[0] / name).stat().st_size
    facts = found["facts"]
    assert facts["inputs"] == ["input: float32[batch, 4]"] and facts["dims"] == ["batch: 1 to 8, tuned for 2"]
    assert facts["precision"] == "fp32" and facts["digests"] == "right"
    assert facts["program kept to rebuild from"] == "yes" and facts["made with"]["torch"] == torch.__version__


def test_inspect_what_holds_a_module_among_others(saved):
    facts = looked(saved[0] / "nested.pth")["facts"]
    assert facts["compiled module '0'"]["digests"] == "right" and set(facts["tensors"]) == {"1.weight", "1.bias"}
    other = looked(saved[0] / "other.pth")
    assert other["kind"] == "state dict" and "no compiled module" in other["facts"]["note"]
    whole = looked(saved[0] / "whole.pth")
    assert whole["kind"] == "pickled module" and "torch.load() it" in whole["facts"]["note"]


def test_inspect_programs_models_and_plans(saved, model, tmp_path):
    program = looked(saved[0] / "program.pt2")
    assert program["kind"] == "exported program" and program["facts"]["operators"] == {"aten.linear.default": 1}
    assert program["facts"]["arguments"] == "input" and program["facts"]["weights"].startswith("2 tensors")
    found = looked(model)
    assert found["kind"] == "onnx" and found["facts"]["inputs"] == ["x: float32[batch, 8]"]
    assert found["facts"]["operators"] == {"MatMul": 2, "Relu": 2} and found["facts"]["opset"] == 18
    (tmp_path / "model.plan").write_bytes(b"ptrt" + bytes(100))
    assert looked(tmp_path / "model.plan")["facts"]["what"] == "a plan of TensorRT"


def test_inspect_loads_no_engine_and_prints_a_table(saved):
    code = (
        "import sys; from torchtrt_bridge.commands import commands\n"
        f"commands(['inspect', {str(saved[0] / 'saved.safetensors')!r}], standalone_mode=False)\n"
        "assert not [name for name in sys.modules if name.startswith(('tensorrt', 'onnx'))], 'loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "digests" in done.stdout and "input: float32[batch, 4]" in done.stdout
    found = ttb.inspect(saved[0] / "saved.safetensors")
    assert "input: float32[batch, 4]" in repr(found) and found._repr_html_().startswith("<table>")


def test_inspect_a_damaged_module_names_what_is_damaged(saved, tmp_path):
    data = bytearray((saved[0] / "saved.safetensors").read_bytes())
    at = data.index(b"ir_version") if b"ir_version" in data else len(data) - 200
    data[at] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(data)
    done = testing.CliRunner().invoke(commands, ["inspect", str(tmp_path / "damaged.safetensors")])
    assert isinstance(done.exception, ttb.errors.InvalidFile) and "digest" in str(done.exception)
