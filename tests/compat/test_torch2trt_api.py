"""torch2trt's API on top of ours: what its users write, and what of it is refused."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from comparing import assert_same, nothing_changes
from torch import nn

from torchtrt_bridge.compat import torch2trt as api
from torchtrt_bridge.compat.torch2trt import (
    Flattener,
    FolderDataset,
    ListDataset,
    TensorBatchDataset,
    TRTModule,
    torch2trt,
)
from torchtrt_bridge.errors import EngineMismatch, InputOutOfProfile, InvalidFile, InvalidOption, ModelInTraining


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *arguments):
        return self.function(*arguments)


def make(function):
    return Function(function).eval()


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()


def test_the_usual_use(tmp_path):
    model, x = net(), torch.randn(1, 3, 4, 4)
    with nothing_changes(model, x):
        model_trt = torch2trt(model, [x], max_batch_size=4)
    for size in (1, 4):
        x = torch.randn(size, 3, 4, 4)
        assert_same(model_trt(x), model(x))
    with pytest.raises(InputOutOfProfile):
        model_trt(torch.randn(5, 3, 4, 4))
    assert (model_trt.input_names, model_trt.output_names) == (["input_0"], ["output_0"])
    torch.save(model_trt.state_dict(), tmp_path / "model.pth")
    again = TRTModule()
    assert again.engine is None and again.input_names is None
    again.load_state_dict(torch.load(tmp_path / "model.pth"))
    assert_same(again(x), model_trt(x), rtol=0, atol=0)
    assert type(copy.deepcopy(again)) is TRTModule


def test_fp16_keeps_the_dtypes_outside():
    model, x = net(), torch.randn(1, 3, 4, 4)
    result = torch2trt(model, [x], fp16_mode=True)(x)
    assert result.dtype == torch.float32
    assert_same(result, model(x), rtol=1e-2, atol=1e-2)
    half = copy.deepcopy(model).half()
    assert_same(torch2trt(half, [x.half()], fp16_mode=True)(x.half()), half(x.half()), rtol=1e-2, atol=1e-2)


def test_names_and_structure():
    model = make(lambda pair, scale, flag: {"b": [pair[0] * scale, pair[1]["x"].sum()], "n": (pair[0].shape[1], flag)})
    x, y = torch.randn(2, 3), torch.arange(4)
    made = torch2trt(model, [(x, {"x": y}), torch.ones(3), True], input_names=["p", "q", "r"], output_names=["s", "t"])
    assert_same(made((x + 1, {"x": y + 1}), torch.ones(3), True), model((x + 1, {"x": y + 1}), torch.ones(3), True))
    assert (made.input_names, made.output_names) == (["p", "q", "r"], ["s", "t"])
    for names in (["p"], ["p", "q", "p"]):
        with pytest.raises(InvalidOption, match="input_names=.*3 different names are needed, for arguments.0.0, argum"):
            torch2trt(model, [(x, {"x": y}), torch.ones(3), True], input_names=names)


def test_ranges_of_shapes():
    model = make(lambda x: nn.functional.interpolate(x, size=(x.shape[2] * 2, x.shape[3] * 3)))
    shapes = {"min_shapes": [(1, 2, 4, 4)], "max_shapes": [(3, 2, 6, 8)], "opt_shapes": [(2, 2, 4, 4)]}
    made = torch2trt(model, [torch.randn(1, 2, 4, 4)], **shapes)
    for shape in ((1, 2, 4, 4), (3, 2, 6, 8), (2, 2, 5, 4)):
        x = torch.randn(shape)
        assert_same(made(x), model(x))
    with pytest.raises(InputOutOfProfile):
        made(torch.randn(3, 2, 7, 8))


def test_a_dataset_gives_the_ranges():
    model = nn.Conv2d(3, 2, 3, padding=1).eval()
    dataset = ListDataset()
    with dataset.record(model):
        for shape in ((1, 3, 8, 8), (4, 3, 4, 6), (2, 3, 5, 5)):
            model(torch.randn(shape))
    made = torch2trt(model, dataset)
    assert [(d.min, d.opt, d.max) for d in made.signature.dims.values()] == [(1, 1, 4), (4, 8, 8), (5, 8, 8)]
    assert_same(made(*dataset[1]), model(*dataset[1]))


def test_sizes_that_the_model_ties_together_are_one_dim():
    model = make(lambda x, y: x @ y)
    made = torch2trt(model, [torch.randn(1, 2, 3), torch.randn(1, 3, 2)], max_batch_size=4)
    assert len(made.signature.dims) == 1
    x, y = torch.randn(4, 2, 3), torch.randn(4, 3, 2)
    assert_same(made(x, y), model(x, y))
    apart = torch2trt(make(lambda x, y: (x + 1, y + 1)), [torch.randn(1, 2), torch.randn(1, 2)], max_batch_size=4)
    assert [len(t) for t in apart(torch.randn(4, 2), torch.randn(3, 2))] == [4, 3]


def test_an_axis_that_the_model_fixes_stays_with_a_warning():
    model = make(lambda x: x.view(1, 6))
    with pytest.warns(UserWarning, match="axis 0 of input 0 stays at 1: the module itself fails at other sizes"):
        made = torch2trt(model, [torch.randn(1, 2, 3)], max_batch_size=4)
    x = torch.randn(1, 2, 3)
    assert_same(made(x), model(x))
    with pytest.raises(InputOutOfProfile):
        made(torch.randn(4, 2, 3))


def test_training_mode_is_taken_where_it_changes_nothing():
    model, x = nn.InstanceNorm2d(3), torch.randn(1, 3, 4, 4)
    assert model.training
    assert_same(torch2trt(model, [x])(x), model(x))
    assert model.training
    for layer in (nn.Dropout(), nn.BatchNorm2d(3)):
        with pytest.raises(ModelInTraining, match="computes something else there"):
            torch2trt(nn.Sequential(nn.Conv2d(3, 3, 1), layer), [x])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"default_device_type": "DLA"}, "not for DLA"),
        ({"dla_core": 1}, "not for DLA"),
        ({"device_types": {nn.ReLU(): "DLA"}}, "not for DLA"),
        ({"onnx_opset": 11}, "onnx_opset=11"),
        ({"avg_timing_iterations": 8}, "avg_timing_iterations=8"),
        ({"max_batchsize": 8}, "no argument 'max_batchsize'. Did you mean 'max_batch_size'?"),
        ({"max_workspace_size": -1}, "workspace=-1"),
        ({"log_level": "LOUD"}, "log_level='LOUD'"),
        ({"min_shapes": [(1, 3)]}, r"min_shapes=\[\(1, 3\)\]: nested as the inputs are"),
        ({"min_shapes": [(2, 3, 4, 4)], "max_shapes": [(1, 3, 4, 4)]}, "axis 0 of input 0: .* not in order"),
        ({"min_shapes": [(2, 3, 4, 4)], "max_shapes": [(2, 3, 4, 4)], "opt_shapes": [(2, 3, 4, 4)]}, "has size 1"),
    ],
)
def test_what_cannot_be_honoured_is_refused(arguments, message):
    with pytest.raises(InvalidOption, match=message):
        torch2trt(net(), [torch.randn(1, 3, 4, 4)], **arguments)


def test_inputs_are_a_list_of_arguments():
    with pytest.raises(InvalidOption, match="a list or tuple of the arguments is needed, as"):
        torch2trt(net(), torch.randn(1, 3, 4, 4))
    with pytest.raises(InvalidOption, match="The dataset is empty"):
        torch2trt(net(), ListDataset())


def test_arguments_that_change_nothing_here_are_taken():
    x = torch.randn(1, 3, 4, 4)
    made = torch2trt(
        net(), [x], strict_type_constraints=True, keep_network=False, gpu_fallback=False, max_workspace_size=1 << 25,
        default_device_type="GPU", use_onnx=True,
    )  # fmt: skip
    assert made.backend == "onnx"
    with pytest.raises(AttributeError, match="keeps no network"):
        _ = made.network


def test_the_signature_is_that_of_torch2trt():
    names = (
        "module inputs input_names output_names log_level fp16_mode max_workspace_size strict_type_constraints"
        " keep_network int8_mode int8_calib_dataset int8_calib_algorithm use_onnx default_device_type dla_core"
        " gpu_fallback device_types min_shapes max_shapes opt_shapes onnx_opset max_batch_size avg_timing_iterations"
        " kwargs"
    )
    assert list(inspect.signature(torch2trt).parameters) == names.split()


def test_a_file_of_torch2trt_itself_is_recognized(tmp_path):
    state = {
        "engine": bytearray(b"ftrt0123"),
        "input_names": ["input_0"],
        "output_names": ["output_0"],
        "input_flattener": {"schema": (0,), "size": 1},
        "output_flattener": {"schema": 0, "size": 1},
    }
    torch.save(state, tmp_path / "real.pth")
    state = torch.load(tmp_path / "real.pth")  # with weights_only, as it is by default
    if torch.cuda.is_available():
        with pytest.raises(EngineMismatch, match="TensorRT cannot load the plan"):
            TRTModule().load_state_dict(state)
    else:
        with pytest.raises(EngineMismatch, match="can be read only where it can run"):
            TRTModule().load_state_dict(state)
    for broken in (bytearray(), None):
        with pytest.raises(InvalidFile):
            TRTModule().load_state_dict({**state, "engine": broken})


def test_flattener():
    value = {"b": [torch.ones(1), (torch.ones(2), 3)], "a": torch.ones(3)}
    flattener = Flattener.from_value(value)
    assert (flattener.schema, len(flattener)) == ({"a": 0, "b": [1, (2, None)]}, 3)
    flat = flattener.flatten(value)
    assert [len(t) for t in flat] == [3, 1, 2]
    assert_same(flattener.unflatten(flat), {"a": value["a"], "b": [value["b"][0], (value["b"][1][0], None)]})
    assert Flattener.from_dict(flattener.dict()).schema == flattener.schema
    nested = Flattener.from_value((value,))
    doubled = api.Unflatten(Function(lambda *flat: [2 * t for t in flat]), nested, flattener)(value)
    assert_same(doubled["a"], 2 * value["a"])
    assert_same(api.Flatten(Function(lambda v: v), nested, flattener)(*flat), flat)


def test_datasets(tmp_path):
    items = [(torch.randn(1, 3, size), torch.randn(1, size + 1)) for size in (4, 8, 6)]
    batch = TensorBatchDataset()
    for item in ([torch.randn(2, 3), torch.randn(2, 4)], [torch.randn(1, 3), torch.randn(1, 4)]):
        batch.insert(item)
    assert len(batch) == 3 and [t.shape for t in batch[2]] == [(1, 3), (1, 4)]
    with pytest.raises(IndexError):
        batch[3]
    with pytest.raises(ValueError, match="have 2 tensors; the inserted one has 1"):
        batch.insert([torch.randn(1, 3)])
    for dataset in (ListDataset(items), FolderDataset(tmp_path / "items")):
        for item in items if not len(dataset) else ():
            dataset.insert(item)
        assert len(dataset) == 3
        assert_same(dataset[1], items[1])
        assert dataset.min_shapes() == ((1, 3, 4), (1, 5)) and dataset.max_shapes() == ((1, 3, 8), (1, 9))
        assert dataset.median_numel_shapes() == ((1, 3, 6), (1, 7))
        assert dataset.infer_dynamic_axes(flat=True) == [[2], [1]]
    with pytest.raises(ValueError, match="differ in rank"):
        ListDataset([(torch.randn(1),), (torch.randn(1, 1),)]).min_shapes()


def test_the_names_that_people_import():
    pytest.importorskip("tensorrt_rtx")
    from torchtrt_bridge.compat.torch2trt.dataset_calibrator import DatasetCalibrator
    from torchtrt_bridge.compat.torch2trt.module_test import MODULE_TESTS, add_module_test
    from torchtrt_bridge.compat.torch2trt.torch2trt import torch2trt as again
    from torchtrt_bridge.compat.torch2trt.torch2trt import torch_dtype_from_trt, torch_dtype_to_trt

    assert again is torch2trt
    trt = api.trt
    assert trt.Logger.VERBOSE and trt.BuilderFlag.FP16 and trt.CalibrationAlgoType.MINMAX_CALIBRATION
    assert api.trt_version() >= "10.0" and api.Version("10.1") < "11.0" and api.torch_version() > "2.0"
    assert torch_dtype_from_trt(torch_dtype_to_trt(torch.float16)) == torch.float16
    with pytest.raises(TypeError):
        torch_dtype_to_trt(torch.complex64)
    calibrator = DatasetCalibrator(ListDataset([(torch.ones(2),)]))
    assert len(calibrator.get_batch()) == 1 and calibrator.get_batch() == []
    add_module_test(torch.float32, torch.device("cpu"), [(1, 3)])(net)
    assert MODULE_TESTS.pop().module_name().endswith("net")
    with pytest.raises(AttributeError, match="has no 'no_such_name'"):
        _ = api.no_such_name


def test_converters_of_the_users_own_are_kept_and_said_to_be_unused(caplog):
    from torchtrt_bridge.backends.torch2trt_library import Library
    from torchtrt_bridge.compat.torch2trt.torch2trt import _route

    if Library.missing() is None:
        pytest.skip("torch2trt is installed here")

    @api.tensorrt_converter("torch.nn.functional.relu")
    def convert(ctx):
        raise AssertionError

    try:
        assert list(api.CONVERTERS) == ["torch.nn.functional.relu"]
        with caplog.at_level("WARNING", logger="torchtrt_bridge"):
            assert _route() == "auto"
        assert "1 converters are registered with tensorrt_converter; they are not used" in caplog.text
    finally:
        api.CONVERTERS.clear()


def test_an_engine_of_others_becomes_a_module_by_what_tensorrt_says_of_it(monkeypatch):
    """Without a GPU: TensorRT's answers are made up, the signature and the saved form are not."""
    pytest.importorskip("tensorrt_rtx")
    from torchtrt_bridge.compat.torch2trt import engine_file
    from torchtrt_bridge.runtime.artifact import to_tensors
    from torchtrt_bridge.trt.engine import Binding

    class Engine:
        def __init__(self, plan, device):
            self.engine = self
            self.inputs = [Binding("a", torch.float32, (-1, 3), False), Binding("b.0", torch.int32, (2,), False)]
            self.outputs = [Binding("c", torch.float16, (-1, 3), False), Binding("d", torch.bool, (2,), False)]

        def get_tensor_profile_shape(self, name, index):
            return [(1, 3), (2, 3), (5, 3)]

    plan = torch.arange(8, dtype=torch.uint8)
    with monkeypatch.context() as patch:
        patch.setattr("torchtrt_bridge.trt.engine.Engine", Engine)
        for name, value in (("is_available", True), ("get_device_capability", (9, 0)), ("get_device_name", "GPU")):
            patch.setattr(torch.cuda, name, lambda *_, value=value: value)
        nest = Flattener({"x": 0, "y": [1]}, 2)
        artifact = engine_file.artifact_of(
            plan, ["b.0", "a"], ["d", "c"], Flattener((0, {"k": 1}), 2), nest, torch.device("cuda", 0)
        )
        with pytest.raises(InvalidFile, match="no tensor 'z'"):
            engine_file.artifact_of(plan, ["z"], None, None, None, torch.device("cuda", 0))
        with pytest.raises(InvalidFile, match="does not fit the engine's 2 inputs"):
            engine_file.artifact_of(plan, None, None, Flattener((0,), 1), None, torch.device("cuda", 0))
        plain = engine_file.artifact_of(plan, None, None, None, None, torch.device("cuda", 0))
    module = TRTModule()
    module._load(to_tensors(artifact))
    signature = module.signature
    assert (module.input_names, module.output_names) == (["b.0", "a"], ["d", "c"])
    assert [spec.shape for spec in signature.inputs] == [(2,), ("a_dim0", 3)]
    assert [(d.min, d.opt, d.max) for d in signature.dims.values()] == [(1, 2, 5)]
    a, b = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int32)
    bound = signature.bind((b, {"k": a}), {})
    assert bound[0] is b and bound[1] is a
    assert signature.assemble(["d", "c"], [b, a], []) == {"x": "d", "y": ["c"]}
    assert plain.signature.assemble(["c", "d"], [a, b], []) == ("c", "d")
    assert "unknown" in repr(module) and module.report.backend == "torch2trt"
