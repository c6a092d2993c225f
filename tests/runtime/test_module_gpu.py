"""TRTModule on a GPU: real engines, many streams, and files that a fresh process loads."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

import torchtrt_bridge as ttb

pytestmark = pytest.mark.gpu

RELOAD = """
import sys, torch, torchtrt_bridge as ttb
state, inputs, result = sys.argv[1:]
fast = ttb.TRTModule()
fast.load_state_dict(torch.load(state))
torch.save([fast(*[x.cuda() for x in args]) for args in torch.load(inputs)], result)
"""


class Mixer(nn.Module):
    """Enough kinds of layers that a wrong address, shape or stream shows in the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(x.mean((2, 3))), x.sum(1)


@pytest.fixture(scope="module")
def mixer():
    torch.manual_seed(0)
    return Mixer().eval().cuda()


@pytest.fixture(scope="module")
def fast(mixer):
    x = torch.randn(2, 3, 16, 16, device="cuda")
    size = ttb.Dim(8, 16, 40)
    return ttb.compile(mixer, (x,), dynamic_shapes={"x": {0: ttb.Dim(1, 4, 16), 2: size, 3: ttb.Dim(8, 16, 40)}})


def eager(model, *args):
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        return model(*args)


def close(actual, expected, rtol=1e-4):
    for a, b in zip(actual, expected):
        assert a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
        assert ((a - b).norm() / b.norm()).item() < rtol


@pytest.mark.parametrize("precision, rtol", [("fp32", 1e-5), ("fp16", 5e-3), ("bf16", 4e-2)])
def test_a_static_engine_gives_eagers_numbers(mixer, precision, rtol):
    x = torch.randn(4, 3, 16, 16, device="cuda")
    module = ttb.compile(mixer, (x,), precision=precision)
    other = torch.randn(4, 3, 16, 16, device="cuda")
    close(module(other), eager(mixer, other), rtol)
    assert module.report.runtime == "tensorrt" and module.device == x.device


def test_shapes_may_change_from_call_to_call(mixer, fast):
    for batch, height, width in [(1, 8, 8), (16, 40, 40), (3, 9, 31), (1, 8, 8), (3, 9, 31)]:
        x = torch.randn(batch, 3, height, width, device="cuda")
        close(fast(x), eager(mixer, x))


def test_views_strides_and_odd_addresses(mixer, fast):
    base = torch.randn(5, 16, 16, 3, device="cuda")
    close(fast(base.permute(0, 3, 1, 2)), eager(mixer, base.permute(0, 3, 1, 2)))
    odd = torch.randn(4 * 3 * 16 * 16 + 1, device="cuda")[1:].view(4, 3, 16, 16)
    assert odd.data_ptr() % 256
    close(fast(odd), eager(mixer, odd))
    x = torch.randn(4, 3, 16, 16, device="cuda")
    close(fast(x), eager(mixer, x))
    close(fast(x.transpose(2, 3)), eager(mixer, x.transpose(2, 3)))  # the same address, other strides


def test_an_empty_batch_gives_empty_results(mixer):
    module = ttb.compile(mixer, (torch.randn(2, 3, 8, 8, device="cuda"),), dynamic_batch=(0, 2, 4))
    scores, maps = module(torch.randn(0, 3, 8, 8, device="cuda"))
    assert scores.shape == (0, 10) and maps.shape == (0, 8, 8) and scores.device.type == "cuda"


def test_results_belong_to_the_caller(mixer, fast):
    first_x, second_x = torch.randn(2, 4, 3, 16, 16, device="cuda")
    first = fast(first_x)
    kept = [t.clone() for t in first]
    fast(second_x)
    close(first, kept, 1e-12)


def test_it_runs_on_the_current_stream(mixer, fast):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # a call on another stream would read x before it is written
        x = torch.randn(4, 3, 16, 16, device="cuda")
        result = fast(x)
    stream.synchronize()
    close(result, eager(mixer, x))


def run_threads(work, count=8):
    failures = []

    def guarded(index):
        try:
            work(index)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


@pytest.mark.parametrize("max_contexts", [8, 3])
def test_8_threads_on_8_streams_1000_calls_each_with_differing_shapes(mixer, max_contexts):
    example = torch.randn(2, 3, 16, 16, device="cuda")
    module = ttb.compile(mixer, (example,), dynamic_batch=(1, 4, 16), max_contexts=max_contexts)
    cases = [torch.randn(batch, 3, 16, 16, device="cuda") for batch in range(1, 17)]
    expected = [eager(mixer, x) for x in cases]
    torch.cuda.synchronize()

    def work(index):
        stream = torch.cuda.Stream()
        generator = torch.Generator().manual_seed(index)
        with torch.cuda.stream(stream):
            wrong = torch.zeros((), device="cuda")
            for case in torch.randint(0, 16, (1000,), generator=generator).tolist():
                for a, b in zip(module(cases[case]), expected[case]):
                    wrong += ((a - b).norm() / b.norm() > 1e-4).float()
            stream.synchronize()
        assert wrong.item() == 0

    run_threads(work)


def test_threads_may_share_one_stream(mixer, fast):
    cases = [torch.randn(batch, 3, 16, 16, device="cuda") for batch in range(1, 9)]
    expected = [eager(mixer, x) for x in cases]

    def work(index):
        for _ in range(100):
            close(fast(cases[index]), expected[index])

    run_threads(work)


def test_no_more_contexts_than_allowed(mixer):
    module = ttb.compile(mixer, (torch.randn(2, 3, 16, 16, device="cuda"),), max_contexts=2)
    x = torch.randn(2, 3, 16, 16, device="cuda")
    expected = eager(mixer, x)
    torch.cuda.synchronize()
    for _ in range(12):
        with torch.cuda.stream(torch.cuda.Stream()):
            close(module(x), expected)
    assert len(module._execution._slots) == 2


