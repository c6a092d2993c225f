"""What a precision promises, on real models: numbers close to the eager float32 model's, and the right dtypes."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from torchtrt_bridge.batch_norm import fold_batch_norm
from torchtrt_bridge.errors import InvalidOption
from torchtrt_bridge.fx_nodes import operator_name
from torchtrt_bridge.operator_classes import LOW, NORMALIZATIONS, NOT_IN_BFLOAT16
from torchtrt_bridge.precision import CastResult, Precision, cast_program

TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}  # relative L2 error against eager float32
LOWS = ("fp16", "bf16")
ALL = ("fp32", "fp16", "bf16")


class Flat(nn.Module):
    """As the capture wraps a model: flat tensors in and out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *tensors):
        result = self.model(*tensors)
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def export(model, inputs, dynamic=None):
    with torch.no_grad():
        shapes = {"tensors": dynamic} if dynamic else None
        program = torch.export.export(Flat(model).eval(), inputs, dynamic_shapes=shapes, strict=False)
        return program.run_decompositions({})


def run(program, inputs):
    with torch.no_grad():
        return program.module()(*inputs)


def eager(model, inputs):
    """The results of ``model`` computed in float32, whatever its own dtype."""
    inputs = [t.float() if t.is_floating_point() else t for t in inputs]
    with torch.no_grad():
        return Flat(copy.deepcopy(model).float().eval())(*inputs)


def error(expected, actual):
    expected, actual = expected.double(), actual.double()
    return ((expected - actual).norm() / expected.norm()).item()


class MetaCheck(torch.fx.Interpreter):
    """Runs a graph and compares the dtype of every result with what the graph says about it."""

    def run_node(self, node):
        result = super().run_node(node)
        said = node.meta.get("val")
        pairs = zip(said, result) if isinstance(said, (tuple, list)) else [(said, result)]
        for a, b in pairs:
            if isinstance(a, torch.Tensor):
                assert b.dtype == a.dtype, node.format_node()
        return result


def check_metas(program, inputs):
    tensors = []
    users = iter(inputs)
    for spec in program.graph_signature.input_specs:
        name = spec.target
        holder = program.state_dict if name in program.state_dict else program.constants
        tensors.append(next(users) if name is None else holder[name])
    with torch.no_grad():
        MetaCheck(program.graph_module).run(*tensors)


def text(program):
    values = [(n.name, str(n.meta.get("val"))) for n in program.graph.nodes]
    return str(program.graph), str(program.graph_signature), values, str(program.range_constraints)


def shape_env(program):
    value = next(n.meta["val"] for n in program.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor))
    return value.fake_mode.shape_env


def cast(model, inputs, precision, dynamic=None) -> CastResult:
    """The cast program, after the checks that hold for every model."""
    program = export(model, inputs, dynamic)
    before, guards = text(program), len(shape_env(program).guards)
    tensors = {k: (v, v.clone()) for k, v in {**program.state_dict, **program.constants}.items()}
    result = cast_program(program, Precision.parse(precision))
    assert text(program) == before
    assert len(shape_env(program).guards) == guards
    after = {**program.state_dict, **program.constants}
    assert all(after[k] is v and torch.equal(v, kept) for k, (v, kept) in tensors.items())
    assert result.program.graph is not program.graph
    old, new = (p.graph.find_nodes(op="placeholder") for p in (program, result.program))
    assert [n.name for n in old] == [n.name for n in new]
    for name, tensor in {**result.program.state_dict, **result.program.constants}.items():
        assert tensor is after[name] or tensor.dtype != after[name].dtype or not torch.equal(tensor, after[name])
    check_metas(result.program, inputs)
    captured = shapes(program)
    assert all(captured.get(name, sizes) == sizes for name, sizes in shapes(result.program).items())
    return result


def shapes(program):
    """What the graph says about sizes, by node; symbols by name."""
    found = {}
    for node in program.graph.nodes:
        values = torch.utils._pytree.tree_leaves(node.meta.get("val"))
        found[node.name] = [(str(v.shape), str(v.stride())) for v in values if isinstance(v, torch.Tensor)]
    return found


