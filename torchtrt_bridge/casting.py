"""In which precision each operator of a captured graph runs, and the casts that make it so.

Every operator belongs to one class, found by its name:

* **low**: matrix products, convolutions and what else tensor cores run. Their float inputs are cast to the low dtype.
* **fp32**: what overflows or cancels in 16 bits: statistics, powers, normalizations, softmax, losses. Their float
  inputs are cast to float32 and their results stay float32.
* **as captured**: operators of other libraries and higher-order operators (``cond``): nothing is known of what they
  take, so they get the dtypes that they were captured with.
* all others **follow** their inputs: low as soon as one of them is, else float32.

The fp32 class begins with the operators that CUDA's autocast runs in float32
(https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-can-autocast-to-float32). Exceptions to "follow" keep
numbers right that autocast gets wrong; they need to know a little about where a float32 tensor comes from, which is
what :class:`Trait` records:

* Arithmetic between a low tensor and a statistic of it (``x / x.norm().clamp_min(1e-12)``, ``x * rsqrt(...)``) runs in
  float32, as a fused normalization does: the statistic itself may have no value in 16 bits.
* So does arithmetic with a number that the low dtype turns into 0 or infinity (``+ 1e-12``, ``scores + mask`` where
  the mask is ``finfo(float32).min``). Numbers that only fill or bound (``masked_fill``, ``clamp``) are clamped instead.
* So does arithmetic with a float32 input of the user, which may be such a mask. Where one meets a low tensor otherwise
  (``cat``, ``where``), or is an attention's mask, it is clamped to the finite range first; infinities stay.
* A matrix product of tables alone (positions times frequencies: integers and vectors of constants, no float input)
  stays in float32; float16 has no odd numbers above 2048.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, Node
from torch.utils import _pytree

aten = torch.ops.aten


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


LOW = _names("""
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution
    linear bilinear matmul mm bmm mv dot vdot inner addmm addmv addbmm baddbmm einsum tensordot chain_matmul
    scaled_dot_product_attention _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_cudnn_attention
    _native_multi_head_attention lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    embedding prelu _prelu_kernel
""")
NOT_IN_BFLOAT16 = _names("conv_transpose1d conv_transpose2d conv_transpose3d gru gru_cell")
"""Low operators that TensorRT takes in float16 alone: TensorRT for RTX 1.6.1 builds no bfloat16 deconvolution, and its
ONNX parser writes a float32 number into a bfloat16 GRU. They run in float32 under bfloat16."""

NORMALIZATIONS = _names("""
    layer_norm native_layer_norm group_norm native_group_norm instance_norm rms_norm _fused_rms_norm
    batch_norm native_batch_norm cudnn_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
    _batch_norm_no_update local_response_norm renorm normalize
    softmax _softmax log_softmax _log_softmax _safe_softmax softmin cosine_similarity
""")
STATISTICS = _names("""
    sum nansum mean nanmean var std var_mean std_mean norm linalg_vector_norm linalg_matrix_norm linalg_norm
    frobenius_norm nuclear_norm prod cumsum cumprod cumulative_trapezoid trapezoid trapz logsumexp logcumsumexp trace
    embedding_bag _embedding_bag dist pdist _pdist_forward cdist _cdist_forward _euclidean_dist pairwise_distance
    exp exp2 expm1 log log2 log10 log1p pow float_power square reciprocal rsqrt
""")
SENSITIVE = _names("""
    sin cos tan asin acos sinh cosh asinh acosh atanh erfinv lgamma digamma polygamma mvlgamma xlogy logit i0 sinc
    softplus grid_sampler grid_sampler_2d grid_sampler_3d affine_grid_generator searchsorted bucketize histc multinomial
    stft istft cov corrcoef det logdet slogdet inverse cholesky cross_entropy_loss nll_loss nll_loss2d nll_loss_nd
    nll_loss_forward mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy
    binary_cross_entropy_with_logits poisson_nll_loss gaussian_nll_loss hinge_embedding_loss cosine_embedding_loss
    margin_ranking_loss multi_margin_loss multilabel_margin_loss triplet_margin_loss soft_margin_loss ctc_loss
