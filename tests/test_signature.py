"""Binding calls, assembling results, and the signature's way through a file."""

import inspect
import json

import pytest
import torch

from torchtrt_bridge.errors import FixedArgumentChanged, InvalidFile, InvalidInput, InvalidOption
from torchtrt_bridge.signature import Dim, Parameter, Signature, TensorSpec, describe_parameters


def forward(zebra, apple, flag=True, *, mask=None, scale=2.0):
    raise NotImplementedError


BATCH = Dim(1, 4, 8, "batch")
SIGNATURE = Signature(
    parameters=describe_parameters(inspect.signature(forward)),
    # an order that sorting would change: zebra's tensor is the first input
    arguments={
        "zebra": {"leaf": 0},
        "apple": {"dict": [["pair", {"tuple": [{"leaf": 1}, {"value": None}]}], ["number", {"value": 3}]]},
    },
    inputs=(
        TensorSpec("zebra", "float32", ("batch", 4)),
        TensorSpec("apple.pair.0", "int64", ("batch",)),
    ),
    outputs=(TensorSpec("y", "float16", ("2*batch", "?")),),
    result={
        "dict": [
            ["y", {"leaf": {"output": 0}}],
            ["same", {"leaf": {"input": 1}}],
            ["table", {"leaf": {"constant": 0}}],
            ["rows", {"leaf": {"size": "2*batch"}}],
            ["nothing", {"value": None}],
        ]
    },
    dims={"batch": BATCH, "a": Dim(0, 1, 2, "a")},
)
Z, A = torch.ones(3, 4), torch.arange(3)


def through_a_file(data):
    return json.loads(json.dumps(data, sort_keys=True))


def test_it_is_the_same_after_a_file_with_sorted_keys():
    copy = Signature.from_dict(through_a_file(SIGNATURE.to_dict()))
    assert repr(copy) == repr(SIGNATURE)
    assert copy.to_dict() == SIGNATURE.to_dict()
    assert copy.parameters == SIGNATURE.parameters and copy.result == SIGNATURE.result
    assert list(copy.arguments) == ["zebra", "apple"] and list(copy.dims) == ["batch", "a"]
    assert copy.python_signature() == inspect.signature(forward)
    first, second = copy.bind((Z, {"pair": (A, None), "number": 3}), {})
    assert first is Z and second is A


def test_arguments_bind_by_position_and_by_name():
    for args, kwargs in (
        ((Z, {"pair": (A, None), "number": 3}), {}),
        ((Z,), {"apple": {"pair": (A, None), "number": 3}}),
        ((), {"apple": {"pair": (A, None), "number": 3}, "zebra": Z, "flag": True, "mask": None, "scale": 2.0}),
    ):
        first, second = SIGNATURE.bind(args, kwargs)
        assert first is Z and second is A


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"apple": {"pair": (A, None), "number": 4}}, FixedArgumentChanged, r"'apple.number' was 3 .* this call has 4"),
        ({"apple": {"pair": [A, None], "number": 3}}, InvalidInput, "'apple.pair' is a list of 2"),
        ({"apple": {"pair": (A, A), "number": 3}}, InvalidInput, "'apple.pair.1' is a tensor; .* with None"),
        ({"apple": {"pair": (A, None)}}, InvalidInput, r"has the keys \['pair'\]; .*'number'"),
        ({"apple": object()}, InvalidInput, "apple is a builtins.object"),
        ({"flag": False}, FixedArgumentChanged, "'flag' was not given"),
        ({"flag": None}, FixedArgumentChanged, "'flag' was not given"),
        ({"mask": A}, FixedArgumentChanged, "'mask' was not given"),
        ({"other": 1}, InvalidInput, "unexpected keyword argument 'other'"),
    ],
)
def test_a_call_that_does_not_fit_is_told_where(change, error, message):
    call = {"zebra": Z, "apple": {"pair": (A, None), "number": 3}, **change}
    with pytest.raises(error, match=message):
        SIGNATURE.bind((), call)


def test_a_missing_argument_is_named():
    with pytest.raises(InvalidInput, match="apple"):
        SIGNATURE.bind((Z,), {})


def test_the_result_is_assembled_in_its_own_structure():
    y, table = torch.zeros(6, 1), torch.ones(2)
    result = SIGNATURE.assemble([y], [Z, A], [table])
    assert list(result) == ["y", "same", "table", "rows", "nothing"]
    assert result["y"] is y and result["same"] is A and result["table"] is table
    assert result["rows"] == 6 and result["nothing"] is None


