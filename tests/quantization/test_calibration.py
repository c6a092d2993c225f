"""A calibration: what it holds, its file, and what it is refused for; and the data that it is made of."""

from __future__ import annotations

import copy

import pytest
import torch
from models import Block, mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import CalibrationMismatch, InvalidFile, InvalidInput, InvalidOption

X = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(32)


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x, scale=None):
        x = self.body(x)
        return x if scale is None else x * scale


def test_every_form_of_data_gives_the_same_ranges():
    model = mlp()
    expected = ttb.calibrate(model, X[:8], [X[:8], X[8:16], X[16:24], X[24:]])
    pairs = TensorDataset(X, LABELS)
    forms = [
        (DataLoader(TensorDataset(X), batch_size=8), None),
        (TensorDataset(X), None),  # single examples, put together
        (DataLoader(pairs, batch_size=8), 0),
        (pairs, lambda batch: batch[0]),
        ([{"image": X, "label": LABELS}], "image"),  # a batch larger than the model's, cut
        (iter([(X[:16],), (X[16:],)]), None),
    ]
    for data, select in forms:
        found = ttb.calibrate(model, X[:8], data, calibration_input=select)
        assert found.examples == 32
        for name, histogram in expected.histograms.items():
            assert found.histograms[name].amax == histogram.amax
            assert torch.equal(found.histograms[name].channels, histogram.channels)
    assert set(expected.histograms) == {"0/linear", "2/linear", "4/linear"}
    assert expected.histograms["0/linear"].low == X.min().item()


def test_keyword_arguments_and_a_dynamic_batch():
    data = [{"x": X[:3], "scale": torch.ones(8)}, {"x": X, "scale": torch.ones(8)}]
    inputs = {"x": X[:2], "scale": torch.ones(8)}
    found = ttb.calibrate(Keyword().eval(), inputs, data, dynamic_shapes={"x": {0: ttb.Dim(1, 8, 64)}})
    assert (found.batches, found.examples) == (2, 35)


def test_at_most_so_many_batches():
    assert ttb.calibrate(mlp(), X[:8], [X[:8]] * 5, batches=2).batches == 2


@pytest.mark.parametrize(
    ("data", "select", "message"),
    [
        ([], None, "empty: it gave no batch"),
        (iter([]), None, "used before gives nothing"),
        ([{"x": X[:8]}, {"y": X[:8]}], None, "Batch 1 .* has the keys y, and the one before x"),
        ([(X[:8], LABELS[:8])], None, "Labels and the like are left out by calibration_input="),
        ([X[:8].clone().fill_(float("nan"))], None, "Batch 0 .* 'x' holds NaN"),
        ([X[:8] / 0], None, "holds infinite values|holds NaN"),
        ([X[:8].long()], None, "is torch.int64, and the model's float32"),
        ([torch.randn(8, 63)], None, r"is \[8, 63\]; the model is compiled for \[8, 64\]"),
        ([X[:4]], None, "No batch of the calibration data is as large"),
        ([(X[:8],)], 3, "calibration_input=3 fails: IndexError"),
        (["a sentence"], None, "is a str"),
    ],
)
def test_bad_data_is_refused_with_the_batch_and_what_to_do(data, select, message):
    with pytest.raises(InvalidInput, match=message):
        ttb.calibrate(Keyword().eval(), X[:8], data, calibration_input=select)


def test_a_tensor_alone_or_a_number_is_no_data():
    for wrong in (X, 3, "text"):
        with pytest.raises(InvalidOption, match="give an iterable of batches"):
            ttb.calibrate(mlp(), X[:8], wrong)
    with pytest.raises(InvalidOption, match="give a function"):
        ttb.calibrate(mlp(), X[:8], [X[:8]], calibration_input=1.5)


def test_a_model_that_makes_nan_of_its_data():
    class Log(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(64, 4)

        def forward(self, x):
            return self.body(torch.log(x))

    with pytest.raises(InvalidInput, match="values of the tensor that body/linear takes are NaN"):
        ttb.calibrate(Log().eval(), X[:8].abs() + 1, [X[:8]])


def test_a_model_without_anything_to_quantize():
    with pytest.raises(InvalidOption, match="no convolution, linear layer or matrix product"):
        ttb.calibrate(nn.ReLU().eval(), X[:8], [X[:8]])


def test_the_file_gives_back_the_same_calibration(tmp_path):
    model = mlp()
    made = ttb.calibrate(model, X[:8], [X[:8], X[8:16]])
    made.save(tmp_path / "made.safetensors")
    read = ttb.Calibration.load(tmp_path / "made.safetensors")
    assert (read.model, read.data, read.batches, read.examples) == (made.model, made.data, 2, 16)
    for name, histogram in made.histograms.items():
        assert torch.equal(read.histograms[name].counts, histogram.counts)
        assert torch.equal(read.histograms[name].channels, histogram.channels)
        assert read.histograms[name].limit == histogram.limit and read.histograms[name].low == histogram.low
    text = repr(read)
    assert text.startswith("Calibration of 3 tensors, 16 examples in 2 batches") and "2/linear: -0.1" in text
    assert "<table>" in read._repr_html_()


def test_other_data_has_another_digest():
    model = mlp()
    digests = {ttb.calibrate(model, X[:8], [data]).data for data in (X[:8], X[8:16])}
    assert len(digests) == 2


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", "other"])
def test_a_file_that_is_no_calibration(tmp_path, content):
    path = tmp_path / "wrong.safetensors"
    if content == "other":
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(InvalidFile, match="is no saved calibration"):
        ttb.Calibration.load(path)
    with pytest.raises(FileNotFoundError):
        ttb.Calibration.load(tmp_path / "absent")


def test_the_calibration_of_another_model_is_refused():
    model = mlp()
    other = copy.deepcopy(model)
    other[0].weight.data[0, 0] += 1
    made = ttb.calibrate(other, X[:8], [X[:8]])
    with pytest.raises(CalibrationMismatch, match="for a model with other weights"):
        ttb.compile(model, X[:8], "int8", calibration=made)
    unknown = ttb.Calibration(dict(list(made.histograms.items())[:1]))
    with pytest.raises(CalibrationMismatch, match="no range for the input of 2/linear"):
        ttb.compile(model, X[:8], "int8", calibration=unknown)


def test_one_calibration_serves_other_shapes_and_settings():
    model, x = Block().eval(), torch.randn(2, 3, 8, 8)
    static = ttb.calibrate(model, x, [x])
    dynamic = ttb.calibrate(model, x, [x], dynamic_batch=(1, 2, 4))
    assert set(static.histograms) == set(dynamic.histograms) and static.model == dynamic.model


def test_plot_shows_the_range_of_every_method():
    pytest.importorskip("matplotlib")
    made = ttb.calibrate(mlp(), X[:8], [X[:8]])
    figure = made.plot()
    assert [axis.get_title() for axis in figure.axes] and len(figure.axes) == 3
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [label.partition(":")[0] for label in labels] == ["mse", "entropy", "percentile", "max"]
    with pytest.raises(InvalidOption, match="Did you mean '2/linear'"):
        made.plot(["2/linaer"])