def check(model, inputs, precision, dynamic=None, tolerance=None) -> CastResult:
    """Cast, run, and compare the results with eager float32 and with the dtypes of the user's model."""
    result = cast(model, inputs, precision, dynamic)
    with torch.no_grad():
        dtypes = [t.dtype for t in Flat(model).eval()(*inputs)]
    actual = run(result.program, inputs)
    assert [t.dtype for t in actual] == dtypes
    for a, b in zip(eager(model, inputs), actual):
        e = error(a, b)
        print(f"{type(model).__name__} {precision} {e:.1e}")
        assert e <= (tolerance or TOLERANCE[precision])
    return result


def classes(program):
    """(operator, dtype of its first result) of every operator with a float result."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        value = value[0] if isinstance(value, (tuple, list)) else value
        if node.op == "call_function" and isinstance(value, torch.Tensor) and value.is_floating_point():
            yield operator_name(node), value.dtype


def check_classes(program, precision):
    """Products in the low dtype, normalizations in float32."""
    low = Precision.parse(precision).dtype
    found = list(classes(program))
    gaps = NOT_IN_BFLOAT16 if precision == "bf16" else frozenset()
    assert {dtype for name, dtype in found if name in LOW - gaps} == {low}
    assert {dtype for name, dtype in found if name in NORMALIZATIONS | gaps} <= {torch.float32}
    return {name for name, _ in found}


def randomize_statistics(model):
    """Running statistics that are not the identity, so that a wrong fold shows."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class SmallCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding="same", groups=4), nn.BatchNorm2d(16), nn.SiLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(16, 8, 2, stride=2, groups=2), nn.BatchNorm2d(8))
        self.head = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Linear(12, 5))

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.adaptive_avg_pool2d(self.up(x + self.block(x)), 1).flatten(1))


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, name",
    [
        ("fp32", "fp32"), ("float32", "fp32"), ("half", "fp16"), ("float16", "fp16"), ("bfloat16", "bf16"),
        ("FP16", "fp16"), (torch.float16, "fp16"), (torch.bfloat16, "bf16"), (torch.float32, "fp32"),
        (Precision("bf16"), "bf16"),
    ],
)  # fmt: skip
def test_names_of_a_precision(value, name):
    assert Precision.parse(value) == Precision(name)


def test_an_unknown_precision_names_the_nearest():
    with pytest.raises(InvalidOption, match="Did you mean 'fp16'"):
        Precision.parse("fp61")
    for value in (16, None, torch.int32, "", "tf32x"):
        with pytest.raises(InvalidOption, match="choose 'fp32', 'fp16', 'bf16', 'int8' or 'fp8'"):
            Precision.parse(value)


@pytest.mark.parametrize(("value", "name"), [("int8", "int8"), (torch.int8, "int8"), (torch.float8_e4m3fn, "fp8")])
def test_a_quantized_precision_has_another_for_what_is_not_quantized(value, name):
    precision = Precision.parse(value)
    assert (precision.name, precision.quantized, precision.other) == (name, True, None)
    assert precision.at(needs_plan=True).dtype == torch.float16
    assert precision.at(needs_plan=False).dtype == torch.float32
    assert Precision(name, other="bf16").at(needs_plan=True).dtype == torch.bfloat16
    assert Precision("fp16").at(needs_plan=False) == Precision("fp16")
    with pytest.raises(InvalidOption, match="leave it out"):
        Precision("fp16", other="fp32")
    with pytest.raises(InvalidOption, match="other='int4'"):
        Precision(name, other="int4")


# -- whole models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ALL)
def test_cnn_has_no_batch_norm_left(precision):
    model = randomize_statistics(SmallCNN())
    result = check(model, (torch.randn(2, 3, 16, 16),), precision, ({0: Dim.DYNAMIC},))
    names = check_classes(result.program, precision)
    assert not any("batch_norm" in name for name in names)
    assert set(result.program.state_dict) == set(export(model, (torch.randn(2, 3, 16, 16),)).state_dict)


