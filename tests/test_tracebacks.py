"""An exception that leaves compile() holds no frame's variables, however it came about; IPython shows it in short."""

from __future__ import annotations

import functools
import gc
import importlib
import pickle
import traceback
import types
import weakref

import pytest
import torch
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge import compiler, selection
from torchtrt_bridge.backends.onnx import OnnxBackend
from torchtrt_bridge.errors import VerificationFailed
from torchtrt_bridge.tracebacks import chain, render

NEVER = {"verify": ttb.Tolerance(-1.0, -1.0, -1.0), "backend": "onnx"}


class Fails(nn.Module):
    def forward(self, x):
        secret = x + 1
        return secret @ secret


@pytest.fixture
def made(monkeypatch):
    """Weak references to every captured model and every compiled module that is made."""
    references = []
    capture, adopt = compiler.capture, ttb.TRTModule._adopt

    def noting_capture(*args, **kwargs):
        captured = capture(*args, **kwargs)
        references.extend((weakref.ref(captured.program), weakref.ref(captured.inputs[0])))
        return captured

    def noting_adopt(self, artifact, *rest):
        references.append(weakref.ref(self))
        return adopt(self, artifact, *rest)

    monkeypatch.setattr(compiler, "capture", noting_capture)
    monkeypatch.setattr(ttb.TRTModule, "_adopt", noting_adopt)
    return references


def convert_and_raise(kind, made):
    """A route that converts, and then fails."""
    convert = OnnxBackend.convert

    def failing(self, *args):
        artifact = convert(self, *args)
        made.append(weakref.ref(artifact))
        try:
            raise RuntimeError("no more")
        except RuntimeError as cause:
            raise kind("no more") from cause

    return failing


@pytest.mark.parametrize("kind", ["conversion", "verification", "interrupt", "build"])
def test_an_exception_holds_nothing_that_was_made(made, monkeypatch, kind):
    model, x = nn.Linear(3, 4).eval(), torch.randn(2, 3)
    error = KeyboardInterrupt if kind == "interrupt" else ttb.errors.ConversionFailed
    if kind != "verification":
        monkeypatch.setattr(OnnxBackend, "convert", convert_and_raise(error, made))
    building = functools.partial(ttb.build, backend="onnx")
    compile = building if kind == "build" else functools.partial(ttb.compile, **NEVER)
    with pytest.raises(error if kind != "verification" else VerificationFailed) as caught:
        compile(model, x)
    assert len(made) > 2
    gc.collect()  # torch's graphs refer to themselves; what is left now is what the exception holds
    assert [reference() for reference in made if reference() is not None] == []
    assert len(traceback.extract_tb(caught.value.__traceback__)) > 2  # it still says where


def test_the_frames_of_causes_are_emptied_too():
    with pytest.raises(ttb.errors.InvalidInput, match="model itself fails") as caught:
        ttb.compile(Fails().eval(), torch.randn(2, 3))
    names = [
        name
        for error in chain(caught.value)
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == __file__ and frame.f_code.co_name == "forward"
        for name in frame.f_locals
    ]
    assert isinstance(caught.value.__cause__, RuntimeError) and "secret" not in names


def test_frames_without_a_line_number_are_left_out(monkeypatch):
    """An interrupt may meet a frame before its first line; IPython then fails to show the exception."""

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    lineless = types.FunctionType(stopped.__code__.replace(co_linetable=b""), {})
    monkeypatch.setattr(compiler, "capture", lambda *args, **kwargs: lineless())
    with pytest.raises(KeyboardInterrupt) as caught:
        ttb.compile(nn.Linear(3, 4).eval(), torch.randn(2, 3))
    frames = [(frame.f_code.co_name, line) for frame, line in traceback.walk_tb(caught.value.__traceback__)]
    assert all(line is not None for _, line in frames) and frames[-1][0] == "<lambda>"


def test_an_exception_that_the_caller_handles_keeps_its_variables():
    def risky():
        mine = 7
        raise ValueError(f"{mine}")

    try:
        risky()
    except ValueError as error:
        with pytest.raises(ttb.errors.InvalidInput):
            ttb.compile(Fails().eval(), torch.randn(2, 3))
        assert error.__traceback__.tb_next.tb_frame.f_locals["mine"] == 7


