"""Any model, any inputs, any results; what cannot be captured is said clearly, and nothing of the user's changes."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import logging
import math
import subprocess
import sys
import threading
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from comparing import assert_same, nothing_changes
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.capture import capture
from torchtrt_bridge.errors import (
    CaptureFailed,
    DeviceMismatch,
    FixedArgumentChanged,
    InvalidInput,
    ModelInTraining,
    NotTrainable,
    PythonSideEffect,
    StateMutated,
)
from torchtrt_bridge.structure import FallbackResult


class Model(nn.Module):
    """A linear layer and a buffer, called as the test says: ``function(self, *args, **kwargs)``."""

    def __init__(self, function: Any, **attributes: Any):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]))
        self.function = function
        for name, value in attributes.items():
            setattr(self, name, value)
        self.eval()

    def forward(self, x: Any, y: Any = None) -> Any:
        return self.function(self, x) if y is None else self.function(self, x, y)


@dataclasses.dataclass
class Box:
    """Plain, and registered with nobody."""

    corner: torch.Tensor
    size: Any = None
    label: str = ""


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Counter:
    n = 0


def fast_and_eager(model: nn.Module, *args: Any, **options: Any) -> tuple[Any, Any]:
    fast = ttb.compile(model, args, **options)
    with torch.no_grad():
        return fast(*args), model(*args)


# -- inputs ------------------------------------------------------------------------------------------------------------


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.eval()

    def forward(self, x, other=None, /, *more, scale: float = 1.0, flip: bool = False, mode: str = "sum", **named):
        value = self.linear(x) * scale
        for tensor in (*more, *named.values()):
            value = value + tensor
        value = value if other is None else value - 3 * other
        value = -value if flip else value
        return value.sum(-1) if mode == "sum" else value


X, Y, Z = (torch.linspace(-1, 1, 12).reshape(3, 4) * k for k in (1.0, 0.5, -2.0))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X,), {}),
        ((X, Y), {}),
        ((X, None, Y, Z), {"scale": 0.5}),
        ((X, Y, Z), {"flip": True, "mode": "none", "bias": Z}),
        ((X,), {"late": Y, "later": Z}),
    ],
    ids=["one", "two", "var-positional", "flags", "var-keyword"],
)
def test_every_kind_of_parameter(args, kwargs):
    model = Mixer()
    bound = functools.partial(model.forward, **kwargs)

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model
            self.forward = bound
            self.eval()

    fast = ttb.compile(Called(), args)
    assert_same(fast(*args), model(*args, **kwargs).detach())


def test_positional_keyword_only_and_var_arguments_bind_as_the_models_own():
    class Keywords(nn.Module):
        def forward(self, x, *rest, scale, flip=False, **named):
            total = x * scale + sum(rest) + sum(named.values())
            return -total if flip else total

    model = Keywords().eval()
    fast = ttb.compile(model, {"x": X, "scale": Y, "flip": True, "bias": Z})
    assert_same(fast(x=Z, scale=X, flip=True, bias=Y), model(Z, scale=X, flip=True, bias=Y))
    assert_same(fast(Z, bias=Y, flip=True, scale=X), model(Z, scale=X, flip=True, bias=Y))
    with pytest.raises(FixedArgumentChanged, match="'flip' was True .* this call has False"):
        fast(X, scale=Y, flip=False, bias=Z)


def test_a_dict_of_inputs_is_keywords_and_keeps_the_models_order():
    model = Model(lambda self, x, y: self.linear(x) - 2 * y)
    fast = ttb.compile(model, {"y": Y, "x": X})
    expected = model(Z, X).detach()
    assert_same(fast(Z, X), expected)
    assert_same(fast(y=X, x=Z), expected)
    assert_same(fast(Z, y=X), expected)


def test_a_captured_keyword_after_one_that_was_left_out_is_not_taken_for_it():
    class Gap(nn.Module):
        def forward(self, x, mask=None, position=None):
            x = x if mask is None else x * mask
            return x if position is None else x + position

    model = Gap().eval()
    fast = ttb.compile(model, {"x": X, "position": Y})
    assert_same(fast(X, position=Z), model(X, position=Z))
    assert_same(fast(X, None, Z), model(X, None, Z))
    with pytest.raises((FixedArgumentChanged, InvalidInput), match="mask"):
        fast(X, Z)


def test_nested_inputs():
    def forward(self, x, y):
        return self.linear(x["a"][0]) + x["b"] * y.corner + y.size[1] + (1 if y.label == "big" else 0)

    def nest(a, b, c, d):
        return collections.OrderedDict(a=(a, 3), b=b), Box(c, [2.5, d], "big")

    model = Model(forward)
    fast = ttb.compile(model, nest(X, Y, Z, X + 1))
    assert [spec.name for spec in fast.signature.inputs] == ["x.a.0", "x.b", "y.corner", "y.size.1"]
    other = nest(Z, X, Y, Z - 1)
    assert_same(fast(*other), model(*other).detach())


def test_a_list_of_one_tensor_and_a_bare_tensor_are_inputs_alike():
    model = Model(lambda self, x: self.linear(x))
    expected = model(X).detach()
    for inputs in (X, (X,), [X], {"x": X}):
        assert_same(ttb.compile(model, inputs)(X), expected)


def test_views_and_strided_inputs_are_taken_as_they_are():
    model = Model(lambda self, x: self.linear(x))
    strided = torch.randn(4, 6).t()[::2]
    fast, eager = fast_and_eager(model, strided)
    assert_same(fast, eager)


def test_inputs_that_require_grad_are_captured_without_it():
    model = Model(lambda self, x: self.linear(x))
    x = X.clone().requires_grad_()
    fast = ttb.compile(model, x)
    with torch.no_grad():
        result = fast(x)
    assert not result.requires_grad and x.requires_grad and x.grad is None
    assert_same(result, model(x).detach())
    with pytest.raises(NotTrainable):
        fast(x).sum().backward()


# -- results -----------------------------------------------------------------------------------------------------------

RESULTS = {
    "tuple": lambda self, x: (self.linear(x), x * 2),
    "list": lambda self, x: [self.linear(x), [x * 2]],
    "dict": lambda self, x: {"b": self.linear(x), "a": {"c": x * 2}},
    "OrderedDict": lambda self, x: collections.OrderedDict(b=self.linear(x), a=x * 2),
    "namedtuple": lambda self, x: Pair(self.linear(x), x * 2),
    "dataclass": lambda self, x: Box(self.linear(x), {"w": x * 2}, "seen"),
    "None": lambda self, x: (None, self.linear(x), [None]),
    "numbers": lambda self, x: (1, 2.5, True, "text", math.inf, self.linear(x)),
    "torch's own values": lambda self, x: (x.dtype, x.device, x.shape, self.linear(x)),
    "an input": lambda self, x: (x, self.linear(x), x),
    "a parameter": lambda self, x: (self.linear(x), self.linear.bias),
    "a buffer": lambda self, x: (self.scale, self.linear(x) * self.scale),
    "a constant": lambda self, x: (torch.arange(5), self.linear(x), torch.full((2,), 7.0)),
    "made from parameters": lambda self, x: (self.linear(x), self.linear.weight.sum() * self.scale),
    "the same twice": lambda self, x: (lambda y: (y, y, {"again": y}))(self.linear(x)),
    "a size": lambda self, x: (x.shape[0] * 2, self.linear(x), x.numel()),
    "0-dim": lambda self, x: (self.linear(x).sum(), x.max()),
    "integers": lambda self, x: self.linear(x).argmax(-1),
    "bools": lambda self, x: (self.linear(x) > 0, (x > 0).any()),
    "a view of an input": lambda self, x: (x.t(), self.linear(x)[1:]),
    "empty": lambda self, x: (self.linear(x), x[:0]),
    "a tuple of none": lambda self, x: ((), {}, self.linear(x)),
    "complex": lambda self, x: torch.fft.fft(self.linear(x)),
}


@pytest.mark.parametrize("function", RESULTS.values(), ids=RESULTS)
def test_a_result_comes_back_in_its_own_structure(function):
    fast, eager = fast_and_eager(Model(function), X)
    assert_same(fast, eager)


def test_a_result_that_is_an_input_is_the_very_same_tensor():
    model = Model(lambda self, x: (x, self.linear(x)))
    fast = ttb.compile(model, X)
    assert fast(Z)[0] is Z


def test_the_same_result_twice_is_one_tensor():
    def twice(self, x):
        y = self.linear(x)
        return y, {"again": y}

    fast = ttb.compile(Model(twice), X)
    first, second = fast(X)
    assert first is second["again"]


def test_a_number_from_a_shape_follows_the_shape():
    model = Model(lambda self, x: {"rows": x.shape[0], "twice": (x.shape[0] * 2, x.shape[1]), "y": self.linear(x)})
    fast = ttb.compile(model, X, dynamic_batch=(1, 3, 9))
    for rows in (1, 2, 5, 9):
        x = torch.randn(rows, 4)
        assert_same(fast(x), model(x) | {"y": model(x)["y"].detach()})


def test_a_number_from_the_data_is_refused():
    with pytest.raises(CaptureFailed, match="depends on the values in its inputs"):
        capture(Model(lambda self, x: (self.linear(x), x.nonzero().shape[0])), X)


@pytest.mark.parametrize("function", [lambda n: n / 2, lambda n: n > 2], ids=["float", "bool"])
def test_other_numbers_from_dynamic_shapes_are_refused(function):
    model = Model(lambda self, x: (self.linear(x), function(x.shape[0])))
    with pytest.raises(CaptureFailed, match="^The model returns .* made from an input's shape") as error:
        capture(model, X, dynamic_batch=(1, 3, 9))
    assert "outside the model" in str(error.value)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_model_of_any_dtype_keeps_its_dtype(dtype, precision):
    model = Model(lambda self, x: self.linear(x)).to(dtype)
    fast, eager = fast_and_eager(model, X.to(dtype), precision=precision)
    assert fast.dtype == dtype
    assert_same(fast, eager, rtol=2e-2, atol=2e-2)


def test_complex_inputs():
    fast, eager = fast_and_eager(Model(lambda self, x: self.linear(x.abs())), torch.complex(X, Y))
    assert_same(fast, eager)


def test_a_result_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    model = transformers.BertModel(config).eval()
    ids = torch.randint(0, 32, (2, 8))
    inputs = {"input_ids": ids, "attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3])}
    fast = ttb.compile(model, inputs, dynamic_batch=(1, 2, 4))
    other = {"input_ids": torch.randint(0, 32, (3, 8)), "attention_mask": torch.ones(3, 8, dtype=torch.int64)}
    with torch.no_grad():
        expected = model(**other)
    result = fast(**other)
    assert_same(result, expected)
    assert_same(result.pooler_output, expected.pooler_output)
    assert_same(result[0], expected[0])


def test_a_process_without_the_result_class_gets_a_fallback_with_its_fields(tmp_path):
    model = Model(lambda self, x: Box(self.linear(x), Pair(x, x * 2), "here"))
    ttb.compile(model, X).save(tmp_path / "boxed")
    torch.save((X, model(X).corner.detach()), tmp_path / "expected.pt")
    script = """