def test_a_default_that_no_file_can_hold_is_marked():
    def f(x, made=object()):  # noqa: B008
        raise NotImplementedError

    parameters = describe_parameters(inspect.signature(f))
    assert parameters[1] == Parameter("made", "POSITIONAL_OR_KEYWORD", opaque_default=True)
    assert list(inspect.signature(f).parameters) == ["x", "made"]


@pytest.mark.parametrize("sizes", [(2, 1, 3), (1, 4, 3), (-1, 1, 2), (0, 0, 0), (1.0, 2, 3), (True, 2, 3)])
def test_a_dim_out_of_order_is_refused(sizes):
    with pytest.raises(InvalidOption):
        Dim(*sizes)


def changed(path, value):
    data = through_a_file(SIGNATURE.to_dict())
    at = data
    for key in path[:-1]:
        at = at[key]
    if value is KeyError:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return data


HOSTILE = [None, [], {}, 3, -1, "x", [[]], [None], [{}], [[1, 2]], {"leaf": 0}, 1e308, True, "a" * 5000, KeyError]
PATHS = [
    ("parameters",),
    ("parameters", 0),
    ("parameters", 0, "name"),
    ("parameters", 0, "kind"),
    ("parameters", 2, "default"),
    ("parameters", 2, "opaque_default"),
    ("arguments",),
    ("arguments", 0),
    ("arguments", 0, 0),
    ("arguments", 0, 1),
    ("inputs",),
    ("inputs", 0),
    ("inputs", 0, "name"),
    ("inputs", 0, "dtype"),
    ("inputs", 0, "shape"),
    ("inputs", 0, "shape", 0),
    ("outputs", 0, "shape", 1),
    ("result",),
    ("result", "dict", 0, 1, "leaf", "output"),
    ("result", "dict", 3, 1, "leaf", "size"),
    ("dims",),
    ("dims", 0),
    ("dims", 0, 0),
    ("dims", 0, 3),
]


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_altered_data_is_an_invalid_file_or_a_working_signature(path):
    refused = 0
    for value in HOSTILE:
        try:
            signature = Signature.from_dict(changed(path, value))
        except InvalidFile:
            refused += 1
            continue
        repr(signature)
        signature.to_dict()
        signature.python_signature()
        signature.plain_names()
    assert refused >= len(HOSTILE) - 4


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("arguments", 0, 1), {"leaf": 1}),  # two arguments with the same input
        (("result", "dict", 0, 1, "leaf"), {"output": 1}),  # there is one output
        (("result", "dict", 1, 1, "leaf"), {"input": 2}),
        (("result", "dict", 3, 1, "leaf"), {"size": "unknown"}),
        (("result", "dict", 3, 1, "leaf"), {"size": "__import__('os')"}),
        (("inputs", 0, "dtype"), "os"),
        (("inputs", 0, "shape"), ["__import__('os')"]),
        (("parameters", 0, "kind"), "__class__"),
        (("parameters", 0, "default"), {"value": 1}),  # a parameter without a default follows
    ],
)
def test_what_would_fail_in_a_later_call_is_refused_at_loading(path, value):
    with pytest.raises(InvalidFile, match="signature is damaged"):
        Signature.from_dict(changed(path, value))


def test_a_flag_that_the_call_leaves_out_must_have_its_captured_value():
    def forward(x, scale=1, *, flip=False):
        pass

    def signature(**fixed):
        nodes = {"x": {"leaf": 0}, **{name: {"value": value} for name, value in fixed.items()}}
        spec = TensorSpec("x", "float32", (2,))
        parameters = describe_parameters(inspect.signature(forward))
        return Signature(parameters, nodes, (spec,), (spec,), {"leaf": {"output": 0}}, {})

    x = torch.ones(2)
    assert signature(scale=1, flip=False).bind((x,), {}) == [x]
    leaves_out = "'scale' was 2 .* leaves it out, and its default is 1. Give scale=2"
    with pytest.raises(FixedArgumentChanged, match=leaves_out):
        signature(scale=2).bind((x,), {})
    with pytest.raises(FixedArgumentChanged, match="'flip' was True"):
        signature(flip=True).bind((x,), {})
    assert signature(scale=2).bind((x, 2), {}) == [x]