@pytest.mark.parametrize("precision", LOWS)
def test_mobilenet(precision):
    models = pytest.importorskip("torchvision.models")
    model = randomize_statistics(models.mobilenet_v3_small())
    result = check(model, (torch.randn(2, 3, 96, 96),), precision, ({0: Dim.DYNAMIC},))
    assert not any("batch_norm" in name for name in check_classes(result.program, precision))


@pytest.mark.parametrize("precision", LOWS)
def test_vit(precision):
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=10).eval()
    result = check(model, (torch.randn(2, 3, 64, 64),), precision, ({0: Dim.DYNAMIC},))
    check_classes(result.program, precision)
    assert "blocks.0.norm1" in result.kept["aten.layer_norm"]
    low = Precision.parse(precision).dtype
    assert result.program.state_dict["model.blocks.0.mlp.fc1.weight"].dtype == low
    assert result.program.state_dict["model.blocks.0.norm1.weight"].dtype == torch.float32


@pytest.mark.parametrize("precision", LOWS)
def test_swin(precision):
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, window_size=7, depths=(2, 2), num_heads=(2, 4), embed_dim=32
    ).eval()
    result = check(model, (torch.randn(2, 3, 56, 56),), precision)
    check_classes(result.program, precision)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("precision", LOWS)
def test_bert_with_a_padded_batch(precision, attention):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=100,
        attn_implementation=attention,
    )  # fmt: skip
    model = transformers.BertModel(config).eval()

    class Bert(nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = model

        def forward(self, ids, mask):
            result = self.bert(input_ids=ids, attention_mask=mask)
            return result.last_hidden_state, result.pooler_output

    ids, mask = torch.randint(0, 100, (3, 12)), torch.ones(3, 12, dtype=torch.int64)
    mask[1, 5:] = 0
    shapes = ({0: Dim("batch", max=8), 1: Dim("length", max=64)},) * 2
    result = check(Bert(), (ids, mask), precision, shapes)
    check_classes(result.program, precision)
    program = result.program
    assert len(program.range_constraints) == 2
    other = torch.randint(0, 100, (5, 20)), torch.ones(5, 20, dtype=torch.int64)
    for a, b in zip(eager(Bert(), other), run(program, other)):
        assert error(a, b) <= TOLERANCE[precision]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("precision", LOWS)
def test_gpt2(precision, attention):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=100, n_positions=32, use_cache=False, attn_implementation=attention
    )
    model = transformers.GPT2LMHeadModel(config).eval()

    class GPT2(nn.Module):
        def __init__(self):
            super().__init__()
            self.gpt = model

        def forward(self, ids):
            return self.gpt(input_ids=ids, use_cache=False).logits

    result = check(GPT2(), (torch.randint(0, 100, (2, 9)),), precision, ({0: Dim.DYNAMIC},))
    check_classes(result.program, precision)
    # the embedding is tied to the head: one tensor, in the low dtype, under both names
    state = result.program.state_dict
    tied = state["model.gpt.lm_head.weight"], state["model.gpt.transformer.wte.weight"]
    assert {t.dtype for t in tied} == {Precision.parse(precision).dtype}
    assert tied[0].data_ptr() == tied[1].data_ptr()


@pytest.mark.parametrize("precision", ALL)
def test_llama_keeps_its_rotary_angles(precision):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
        vocab_size=100, max_position_embeddings=8192, use_cache=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()

    class Llama(nn.Module):
        def __init__(self):
            super().__init__()
            self.llama = model

        def forward(self, ids, positions):
            return self.llama(input_ids=ids, position_ids=positions, use_cache=False).logits

    # float16 has no odd numbers above 2048: the angles of such positions would be wrong
    inputs = torch.randint(0, 100, (2, 9)), torch.arange(5001, 5010).expand(2, 9)
    result = check(Llama(), inputs, precision)
    angles = [n for n in result.program.graph.nodes if operator_name(n) in ("sin", "cos")]
    assert angles and all(n.meta["val"].dtype == n.args[0].meta["val"].dtype == torch.float32 for n in angles)