import sys, torch, torchtrt_bridge
x, corner = torch.load(sys.argv[2])
result = torchtrt_bridge.load(sys.argv[1])(x)
assert type(result).__name__ == "FallbackResult" and repr(result).startswith("Box("), repr(result)
torch.testing.assert_close(result.corner, corner)
torch.testing.assert_close(result["size"].second, x * 2)
assert list(result) == ["corner", "size", "label"] and result.label == "here"
"""
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "boxed"), str(tmp_path / "expected.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "has not imported test_capture:Box" in done.stderr


def test_a_result_class_of_a_closed_scope_falls_back_too(caplog):
    @dataclasses.dataclass
    class Local:
        value: torch.Tensor

    with caplog.at_level(logging.WARNING, "torchtrt_bridge"):
        result = ttb.compile(Model(lambda self, x: Local(self.linear(x))), X)(X)
    assert isinstance(result, FallbackResult) and result.value.shape == (3, 4)
    assert "FallbackResult" in caplog.text


def test_a_result_that_no_engine_can_return_is_named():
    with pytest.raises(CaptureFailed, match=r"result\.1\.inner is a test_capture\.Counter"):
        capture(Model(lambda self, x: (self.linear(x), {"inner": Counter()})), X)


@pytest.mark.parametrize("function", [lambda self, x: x, lambda self, x: None, lambda self, x: self.scale * 2])
def test_a_model_that_computes_nothing_from_its_inputs_is_refused(function):
    with pytest.raises(CaptureFailed, match="nothing to compute"):
        capture(Model(function), X)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_is_no_module():
    with pytest.raises(InvalidInput, match="needs an nn.Module; it was given a function"):
        ttb.compile(lambda x: x, X)


def test_training_mode():
    model = Model(lambda self, x: self.linear(x)).train()
    with nothing_changes(model, X), pytest.raises(ModelInTraining, match=r"model\.eval\(\)"):
        ttb.compile(model, X)
    assert model.training


def test_a_submodule_in_training_mode_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Dropout())).eval()
    model[1][1].train()
    with nothing_changes(model, X), pytest.raises(ModelInTraining, match=r"submodule '1\.1' \(Dropout\)"):
        ttb.compile(model, X)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((np.ones((3, 4), np.float32),), "The input x is a numpy.ndarray"),
        ((object(),), "The input x is a builtins.object"),
        (({"deep": [X, {1, 2}]},), r"The input x\.deep\.1 is a builtins.set"),
        ((3,), "None of the inputs is a tensor"),
        ((), "missing a required argument: 'x'"),
        ((X, X, X), "too many positional arguments"),
        ({"x": X, "z": X}, "unexpected keyword argument 'z'"),
        (7, "inputs is a int"),
        ((X.to_sparse(),), "The input 'x' has layout torch.sparse_coo"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs, message):
    model = Model(lambda self, x, *rest: self.linear(x))
    with nothing_changes(model, X), pytest.raises(InvalidInput, match=message):
        ttb.compile(model, inputs)


def test_an_input_on_another_device():
    with pytest.raises(DeviceMismatch, match="An input is on meta and the model on cpu"):
        ttb.compile(Model(lambda self, x: self.linear(x)), X.to("meta"))


def test_a_model_on_two_devices():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, device="meta")).eval()
    with pytest.raises(DeviceMismatch, match="spread over cpu, meta"):
        ttb.compile(model, X)


def test_a_model_that_fails_by_itself_says_so():
    with pytest.raises(InvalidInput, match="The model itself fails .* RuntimeError: mat1 and mat2") as error:
        ttb.compile(Model(lambda self, x: self.linear(x)), torch.ones(3, 5))
    assert isinstance(error.value.__cause__, RuntimeError)


def add_in_place(self, x):
    return self.linear(x.add_(1))


def copy_in_place(self, x):
    x.copy_(self.linear(x))
    return x * 2


def write_to_a_view(self, x):
    x.view(-1)[torch.tensor([0, 2])] = 9.0
    return self.linear(x)


def write_to_a_slice(self, x):
    x[:, 1].zero_()
    return self.linear(x)


@pytest.mark.parametrize("function", [add_in_place, copy_in_place, write_to_a_view, write_to_a_slice])
def test_a_model_that_writes_to_an_input(function):
    model, x = Model(function), X.clone()
    with nothing_changes(model, x):
        made = ttb.compile(model, x)
    assert torch.equal(x, X)
    expected, actual = x.clone(), x.clone()
    assert_same(made(actual), model(expected))
    assert_same(actual, expected)
    assert not torch.equal(actual, X)


def test_writes_of_several_inputs_results_that_are_inputs_and_a_file():
    def function(self, x, y):
        x += self.linear(y)
        y[:, 0].zero_()
        return {"x": x, "sum": x.sum(), "y": y}

    model = Model(function)
    made = ttb.compile(model, (X, X + 1), dynamic_batch=(1, 3, 5))
    again = ttb.TRTModule()
    again.load_state_dict(made.state_dict())
    for module in (made, again):
        x, y = torch.randn(5, 4), torch.randn(5, 4)
        expected_x, expected_y = x.clone(), y.clone()
        result, expected = module(x, y), model(expected_x, expected_y)
        assert result["x"] is x and result["y"] is y
        assert_same(result, expected)


def test_two_inputs_of_one_memory_are_refused_where_one_is_written_to():
    made = ttb.compile(Model(lambda self, x, y: self.linear(x.add_(y))), (X, X + 1))
    x = X.clone()
    with pytest.raises(InvalidInput, match="writes to its input 'x', and the input 'y' is the same memory"):
        made(x, x)
    assert torch.equal(x, X)


def test_a_model_that_changes_an_inputs_shape_in_place():
    with pytest.raises(StateMutated, match="changes the shape of its input 'x' in place"):
        ttb.compile(Model(lambda self, x: self.linear(x.t_().t())), X)


def buffer_in_place(self, x):
    self.scale.mul_(2)
    return self.linear(x) * self.scale


def buffer_by_copy(self, x):
    self.scale.copy_(x[0])
    return self.linear(x) * self.scale


def buffer_by_assignment(self, x):
    self.scale = self.scale + 1
    return self.linear(x) * self.scale


def buffer_by_view(self, x):
    self.scale[1:][torch.tensor([0])] = x[0, 0]
    return self.linear(x) * self.scale


def buffer_without_effect(self, x):
    self.scale.mul_(1)
    return self.linear(x) * self.scale


@pytest.mark.parametrize(
    "function", [buffer_in_place, buffer_by_copy, buffer_by_assignment, buffer_by_view, buffer_without_effect]
)
def test_a_model_that_writes_to_a_buffer(function):
    model = Model(function)
    with nothing_changes(model, X), pytest.raises(StateMutated, match="buffer 'scale'"):
        ttb.compile(model, X)
    assert model.scale.tolist() == [1, 2, 3, 4]


def test_a_model_that_writes_to_a_buffer_for_some_sizes_only():
    def sometimes(self, x):
        if x.shape[0] == 1:
            self.scale.mul_(2)
        return self.linear(x) * self.scale

    model = Model(sometimes)
    with nothing_changes(model, X):
        assert capture(model, X).signature.outputs[0].shape == (3, 4)
    with nothing_changes(model, X), pytest.raises(StateMutated, match="buffer 'scale'"):
        ttb.compile(model, X[:1])


def test_a_model_that_writes_to_a_parameter():
    def forward(self, x):
        self.linear.bias.add_(1)
        return self.linear(x)

    with pytest.raises(StateMutated, match="parameter 'linear.bias'"):
        ttb.compile(Model(forward), X)


def test_a_tensor_that_is_a_plain_attribute_is_watched_and_put_back():
    def forward(self, x):
        self.plain.add_(1)
        return self.linear(x) + self.plain

    model = Model(forward)
    object.__setattr__(model, "plain", torch.zeros(4))
    with nothing_changes(model, X), pytest.raises(StateMutated, match="attribute 'plain'"):
        ttb.compile(model, X)
    assert model.plain.tolist() == [0, 0, 0, 0]


def count(self, x):
    self.calls += 1
    return self.linear(x) + self.calls


def log(self, x):
    self.seen.append(float(self.linear.bias[0]))
    return self.linear(x)


def log_inside(self, x):
    self.nested["of"][0].append(1)
    return self.linear(x)


def count_in_an_object(self, x):
    self.counter.n += 1
    return self.linear(x)


def keep_the_last(self, x):
    self.last = self.linear(x)
    return self.last * 2


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (count, "calls"),
        (log, "seen"),
        (log_inside, r"nested\['of'\]\[0\]"),
        (count_in_an_object, r"counter\.n"),
        (keep_the_last, "last"),
    ],
)
def test_a_python_side_effect_is_named_and_undone(function, named):
    model = Model(function, calls=0, seen=[], nested={"of": ([],)}, counter=Counter())
    with nothing_changes(model, X), pytest.raises(PythonSideEffect, match=rf"attribute {named};"):
        ttb.compile(model, X)
    assert (model.calls, model.seen, model.nested, model.counter.n) == (0, [], {"of": ([],)}, 0)
    assert not hasattr(model, "last")


def test_a_side_effect_of_a_submodule_is_named_by_its_path():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Model(count, calls=0))).eval()
    with nothing_changes(model, X), pytest.raises(PythonSideEffect, match=r"attribute 1\.0\.calls;"):
        ttb.compile(model, X)


def test_a_cache_that_fills_itself_once_is_fine_and_left_empty():
    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(4.0)
        if "key" not in self.cache:
            self.cache["key"] = self.table * 2
        if not hasattr(self.counter, "offset"):
            self.counter.offset = torch.ones(4)
        return self.linear(x) + self.cache["key"] + self.counter.offset

    model = Model(forward, table=None, cache={}, counter=Counter())
    with nothing_changes(model, X):
        fast = ttb.compile(model, X)
    assert model.table is None and model.cache == {} and vars(model.counter) == {}
    assert_same(fast(X), model(X).detach())


@pytest.mark.parametrize("reparametrize", [nn.utils.weight_norm, nn.utils.spectral_norm], ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_a_hook_of_torchs_recomputes_are_no_side_effect(reparametrize):
    model = nn.Sequential(reparametrize(nn.Linear(4, 4)), nn.ReLU()).eval()
    weight = model[0].weight
    fast = ttb.compile(model, X)
    assert model[0].weight is weight
    assert_same(fast(X), model(X).detach())


def test_control_flow_on_data_names_the_users_line():
    def forward(self, x):
        if x.sum() > 0:  # the line at fault
            return self.linear(x)
        return self.linear(x) * 2

    model = Model(forward)
    with nothing_changes(model, X), pytest.raises(CaptureFailed, match=r"torch\.export cannot capture") as error:
        ttb.compile(model, X)
    assert "test_capture.py" in str(error.value) and "# the line at fault" in str(error.value)


def test_what_torch_export_cannot_trace_names_the_users_line():
    def forward(self, x):
        return self.linear(x) + torch.from_numpy(x.numpy())  # leaves torch

    with pytest.raises(CaptureFailed, match="# leaves torch"):
        ttb.compile(Model(forward), X)


# -- names -------------------------------------------------------------------------------------------------------------


def test_names_of_modules_and_parameters_survive():
    model = nn.Sequential(
        collections.OrderedDict(stem=nn.Linear(4, 4), model=nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    ).eval()
    captured = capture(model, X)
    assert set(captured.program.state_dict) == {f"model.{name}" for name in model.state_dict()}
    stacks = [list(n.meta["nn_module_stack"].values()) for n in captured.program.graph.nodes if n.op == "call_function"]
    assert [stack[-1][0] for stack in stacks] == ["model.stem", "model.model.0", "model.model.1"]


# -- what is left as it was --------------------------------------------------------------------------------------------


class Elaborate(nn.Module):
    """Everything that could be disturbed: hooks, frozen parameters, gradients, batch statistics, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU())
        self.net[0].bias.requires_grad_(False)
        self.hooked: list[str] = []
        self.net[0].register_forward_hook(lambda module, args, result: result + 1)
        self.eval()

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_compilation_leaves_everything_as_it_was(precision):
    model = Elaborate()
    model(X).sum().backward()
    hooks = dict(model.net[0]._forward_hooks)
    torch.manual_seed(5)
    with nothing_changes(model, X):
        fast = ttb.compile(model, X, precision, dynamic_batch=(1, 3, 4))
    assert model.net[0]._forward_hooks == hooks
    assert_same(fast(X), model(X).detach(), rtol=5e-2, atol=5e-2)
    model.train()(torch.randn(5, 4)).sum().backward()


