"""Which operators run in the low precision and which in float32, by their names.

Every operator belongs to one class:

* **low**: matrix products, convolutions and what else tensor cores run. Their float inputs are cast to the low dtype.
* **fp32**: what overflows or cancels in 16 bits: statistics, powers, normalizations, softmax, losses. Their float
  inputs are cast to float32 and their results stay float32.
* all others **follow** their inputs: low as soon as one of them is, else float32.

The fp32 class begins with the operators that CUDA's autocast runs in float32
(https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-can-autocast-to-float32).
"""

from __future__ import annotations

import math

import torch
from torch.fx import Node

from .fx_nodes import is_transposed


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


def runs_fp32(node: Node, name: str, low: torch.dtype) -> bool:
    """Whether ``node``, an operator of that ``name``, runs in float32 where the low dtype is ``low``."""
    return (
        name in FP32
        or name.startswith(FP32_FAMILIES)
        or (low == torch.bfloat16 and (name in NOT_IN_BFLOAT16 or is_transposed(node, name)))
        or (name in AVERAGE_POOLING and _pooling_window(node, name) > LARGEST_LOW_WINDOW)
    )


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
