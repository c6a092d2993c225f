"""The cut itself, and pieces as programs of their own: without building anything."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from parts import MixtureOfExperts, Twisted
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.capture import capture
from torchtrt_bridge.partition import cut
from torchtrt_bridge.runtime.program import restore, run_callable, store
from torchtrt_bridge.subprogram import subprogram, without_repeats


def pieces_of(captured, *operators, smallest=1):
    refused = {n.name: "refused" for n in captured.program.graph.nodes if any(o in str(n.target) for o in operators)}
    return cut(captured.program, refused, smallest)


def run_pieces(captured, pieces, inputs, stored=False):
    """The results of the pieces one after the other, each as a program of its own."""
    program = captured.program
    nodes = {n.name: n for n in program.graph.nodes}
    values = {nodes[name]: x for name, x in zip(program.graph_signature.user_inputs, inputs)}
    for piece in pieces:
        part = subprogram(program, piece.nodes, piece.inputs, piece.outputs)
        run = run_callable(restore(store(part)) if stored else part)
        values.update(zip(piece.outputs, run([values[n] for n in piece.inputs]), strict=True))
    return [values[n] for n in nodes["output"].args[0]]


def assert_right(captured, pieces, inputs):
    done = set(pieces[0].inputs)
    for piece in pieces:  # each piece reads only inputs and what earlier pieces made
        assert all(n.op == "placeholder" or n in done for n in piece.inputs)
        done |= set(piece.outputs)
    for stored in (False, True):
        for actual, expected in zip(run_pieces(captured, pieces, inputs, stored), captured.eager(inputs), strict=True):
            torch.testing.assert_close(actual, expected)


class Braid(nn.Module):
    """Two independent chains with a refused operator in each, joined at the end."""

    def forward(self, x, y):
        a = torch.sin(torch.relu(x) + 1)
        b = torch.sin(torch.tanh(y) * 2)
        c = torch.sigmoid(y)  # free to run anywhere
        return torch.exp(a) * torch.exp(b) + c, a


def test_independent_chains_share_their_pieces():
    captured = capture(Braid().eval(), (torch.randn(3), torch.randn(3)))
    pieces = pieces_of(captured, "sin.")
    assert [(piece.in_tensorrt, piece.operations) for piece in pieces] == [(True, 5), (False, 2), (True, 4)]
    assert_right(captured, pieces, (torch.randn(3), torch.randn(3)))


def test_a_graph_without_refusals_is_one_piece():
    captured = capture(Braid().eval(), (torch.randn(3), torch.randn(3)))
    (piece,) = pieces_of(captured)
    assert piece.in_tensorrt and piece.operations == 11


def test_small_pieces_go_back_to_pytorch_unless_nothing_else_is_left():
    captured = capture(Twisted().eval(), torch.randn(2, 8))
    every = [p.in_tensorrt for p in pieces_of(captured, "twist", "gelu")]
    assert every == [True, False, True, False, True, False, True]
    # a layer norm alone is not worth a crossing, a linear layer is
    assert [p.in_tensorrt for p in pieces_of(captured, "twist", "gelu", smallest=3)] == [True, False, True, False, True]
    only_small = pieces_of(captured, "twist", "gelu", "linear", smallest=3)
    assert [p.in_tensorrt for p in only_small] == [False, True, False]


class Loop(nn.Module):
    def forward(self, x):
        for _ in range(6):
            x = torch.sin(torch.relu(x * 2) + 1)
        return x


@pytest.mark.parametrize("refused", ["sin.", "relu", "mul", "add"])
def test_a_chain_of_alternations(refused):
    captured = capture(Loop().eval(), torch.randn(3))
    pieces = pieces_of(captured, refused)
    assert sum(not piece.in_tensorrt for piece in pieces) == 6
    assert_right(captured, pieces, [torch.randn(3)])


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4))

    def forward(self, x):
        scale = torch.exp(self.table) * torch.arange(4, device=x.device)
        return torch.sin(x * scale) * scale


def test_what_is_made_from_constants_is_copied_to_where_it_is_read():
    captured = capture(Constant().eval(), torch.randn(2, 4))
    pieces = pieces_of(captured, "sin.")
    assert [len(piece.inputs) for piece in pieces] == [1, 1, 1]
    assert_right(captured, pieces, [torch.randn(2, 4)])
    refused = pieces_of(captured, "sin.", "exp")  # a constant that TensorRT cannot make travels
    assert_right(captured, refused, [torch.randn(2, 4)])


class Shapes(nn.Module):
    def forward(self, x, y):
        h = torch.relu(x).reshape(x.shape[0] * 2, -1)
        h = torch.sin(h)
        return h.reshape(x.shape[0], 2, -1) * y.shape[0] + x.shape[0], torch.sin(y) + x.shape[0]


def test_numbers_made_from_shapes_are_computed_where_they_are_read():
    a, b = ttb.Dim(2, 3, 9, "a"), ttb.Dim(2, 4, 9, "b")
    captured = capture(
        Shapes().eval(), (torch.randn(3, 8), torch.randn(4)), dynamic_shapes={"x": {0: a}, "y": {0: b}}
    )
    pieces = pieces_of(captured, "sin.")
    for rows, length in ((3, 4), (9, 2)):
        assert_right(captured, pieces, (torch.randn(rows, 8), torch.randn(length)))


class Item(nn.Module):
    def forward(self, x):
        count = (x > 0).sum().item()
        torch._check(count >= 0)
        torch._check(count <= 8)
        return torch.exp(torch.relu(x)) + torch.ones(8, device=x.device) * count


def test_a_number_read_from_a_tensor_stays_in_pytorch():
    captured = capture(Item().eval(), torch.randn(8))
    pieces = pieces_of(captured)
    assert any(piece.in_tensorrt for piece in pieces) and not all(piece.in_tensorrt for piece in pieces)
    for scale in (1.0, -1.0):
        assert_right(captured, pieces, [torch.rand(8) * scale])


def test_sizes_that_may_be_zero_have_pieces_of_their_own():
    captured = capture(MixtureOfExperts().eval(), torch.randn(2, 6, 16))
    pieces = pieces_of(captured)
    assert [set(map(len, [p.kind])) if p.in_tensorrt else None for p in pieces].count({1}) == 4
    for piece in pieces:
        if piece.kind:  # whatever is 0 inside, every result is empty
            for node in piece.outputs:
                assert any(str(s) in piece.kind for s in node.meta["val"].shape)
    assert_right(captured, pieces, [torch.randn(2, 6, 16)])
    assert_right(captured, pieces, [torch.randn(1, 1, 16).expand(2, 6, 16)])


def test_the_captured_program_is_left_as_it_was():
    captured = capture(MixtureOfExperts().eval(), torch.randn(2, 6, 16))
    before = str(captured.program)
    run_pieces(captured, pieces_of(captured), [torch.randn(2, 6, 16)])
    assert str(captured.program) == before


def test_what_is_made_twice_is_made_once():
    captured = capture(MixtureOfExperts().eval(), torch.randn(2, 6, 16))
    before = str(captured.program)
    once = dataclasses.replace(captured, program=without_repeats(captured.program))
    assert str(captured.program) == before
    names = [n.name for piece in pieces_of(once) for n in piece.outputs]
    assert [name for name in names if name.startswith("unsqueeze")] == ["unsqueeze"]
    assert_right(once, pieces_of(once), [torch.randn(2, 6, 16)])


def test_chance_and_results_are_not_merged():
    class Twice(nn.Module):
        def forward(self, x):
            squares = x.topk(2)[0] * x.topk(2)[0]
            return torch.rand_like(x) + torch.rand_like(x), x.sin(), x.sin(), x.cos() + x.cos(), squares

    captured = capture(Twice().eval(), torch.randn(4))
    program = without_repeats(captured.program)
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    count = {name: sum(t.startswith(f"aten.{name}.") for t in targets) for name in ("rand_like", "sin", "cos", "topk")}
    assert count == {"rand_like": 2, "sin": 2, "cos": 1, "topk": 1}
    assert without_repeats(program) is program
    results = run_callable(program)([torch.arange(4.0)])
    torch.testing.assert_close(results[4], torch.tensor([9.0, 4.0]))
