"""TensorRT's old calibration tables and calibrators."""

from __future__ import annotations

import struct

import pytest
import torch
from models import error, mlp

import torchtrt_bridge as ttb
from torchtrt_bridge.compat import torch2trt as compat
from torchtrt_bridge.errors import CalibrationMismatch, InvalidFile, InvalidInput, InvalidOption

X = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
TABLE = b"TRT-8601-EntropyCalibration2\nx: 3d000000\n(Unnamed Layer* 3) [Fully]_output: 3c010a14\n"


def test_a_table_gives_its_ranges(tmp_path):
    (tmp_path / "old.cache").write_bytes(TABLE)
    read = ttb.Calibration.from_table(tmp_path / "old.cache", {"x": "0/linear"})
    assert read.ranges["0/linear"] == struct.unpack("!f", bytes.fromhex("3d000000"))[0] * 127 == 127 / 32
    assert list(read.ranges)[1] == "(Unnamed Layer* 3) [Fully]_output"
    again = ttb.Calibration.from_table(read.to_table())
    assert again.ranges == read.ranges


@pytest.mark.parametrize("content", [b"", b"nothing", b"TRT-8601-X\nname: xyz", b"\xff\xfe"])
def test_what_is_no_table(content):
    with pytest.raises(InvalidFile, match="no calibration table"):
        ttb.Calibration.from_table(content)


def test_a_table_serves_a_compilation_by_the_names_of_our_tensors():
    model = mlp()
    made = ttb.calibrate(model, X, [X])
    table = made.to_table(ttb.Quantization(method="max"))
    fast = ttb.compile(model, X, "int8", calibration=ttb.Calibration.from_table(table), backend="onnx")
    assert error(model(X), fast(X)) < 0.03
    missing = ttb.Calibration.from_table(TABLE)
    with pytest.raises(CalibrationMismatch, match="no range for the input of 0/linear"):
        ttb.compile(model, X, "int8", calibration=missing)


class Calibrator:
    """As people wrote them: it hands out addresses, and None at the end."""

    def __init__(self, batches, cache=None):
        self.batches, self.cache, self.held = list(batches), cache, []

    def get_batch_size(self):
        return 8

    def get_batch(self, names):
        if not self.batches:
            return None
        self.held = self.batches.pop(0)
        return [tensor.data_ptr() for tensor in self.held]

    def read_calibration_cache(self):
        return self.cache

    def write_calibration_cache(self, cache):
        self.cache = bytes(cache)


def test_a_calibrator_is_read_and_its_cache_written():
    model = mlp()
    calibrator = Calibrator([(X,), (X * 0.5,)])
    fast = ttb.compile(model, X, "int8", calibration=calibrator, backend="onnx", verify=False)
    expected = ttb.compile(model, X, "int8", calibration=[X, X * 0.5], backend="onnx", verify=False)
    assert torch.equal(fast(X), expected(X))
    assert calibrator.cache.startswith(b"TRT-") and b"0/linear: " in calibrator.cache
    with pytest.raises(CalibrationMismatch, match="no range"):  # its cache, which is of another model, goes before
        ttb.compile(model, X, "int8", calibration=Calibrator([(X,)], TABLE))
    with pytest.raises(InvalidInput, match="gives 2 inputs, and the model has input"):
        ttb.compile(model, X, "int8", calibration=Calibrator([(X, X)]))


def test_int8_mode_of_torch2trt():
    model = mlp()
    dataset = compat.ListDataset()
    for index in range(4):
        dataset.insert([X * (index + 1) / 4])
    fast = compat.torch2trt(model, [X], int8_mode=True, int8_calib_dataset=dataset)
    assert 1e-5 < error(model(X), fast(X)) < 0.05 and fast.precision == "int8"
    calibrator = compat.DatasetCalibrator(dataset)
    assert ttb.compile(model, X, "int8", calibration=calibrator, verify=False).precision == "int8"
    with pytest.raises(InvalidOption, match="int8_calib_algorithm='best'"):
        compat.torch2trt(model, [X], int8_mode=True, int8_calib_algorithm="best")