def test_results_through_an_output_allocator(mixer, monkeypatch):
    """RTX has no layer whose result's size depends on the data (NonZero and NMS have no kernels there), so results of
    known size are sent the way that such a one takes."""
    from torchtrt_bridge.trt import execution

    def layout(slot, binding):
        slot._allocators[binding.name] = execution._output_allocator(slot._engine)
        assert slot._context.set_output_allocator(binding.name, slot._allocators[binding.name])

    monkeypatch.setattr(execution._Slot, "_layout", layout)
    module = ttb.compile(mixer, (torch.randn(2, 3, 16, 16, device="cuda"),), dynamic_batch=(1, 4, 16))
    for batch in (1, 16, 5):
        x = torch.randn(batch, 3, 16, 16, device="cuda")
        first = module(x)
        close(first, eager(mixer, x))
        module(torch.randn(batch, 3, 16, 16, device="cuda"))
        close(first, eager(mixer, x))


def test_a_fresh_process_gives_the_same_bits(mixer, tmp_path):
    module = ttb.compile(
        mixer,
        (torch.randn(2, 3, 16, 16, device="cuda"),),
        precision="fp16",
        dynamic_batch=(1, 4, 8),
        build=ttb.BuildOptions(kernel_specialization="none") if has_specialization() else None,
    )
    inputs = [(torch.randn(batch, 3, 16, 16),) for batch in (1, 4, 8)]
    expected = [module(*[x.cuda() for x in args]) for args in inputs]
    torch.save(module.state_dict(), tmp_path / "fast.pth")
    torch.save(inputs, tmp_path / "inputs.pth")
    paths = [str(tmp_path / name) for name in ("fast.pth", "inputs.pth", "result.pth")]
    subprocess.run([sys.executable, "-c", RELOAD, *paths], check=True)
    for got, wanted in zip(torch.load(paths[2]), expected):
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(got, wanted))


def has_specialization():
    from torchtrt_bridge.trt.flavor import flavor

    return flavor().has_runtime_config


def test_the_runtime_cache_is_saved(fast):
    from torchtrt_bridge.trt.flavor import flavor

    if not flavor().has_runtime_cache:
        pytest.skip("this flavour keeps none")
    fast(torch.randn(2, 3, 16, 16, device="cuda"))
    assert fast.state_dict()["runtime_cache"].numel() > 1000


def test_copies_and_pickles_run(mixer, fast, tmp_path):
    x = torch.randn(2, 3, 16, 16, device="cuda")
    expected = eager(mixer, x)
    close(copy.deepcopy(fast)(x), expected)
    torch.save(fast, tmp_path / "whole.pth")
    close(torch.load(tmp_path / "whole.pth")(x), expected)
    fast.save(tmp_path / "fast.safetensors")
    close(ttb.load(tmp_path / "fast.safetensors")(x), expected)
    state = torch.load(save(fast.state_dict(), tmp_path), map_location="cuda")
    again = ttb.TRTModule()
    for _ in range(2):
        again.load_state_dict(state)
        close(again(x), expected)


def save(state, folder):
    torch.save(state, folder / "state.pth")
    return folder / "state.pth"


def test_wrong_devices_are_named(fast):
    with pytest.raises(ttb.errors.DeviceMismatch, match=r"'x' is on cpu; the module runs on cuda:0"):
        fast(torch.randn(2, 3, 16, 16))


def test_a_model_on_the_cpu_compiles_for_the_gpu(mixer):
    model = copy.deepcopy(mixer).cpu()
    module = ttb.compile(model, (torch.randn(2, 3, 16, 16),), device="cuda")
    x = torch.randn(2, 3, 16, 16)
    close(module(x.cuda()), [t.cuda() for t in eager(model, x)])
    assert next(model.parameters()).device.type == "cpu"


def test_a_plan_for_another_flavour_version_or_gpu_is_refused_before_tensorrt_sees_it(fast, monkeypatch):
    import dataclasses

    from torchtrt_bridge.runtime.artifact import to_tensors

    seen = []
    monkeypatch.setattr("torchtrt_bridge.trt.engine.Engine.__init__", lambda *a, **k: seen.append(a))
    artifact = fast._artifact
    for change, message in [
        ({"flavour": "tensorrt_next"}, "Install tensorrt-next=="),
        ({"tensorrt": "0.9.1"}, r"built by .* 0\.9\.1; this process has"),
    ]:
        other = dataclasses.replace(artifact, provenance={**artifact.provenance, **change})
        with pytest.raises(ttb.errors.EngineMismatch, match=message):
            ttb.TRTModule().load_state_dict(to_tensors(other))
    assert not seen


def test_the_current_stream_device_and_grad_mode_are_as_before(mixer):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        state = torch.cuda.get_rng_state()
        ttb.compile(mixer, (torch.ones(2, 3, 16, 16, device="cuda"),))
        assert torch.cuda.current_stream() == stream
        assert torch.equal(torch.cuda.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_results_that_repeat_one_another_are_all_written():
    class Repeats(nn.Module):
        def forward(self, x):
            h = torch.relu(x)
            return h, h.clone(), h[..., None], h[..., None]

    model = Repeats().eval()
    fast = ttb.compile(model, torch.randn(3, 4, device="cuda"), cuda_graph=False)
    poison = [torch.full((3, 4), float("nan"), device="cuda") for _ in range(8)]
    del poison  # what is not written shows
    x = torch.randn(3, 4, device="cuda")
    for actual, expected in zip(fast(x), model(x), strict=True):
        torch.testing.assert_close(actual, expected)