""")
FP32 = NORMALIZATIONS | STATISTICS | SENSITIVE
FP32_FAMILIES = ("linalg_", "fft_", "_fft_", "special_")

AVERAGE_POOLING = _names("""
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    _adaptive_avg_pool2d _adaptive_avg_pool3d
""")
LARGEST_LOW_WINDOW = 1024
"""Average pooling over more elements than this, or over an unknown number, counts as a statistic."""

ARITHMETIC = _names("""
    add sub rsub mul div true_divide addcmul addcdiv lerp hypot atan2 fmod remainder maximum minimum clamp clamp_min
    clamp_max eq ne lt le gt ge
""")
FILLS = _names("""
    full full_like new_full fill masked_fill where constant_pad_nd pad clamp clamp_min clamp_max hardtanh nan_to_num
    threshold scatter index_fill eq ne lt le gt ge
""")
BOUNDS = _names("clamp clamp_min clamp_max hardtanh sigmoid tanh hardsigmoid erf sign atan relu6")
VIEWS = _names("""
    view reshape _unsafe_view permute transpose t expand unsqueeze squeeze slice select flatten unflatten alias clone
    contiguous detach lift_fresh_copy
""")

_SINGLE = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float64: torch.float32,
    torch.complex32: torch.complex64,
    torch.complex128: torch.complex64,
}
_NUMBERS = ("number", "Optional[number]", "float", "Optional[float]", "Tensor")  # add.Tensor(x, 1e-12), too


class Trait(enum.Flag):
    """Where a float32 tensor comes from, as far as casting it down depends on that."""

    NONE = 0
    TABLE = enum.auto()  # from integers, shapes and vectors of constants alone
    STATISTIC = enum.auto()  # a sum, a power, a tiny number: what a stream is normalized by
    HUGE = enum.auto()  # a number in the program puts values beyond the low dtype's range into it
    OPEN = enum.auto()  # a float input of the user: any value


class Caster:
    """Writes one precision into a copy of a captured graph. ``run()`` once, then read the attributes.

    Args:
        graph: the graph of an exported program; it is read only.
        constants: the tensors of those placeholders that are parameters, buffers or constants, by placeholder name.
        low: the dtype of the low class; float32 leaves one class, float32.

    Attributes:
        stored: for each constant's placeholder name, the dtype to store it in and the bound to clamp it to, if any.
        kept: operators that run in float32 next to a low stream, with the paths of their modules.
        notes: what else a reader of the report should know.
    """

    def __init__(self, graph: Graph, constants: Mapping[str, torch.Tensor], low: torch.dtype):
        self.source, self.graph, self.low = graph, Graph(), low
        self.stored: dict[str, tuple[torch.dtype, float | None]] = {}
        self.kept: dict[str, list[str]] = {}
        self.notes: list[str] = []
        self._tensors = constants
        self._range = _Range(low)
        self._new: dict[Node, Node] = {}
        self._traits: dict[Node, Trait] = collections.defaultdict(lambda: Trait.NONE)
        self._constants: dict[Node, torch.Tensor] = {}
        self._casts: dict[tuple[Node, torch.dtype, float | None], Node] = {}
        self._consumer: Node | None = None

    def run(self) -> Graph:
        """The new graph. Its placeholders and results have the dtypes of the old one's."""
        for node in self.source.nodes:
            self._consumer = node
            if getattr(node.meta.get("val"), "dtype", None) is torch.float64 and node.users:
                self._note("float64 is computed in float32")
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "output":
                self._output(node)
            elif node.target is not aten._assert_tensor_metadata.default:  # checks the dtypes that change here
                self._new[node] = self._operator(node) if node.op == "call_function" else self._copy(node)
        self.graph.eliminate_dead_code()
        self._store_constants()
        return self.graph

    # -- the nodes of the old graph ------------------------------------------------------------------------------------

    def _placeholder(self, node: Node) -> None:
        new = self._new[node] = self._copy(node)
        value, tensor = node.meta.get("val"), self._tensors.get(node.name)
        if value is None or not _is_float(value):
            self._traits[new] = Trait.TABLE
        elif tensor is None:
            self._traits[new] = Trait.OPEN
        else:
            self._constants[new] = tensor
            self._traits[new] = Trait.TABLE if sum(size > 1 for size in tensor.shape) <= 1 else Trait.NONE
            new.meta.pop("tensor_meta", None)
            new.meta["val"] = retyped(value, torch.float32)  # until _store_constants knows who reads it

    def _output(self, node: Node) -> None:
        def result(old: Node) -> Node:
            value: Any = old.meta.get("val")
            self._consumer = old
            return self._cast(self._new[old], value.dtype) if _is_float(value) else self._new[old]

        new = self.graph.output(torch.fx.map_arg(node.args[0], result))
        new.meta = dict(node.meta)

    def _operator(self, node: Node) -> Node:
        target = node.target
        if target is operator.getitem:
            return self._getitem(node)
        if not isinstance(target, (torch._ops.OpOverload, torch._ops.HigherOrderOperator)):
            return self._copy(node)  # arithmetic on sizes
        # view.dtype reads the bits of its input, so they must stay what they are
        if getattr(target, "namespace", "") != "aten" or target is aten.view.dtype:
            self._note(f"{target} in {module_path(node) or 'the model'} runs in the precision of the model")
            return self._as_captured(node)
        if not any(isinstance(v, torch.Tensor) for v in _pytree.tree_leaves(node.meta.get("val"))):
            return self._copy(node)  # a size or an assertion
        return self._aten(node)

    def _aten(self, node: Node) -> Node:
        name = operator_name(node)
        if name == "_to_copy" and _is_plain_float_cast(node):
            return self._user_cast(node)
        inputs = [self._new[n] for n in _tensor_nodes(node)]
        floats = [n for n in inputs if _is_float(n.meta["val"])]
        dtype = self._dtype(node, name, floats)
        bounds = self._bounds(node, name, dtype)

        def argument(old: Node) -> Node:
            new = self._new[old]
            return self._cast(new, dtype, bounds.get(new)) if new in floats else new

        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), argument)
        if dtype == self.low != torch.float32:
            args, kwargs = _map_numbers(node, args, kwargs, self._range.clamp)
        args, kwargs = self._normalize_dtypes(node, args, kwargs)
        new = self._emit(node, args, kwargs, dtype)
        self._traits[new] = self._result_traits(node, name, inputs, dtype)
        lowered = any(n.meta["val"].dtype == self.low for n in floats)
        if floats and dtype == torch.float32 != self.low and (lowered or name in LOW or self._runs_fp32(node, name)):
            paths = self.kept.setdefault(f"aten.{name}", [])
            if module_path(node) not in paths:
                paths.append(module_path(node))
        return new

    def _user_cast(self, node: Node) -> Node:
        """The model's own cast between float types.

        One to a type other than float32 says which precision the model had; the one asked for takes its place.
        ``x.float()`` says that what follows needs float32, and stays.
        """
        source = self._new[node.args[0]]  # type: ignore[index]
        if node.kwargs["dtype"] is not torch.float32:
            return source
        new = self._cast(source, torch.float32)
        if new is not source:
            self._traits[new] = self._traits[source] & Trait.TABLE
        return new

    def _getitem(self, node: Node) -> Node:
        parent = self._new[node.args[0]]  # type: ignore[index]
        new = self._copy(node)
        new.meta["val"] = parent.meta["val"][node.args[1]]
        self._traits[new] = self._traits.get(parent, Trait.NONE)
        return new

    def _as_captured(self, node: Node) -> Node:
        def argument(old: Node) -> Node:
            value: Any = old.meta.get("val")
            return self._cast(self._new[old], value.dtype) if _is_float(value) else self._new[old]

        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), argument)
        new = self.graph.create_node("call_function", node.target, args, kwargs, name=node.name)
        new.meta = dict(node.meta)
        return new

    def _copy(self, node: Node) -> Node:
        new = self.graph.node_copy(node, self._new.__getitem__)
        new.meta = dict(node.meta)
        return new

    # -- which dtype ---------------------------------------------------------------------------------------------------

    def _dtype(self, node: Node, name: str, floats: list[Node]) -> torch.dtype:
        """The dtype that ``node`` computes in: the low one or float32."""
        if self.low == torch.float32 or self._runs_fp32(node, name) or _has_complex(node):
            return torch.float32
        if name in LOW:
            tables = bool(floats) and all(Trait.TABLE in self._traits[n] for n in floats)
            return torch.float32 if tables else self.low
        if not any(n.meta["val"].dtype == self.low for n in floats):
            return torch.float32
        numbers = list(_numbers(node))
        if any(self._range.vanishes(v) for v in numbers):
            return torch.float32
        if name not in FILLS and any(self._range.overflows(v) for v in numbers):
            return torch.float32
        delicate = Trait.STATISTIC | Trait.HUGE | Trait.OPEN
        if name in ARITHMETIC and any(self._tensor_traits(n) & delicate for n in floats):
            return torch.float32
        return self.low

    def _runs_fp32(self, node: Node, name: str) -> bool:
        return (
            name in FP32
            or name.startswith(FP32_FAMILIES)
            or (self.low == torch.bfloat16 and (name in NOT_IN_BFLOAT16 or _is_transposed(node, name)))
            or (name in AVERAGE_POOLING and _pooling_window(node, name) > LARGEST_LOW_WINDOW)
        )

    def _bounds(self, node: Node, name: str, dtype: torch.dtype) -> dict[Node, float]:
        """The float inputs to clamp before they are cast down, and the bound.

        A mask that is to be added to scores gets half the range, so that the sum is finite too.
        """
        if dtype == torch.float32:
            return {}
        bounds = {}
        for old, argument in _arguments(node):
            new = self._new[old]
            if name in LOW and new in self._constants and argument != "attn_mask":
                continue  # a weight: _store in .precision clamps what has to be, and says so
            traits = self._tensor_traits(new)
            if argument == "attn_mask" or (name in LOW and "add" in name and argument == "self"):
                if Trait.HUGE in traits or (argument == "attn_mask" and Trait.OPEN in traits):
                    bounds[new] = self._range.max / 2
            elif Trait.HUGE in traits or (name not in LOW and Trait.OPEN in traits):
                bounds[new] = self._range.max
        return bounds

    def _tensor_traits(self, node: Node) -> Trait:
        """The traits of a new node that a low operator may read; a constant's are read off its values."""
        if node.meta["val"].dtype == self.low:
            return Trait.NONE
        traits = self._traits[node]
        if node in self._constants:
            traits |= self._range.traits(self._constants[node])
        return traits

    def _result_traits(self, node: Node, name: str, inputs: list[Node], dtype: torch.dtype) -> Trait:
        table = Trait.TABLE if all(Trait.TABLE in self._traits[n] for n in inputs) else Trait.NONE
        if not _is_float(node.meta["val"]) and not isinstance(node.meta["val"], (tuple, list)):
            return Trait.TABLE  # a mask or an index: what it selects decides, not what it was made from
        if name in STATISTICS:
            return table | Trait.STATISTIC
        if dtype != torch.float32 or name in LOW or self._runs_fp32(node, name):
            return table
        floats = [n for n in inputs if _is_float(n.meta["val"])]
        streams = [self._tensor_traits(n) for n in floats if n not in self._constants]
        constants = [self._tensor_traits(n) for n in floats if n in self._constants]
        numbers = list(_numbers(node))
        result = table
        if name not in BOUNDS:
            result |= _union(streams + constants) & (Trait.HUGE | Trait.OPEN)
            if any(n.meta["val"].dtype == self.low for n in floats):
                result &= ~Trait.OPEN  # part of the stream from here on
            if any(self._range.overflows(v) for v in numbers):
                result |= Trait.HUGE
        statistic = all(Trait.STATISTIC in t for t in streams) if streams else Trait.STATISTIC in _union(constants)
        if statistic or any(self._range.vanishes(v) for v in numbers):
            result |= Trait.STATISTIC
        return result

    # -- casts ---------------------------------------------------------------------------------------------------------

    def _cast(self, node: Node, dtype: torch.dtype, bound: float | None = None) -> Node:
        """``node`` as ``dtype``, its finite values clamped to ``bound`` first; one cast for all who ask the same."""
        value = node.meta["val"]
        if value.dtype == dtype:
            return node
        key = (node, dtype, bound)
        if key not in self._casts:
            new = self._casts[key] = self._cast_view(node, dtype, bound) or self._new_cast(node, dtype, bound)
            if (value.dtype, dtype) == (self.low, torch.float32):
                self._casts[new, self.low, None] = node  # and back: nothing was lost
        return self._casts[key]

    def _cast_view(self, node: Node, dtype: torch.dtype, bound: float | None) -> Node | None:
        """A view of a constant is cast by casting the constant, which then needs no cast when it is stored."""
        if node.op != "call_function" or operator_name(node) not in VIEWS:
            return None
        source = node
        while source.op == "call_function" and operator_name(source) in VIEWS:
            source = source.args[0]  # type: ignore[assignment]
        if source not in self._constants:
            return None
        base = self._cast(node.args[0], dtype, bound)  # type: ignore[arg-type]
        view = self.graph.call_function(node.target, (base, *node.args[1:]), node.kwargs)  # type: ignore[arg-type]
        view.meta = {**node.meta, "val": retyped(node.meta["val"], dtype)}
        view.meta.pop("tensor_meta", None)
        return view

    def _new_cast(self, node: Node, dtype: torch.dtype, bound: float | None) -> Node:
        def emit(target: Any, *args: Any, to: torch.dtype = torch.float32, **kwargs: Any) -> Node:
            assert self._consumer is not None
            name = f"{node.name}_{str(to).removeprefix('torch.')}" if to == dtype else None
            new = self.graph.create_node("call_function", target, args, kwargs, name=name)
            meta = self._consumer.meta
            new.meta = {key: meta[key] for key in ("nn_module_stack", "stack_trace") if key in meta}
            new.meta["val"] = retyped(node.meta["val"], to)
            return new

        value = node
        if bound is not None:
            if node.meta["val"].dtype != torch.float32:
                value = emit(aten._to_copy.default, node, to=torch.float32, dtype=torch.float32)
            clamped = emit(aten.clamp.default, value, -bound, bound)
            infinite = emit(aten.isinf.default, value, to=torch.bool)
            value = emit(aten.where.self, infinite, value, clamped)
        return emit(aten._to_copy.default, value, to=dtype, dtype=dtype)

    def _store_constants(self) -> None:
        """Store each constant as its readers want it: low if all do; float32, with a cast in the graph, if some do."""
        for node in self._constants:
            wanted = {
                (dtype, bound): cast
                for (source, dtype, bound), cast in self._casts.items()
                if source is node and cast.users
            }
            readers = set().union(*(_between(node, cast) for cast in wanted.values()))
            if not node.users:
                node.meta["val"] = retyped(node.meta["val"], self._constants[node].dtype)
            elif len(wanted) == 1 and set(node.users) <= readers:
                (((dtype, bound), cast),) = wanted.items()
                self.stored[node.name] = dtype, bound
                node.meta["val"] = retyped(node.meta["val"], dtype)
                cast.replace_all_uses_with(node)
            else:
                self.stored[node.name] = torch.float32, None
        self.graph.eliminate_dead_code()

    # -- operators and their dtypes ------------------------------------------------------------------------------------

    def _normalize_dtypes(self, node: Node, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """float32 for every other float type that the operator names, or would take from the default dtype."""
        args, kwargs = _pytree.tree_map(
            lambda v: _SINGLE.get(v, v) if isinstance(v, torch.dtype) else v, (args, dict(kwargs))
        )
        if not _tensor_nodes(node) and _is_float(node.meta["val"]) and kwargs.get("dtype") is None:
            if any(a.name == "dtype" for a in node.target._schema.arguments):  # type: ignore[union-attr]
                kwargs["dtype"] = torch.float32
        return args, kwargs

    def _emit(self, node: Node, args: Any, kwargs: Any, dtype: torch.dtype) -> Node:
        """``node`` with other arguments in the new graph; what its result is follows from their dtypes."""
        new = self.graph.create_node("call_function", node.target, args, kwargs, name=node.name)
        new.meta = dict(node.meta)
        old_types = [n.meta["val"].dtype for n in _tensor_nodes(node)] + _dtypes(node.args, node.kwargs)
        new_types = [n.meta["val"].dtype for n in _tensor_nodes(new)] + _dtypes(args, kwargs)
        if old_types != new_types:
            new.meta["val"] = _result(node, args, kwargs, dtype)
            new.meta.pop("tensor_meta", None)
        return new

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


class _Range:
    """The numbers that the low dtype has."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.max = torch.finfo(dtype).max
        self._known: dict[int, Trait] = {}

    def overflows(self, value: float) -> bool:
        return math.isfinite(value) and abs(value) > self.max

    def vanishes(self, value: float) -> bool:
        return value != 0 and torch.tensor(value, dtype=torch.float64).to(self.dtype).item() == 0

    def clamp(self, value: float) -> float:
        return math.copysign(self.max, value) if self.overflows(value) else value

    def traits(self, tensor: torch.Tensor) -> Trait:
        """HUGE where finite values have none in the low dtype; STATISTIC for a single number that becomes 0."""
        if id(tensor) not in self._known:
            low = tensor.to(self.dtype)
            huge = bool((low.isinf() & tensor.isfinite()).any())
            tiny = tensor.numel() == 1 and bool(((low == 0) & (tensor != 0)).any())
            self._known[id(tensor)] = (Trait.HUGE if huge else Trait.NONE) | (Trait.STATISTIC if tiny else Trait.NONE)
        return self._known[id(tensor)]


def operator_name(node: Node) -> str:
    """``conv2d`` for ``aten.conv2d.padding``; empty where the target is no operator of a library."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.partition("::")[2] if schema is not None else ""


def module_path(node: Node) -> str:
    """The user's name of the module that ``node`` was captured in (``encoder.layer.3``); empty for the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack else ""
    return "" if path == "model" or path.startswith("_empty_nn") else path.removeprefix("model.")


def retyped(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A fake tensor like ``value`` with another dtype. Its sizes are the same symbols; none is added or guarded."""
    if value.dtype == dtype:
        return value
    assert isinstance(value, FakeTensor)
    shapes = value.fake_mode.shape_env
    with value.fake_mode, shapes.suppress_guards() if shapes is not None else contextlib.nullcontext():
        return torch.empty_strided(value.size(), value.stride(), dtype=dtype, device=value.device)


def _result(node: Node, args: Any, kwargs: Any, dtype: torch.dtype) -> Any:
    """The value of ``node`` for arguments of other dtypes: the captured one, with the dtypes that the operator gives.

    The operator is asked on fake tensors of the example's sizes, in a mode of their own: the captured program's symbols
    see nothing of it. Where sizes depend on data there is no example; then its float results have the dtype that it
    computes in.
    """
    leaves, structure = _pytree.tree_flatten(node.meta["val"])
    with FakeTensorMode():
        try:
            args, kwargs = torch.fx.map_arg((args, kwargs), lambda n: _pytree.tree_map(_example, n.meta["val"]))
            types = [getattr(v, "dtype", None) for v in _pytree.tree_leaves(node.target(*args, **kwargs))]  # type: ignore[operator]
        except Exception:
            types = [dtype if _is_float(v) else None for v in leaves]
    pairs = zip(leaves, types, strict=True)
    return _pytree.tree_unflatten([v if t is None else retyped(v, t) for v, t in pairs], structure)


def _example(value: Any) -> Any:
    """A fake tensor or number of the size that the capture ran with."""
    if isinstance(value, torch.Tensor):
        size, stride = ([_example(v) for v in values] for values in (value.size(), value.stride()))
        return torch.empty_strided(size, stride, dtype=value.dtype, device=value.device)
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        if value.node.hint is None:
            raise LookupError(f"{value} depends on data")
        return value.node.hint
    return value


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _tensor_nodes(node: Node) -> list[Node]:
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]