class Tagger(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.rnn = getattr(nn, kind)(32, 24, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 7)

    def forward(self, ids):
        return self.head(self.rnn(self.embed(ids))[0])


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("precision", LOWS)
def test_recurrent_tagger(precision, kind):
    result = check(Tagger(kind), (torch.randint(0, 50, (2, 11)),), precision)
    check_classes(result.program, precision)


def test_weights_that_are_buffers_are_low_too():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.randn(20, 8))
            self.register_buffer("weight", torch.randn(8, 8))
            self.plain = torch.randn(8, 4)

        def forward(self, ids):
            return F.linear(F.embedding(ids, self.table), self.weight) @ self.plain

    check_classes(check(Frozen(), (torch.randint(0, 20, (2, 5)),), "fp16").program, "fp16")


# -- numbers that 16 bits do not have ----------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-12) * self.weight


@pytest.mark.parametrize("precision", LOWS)
def test_hand_written_norm_of_large_activations(precision):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.norm, self.down = nn.Linear(64, 64), RMSNorm(64), nn.Linear(64, 8)

        def forward(self, x):
            return self.down(self.norm(self.up(x)))

    model, x = Block(), 3e3 * torch.randn(4, 64)
    with torch.no_grad():
        assert precision == "bf16" or not error(model(x), copy.deepcopy(model).half()(x.half())) < 0.5
    result = check(model, (x,), precision)
    assert result.kept["aten.pow"] == ["norm"]


@pytest.mark.parametrize("precision", LOWS)
def test_normalizing_a_row_of_zeros(precision):
    class Normalize(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16, bias=False)

        def forward(self, x):
            y = self.linear(x)
            length, total = y.norm(dim=-1, keepdim=True), y.abs().sum(-1, True)
            return F.normalize(y, dim=-1), y / (length + 1e-12), y / (total + 1e-9), y / (y.abs() + 1e-12)

    x = torch.randn(4, 16)
    x[2] = 0
    check(Normalize(), (x,), precision)


@pytest.mark.parametrize("precision", LOWS)
@pytest.mark.parametrize("value", [-1e30, torch.finfo(torch.float32).min, float("-inf")])
def test_masked_scores(precision, value):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))

        def forward(self, x, keep):
            q, k, v = self.q(x), self.k(x), self.v(x)
            scores = q @ k.transpose(1, 2) * 8
            added = torch.zeros(keep.shape).masked_fill(~keep, value)[:, None]
            chosen = torch.where(keep[:, None], scores, torch.tensor(value))
            fused = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=added[:, None])
            return (
                (scores + added).softmax(-1) @ v,
                scores.masked_fill(~keep[:, None], value).softmax(-1) @ v,
                chosen.softmax(-1) @ v,
                fused,
            )

    keep = torch.ones(2, 9, dtype=torch.bool)
    keep[0, 4:] = False
    x = torch.randn(2, 9, 32)
    program = check(Attention(), (x, keep), precision, tolerance=3 * TOLERANCE[precision]).program
    keep[1] = False  # nothing but padding: what comes out means nothing, but is finite where float32 is
    results, finite = run(program, (x, keep)), value != float("-inf")
    assert all(bool(t.isfinite().all()) == finite for t in results[:3]) and (results[3].isfinite().all() or not finite)


@pytest.mark.parametrize("precision", LOWS)
@pytest.mark.parametrize("value", [torch.finfo(torch.float32).min, float("-inf")])
def test_additive_mask_from_the_user(precision, value):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(32, 96)

        def forward(self, x, mask):
            q, k, v = self.qkv(x).chunk(3, -1)
            by_hand = ((q @ k.transpose(1, 2)) + mask).softmax(-1) @ v
            return by_hand, F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=mask[:, None])

    mask = torch.zeros(2, 1, 9)
    mask[0, :, 4:] = value
    x = 10 * torch.randn(2, 9, 32)
    program = check(Attention(), (x, mask), precision, tolerance=3 * TOLERANCE[precision]).program
    mask[1] = torch.finfo(torch.float32).min
    assert all(t.isfinite().all() for t in run(program, (x, mask)))