def test_grad_mode_default_dtype_and_autocast_do_not_reach_the_engine():
    model = Model(lambda self, x: self.linear(x) * self.scale)
    expected = model(X).detach()
    torch.set_default_dtype(torch.float64)
    try:
        with nothing_changes(model, X), torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
            fast = ttb.compile(model, X)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(fast(X), expected)


def test_inside_inference_mode():
    model = Model(lambda self, x: self.linear(x) * self.scale)
    with torch.inference_mode():
        x = X.clone()
        with nothing_changes(model, x):
            fast = ttb.compile(model, x, source=True)
    assert_same(fast(X), model(X).detach())
    assert not any(t.is_inference() for t in fast.state_dict().values())


def test_a_write_to_an_input_is_seen_inside_inference_mode():
    model = Model(add_in_place)
    with torch.inference_mode():
        x = X.clone()
        made = ttb.compile(model, x)
        assert_same(made(x), model(X.clone()))
        assert torch.equal(x, X + 1)


def test_a_model_made_inside_inference_mode_is_told_what_to_do():
    with torch.inference_mode():
        model = Model(lambda self, x: self.linear(x))
    with pytest.raises(CaptureFailed, match=r"'linear.weight' was made inside torch.inference_mode.*deepcopy"):
        ttb.compile(model, X)
    model = copy.deepcopy(model)
    assert_same(ttb.compile(model, X)(X), model(X).detach())


