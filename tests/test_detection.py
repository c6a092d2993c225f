"""A detector with its NMS, exported by the capture as it is, cut, right, saved, reloaded in a fresh process."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from comparing import assert_same, nothing_changes

import torchtrt_bridge as ttb
from torchtrt_bridge.capture import capture
from torchtrt_bridge.errors import RunsOnCPU
from torchtrt_bridge.exportable import exportable_detection
from torchtrt_bridge.runtime.program import run_callable

boxes = pytest.importorskip("torchvision.ops.boxes")
TESTS = Path(__file__).parent
FOREGROUND = 20


@pytest.fixture(scope="module")
def model():
    from detection import detector

    return detector(FOREGROUND + 1)


@pytest.fixture(scope="module")
def fast(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunsOnCPU)
        return ttb.compile(model, ([torch.rand(3, 320, 320)],), backend="onnx", hybrid=True, device="cpu")


def test_it_finds_what_the_model_finds(fast, model):
    images = [torch.rand(3, 320, 320)]
    with torch.no_grad(), nothing_changes(model, *images):
        expected = model(images)
        assert_same(fast(images), expected, rtol=1e-3, atol=2e-3)
    assert len(expected[0]["scores"]) > 20 and len(set(expected[0]["labels"].tolist())) > 3
    assert fast.signature.outputs[0].shape == ("?", 4)


def test_nine_tenths_of_it_are_in_tensorrt(fast):
    hybrid = fast.report.hybrid
    assert hybrid["outside"] / hybrid["operations"] < 0.1
    assert {layer["operator"] for layer in hybrid["layers"]} >= {"torchvision.nms", "aten.where"}
    assert fast.provenance["operators"] == {"torchvision::nms": "torchvision"}


def test_a_fresh_process_asks_for_torchvision_and_finds_the_same(fast, model, tmp_path):
    fast.save(tmp_path / "detector")
    images = [torch.rand(3, 320, 320)]
    with torch.no_grad():
        torch.save((images, model(images)), tmp_path / "case")
    code = f"""
import torch, torchtrt_bridge as ttb
try:
    ttb.load({str(tmp_path / "detector")!r})
except ttb.errors.BackendUnavailable as error:
    print(error)
import torchvision
images, expected = torch.load({str(tmp_path / "case")!r})
(found,) = ttb.load({str(tmp_path / "detector")!r})(images)
torch.testing.assert_close(found, expected[0], rtol=1e-3, atol=2e-3)
print("right")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "torchvision::nms. First import torchvision, then load" in done.stdout
    assert done.stdout.endswith("right\n")


# -- the form of NMS that is exported ----------------------------------------------------------------------------------


class Suppress(torch.nn.Module):
    def forward(self, boxes_in, scores, labels):
        found = torch.where(scores > 0.5)[0]
        return boxes.batched_nms(boxes_in[found], scores[found], labels[found], 0.5)


def many(count):
    corners = torch.rand(count, 2) * 50
    found = torch.cat([corners, corners + torch.rand(count, 2) * 30], 1)
    return found, torch.rand(count), torch.randint(0, 3, (count,))


def test_nms_of_some_boxes_of_many_and_of_none():
    example = many(200)
    run = run_callable(capture(Suppress().eval(), example).program)
    one = torch.zeros(200)
    one[7] = 1
    for inputs in (example, many(200), (example[0], one, example[2]), (example[0], torch.zeros(200), example[2])):
        assert torch.equal(run(inputs)[0], Suppress()(*inputs))


def test_other_calls_get_torchvisions_own():
    from torchvision.models.detection.ssd import SSD

    own, choice = boxes.batched_nms, SSD.postprocess_detections
    inputs = many(50)
    with exportable_detection():
        assert boxes.batched_nms is not own
        assert torch.equal(boxes.batched_nms(*inputs, 0.5), own(*inputs, 0.5))
    assert boxes.batched_nms is own
    with pytest.raises(RuntimeError), exportable_detection():
        raise RuntimeError
    assert boxes.batched_nms is own and SSD.postprocess_detections is choice