@pytest.mark.parametrize("given", [False, True], ids=["made inside", "given by the user"])
@pytest.mark.parametrize("precision", LOWS)
def test_a_masked_row_of_negative_scores_is_finite(precision, given):
    """-65504 - 100 is -inf in float16, and a softmax over nothing else is not a number."""

    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.linear.bias.data.fill_(-100)

        def forward(self, x, mask):
            if not given:
                mask = (1 - mask) * torch.finfo(torch.float32).min
            return (self.linear(x) + mask).softmax(-1)

    mask = torch.ones(3, 8, dtype=torch.float32 if given else torch.int64)
    mask[0] = mask[1, 4:] = 0
    if given:
        mask = (1 - mask) * torch.finfo(torch.float32).min
    inputs = 0.1 * torch.randn(3, 8), mask
    (result,) = run(cast(Scores(), inputs, precision).program, inputs)
    # scores of 100 are coarse in 16 bits; the masks are not
    torch.testing.assert_close(result[0], torch.full((8,), 1 / 8))
    assert (result[1, 4:] == 0).all()
    torch.testing.assert_close(result.sum(-1), torch.ones(3))


@pytest.mark.parametrize("given", [False, True], ids=["made inside", "given by the user"])
def test_the_mask_of_a_fused_attention_is_finite_with_room_for_scores(given):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(16, 48)

        def forward(self, x, mask):
            q, k, v = self.qkv(x)[:, None].chunk(3, -1)
            mask = mask if given else (1 - mask) * torch.finfo(torch.float32).min
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask), mask

    mask = torch.tensor([1, 1, 0, 0]).expand(2, 1, 4, 4)
    mask = (1 - mask) * torch.finfo(torch.float32).min if given else mask
    inputs = torch.randn(2, 4, 16), mask
    result = check(Attention(), inputs, "fp16")
    attention = next(n for n in result.program.graph.nodes if "attention" in n.name)
    read = attention.kwargs.get("attn_mask", attention.args[-1])
    graph = result.program.graph
    output = graph.find_nodes(op="output")[0]
    output.args = ((output.args[0][0], read),)  # the mask as the attention sees it
    result.program.graph_module.recompile()
    state = [result.program.state_dict[f"model.qkv.{name}"] for name in ("weight", "bias")]
    seen = result.program.graph_module(*state, *inputs)[1]
    assert seen.dtype == torch.float16 and seen.unique().tolist() == [-32752, 0]


@pytest.mark.parametrize("precision", LOWS)
def test_a_product_of_tables_is_exact(precision):
    class Angles(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("frequencies", 1.0 / 100 ** (torch.arange(8) / 8))
            self.linear = nn.Linear(8, 8)

        def forward(self, x, positions):
            angles = positions[:, None].float() @ self.frequencies[None]
            return self.linear(x) * angles.cos(), angles.sin()

    result = check(Angles(), (torch.randn(5, 8), torch.arange(5001, 5006)), precision)
    assert dict(classes(result.program))["matmul"] == torch.float32
    assert result.kept["aten.matmul"] == [""]


def test_infinities_pass_the_clamp():
    class Add(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x, bias):
            return torch.cat([self.linear(x), bias[None]])

    bias = torch.tensor([float("inf"), float("-inf"), 1e30, 2.0])
    model, x = Add(), torch.zeros(1, 4)
    (y,) = run(cast(model, (x, bias), "fp16").program, (x, bias))
    assert y[1].tolist() == [float("inf"), float("-inf"), 65504, 2]


def test_arithmetic_with_a_number_beyond_the_range_is_not_clamped():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            y = self.linear(x)
            return y * 1e6 * 1e-6, y / 1e6, y.clamp(max=1e6), (y > -1e6).float(), y - 1e6

    check(Scale(), (torch.randn(3, 8),), "fp16")


def test_a_buffer_with_huge_values_is_clamped_when_it_is_stored():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(16, 48)
            self.register_buffer("mask", torch.full((6, 6), torch.finfo(torch.float32).min).triu(1))

        def forward(self, x):
            q, k, v = self.qkv(x)[:, None].chunk(3, -1)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)

    result = check(Masked(), (torch.randn(2, 6, 16),), "fp16")
    mask = result.program.state_dict["model.mask"]
    assert mask.dtype == torch.float16 and mask.isfinite().all()
    assert "isinf" not in {operator_name(n) for n in result.program.graph.nodes}


