"""The registry of converters: what may be registered, what clashes, who sees it, what is refused by name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import ConverterClash, InvalidOption
from torchtrt_bridge.registry import Registry
from torchtrt_bridge.registry.table import ROUTES
from torchtrt_bridge.selection import BACKENDS


@torch.library.custom_op("registry_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x + x


@torch.library.custom_op("registry_tests::write", mutates_args=("out",))
def write(x: Tensor, out: Tensor) -> None:
    out.copy_(x)


class Layer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Straight(torch.autograd.Function):
    pass


def plain(x: Tensor) -> Tensor:
    return x


def form(x: Tensor) -> Tensor:
    return 2 * x


def other_form(x: Tensor) -> Tensor:
    return x + x


@pytest.fixture
def registry() -> Iterator[Registry]:
    yield Registry()


@pytest.mark.parametrize(
    ("target", "kind", "name"),
    [
        ("registry_tests::twice", "operator", "registry_tests::twice"),
        ("aten::add.Tensor", "operator", "aten::add.Tensor"),
        (torch.ops.registry_tests.twice, "operator", "registry_tests::twice"),
        (torch.ops.aten.add.Tensor, "operator", "aten::add.Tensor"),
        (twice, "operator", "registry_tests::twice.default"),
        (Layer, "module", f"{__name__}.Layer"),
        (Straight, "autograd function", f"{__name__}.Straight"),
        (plain, "function", f"{__name__}.plain"),
    ],
)
def test_a_target_is_an_operator_a_class_or_a_function(registry: Registry, target: Any, kind: str, name: str) -> None:
    registered = registry(target)(form).registration
    assert (registered.target.kind, registered.target.name) == (kind, name)
    assert registry.snapshot().registrations[0] is registered


def test_an_overload_and_all_of_them() -> None:
    registry = Registry()
    every, one = registry("aten::add")(form).registration, registry(torch.ops.aten.add.Tensor)(form).registration
    snapshot = registry.snapshot()
    assert snapshot.for_operator(torch.ops.aten.add.Tensor)[:2] == (one, every)
    assert snapshot.for_operator(torch.ops.aten.add.Scalar)[:1] == (every,)
    assert every not in snapshot.for_operator(torch.ops.aten.sub.Tensor)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("registry_tests::twise", {}, "registry_tests::twise.*Did you mean 'registry_tests::twice'"),
        ("aten::grid_sampel", {}, "Did you mean 'aten::grid_sampler"),
        ("aten::add.Tenser", {}, "no overload 'Tenser'.*Did you mean 'Tensor'"),
        ("twice", {}, "namespace::name"),
        ("registry_tests::write", {}, "writes to its argument 'out'.*Convert the function"),
        (3, {}, "a target is an operator"),
        (plain, {"routes": ("onxx",)}, "there is no 'onxx'.*Did you mean 'onnx'"),
        (plain, {"routes": "onnx"}, r"give a tuple, \('onnx',\)"),
        (plain, {"flavours": ("rtx",)}, "there is no 'rtx'.*'tensorrt_rtx'"),
        (plain, {"precision": "fp16"}, "there is no 'fp16'"),
        (plain, {"priority": "high"}, "give a whole number"),
        (plain, {"when": True}, "give a function of a call"),
    ],
)
def test_what_cannot_be_registered_is_refused_by_name(target: Any, options: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        Registry()(target, **options)


def test_a_second_converter_of_one_target_clashes_with_both_places_named(registry: Registry) -> None:
    registry(plain)(form)
    with pytest.raises(ConverterClash) as caught:
        registry(plain)(other_form)
    for function in (form, other_form):
        line = function.__code__.co_firstlineno
        assert f"{__name__}.{function.__name__} ({__file__}:{line})" in str(caught.value)
    registry(plain, priority=1)(other_form)
    registry(plain, priority=2, routes=("onnx",))(form)
    registry(plain, priority=2, routes=("torch2trt",))(other_form)
    assert [r.priority for r in registry.snapshot().of_python[:4]] == [2, 2, 1, 0]


def test_the_same_definition_again_replaces_the_first_as_when_a_cell_is_run_twice(registry: Registry) -> None:
    def cell(value: int) -> Any:
        @registry(plain)
        def converted(x: Tensor) -> Tensor:
            return x * value

        @converted.tensorrt
        def _(ctx: Any, x: Any) -> int:
            return value

        return converted

    cell(1)
    second = cell(2)
    (registered,) = registry.snapshot().of_python
    assert registered is second.registration and registered.forms == ("aten", "tensorrt")
    assert registered.tensorrt is not None and registered.tensorrt(None, None) == 2
    with pytest.raises(ConverterClash, match="two tensorrt forms"):
        second.tensorrt(form)


def test_a_converter_is_the_function_that_it_decorates(registry: Registry) -> None:
    converted = registry(plain)(form)
    assert converted(torch.tensor(3)) == 6
    only_tensorrt = registry(Layer)
    with pytest.raises(InvalidOption, match="no form yet"):
        _ = only_tensorrt.registration
    assert only_tensorrt.tensorrt(form) is form
    assert only_tensorrt.registration.forms == ("tensorrt",)


def test_a_scope_goes_before_what_is_around_it_and_leaves_nothing(registry: Registry) -> None:
    outside = registry(plain)(form).registration
    given = registry(plain, register=False)(other_form)
    assert given.registration not in registry.snapshot().registrations
    with registry.scope(given):
        inside = registry(Layer)(form).registration
        assert registry.snapshot().of_python[:3] == (given.registration, inside, outside)
        seen: list[Any] = []
        thread = threading.Thread(target=lambda: seen.extend(registry.snapshot().of_python))
        thread.start()
        thread.join()
        assert given.registration not in seen and outside in seen
    assert registry.snapshot().of_python == (outside,)


def test_converters_of_one_call_go_before_all_others(registry: Registry) -> None:
    outside = registry(plain, priority=9)(form).registration
    given = registry(plain, register=False)(other_form)
    assert registry.snapshot([given]).of_python == (given.registration, outside)
    with pytest.raises(InvalidOption, match="converter"):
        registry.snapshot([form])


@pytest.mark.parametrize("by", ["converter", "form", "target"])
def test_a_converter_is_removed(registry: Registry, by: str) -> None:
    converted = registry(plain)(form)
    registry.remove({"converter": converted, "form": form, "target": plain}[by])
    assert not registry.snapshot().of_python
    with pytest.raises(InvalidOption, match="not registered"):
        registry.remove(converted)


def test_a_snapshot_is_not_disturbed_by_later_registrations(registry: Registry) -> None:
    first = registry(plain)(form).registration
    snapshot = registry.snapshot()
    registry.remove(plain)
    registry(Layer)(form)
    assert snapshot.of_python == (first,)


def test_the_list_has_the_built_in_converters_with_their_reasons() -> None:
    listed = {r.target.name: r for r in ttb.converter.list() if r.source == "built-in"}
    cdist = listed["aten::cdist.default"]
    assert cdist.forms == ("aten",) and cdist.routes == ("onnx",)
    assert "No ONNX function found" in cdist.reason
    assert Path(cdist.origin.file).name == "distance.py" and cdist.origin.line > 1
    assert all(r.reason for r in listed.values())


def test_routes_are_those_that_there_are() -> None:
    assert set(ROUTES) == {route.name for route in BACKENDS}


def test_packages_register_through_their_entry_point_and_a_broken_one_warns(tmp_path: Path) -> None:
    _package(
        tmp_path, "good_kernels", "import torchtrt_bridge as ttb\n\n@ttb.converter('aten::frac')\ndef frac(x): ..."
    )
    _package(tmp_path, "bad_kernels", "import no_such_module")
    program = """
        import torchtrt_bridge as ttb, warnings
        with warnings.catch_warnings(record=True) as caught:
            found = [r for r in ttb.converter.list() if r.target.name == "aten::frac"]
        print([(r.source, r.origin.module) for r in found], [str(w.message) for w in caught])
    """
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, check=True
    )
    assert "[('good-kernels', 'good_kernels')]" in run.stdout
    assert re.search(
        r"converters of the package 'bad-kernels' are missing.*No module named 'no_such_module'", run.stdout
    )


def _package(folder: Path, name: str, code: str) -> None:
    """An installed package ``name`` with an entry point for converters."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[torchtrt_bridge.converters]\n{name} = {name}\n")