SETTINGS = {
    "high": "torch.set_float32_matmul_precision('high')",
    "medium": "torch.set_float32_matmul_precision('medium')",
    "old": "torch.backends.cuda.matmul.allow_tf32 = True",
    "cudnn": "torch.backends.cudnn.allow_tf32 = False",
    "new": "torch.backends.fp32_precision = 'tf32'",
    "new matmul": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "ieee": "torch.backends.fp32_precision = 'ieee'",
}


def test_every_way_to_ask_for_tf32_is_as_before():
    script = """
import sys, torch
from torchtrt_bridge.reproducible import reproducible
def read(f):
    try: return f()
    except RuntimeError: return "refused"
def state():
    b = torch.backends
    return [read(f) for f in (torch.get_float32_matmul_precision, lambda: b.cuda.matmul.allow_tf32,
            lambda: b.cudnn.allow_tf32)] + [p.fp32_precision for p in
            (b, b.cuda.matmul, b.cudnn, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul)]
exec(sys.argv[1])
before = state()
with reproducible(torch.device("cpu")):
    b = torch.backends
    assert {p.fp32_precision for p in (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul)} == {"ieee"}
assert state() == before, (before, state())
"""
    running = {
        name: subprocess.Popen([sys.executable, "-c", script, setting], stderr=subprocess.PIPE, text=True)
        for name, setting in SETTINGS.items()
    }
    failed = {name: process.communicate()[1] for name, process in running.items()}
    assert {name: text for name, text in failed.items() if running[name].returncode} == {}


def test_threads_compile_at_the_same_time():
    models = [nn.Sequential(nn.Linear(4, n + 2), nn.ReLU()).eval() for n in range(6)]
    results: dict[int, Any] = {}

    def work(index: int) -> None:
        try:
            precision = ("fp32", "fp16", "bf16")[index % 3]
            results[index] = ttb.compile(models[index], X, precision, dynamic_batch=(1, 3, 5))(Z)
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, model in enumerate(models):
        assert_same(results[index], model(Z).detach(), rtol=5e-2, atol=5e-2)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
