"""Dynamic shapes: what can be said, what every size computes, and what is refused with which words."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from comparing import assert_same, nothing_changes
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.capture import capture
from torchtrt_bridge.dynamic import DynamicShapes, resize
from torchtrt_bridge.errors import DimSpecialized, InputOutOfProfile, InvalidOption


class Model(nn.Module):
    def __init__(self, function: Any):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.function = function
        self.eval()

    def forward(self, x: Any, y: Any = None) -> Any:
        return self.function(self, x) if y is None else self.function(self, x, y)


def linear(self, x):
    return self.linear(x)


def shapes(model: nn.Module, inputs: Any, **options: Any) -> list[tuple[int | str, ...]]:
    return [spec.shape for spec in capture(model, inputs, **options).signature.inputs]


# -- what can be said --------------------------------------------------------------------------------------------------

D = ttb.Dim(1, 3, 9)
PAIR = Model(lambda self, x, y: (self.linear(x), self.linear(y).sum()))
TWO = (torch.randn(3, 4), torch.randn(5, 4))


@pytest.mark.parametrize(
    "said",
    [
        {"x": {0: D}, "y": {0: ttb.Dim(1, 5, 9)}},
        {"x": {-2: D}, "y": {0: (1, 5, 9)}},
        {"x": (D, None), "y": [ttb.Dim(1, 5, 9), None]},
        ({0: D}, {0: ttb.Dim(1, 5, 9)}),
    ],
    ids=["by name", "negative axis and a bare tuple", "one Dim per axis", "in the inputs' order"],
)
def test_each_input_and_axis_has_its_own_range(said):
    signature = capture(PAIR, TWO, dynamic_shapes=said).signature
    assert [spec.shape for spec in signature.inputs] == [("x_dim0", 4), ("y_dim0", 4)]
    assert [(d.min, d.opt, d.max) for d in signature.dims.values()] == [(1, 3, 9), (1, 5, 9)]


def test_dims_of_one_name_or_one_object_are_equal_everywhere():
    inputs = (torch.randn(3, 4), torch.randn(3, 4))
    named = {"x": {0: ttb.Dim(1, 3, 9, "rows")}, "y": {0: ttb.Dim(1, 3, 9, "rows")}}
    assert shapes(PAIR, inputs, dynamic_shapes=named) == [("rows", 4), ("rows", 4)]
    assert shapes(PAIR, inputs, dynamic_shapes={"x": {0: D}, "y": {0: D}}) == [("x_dim0", 4), ("x_dim0", 4)]


def test_dynamic_batch_is_axis_0_of_every_input_with_the_batch_size():
    model = Model(lambda self, x, y: self.linear(x) * y["by_row"] + y["table"].sum() + y["number"])
    nested = {"by_row": torch.randn(3, 1), "table": torch.randn(5, 4), "number": torch.tensor(2.0)}
    found = shapes(model, (torch.randn(3, 4), nested), dynamic_batch=(1, 3, 9))
    assert found == [("batch", 4), ("batch", 1), (5, 4), ()]


def test_nested_inputs_by_dotted_name_or_nested_alike():
    model = Model(lambda self, x: self.linear(x["a"][1]) + x["b"].sum())
    inputs = ({"a": (7, torch.randn(3, 4)), "b": torch.randn(2, 6)},)
    rows, columns = ttb.Dim(1, 3, 9), ttb.Dim(2, 6, 8)
    expected = [("x_a_1_dim0", 4), (2, "x_b_dim1")]
    for said in (
        {"x.a.1": {0: rows}, "x.b": {1: columns}},
        {"x": {"a": (None, {0: rows}), "b": {1: columns}}},
        ({"a": [None, {0: rows}], "b": (None, columns)},),
    ):
        assert shapes(model, inputs, dynamic_shapes=said) == expected


def test_inputs_after_one_that_is_no_tensor_keep_their_places():
    class Flagged(nn.Module):
        def forward(self, x, flag, y):
            return x.sum() + (y if flag else -y)

    said = ({0: D}, None, {0: ttb.Dim(1, 2, 5)})
    found = shapes(Flagged().eval(), (torch.randn(3, 4), True, torch.randn(2, 4)), dynamic_shapes=said)
    assert found == [("x_dim0", 4), ("y_dim0", 4)]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"dynamic_shapes": {"z": {0: D}}}, r"names 'z', which is no input of the model; its inputs are x, y"),
        ({"dynamic_shapes": {"x": {2: D}}}, r"'x' has 2 dimensions, so there is no axis 2"),
        ({"dynamic_shapes": {"x": {0: 7}}}, r"axis 0 of 'x' is 7; it must be a \S*Dim\(min, opt, max\)"),
        ({"dynamic_shapes": {"x": D}}, r"'x' is Dim\(.*give its axes, as \{0: Dim"),
        ({"dynamic_shapes": {0: D}}, r"names '0', which is no input"),
        ({"dynamic_shapes": ({0: D}, None, {0: D})}, r"has 3 entries; the inputs are 2: x, y"),
        ({"dynamic_shapes": {"x": {0: (3, 2, 1)}}}, r"0 <= min <= opt <= max"),
        ({"dynamic_shapes": {"x": {0: ttb.Dim(0, 1, 1)}}}, r"sizes 0 and 1 alone cannot be dynamic"),
        ({"dynamic_shapes": {"x": {0: D}, "y": {0: D}}}, r"'y' \(size 5\) and axis 0 of 'x' \(size 3\) share"),
        (
            {"dynamic_shapes": {"x": {0: ttb.Dim(1, 2, 3, "n")}, "y": {0: ttb.Dim(1, 2, 4, "n")}}},
            r"two Dims are both named 'n' but differ",
        ),
        ({"dynamic_batch": (1, 8)}, r"dynamic_batch=\(1, 8\): it must be \(min, opt, max\)"),
        ({"dynamic_batch": 8}, r"must be \(min, opt, max\)"),
        ({"dynamic_batch": (1, 3, 9), "dynamic_shapes": {"x": {0: D}}}, r"dynamic_shapes or dynamic_batch, not both"),
    ],
)
def test_what_cannot_be_meant_is_refused(said, message):
    with nothing_changes(PAIR, *TWO), pytest.raises(InvalidOption, match=message):
        ttb.compile(PAIR, TWO, **said)


def test_a_near_miss_is_named():
    with pytest.raises(InvalidOption, match="Did you mean 'input_ids'"):
        DynamicShapes.parse({"input_id": {0: D}}, None, ["input_ids", "mask"], [torch.ones(2, 2)] * 2)


def test_a_batch_needs_a_dimension():
    with pytest.raises(InvalidOption, match="all are 0-dim"):
        ttb.compile(Model(lambda self, x: self.linear.weight * x), torch.tensor(2.0), dynamic_batch=(1, 2, 3))


# -- every size computes what eager computes ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def two_dims(request):
    """One example size for both dims, and a matrix product that would show them exchanged or tied."""

    def forward(self, x, y):
        return self.linear(x).softmax(-1) @ y, x.shape[0] * y.shape[1], (x.sum(-1) > 0).sum(), y.argmax(1)

    model = Model(forward)
    said = {"x": {0: ttb.Dim(1, 4, 7, "rows")}, "y": {1: ttb.Dim(1, 4, 6, "columns")}}
    fast = ttb.compile(model, (torch.randn(4, 4), torch.randn(4, 4)), request.param, dynamic_shapes=said)
    return model, fast, 1e-4 if request.param == "fp32" else 2e-2


@pytest.mark.parametrize(("rows", "columns"), list(itertools.product((1, 2, 4, 7), (1, 3, 4, 6))))
def test_two_dims_with_one_example_size_are_independent(two_dims, rows, columns):
    model, fast, tolerance = two_dims
    x, y = torch.randn(rows, 4), torch.randn(4, columns)
    with torch.no_grad():
        assert_same(fast(x, y), model(x, y), rtol=tolerance, atol=tolerance)


def test_an_example_of_batch_1_still_gives_a_dynamic_batch():
    model = Model(linear)
    fast = ttb.compile(model, torch.randn(1, 4), dynamic_batch=(1, 1, 5))
    for size in (1, 2, 5):
        x = torch.randn(size, 4)
        assert_same(fast(x), model(x).detach())


def test_an_example_outside_the_range_is_brought_into_it():
    model = Model(linear)
    fast = ttb.compile(model, torch.randn(20, 4), dynamic_batch=(3, 4, 5))
    x = torch.randn(5, 4)
    assert_same(fast(x), model(x).detach())
    with pytest.raises(InputOutOfProfile):
        fast(torch.randn(20, 4))


def test_a_range_of_one_size_is_that_size():
    model = Model(linear)
    fast = ttb.compile(model, torch.randn(4, 4), dynamic_batch=(4, 4, 4))
    x = torch.randn(4, 4)
    assert_same(fast(x), model(x).detach())
    with pytest.raises(InputOutOfProfile):
        fast(torch.randn(3, 4))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_empty_call_gives_empty_results(precision):
    model = Model(lambda self, x: {"y": self.linear(x), "rows": x.shape[0], "best": x.argmax(-1), "x": x})
    fast = ttb.compile(model, torch.randn(3, 4), precision, dynamic_batch=(0, 3, 4))
    for size in (0, 1, 4):
        x = torch.randn(size, 4)
        with torch.no_grad():
            assert_same(fast(x), model(x), rtol=5e-2, atol=5e-2)


def test_an_empty_call_with_a_result_that_is_not_empty_is_eagers():
    model = Model(lambda self, x: self.linear(x).sum())
    fast = ttb.compile(model, torch.randn(3, 4), dynamic_batch=(0, 3, 4))
    for size in (0, 1, 4):
        x = torch.randn(size, 4)
        assert_same(fast(x), model(x).detach())


def test_without_a_minimum_of_0_an_empty_call_is_out_of_range():
    fast = ttb.compile(Model(linear), torch.randn(3, 4), dynamic_batch=(1, 3, 4))
    with pytest.raises(InputOutOfProfile, match=r"shape \(0, 4\); axis 0 \(batch\) must be 1 to 4"):
        fast(torch.randn(0, 4))


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (1, 1, 4), (2, 0, 4)])
def test_static_sizes_of_0_and_1_keep_eagers_meaning(shape):
    model = Model(lambda self, x: (self.linear(x), x.sum(0), x.squeeze(0), x.squeeze((0, 1)), x[..., 0].squeeze()))
    x = torch.randn(shape)
    with torch.no_grad():
        assert_same(ttb.compile(model, x)(x), model(x))


def test_a_0_dim_input_beside_a_dynamic_one():
    model = Model(lambda self, x, y: self.linear(x) * y)
    fast = ttb.compile(model, (torch.randn(3, 4), torch.tensor(2.0)), dynamic_batch=(1, 3, 9))
    x, y = torch.randn(7, 4), torch.tensor(-0.5)
    assert_same(fast(x, y), model(x, y).detach())


def test_a_result_whose_size_is_an_expression_or_depends_on_the_data():
    def forward(self, x):
        return torch.cat([x, x, self.linear(x)[:1]]), x.flatten(), x.nonzero()

    model = Model(forward)
    fast = ttb.compile(model, torch.randn(4, 4), dynamic_batch=(1, 4, 9))
    assert [spec.shape for spec in fast.signature.outputs] == [("2*batch + 1", 4), ("4*batch",), ("?", 2)]
    for size in (1, 2, 9):
        x = torch.randn(size, 4).relu()
        with torch.no_grad():
            assert_same(fast(x), model(x))


def test_a_result_resized_by_a_fraction_can_be_saved_and_loaded(tmp_path):
    model = Model(lambda self, x: nn.functional.interpolate(x[None], scale_factor=1.5))
    fast = ttb.compile(model, torch.randn(3, 4), dynamic_shapes={"x": {1: ttb.Dim(2, 4, 9)}})
    fast.save(tmp_path / "saved")
    x = torch.randn(3, 7)
    assert_same(ttb.load(tmp_path / "saved")(x), model(x))


# -- calls out of range ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tied():
    model = Model(lambda self, x, y: self.linear(x) + y)
    return ttb.compile(model, (torch.randn(3, 4), torch.randn(3, 4)), dynamic_batch=(2, 3, 9))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((1, 1), r"input 'x' has shape \(1, 4\); axis 0 \(batch\) must be 2 to 9"),
        ((10, 10), r"input 'x' has shape \(10, 4\); axis 0 \(batch\) must be 2 to 9"),
        ((3, 10), r"input 'y' has shape \(10, 4\); axis 0 \(batch\) must be 2 to 9"),
        ((3, 5), r"input 'y' has shape \(5, 4\); axis 0 \(batch\) must equal the other inputs' batch, which is 3"),
    ],
)
def test_a_size_out_of_range_names_the_input_its_shape_and_the_range(tied, rows, message):
    with pytest.raises(InputOutOfProfile, match=message):
        tied(*(torch.randn(n, 4) for n in rows))


def test_a_static_axis_is_named_with_the_way_out(tied):
    with pytest.raises(InputOutOfProfile, match=r"'x' has shape \(3, 5\); axis 1 must be 4.*make the axis dynamic"):
        tied(torch.randn(3, 5), torch.randn(3, 4))


# -- models that fix or restrict a dim ---------------------------------------------------------------------------------


def fixed(self, x):
    return self.linear(x.view(3, 4))  # fixes it


def branched(self, x):
    if x.shape[0] > 5:  # takes sides
        return self.linear(x) * 2
    return self.linear(x)


def divided(self, x):
    return self.linear(x).reshape(-1, 8)  # wants pairs


@pytest.mark.parametrize(
    ("function", "meant", "line"),
    [
        (fixed, "the model's code fixes it to 3", "# fixes it"),
        (branched, "does not take every size in that range", "# takes sides"),
        (divided, "does not take every size in that range", ""),
    ],
)
def test_a_specialized_dim_is_named_with_the_users_line(function, meant, line):
    model, x = Model(function), torch.randn(4 if function is divided else 3, 4)
    with nothing_changes(model, x), pytest.raises(DimSpecialized) as error:
        ttb.compile(model, x, dynamic_shapes={"x": {0: ttb.Dim(1, 4, 9, "rows")}})
    message = str(error.value)
    assert "The dim 'rows' (axis 0 of 'x') cannot be dynamic from 1 to 9" in message and meant in message
    assert line in message and (not line or "test_dynamic.py:" in message)
    assert "narrow the range" in message


def test_two_dims_that_the_model_ties_are_both_named():
    model = Model(lambda self, x, y: self.linear(x) + y)  # one size for both
    said = {"x": {0: ttb.Dim(2, 3, 9, "left")}, "y": {0: ttb.Dim(2, 3, 9, "right")}}
    with pytest.raises(DimSpecialized, match="'left'.*|'right'.*") as error:
        ttb.compile(model, (torch.randn(3, 4), torch.randn(3, 4)), dynamic_shapes=said)
    assert "one size for both" in str(error.value)


def test_a_branch_outside_the_range_does_not_matter():
    model = Model(branched)
    fast = ttb.compile(model, torch.randn(3, 4), dynamic_batch=(1, 3, 5))
    for size in (1, 5):
        x = torch.randn(size, 4)
        assert_same(fast(x), model(x).detach())


# -- resizing ----------------------------------------------------------------------------------------------------------


def test_resizing_repeats_and_crops_so_that_ids_stay_ids():
    ids = torch.tensor([[5, 7, 9], [2, 4, 6]])
    assert resize(ids, (3, 2)).tolist() == [[5, 7], [2, 4], [5, 7]]
    assert resize(ids, (1, 7)).tolist() == [[5, 7, 9, 5, 7, 9, 5]]
    assert resize(ids, (0, 3)).shape == (0, 3)
    assert resize(ids[:0], (2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert resize(ids, (2, 3)) is ids


def test_repeats_of_floats_have_no_ties():
    scores = torch.tensor([[0.5, 1.0, float("-inf"), 0.0]])
    grown = resize(scores, (40, 4))
    assert torch.equal(grown[:1], scores) and grown[:, :2].unique().numel() == 80
    assert ((grown[:, :2] >= scores[:, :2] * 0.875) & (grown[:, :2] <= scores[:, :2])).all()
    assert torch.equal(grown[:, 2:], scores[:, 2:].expand(40, 2))