def _has_complex(node: Node) -> bool:
    values = [n.meta["val"] for n in _tensor_nodes(node)] + _pytree.tree_leaves(node.meta["val"])
    return any(isinstance(v, torch.Tensor) and v.is_complex() for v in values)


def _is_plain_float_cast(node: Node) -> bool:
    """Whether ``node``, an ``aten._to_copy``, does nothing but cast a float tensor to another float type."""
    value, kwargs = node.args[0].meta["val"], node.kwargs  # type: ignore[union-attr]
    dtype, device = kwargs.get("dtype"), kwargs.get("device")
    moved = device is not None and torch.device(device) != value.device  # type: ignore[arg-type]
    plain = not moved and kwargs.get("memory_format") in (None, torch.preserve_format)
    return plain and value.is_floating_point() and isinstance(dtype, torch.dtype) and dtype.is_floating_point


def _dtypes(*arguments: Any) -> list[torch.dtype]:
    return [v for v in _pytree.tree_leaves(arguments) if isinstance(v, torch.dtype)]


def _is_transposed(node: Node, name: str) -> bool:
    return name in ("convolution", "_convolution") and bool(node.args[6])


def _pooling_window(node: Node, name: str) -> float:
    """How many elements one result of an average pooling is made from; infinite where that is not fixed."""
    rank = int(name[-2])
    if name.startswith("avg"):
        kernel = node.args[1]
        sizes = list(kernel) * (rank // len(kernel))  # type: ignore[arg-type]
        return math.prod(sizes) if all(isinstance(size, int) for size in sizes) else math.inf  # type: ignore[arg-type]
    before, after = (n.meta["val"].shape[-rank:] for n in (node.args[0], node))  # type: ignore[union-attr]
    if not all(isinstance(size, int) for size in (*before, *after)):
        return math.inf
    return math.prod(-(-a // b) for a, b in zip(before, after))


def _arguments(node: Node) -> Iterator[tuple[Node, str]]:
    """The tensors that ``node`` reads, with the name of the argument that each belongs to."""
    for schema, value in _named(node):
        for leaf in _pytree.tree_leaves(value):
            if isinstance(leaf, Node) and isinstance(leaf.meta.get("val"), torch.Tensor):
                yield leaf, schema.name


def _numbers(node: Node) -> Iterator[float]:
    """The numbers (not sizes, dimensions or flags) among the arguments of ``node``."""
    for schema, value in _named(node):
        if str(schema.type) in _NUMBERS and isinstance(value, (int, float)) and not isinstance(value, bool):
            yield value


def _map_numbers(node: Node, args: Any, kwargs: Any, change: Callable[[float], float]) -> tuple[Any, Any]:
    """``args`` and ``kwargs`` of ``node`` with ``change`` applied to the numbers among them."""

    def changed(schema: Any, value: Any) -> Any:
        number = str(schema.type) in _NUMBERS and isinstance(value, (int, float)) and not isinstance(value, bool)
        return change(value) if number else value

    schemas = node.target._schema.arguments  # type: ignore[union-attr]
    by_name = {schema.name: schema for schema in schemas}
    return (
        tuple(changed(schema, value) for schema, value in zip(schemas, args)),
        {name: changed(by_name[name], value) for name, value in kwargs.items()},
    )


def _named(node: Node) -> Iterator[tuple[Any, Any]]:
    """The arguments of ``node`` that are given, each with its place in the operator's schema."""
    schemas = node.target._schema.arguments  # type: ignore[union-attr]
    yield from zip(schemas, node.args)
    by_name = {schema.name: schema for schema in schemas}
    for name, value in node.kwargs.items():
        yield by_name[name], value


def _between(start: Node, end: Node) -> set[Node]:
    """``end`` and the nodes that it is made of, back to ``start``, which is not among them."""
    found, waiting = set(), [end]
    while waiting:
        node = waiting.pop()
        if node is not start and node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _union(traits: list[Trait]) -> Trait:
    return functools.reduce(operator.or_, traits, Trait.NONE)
