"""The operators of the sweep: those of torch's own list that an inference model may contain, each once, by family.

torch lists its operators, with samples of their inputs, in ``torch.testing._internal.common_methods_invocations``. What
is left out, and why, is in :data:`LEFT_OUT`; what is left is what ``docs/operators.md`` counts.
"""

from __future__ import annotations

import functools
import re
import sys
import types
import unittest
import unittest.mock
from typing import Any

import torch

LEFT_OUT = {
    "random": (
        r"bernoulli|cauchy|exponential|geometric|log_normal|normal|uniform|multinomial|rand.*|nn\.functional\.rrelu"
        r"|nn\.functional\.(feature_)?(alpha_)?dropout.*|nn\.functional\.fractional_max_pool.*|.*lowrank"
    ),
    "no tensor goes in, or only its shape is read": (
        r"(new_)?(empty|ones|zeros|full)(_like|_strided|_permuted)?|new_empty_strided|arange|linspace|logspace|eye|fill"
        r"|scalar_tensor|tril_indices|triu_indices|signal\..*|broadcast_shapes|zero_|resize_|resize_as_"
    ),
    "no tensor comes out": r"item|equal|allclose",
    "complex numbers": (
        r"complex|polar|real|imag|view_as_real|view_as_complex|resolve_conj|resolve_neg|conj|conj_physical|cdouble"
        r"|cfloat|chalf|isreal|angle|vdot|stft|istft|fft\.(?!fftshift|ifftshift).*"
    ),
    "sparse tensors": r"sparse\..*|to_sparse|_segment_reduce",
    "the same as another (reversed, a copying or an unsafe variant, an internal form)": (
        r"__r\w+__|rsub|true_divide|(?!index_).*_copy|unsafe_.*|_unsafe_.*|_batch_norm_with_update|_native_batch_norm_legit"
        r"|nn\.functional\.upsample_(bilinear|nearest)|masked\..*|torch\._scaled_mm.*"
        r"|torch\.ops\.aten\._(scaled_dot_product_)?(flash|efficient)_attention.*|special\.polygamma"
    ),
    "gradients and training": r"native_batch_norm|.*_backward(_data)?|nn\.functional\.linear_cross_entropy",
    "strides": r"as_strided.*",
    "written for other tests, or for one device": r"jiterator.*|hash_tensor|histogram(dd)?",
    "decompositions and solvers of linear algebra": (
        r"cholesky.*|qr|inverse|geqrf|lu.*|ormqr|matrix_exp|pinverse|svd.*|triangular_solve|logdet|linalg\.(det|slogdet|cholesky.*"
        r"|cond|eig.*|householder_product|ldl.*|lstsq|lu.*|inv.*|solve.*|qr|polar|pinv|svd.*|matrix_rank|matrix_sqrth"
        r"|tensorinv|tensorsolve)"
    ),
    "special functions": (
        r"special\.(.*bessel.*|.*_polynomial_.*|airy_ai|zeta|i0e|i1|i1e|ndtri|erfcx)|igammac?|i0|mvlgamma|polygamma"
        r"|digamma|lgamma|nextafter|gcd|lcm"
    ),
}
"""Why operators are left out, and a pattern of their names."""

_FAMILIES = {
    "convolution": r"nn\.functional\.(conv|unfold|fold).*",
    "pooling": r"nn\.functional\.(adaptive_|avg_|max_|lp_).*",
    "normalization": r".*(batch|group|layer|instance|rms)_norm|nn\.functional\.(normalize|local_response_norm)|renorm",
    "loss": r"nn\.functional\.(.*_loss|.*cross_entropy.*|kl_div|cosine_similarity|pairwise_distance|pdist|l1_loss)",
    "attention, softmax": r".*(softmax|softmin|attention).*",
    "image": r"nn\.functional\.(interpolate|grid_sample|pixel_.*|channel_shuffle)|_upsample.*|grid_sampler.*",
    "activation": r"nn\.functional\.(relu6?|elu|prelu|celu|selu|silu|hard.*|logsigmoid|mish|soft.*|tanhshrink|threshold"
    r"|leaky_relu|glu|gelu)|sigmoid",
    "matrix product": r"add(mm|mv|bmm|r)|baddbmm|b?mm|mv|dot|matmul|einsum|inner|outer|tensordot|kron|cdist|dist|trace"
    r"|nn\.functional\.(linear|bilinear)|linalg\.(multi_dot|matrix_power|vecdot|cross|norm|matrix_norm|vector_norm"
    r"|vander)|cross|norm|cov|corrcoef",
    "indexing": r"gather|scatter.*|index_.*|__getitem__|put|take.*|masked_.*|nonzero.*|argwhere|where|.*_scatter"
    r"|nn\.functional\.(embedding.*|one_hot)|unravel_index",
    "sorting, searching": r"sort|msort|argsort|topk|kthvalue|mode|median|nanmedian|n?a?n?quantile|unique.*|bucketize"
    r"|searchsorted|histc|bincount|isin|argmax|argmin|cummax|cummin",
    "scan": r"cum.*|logcumsumexp|diff|trap.*|gradient",
    "shape": r"broadcast.*|cat|chunk|.*split|.*stack|_chunk_cat|expand.*|flatten|unflatten|flip.*|movedim|narrow"
    r"|permute|ravel|repeat.*|reshape.*|roll|rot90|select|slice|squeeze|unsqueeze|swap.*|t|T|H|mT|mH|tile|transpose"
    r"|tri[lu]|unbind|unfold|view.*|atleast.*|block_diag|diag.*|linalg\.diagonal|meshgrid|cartesian_prod|combinations"
    r"|constant_pad_nd|nn\.functional\.pad|fft\..*|contiguous|clone|sum_to_size",
    "conversion": r"to|bfloat16|bool|byte|char|double|float|half|int|long|short",
    "comparison, logic": r"eq|ge|gt|le|lt|ne|isclose|logical_.*|bitwise_.*|is(finite|inf|posinf|neginf|nan)|signbit",
}


def family(info: Any) -> str:
    """The family that an operator is listed under."""
    for name, pattern in _FAMILIES.items():
        if re.fullmatch(pattern, info.name):
            return name
    kind = type(info).__name__
    return {"UnaryUfuncInfo": "elementwise, one input", "BinaryUfuncInfo": "elementwise, two inputs"}.get(
        kind, "reduction" if kind == "ReductionOpInfo" else "other"
    )


@functools.cache
def operators() -> dict[str, Any]:
    """torch's OpInfo by the operator's name; of several variants the first."""
    found: dict[str, Any] = {}
    for info in _op_db():
        if reason_left_out(info) is None:
            found.setdefault(info.name, info)
    return found


def reason_left_out(info: Any) -> str | None:
    """Why an operator is not in the sweep; None where it is."""
    for reason, pattern in LEFT_OUT.items():
        if re.fullmatch(pattern, info.name):
            return reason
    real = {torch.float32, torch.int64, torch.bool} & set(info.supported_dtypes("cpu"))
    return None if real else "complex numbers"


def _op_db() -> list[Any]:
    try:
        import expecttest  # noqa: F401
    except ImportError:  # torch's test package derives a class from one of expecttest's; the sweep uses neither
        stand_in = types.ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase  # type: ignore[attr-defined]
        sys.modules["expecttest"] = stand_in
    # The import freezes torch's global flags, for torch's own tests; the package sets one of them and puts it back.
    with unittest.mock.patch.object(torch.backends, "disable_global_flags", lambda: None):
        from torch.testing._internal.common_methods_invocations import op_db
    return list(op_db)