def test_a_weight_beyond_the_range_is_said():
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[0, 0] = 1e6
    result = cast(model, (torch.randn(1, 4),), "fp16")
    assert result.program.state_dict["model.0.weight"][0, 0] == 65504
    assert result.notes == ("values beyond the range of fp16 were clamped in 0.weight",)


@pytest.mark.parametrize("size", [8, 64])
def test_pooling_over_a_large_window_is_a_statistic(size):
    class Pool(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return F.adaptive_avg_pool2d(self.conv(x), 1)

    result = check(Pool(), (torch.randn(1, 3, size, size),), "fp16")
    dtype = dict(classes(result.program))["adaptive_avg_pool2d"]
    assert dtype == (torch.float16 if size == 8 else torch.float32)


# -- models that are not float32 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", ALL)
def test_a_half_model(precision, dtype):
    model = randomize_statistics(SmallCNN()).to(dtype)
    result = check(model, (torch.randn(2, 3, 16, 16).to(dtype),), precision, tolerance=max(4e-3, TOLERANCE[precision]))
    low = Precision.parse(precision).dtype
    assert result.program.state_dict["model.head.2.weight"].dtype == low
    assert not any("batch_norm" in name for name in check_classes(result.program, precision))
    if low == dtype:  # what does not change is not copied
        program = export(model, (torch.randn(2, 3, 16, 16).to(dtype),))
        again = cast_program(program, Precision.parse(precision)).program
        assert again.state_dict["model.head.2.weight"] is program.state_dict["model.head.2.weight"]


@pytest.mark.parametrize("precision", ALL)
def test_casts_and_constants_inside_the_model(precision):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            y = self.linear(x).half()
            ramp = torch.arange(8, dtype=torch.float64) / 8
            y = y + torch.full((8,), 0.25, dtype=torch.bfloat16) + torch.zeros(8, dtype=torch.float16)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                z = self.linear(y.float())
            return z.float() * ramp, y

    model, x = Mixed(), torch.randn(3, 8)
    program = export(model, (x,))
    result = cast_program(program, Precision.parse(precision))
    check_metas(result.program, (x,))
    allowed = {torch.float32, Precision.parse(precision).dtype}
    assert {dtype for _, dtype in list(classes(result.program))[:-2]} <= allowed
    for a, b in zip(model(x), run(result.program, (x,))):
        assert a.dtype == b.dtype
        assert error(a, b) < 3e-2


@pytest.mark.parametrize("precision", ALL)
def test_a_float64_model(precision):
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4)).double()
    result = check(model, (torch.randn(3, 8, dtype=torch.float64),), precision)
    assert "float64 is computed in float32" in result.notes
    assert all(t.dtype != torch.float64 for t in result.program.state_dict.values())


def test_a_float_call_of_the_model_stays_float32():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            y = self.linear(x)
            return y.float().relu(), y.relu()

    program = cast(Head().half(), (torch.randn(2, 8).half(),), "fp16").program
    assert sorted(str(d) for name, d in classes(program) if name == "relu") == ["torch.float16", "torch.float32"]


def test_a_float32_model_shares_every_tensor():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    program = export(model, (torch.randn(2, 4),))
    result = cast_program(program, Precision("fp32"))
    assert result.program is not program and result.kept == {} and result.notes == ()
    assert all(result.program.state_dict[k] is v for k, v in program.state_dict.items())
    assert str(result.program.graph) == str(program.graph)


# -- the graph ---------------------------------------------------------------------------------------------------------


def test_a_parameter_with_two_kinds_of_readers_stays_float32():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x):
            return F.linear(x, self.weight) + self.weight.exp().sum()

    result = check(Mixed(), (torch.randn(2, 8),), "fp16")
    assert result.program.state_dict["model.weight"].dtype == torch.float32


def test_one_cast_for_all_readers():
    class Fan(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x):
            return self.a(x) + self.b(x) + self.c(x)

    program = check(Fan(), (torch.randn(2, 8),), "fp16").program
    casts = [n for n in program.graph.nodes if operator_name(n) == "_to_copy"]
    assert len(casts) == 2  # one in, one out
    assert [v[0] for v in casts[0].meta["nn_module_stack"].values()][-1] == "model.a"