def test_a_module_made_after_a_failed_route_leaves_nothing(made, monkeypatch):
    class Refusing(OnnxBackend):
        name = "refusing"

        def convert(self, *args):
            raise ttb.errors.ConversionFailed("not this one")

    monkeypatch.setattr(selection, "BACKENDS", (Refusing(), OnnxBackend()))
    fast = ttb.compile(nn.Linear(3, 4).eval(), torch.randn(2, 3))
    gc.collect()
    assert [r() for r in made if r() is not None] == [fast]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_module_goes_with_its_last_reference(precision):
    x = torch.randn(2, 3)
    fast = ttb.compile(nn.Linear(3, 4).eval(), x, precision)
    fast(x), fast.report, fast.state_dict(), repr(fast), fast._repr_html_()
    references = [weakref.ref(each) for each in (fast, fast._artifact, fast._execution)]
    gc.collect()
    gc.disable()  # an engine's memory cannot wait for it
    try:
        del fast
        assert [reference() for reference in references] == [None] * 3
    finally:
        gc.enable()


def test_in_short_the_summary_the_users_line_the_details_the_cause():
    with pytest.raises(VerificationFailed) as caught:
        ttb.compile(nn.Linear(3, 4).eval(), torch.randn(2, 3), **NEVER)
    lines = caught.value._render_traceback_()
    assert lines[0].endswith("VerificationFailed\033[0m: " + str(caught.value).splitlines()[0])
    assert lines[2].startswith(f"at {__file__}, line ") and "ttb.compile(nn.Linear" in lines[3]
    assert lines[5].startswith("  MISS output at the example")

    with pytest.raises(ttb.errors.InvalidInput) as caught:
        ttb.compile(Fails().eval(), torch.randn(2, 3))
    assert "return secret @ secret" not in "\n".join(render(caught.value))  # the cause's frames are elsewhere
    assert "mat1 and mat2" in "\n".join(render(caught.value))
    assert len(render(caught.value)) < 10


def test_in_short_a_library_that_asked_for_what_is_not_there_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "a_library.py").write_text("def classes(model):\n    return model.head.out_features\n")
    monkeypatch.syspath_prepend(folder)
    a_library = importlib.import_module("a_library")
    fast = ttb.compile(nn.Linear(3, 4).eval(), torch.randn(2, 3))
    with pytest.raises(ttb.errors.NoLayers) as caught:
        a_library.classes(fast)
    lines = render(caught.value)
    assert lines[2].startswith(f"at {__file__}") and "a_library.classes(fast)" in lines[3]
    assert lines[4] == f"through {folder / 'a_library.py'}, line 2" and "model.head" in lines[5]


def test_a_failed_verification_has_its_table_as_data_and_as_html():
    model = nn.Linear(3, 4).eval()
    with pytest.raises(VerificationFailed) as caught:
        ttb.compile(model, {"input": torch.randn(2, 3)}, dynamic_batch=(1, 2, 5), **NEVER)
    error = pickle.loads(pickle.dumps(caught.value))
    assert [row["at"] for row in error.rows] == ["the example", "batch=1", "batch=5"]
    assert str(error) == str(caught.value)
    page = error._repr_html_()
    assert page.count("<tr>") == 4 and "batch=5" in page and "fp32" in page
    assert all(f"{row['relative_l2']:.2e}" in page for row in error.rows)


def test_where_every_route_is_wrong_the_table_has_all_of_them():
    with pytest.raises(VerificationFailed) as caught:
        ttb.compile(nn.Linear(3, 4).eval(), torch.randn(2, 3), verify=NEVER["verify"])
    routes = [row["result"] for row in caught.value.rows]
    assert routes[0] == "onnx: output" and len(routes) > 1


def test_html_escapes_names_that_users_and_files_give():
    class Named(nn.Module):
        def forward(self, x):
            return {"<script>": x * 2}

    fast = ttb.compile(Named().eval(), torch.randn(2, 3))
    for page in (fast._repr_html_(), fast.report._repr_html_()):
        assert "&lt;script&gt;" in page and "<script" not in page
