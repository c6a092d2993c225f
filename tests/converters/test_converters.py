"""Every built-in converter against the operator that it stands for, on torch's own samples of its arguments.

The operator is called as it is, and under a dispatch mode that puts the converter in its place; so what is compared is
the whole operator, with the samples' edge cases (0-dim tensors, equal values, negative dims) among them.
"""

from __future__ import annotations

import itertools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torchtrt_bridge.converters import decompositions
from torchtrt_bridge.converters.sizes import COUNTED

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "sweep"))

import operators  # noqa: E402

aten = torch.ops.aten

OPERATORS = """
    fmax fmin hypot copysign frexp erfinv bitwise_not bitwise_left_shift bitwise_right_shift cumprod cummax cummin
    kthvalue median nanmedian mode bitwise_and bitwise_or bitwise_xor masked_scatter native_layer_norm aminmax
    linalg.vander _upsample_bilinear2d_aa nn.functional.max_pool1d nn.functional.max_pool2d nn.functional.max_pool3d
    searchsorted isin combinations diagonal_scatter index_add nn.functional.adaptive_avg_pool3d
    nn.functional.adaptive_max_pool1d
    nn.functional.adaptive_max_pool2d nn.functional.adaptive_max_pool3d cdist nn.functional.pdist grid_sampler_3d
    argmax argmin nansum atan2 pow special.entr special.log_ndtr nn.functional.soft_margin_loss sort
    scatter_reduce scatter index_reduce put nonzero_static masked_select scatter_add take nn.functional.avg_pool2d
    nn.functional.avg_pool3d histc diag diagonal linalg.diagonal trace squeeze ceil isnan
""".split()


class Replacing(TorchDispatchMode):
    """Runs the converter in place of its operator, and keeps which were met."""

    def __init__(self) -> None:
        super().__init__()
        self.table = decompositions()
        self.met: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        function: Callable[..., Any] = self.table.get(func, func)
        if function is func or not self._applies(func, args):
            return func(*args, **(kwargs or {}))
        self.met.add(func)
        return function(*args, **(kwargs or {}))

    @staticmethod
    def _applies(func: Any, args: Any) -> bool:
        """Some are for whole numbers alone, those that take means for floats, those of all elements for all."""
        name = func.__name__.split(".")[0]
        if name in ("argmax", "argmin"):
            return len(args) < 2 or args[1] is None or args[0].dim() < 2
        if name == "pow":
            tensors = [a for a in args if isinstance(a, torch.Tensor)]
            numbers = all(not isinstance(a, float) and (not isinstance(a, int) or a >= 0) for a in args)
            return numbers and not any(t.is_floating_point() or t.dtype == torch.bool for t in tensors)
        return name not in ("ceil", "isnan", "nansum", "avg_pool2d", "avg_pool3d") or (
            args[0].is_floating_point() == name.startswith("avg")
        )


@pytest.mark.parametrize("name", OPERATORS)
def test_a_converter_is_its_operator(name: str) -> None:
    info = operators.operators()[name]
    mode = Replacing()
    tried = 0
    for dtype in (torch.float32, torch.int64):
        if dtype not in info.supported_dtypes("cpu"):
            continue
        for sample in itertools.islice(info.sample_inputs("cpu", dtype), 60):
            leaves = pytree.tree_leaves((sample.input, sample.args))
            if not all(leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor)):
                continue  # TensorRT has no empty tensors
            expected = info(sample.input, *sample.args, **sample.kwargs)
            with mode:
                actual = info(sample.input, *sample.args, **sample.kwargs)
            if name in ("kthvalue", "mode"):  # among equal values, eager's choice of the place follows no rule
                actual, expected = actual[0], expected[0]
            for a, b in zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True):
                torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6, equal_nan=True)
            tried += 1
    assert tried and mode.met