def test_a_view_of_a_weight_is_stored_low():
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 4))

        def forward(self, x):
            return x @ self.weight.t()[:, :6]

    result = check(Transposed(), (torch.randn(2, 4),), "fp16")
    assert result.program.state_dict["model.weight"].dtype == torch.float16


@pytest.mark.parametrize("precision", LOWS)
def test_operators_with_several_results(precision):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(12, 12)

        def forward(self, x):
            a, b, c = self.linear(x).split(4, -1)
            top, index = a.topk(2)
            biggest, where = b.max(-1)
            variance, mean = torch.var_mean(c, -1)
            return top, biggest, c.sort(-1)[0], variance, mean, torch.stack([a, b]).unbind(0)[1], index >= 0, where >= 0

    x = torch.randn(3, 12)
    model = Several()
    result = cast(model, (x,), precision)
    for a, b in zip(model(x), run(result.program, (x,))):
        assert a.dtype == b.dtype and error(a, b) <= TOLERANCE[precision]


def test_integers_and_sizes_pass():
    class Count(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 8)

        def forward(self, ids, x):
            count = torch.arange(x.shape[0], dtype=torch.float32)[:, None] / x.shape[0]
            return self.embed(ids).sum(1) + count + x, ids * x.shape[0], (ids > 3).float()

    ids, x = torch.randint(0, 10, (4, 5)), torch.randn(4, 8)
    shapes = ({0: Dim("n", max=9)}, {0: Dim("n", max=9)})
    program = check(Count(), (ids, x), "fp16", shapes).program
    other = torch.randint(0, 10, (7, 5)), torch.randn(7, 8)
    torch.testing.assert_close(run(program, other)[1], other[0] * 7)


