"""torch2trt's API on a GPU: engines of others, files in torch2trt's own format, TensorRT's messages."""

from __future__ import annotations

import pytest
import torch
from comparing import assert_same
from torch import nn

from torchtrt_bridge.compat.torch2trt import ListDataset, TRTModule, torch2trt, trt
from torchtrt_bridge.errors import EngineMismatch, InputOutOfProfile, InvalidFile

pytestmark = pytest.mark.gpu


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x, pair):
        y = self.conv(x)
        return {"a": y + pair[0], "b": [y.mean((2, 3)), y * pair[1]]}


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = Net().eval().cuda()
    inputs = [torch.randn(1, 3, 8, 8).cuda(), (torch.randn(1, 4, 1, 1).cuda(), torch.randn(1, 4, 1, 1).cuda())]
    return model, inputs, torch2trt(model, inputs, max_batch_size=4)


def theirs(made):
    """What torch2trt itself saves."""
    return {
        "engine": bytearray(made.engine.serialize()),
        "input_names": made.input_names,
        "output_names": made.output_names,
        "input_flattener": {"schema": (0, (1, 2)), "size": 3},
        "output_flattener": {"schema": {"a": 0, "b": [1, 2]}, "size": 3},
    }


def close(actual, expected):
    assert_same(actual, expected, rtol=1e-3, atol=1e-3)


def test_the_engine_has_torch2trts_names(case):
    _, _, made = case
    engine = made.engine
    assert [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)] == [
        "input_0", "input_1", "input_2", "output_0", "output_1", "output_2",
    ]  # fmt: skip


def test_a_file_of_torch2trts_own_format(case, tmp_path):
    model, _, made = case
    torch.save(theirs(made), tmp_path / "theirs.pth")
    loaded = TRTModule()
    loaded.load_state_dict(torch.load(tmp_path / "theirs.pth"))
    inputs = [torch.randn(3, 3, 8, 8).cuda(), (torch.randn(3, 4, 1, 1).cuda(), torch.randn(3, 4, 1, 1).cuda())]
    with torch.no_grad():
        close(loaded(*inputs), model(*inputs))
    with pytest.raises(InputOutOfProfile):
        loaded(torch.randn(5, 3, 8, 8).cuda(), inputs[1])
    torch.save(loaded.state_dict(), tmp_path / "ours.pth")
    again = TRTModule()
    again.load_state_dict(torch.load(tmp_path / "ours.pth"))
    with torch.no_grad():
        close(again(*inputs), model(*inputs))
    nested = nn.Sequential(TRTModule())
    nested.load_state_dict({f"0.{name}": value for name, value in theirs(made).items()})


def test_an_engine_from_a_file_bytes_or_tensorrt(case, tmp_path):
    model, inputs, made = case
    made.save_plan(tmp_path / "net.engine")
    names = made.input_names, made.output_names
    plan = (tmp_path / "net.engine").read_bytes()
    for engine in (str(tmp_path / "net.engine"), plan, made.engine, made.engine.serialize()):
        module = TRTModule(engine, *names)
        with torch.no_grad():
            expected = model(*inputs)
            close(module(inputs[0], *inputs[1]), (expected["a"], *expected["b"]))
    with pytest.raises(InvalidFile, match="no tensor 'x'; it has input_0"):
        TRTModule(plan, ["x"], names[1])
    with pytest.raises(EngineMismatch, match="cannot load the plan"):
        TRTModule(plan[: len(plan) // 2], *names)


def test_half_models_datasets_and_messages(capfd):
    model = nn.Conv2d(3, 3, 1).cuda().eval().half()
    dataset = ListDataset([(torch.randn(n, 3, 8 * n, 8).cuda().half(),) for n in (1, 3, 2)])
    made = torch2trt(model, dataset, fp16_mode=True, log_level=trt.Logger.INFO)
    for (x,) in dataset:
        with torch.no_grad():
            assert_same(made(x), model(x), rtol=1e-2, atol=1e-2)
    assert "[TRT] INFO" in capfd.readouterr().err