COMPOSITES = {
    "linalg.norm": aten.linalg_norm.default,
    "linalg.matrix_power": aten.linalg_matrix_power.default,
    "argsort": aten.argsort.default,
    "msort": aten.msort.default,
    "isfinite": aten.isfinite.default,
    "nn.functional.cosine_embedding_loss": aten.cosine_embedding_loss.default,
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_converter_of_what_torch_spells_out_itself(name: str) -> None:
    """No dispatch mode sees these operators, which torch.export keeps."""
    info, function = operators.operators()[name], decompositions()[COMPOSITES[name]]
    tried = 0
    for sample in itertools.islice(info.sample_inputs("cpu", torch.float32), 60):
        if not sample.input.numel() or (name == "linalg.norm" and not _is_of_a_vector(sample)):
            continue
        if name == "nn.functional.cosine_embedding_loss":
            sample.kwargs["reduction"] = ["none", "mean", "sum"].index(sample.kwargs.get("reduction", "mean"))
        if "stable" in sample.kwargs:
            continue
        expected = COMPOSITES[name](sample.input, *sample.args, **sample.kwargs)
        actual = function(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(actual, expected, rtol=2e-4, atol=2e-5, equal_nan=True)
        tried += 1
    assert tried


def _is_of_a_vector(sample: Any) -> bool:
    ord_, dim = [*sample.args, None, None][:2]
    ord_, dim = sample.kwargs.get("ord", ord_), sample.kwargs.get("dim", dim)
    return dim is None and sample.input.dim() > 0 and (ord_ is None or sample.input.dim() == 1)


def test_inverses_of_small_matrices() -> None:
    for size in (1, 2, 3, 6, 16):
        x = torch.randn(4, size, size, dtype=torch.float64)
        if size > 1:
            x[0, 0, 0] = 0.0  # no pivot
        inverse = decompositions()[aten.linalg_inv_ex.default](x)[0]
        torch.testing.assert_close(inverse, torch.linalg.inv(x))


def test_angles_on_the_axes_and_at_infinity() -> None:
    edges = torch.tensor([0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf"), float("nan")])
    y, x = edges.repeat_interleave(7), edges.repeat(7)
    torch.testing.assert_close(decompositions()[aten.atan2.default](y, x), torch.atan2(y, x), equal_nan=True)


def test_the_normal_distribution_far_out() -> None:
    x = torch.linspace(-60, 9, 500)
    actual = decompositions()[aten.special_log_ndtr.default](x)
    torch.testing.assert_close(actual, torch.special.log_ndtr(x.double()).float(), rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("descending", [False, True])
def test_equal_values_stay_in_order(descending: bool) -> None:
    table = decompositions()
    for x in (torch.randint(0, 4, (3, 40)), torch.randint(0, 4, (3, 40)).float(), torch.randint(0, 900, (1, 5000))):
        expected = torch.sort(x, dim=-1, descending=descending, stable=True)
        actual = table[aten.sort.stable](x, stable=True, dim=-1, descending=descending)
        assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])
    assert torch.equal(table[aten.topk.default](x, 4000, -1, descending)[0], torch.topk(x, 4000, -1, descending)[0])


def test_the_first_of_several_maxima() -> None:
    x = torch.zeros(1, 1, 6, 6)
    actual = decompositions()[aten.max_pool2d_with_indices.default](x, [2, 2])
    torch.testing.assert_close(actual, tuple(aten.max_pool2d_with_indices.default(x, [2, 2])))


@pytest.mark.parametrize("name", ["nonzero", "where", "masked_select", "index", "unique_consecutive", "_unique2"])
def test_all_rows_and_their_number(name: str) -> None:
    """The right rows come first, as many as eager's."""
    x = torch.randint(0, 3, (4, 5, 2))
    options: list[tuple[Any, ...]] = [()]
    if name == "masked_select":
        options = [(x[:, :1] > 0,)]
    elif name == "index":
        options = [([x > 0],), ([x[:, :, 0] > 0],), ([x[:, 0, 0] > 5],)]
    elif name.startswith("unique"):
        options = [(True, True), (True, True, 1)]
    elif name == "_unique2":
        options = [(True, True, True)]
    for arguments in options:
        packet = getattr(torch.ops.aten, name)
        operator = packet.Tensor if name == "index" else packet.default
        expected = packet(x, *arguments)
        *actual, count = COUNTED[operator](x, *arguments)
        wanted = expected if isinstance(expected, (tuple, list)) else [expected]
        for a, b in zip(actual, wanted, strict=True):
            dim = next((d for d in range(a.dim()) if a.shape[d] != b.shape[d]), None)
            assert dim is None or b.shape[dim] == int(count)
            assert torch.equal(a if dim is None else a.narrow(dim, 0, int(count)), b)
    assert COUNTED[torch.ops.aten.index.Tensor](x, [torch.tensor([1])]) is None


def test_edge_values() -> None:
    """Signed zeros, infinities and NaN, where the samples have none."""
    x = torch.tensor([0.0, -0.0, 1.5, -2.0, float("inf"), float("-inf"), float("nan"), 1e-30, 3e38])
    y = torch.tensor([-0.0, 0.0, float("nan"), 1.0, -1.0, float("nan"), 2.0, -3e38, 3e38])
    for function in (torch.fmax, torch.fmin, torch.hypot, torch.copysign):
        with Replacing():
            actual = function(x, y)
        torch.testing.assert_close(actual, function(x, y), equal_nan=True, rtol=1e-6, atol=0.0)
    z = torch.linspace(-1, 1, 201)
    with Replacing():
        inverse, (mantissa, exponent) = torch.erfinv(z), torch.frexp(x)
        best, last = torch.cummax(torch.tensor([1.0, float("nan"), 3.0, 2.0]), 0), torch.cummin(x.nan_to_num(), 0)
    torch.testing.assert_close(inverse, torch.erfinv(z), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((mantissa, exponent), tuple(torch.frexp(x)), equal_nan=True)
    wanted = torch.cummax(torch.tensor([1.0, float("nan"), 3.0, 2.0]), 0)
    torch.testing.assert_close(tuple(best), tuple(wanted), equal_nan=True)
    torch.testing.assert_close(tuple(last), tuple(torch.cummin(x.nan_to_num(), 0)))


@pytest.mark.parametrize("form", ["plain", "causal", "mask", "bias", "masked rows", "five dims"])
def test_attention_of_any_rank(form: str) -> None:
    """torch calls it in one piece, which no dispatch mode sees."""
    lead = (2, 3, 2) if form == "five dims" else (3,)
    query, key, value = torch.randn(*lead, 5, 8), torch.randn(*lead, 7, 8), torch.randn(*lead, 7, 4)
    mask = torch.rand(5, 7) < 0.6
    mask[:, 0] = True
    if form == "masked rows":
        mask[2] = False
    options: dict[str, Any] = {
        "causal": {"is_causal": True},
        "mask": {"attn_mask": mask},
        "bias": {"attn_mask": torch.randn(5, 7), "scale": 0.3},
        "masked rows": {"attn_mask": mask},
    }.get(form, {})
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)
    function = decompositions()[torch.ops.aten.scaled_dot_product_attention.default]
    torch.testing.assert_close(function(query, key, value, **options), expected, equal_nan=True)


@pytest.mark.parametrize(
    "shape, indices",
    [
        ((4, 5, 3), [torch.tensor([1, 1, -1])]),
        ((4, 5, 3), [torch.tensor([[1], [3]]), torch.tensor([0, 4, 4])]),
        ((4, 5, 3), [None, torch.tensor([2, 2, 0, 2])]),
    ],
)
def test_adding_at_indices(shape: tuple[int, ...], indices: list[torch.Tensor | None]) -> None:
    x = torch.randn(shape)
    picked = torch.ops.aten.index(x, indices)
    values = torch.randn(picked.shape)
    function = decompositions()[torch.ops.aten.index_put.default]
    torch.testing.assert_close(function(x, indices, values, True), torch.ops.aten.index_put(x, indices, values, True))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_embedding_bags(mode: str) -> None:
    weight, indices, offsets = torch.randn(6, 3), torch.tensor([0, 5, 2, 2, 1, 4]), torch.tensor([0, 2, 2, 5])
    function = decompositions()[torch.ops.aten.embedding_bag.padding_idx]
    for last, padding in ((False, None), (True, None), (False, 2)):
        offsets[-1] = 6 if last else 5
        expected = torch.nn.functional.embedding_bag(
            indices, weight, offsets, mode=mode, include_last_offset=last, padding_idx=padding
        )
        number = ["sum", "mean", "max"].index(mode)
        actual = function(weight, indices, offsets, False, number, False, None, last, padding)[0]
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("shapes", [((10,), (2, 3, 10, 5)), ((2, 3, 5, 10), (10,)), ((4, 10), (2, 10, 5))])
def test_products_of_vectors_and_matrices(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    x, y = torch.randn(shapes[0]), torch.randn(shapes[1])
    torch.testing.assert_close(decompositions()[torch.ops.aten.matmul.default](x, y), x @ y)


def test_bits_of_large_and_of_negative_numbers() -> None:
    top = torch.iinfo(torch.int64)
    x = torch.tensor([top.max, top.min, -1, -2, 0x0F0F0F0F0F0F, -0x123456789ABC, 5, 0])
    y = torch.tensor([top.min, top.min, top.max, -7, -0x00FF00FF00FF, 0x7FFF, 3, -1])
    shift = torch.tensor([0, 3, 62, 1, 33, 17, 2, 9])
    table = decompositions()
    for name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
        operator = getattr(torch.ops.aten, name).Tensor
        assert torch.equal(table[operator](x, y), operator(x, y)), name
    for name in ("bitwise_left_shift", "bitwise_right_shift"):
        operator = getattr(torch.ops.aten, name).Tensor
        assert torch.equal(table[operator](x, shift), operator(x, shift)), name


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("...ij,...jk->...ik", [(2, 1, 3, 4), (5, 4, 6)]),
        ("...ik, ...j -> ij", [(1, 2, 3), (3,)]),
        ("ii->i", [(4, 4)]),
        ("bii,bj", [(2, 4, 4), (2, 3)]),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
        ("i...->...", [(3, 2, 4)]),
        ("ij,kj,k->ik", [(2, 3), (4, 3), (4,)]),
    ],
)
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    tensors = [torch.randn(shape) for shape in shapes]
    function = decompositions()[torch.ops.aten.einsum.default]
    torch.testing.assert_close(function(equation, tensors), torch.einsum(equation, *tensors))