def test_sizes_that_depend_on_data():
    class Select(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            y = self.linear(x)
            return y[y > 0].relu(), (y > 0).nonzero()

    check(Select(), (torch.randn(3, 8),), "fp16")


def test_a_branch_keeps_the_precision_of_the_model():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            y = self.linear(x)
            return torch.cond(y.sum() > 0, lambda t: t.sin(), lambda t: t.cos(), (y,))

    result = check(Branch(), (torch.randn(3, 8),), "fp16")
    assert any("cond" in note for note in result.notes)


def test_an_operator_of_another_library_gets_what_it_was_captured_with():
    seen = []

    @torch.library.custom_op("precision_test::half_plus_one", mutates_args=())
    def half_plus_one(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.dtype)
        return x + 1

    half_plus_one.register_fake(lambda x: torch.empty_like(x))

    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return half_plus_one(self.linear(x).half()).float()

    model, x = Custom(), torch.randn(3, 8)
    program = export(model, (x,))
    result = cast_program(program, Precision("bf16"))
    seen.clear()
    check_metas(result.program, (x,))
    assert seen == [torch.float16]
    assert any("half_plus_one" in note for note in result.notes)


def test_complex_rotation_stays_float32():
    class Rotate(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            angles = torch.outer(torch.arange(x.shape[1]).float(), 1.0 / 10 ** torch.arange(4).float())
            turn = torch.polar(torch.ones_like(angles), angles)
            y = torch.view_as_complex(self.linear(x).float().reshape(*x.shape[:2], 4, 2))
            return torch.view_as_real(y * turn).flatten(2)

    check(Rotate(), (torch.randn(2, 5, 8),), "fp16")


# -- batch normalization -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_fold_is_exact(dims, transposed, affine, bias):
    layer = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")(4, 6, 3, groups=2, bias=bias)
    norm = getattr(nn, f"BatchNorm{dims}d")(6, affine=affine)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    if affine:
        nn.init.uniform_(norm.weight, -2, 2)
        nn.init.uniform_(norm.bias)
    model, x = nn.Sequential(layer, norm).eval(), torch.randn(2, 4, *[7] * dims)
    program = export(model, (x,))
    folded = fold_batch_norm(program)
    assert not any("batch_norm" in operator_name(n) for n in folded.graph.nodes)
    torch.testing.assert_close(run(folded, (x,))[0], model(x), rtol=1e-4, atol=1e-5)
    assert any("batch_norm" in operator_name(n) for n in program.graph.nodes)


class Unfoldable(nn.Module):
    """A convolution that two normalizations read, one that is used twice, and a normalization without statistics."""

    def __init__(self):
        super().__init__()
        self.fork, self.shared = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.a, self.b, self.c, self.d = (nn.BatchNorm2d(3) for _ in range(4))
        self.batch = nn.BatchNorm2d(3, track_running_stats=False)
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        y = self.fork(x)
        y = self.a(y) + self.b(y)
        y = self.d(self.shared(self.c(self.shared(y))))
        return self.batch(self.last(y))


@pytest.mark.parametrize("precision", LOWS)
def test_batch_norm_that_cannot_be_folded_is_float32(precision):
    model, x = Unfoldable().eval(), (torch.randn(2, 3, 6, 6),)
    program = export(model, x)
    assert fold_batch_norm(program) is program
    result = check(model, x, precision)
    check_classes(result.program, precision)
    assert sorted(sum((paths for name, paths in result.kept.items() if "batch_norm" in name), [])) == [
        "a", "b", "batch", "c", "d"
    ]  # fmt: skip


# -- what the routes do with it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ALL)
def test_programs_serialize(precision):
    model, inputs = randomize_statistics(SmallCNN()), (torch.randn(2, 3, 16, 16),)
    program = cast(model, inputs, precision, ({0: Dim.DYNAMIC},)).program
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(run(torch.export.load(file), (x,))[0], run(program, (x,))[0])


def onnx_bytes(program, inputs):
    pytest.importorskip("onnxscript")
    exported = torch.onnx.export(program, inputs, dynamo=True, opset_version=23, verbose=False)
    return exported.model_proto.SerializeToString()


def build(model_bytes, profile=None):
    """A strongly typed TensorRT engine; any mixture of types that the parser or the builder rejects fails the test."""
    trt = pytest.importorskip("tensorrt_rtx")
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model_bytes), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if "ATTENTION" in str(layer.type):
            layer.__class__ = trt.IAttentionBoundaryLayer
            layer.attention.decomposable = True
    config = builder.create_builder_config()
    if profile:
        shapes = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            shapes.set_shape(network.get_input(index).name, *profile)
        config.add_optimization_profile(shapes)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None and plan.nbytes > 0
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return {layer.type: layer.get_output(0).dtype for layer in layers if layer.num_outputs}


@pytest.mark.parametrize("precision", LOWS)
def test_tensorrt_builds_the_cnn(precision):
    trt = pytest.importorskip("tensorrt_rtx")
    x = (torch.randn(2, 3, 16, 16),)
    program = cast(randomize_statistics(SmallCNN()), x, precision).program
    types = build(onnx_bytes(program, x))
    assert types[trt.LayerType.CONVOLUTION] == {"fp16": trt.DataType.HALF, "bf16": trt.DataType.BF16}[precision]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_tensorrt_builds_bert_in_fp16(attention):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128, vocab_size=100,
        attn_implementation=attention, return_dict=False,
    )  # fmt: skip
    ids = torch.randint(0, 100, (2, 12))
    inputs = ids, torch.ones_like(ids)
    shapes = ({0: Dim("batch", max=8), 1: Dim("length", max=64)},) * 2
    program = cast(transformers.BertModel(config), inputs, "fp16", shapes).program
    build(onnx_bytes(program, inputs), ((1, 2), (2, 12), (8, 64)))


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("precision", LOWS)
def test_tensorrt_builds_the_tagger(precision, kind):
    inputs = (torch.randint(0, 50, (2, 11)),)
    build(onnx_bytes(cast(Tagger(kind), inputs, precision).program, inputs))


def test_tensorrt_builds_the_clamp_of_a_mask():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(16, 48)

        def forward(self, x, mask):
            q, k, v = self.qkv(x)[:, None].chunk(3, -1)
            return torch.cat([F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, 0], mask[:, 0]], -1)

    inputs = torch.randn(2, 6, 16), torch.zeros(2, 1, 6, 6)
    build(onnx_bytes(cast(Masked(), inputs, "fp16").program, inputs))
