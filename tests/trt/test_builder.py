from __future__ import annotations

import io
import pathlib

import networks
import onnx
import pytest
import torch

from torchtrt_bridge.trt import builder
from torchtrt_bridge.trt.builder import build_plan
from torchtrt_bridge.trt.flavor import Flavor, flavor
from torchtrt_bridge.trt.progress import Phases
from torchtrt_bridge.trt.request import Cancelled, Failure, Initializer, Refused, Request

bound = flavor()
rtx = pytest.mark.skipif(bound.name != "tensorrt_rtx", reason="what tensorrt_rtx has or lacks")
pytestmark = pytest.mark.skipif(
    not (bound.can_build_without_gpu or torch.cuda.is_available()), reason="this TensorRT builds only on a GPU"
)


def mlp_request(**settings) -> Request:
    return Request(networks.mlp().SerializeToString(), networks.mlp_profile(), **settings)


@pytest.fixture
def config():
    return bound.trt.Builder(bound.logger).create_builder_config()


def test_a_plan_and_how_it_came_about():
    plan = build_plan(mlp_request())
    assert plan.layers["matrix_multiply"] == 2 and plan.layers["activation"] == 2
    assert plan.num_layers == sum(plan.layers.values())
    assert (plan.flavor, plan.version, plan.target) == (bound.name, bound.version, None)
    assert plan.parse_seconds > 0 and plan.build_seconds > 0
    assert plan.data.nbytes > 2 * 64 * 64 * 4  # the weights are in it


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tensor_shares_the_plans_memory(streamed, monkeypatch):
    monkeypatch.setattr(type(bound), "has_plan_streaming", property(lambda self: streamed))
    plan = build_plan(mlp_request())
    assert isinstance(plan.data.obj, bytearray if streamed else bound.trt.IHostMemory)
    tensor = torch.frombuffer(plan.data, dtype=torch.uint8)
    before = plan.data[0]
    tensor[0] ^= 255
    assert plan.data[0] == before ^ 255


def test_the_plan_is_the_same_written_out_or_not(monkeypatch):
    plans = []
    for streamed in (False, True):
        monkeypatch.setattr(type(bound), "has_plan_streaming", property(lambda self, streamed=streamed: streamed))
        plans.append(bytes(build_plan(mlp_request(target="sm89")).data))
    assert plans[0] == plans[1]


def test_a_full_disk_under_the_plan_is_said(monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(builder.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(Failure, match="could not be written to .*No space left on device. TMPDIR names another place"):
        build_plan(mlp_request())


def test_every_node_that_the_parser_refuses_is_named():
    with pytest.raises(Failure) as failure:
        build_plan(Request(networks.unknown_operators().SerializeToString()))
    assert [(p.node, p.operator) for p in failure.value.problems] == [
        ("enc.1/frob", "Frobnicate"),
        ("enc.2/twiddle", "Twiddle"),
    ]
    assert all(p.code and p.description for p in failure.value.problems)
    assert "enc.1/frob [Frobnicate]" in str(failure.value) and "enc.2/twiddle [Twiddle]" in str(failure.value)


def test_what_is_no_model_is_refused():
    with pytest.raises(Failure, match="MODEL_DESERIALIZE_FAILED"):
        build_plan(Request(b"no model"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(Failure, match=str(tmp_path / "none.onnx")):
        build_plan(Request(tmp_path / "none.onnx"))


def test_fp32_attention_is_decomposed_instead_of_failing():
    if not bound.has_attention_layer:
        pytest.skip("no attention layer")
    model = networks.attention().SerializeToString()
    assert build_plan(Request(model)).layers["attention_input"] == 1
    with pytest.raises(Failure, match="decomposable_attention=True"):
        build_plan(Request(model, decomposable_attention=False))


# -- weights -----------------------------------------------------------------------------------------------------------


def test_weights_in_external_files(tmp_path):
    inline = build_plan(mlp_request())
    onnx.save_model(
        networks.mlp(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    assert (tmp_path / "m.onnx").stat().st_size < 2000
    for path in (tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        assert bytes(build_plan(Request(path, networks.mlp_profile())).data) == bytes(inline.data)


@pytest.mark.parametrize("by_file", [False, True])
def test_weights_from_memory(monkeypatch, by_file):
    """The same plan as with the weights inside the model, where the parser takes memory and where it does not."""
    if by_file:
        monkeypatch.setattr(Flavor, "has_initializer_loading", False)
    elif not bound.has_initializer_loading:
        pytest.skip("this parser takes no weights from memory")
    inline = build_plan(mlp_request())
    model, weights = networks.without_weights(networks.mlp())
    assert len(model) < 1000
    initializers = tuple(Initializer(n, w.ctypes.data, w.nbytes, owner=w) for n, w in weights.items())
    plan = build_plan(Request(model, networks.mlp_profile(), initializers))
    assert bytes(plan.data) == bytes(inline.data)
    weights["layers.0.weight"][:] = 0  # the weights are the caller's memory, not a copy made earlier
    zeroed = build_plan(Request(model, networks.mlp_profile(), initializers))
    assert bytes(zeroed.data) != bytes(inline.data)


def test_weights_that_do_not_fit_the_model_are_named():
    if not bound.has_initializer_loading:
        pytest.skip("this parser takes no weights from memory")
    model, weights = networks.without_weights(networks.mlp())
    weight = weights["layers.1.weight"]
    short = Initializer("layers.1.weight", weight.ctypes.data, weight.nbytes - 4, owner=weight)
    with pytest.raises(Failure, match=r"'layers\.1\.weight'"):
        build_plan(Request(model, networks.mlp_profile(), (short,)))


# -- dynamic shapes ----------------------------------------------------------------------------------------------------


def test_the_ranges_reach_the_profile(config):
    made = []

    class Recording:
        def create_optimization_profile(self):
            made.append(real.create_optimization_profile())
            return made[0]

    real = bound.trt.Builder(bound.logger)
    network = real.create_network(1 << int(bound.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = bound.trt.OnnxParser(network, bound.logger)
    assert parser.parse(networks.mlp().SerializeToString())
    with builder.listening() as messages:
        builder.add_profile(mlp_request(), Recording(), network, config, messages)
    assert [tuple(shape) for shape in made[0].get_shape("x")] == [(1, 64), (4, 64), (8, 64)]
    assert config.num_optimization_profiles == 1


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ({}, "no range was given for 'x'"),
        ({**networks.mlp_profile(), "z": ((1,), (1,), (1,))}, "it has no input 'z'"),
        ({"x": ((4, 64), (2, 64), (8, 64))}, "refused the ranges"),
        ({"x": ((1, 32), (2, 32), (8, 32))}, "could not build|refused the ranges"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(profile, expected):
    with pytest.raises(Failure, match=expected):
        build_plan(Request(networks.mlp().SerializeToString(), profile))


# -- options -----------------------------------------------------------------------------------------------------------


def test_float32_means_float32_unless_tf32_is_asked_for(config):
    builder.configure(mlp_request(), bound, config)
    assert not config.get_flag(bound.trt.BuilderFlag.TF32)
    config.reset()
    builder.configure(mlp_request(tf32=True), bound, config)
    assert config.get_flag(bound.trt.BuilderFlag.TF32)


def test_settings_reach_the_builder(config):
    builder.configure(mlp_request(workspace=12345 * 1024, optimization_level=1), bound, config)
    assert config.get_memory_pool_limit(bound.trt.MemoryPoolType.WORKSPACE) == 12345 * 1024
    assert config.builder_optimization_level == 1
    assert config.profiling_verbosity == bound.trt.ProfilingVerbosity.DETAILED


@rtx
def test_a_target_reaches_the_builder(config):
    builder.configure(mlp_request(target="sm86"), bound, config)
    assert config.num_compute_capabilities == 1
    assert config.get_compute_capability(0) == bound.trt.ComputeCapability.SM86
    assert build_plan(mlp_request(target="sm86")).target == "sm86"


@rtx
def test_no_target_leaves_the_plan_portable(config):
    builder.configure(mlp_request(), bound, config)
    assert config.num_compute_capabilities == 0


@rtx
@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"timing_cache": "cache"}, "leave it out"),
        ({"version_compatible": True}, "leave it out"),
        ({"hardware_compatible": True}, "leave it and target out"),
        ({"target": "sm98"}, "Did you mean 'sm89'"),
        ({"target": "hopper"}, "sm75, sm80, sm86, sm89, sm120"),
    ],
)
def test_an_option_that_rtx_lacks_is_refused_by_name(settings, remedy):
    with pytest.raises(Refused) as refused:
        build_plan(mlp_request(**settings))
    message = str(refused.value)
    assert message.startswith(next(iter(settings))) and "'tensorrt_rtx'" in message and remedy in message


def test_a_target_is_refused_where_only_this_gpu_can_be_built_for():
    full = Flavor("tensorrt", "10.13", bound.trt, bound.logger)
    object.__setattr__(full, "trt", type("Module", (), {"ComputeCapability": None}))
    with pytest.raises(Refused, match="target='sm89'.*'tensorrt'.*tensorrt_rtx"):
        builder.check(mlp_request(target="sm89"), full)


def test_too_little_workspace_says_so():
    with pytest.raises(Failure) as failure:
        build_plan(mlp_request(workspace=1))
    assert "workspace=1 bytes is too little" in failure.value.summary and failure.value.messages


@pytest.fixture
def timing_cache(monkeypatch):
    """A flavour that says it keeps timings. TensorRT-RTX goes through the motions: the file holds a header."""
    monkeypatch.setattr(Flavor, "has_timing_cache", True)


def test_the_timing_cache_is_written_then_read(timing_cache, tmp_path, recwarn):
    path = tmp_path / "timings"
    build_plan(mlp_request(timing_cache=path))
    first = path.read_bytes()
    assert len(first) > 0
    build_plan(mlp_request(timing_cache=str(path)))
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == ["timings"]


def test_a_damaged_timing_cache_is_started_anew(tmp_path, caplog):
    class Config:
        def create_timing_cache(self, data):
            return bytes(data)

        def set_timing_cache(self, cache, ignore_mismatch):
            self.cache = cache
            return cache != b"damaged"

        def get_timing_cache(self):
            return type("Cache", (), {"serialize": lambda _: self.cache + b"measured"})()

    path = tmp_path / "timings"
    path.write_bytes(b"damaged")
    with builder.timing_cache(mlp_request(timing_cache=path), Config()):
        pass
    assert path.read_bytes() == b"measured"
    assert str(path) in caplog.text


def test_a_timing_cache_in_no_folder_is_refused(timing_cache, tmp_path):
    with pytest.raises(Refused, match="folder does not exist"):
        build_plan(mlp_request(timing_cache=tmp_path / "none" / "timings"))


# -- progress and cancellation -----------------------------------------------------------------------------------------


def test_progress_never_falls_and_reaches_the_end():
    told: list[tuple[str, float]] = []
    build_plan(mlp_request(), progress=lambda *event: told.append(event))
    fractions = [fraction for _, fraction in told]
    assert told[0] == ("Parsing the model", 0.0) and fractions == sorted(fractions) and fractions[-1] == 1.0
    assert len({phase for phase, _ in told}) > 3


def test_a_cancelled_build_ends_at_its_next_step():
    seen: list[str] = []
    with pytest.raises(Cancelled):
        build_plan(mlp_request(), progress=lambda phase, _: seen.append(phase), cancelled=lambda: len(seen) > 3)
    assert 3 < len(seen) < 10


def test_an_error_in_a_callback_ends_the_build_and_not_the_process():
    def progress(phase: str, fraction: float) -> None:
        if phase != "Parsing the model":
            raise KeyboardInterrupt

    with pytest.raises(Failure, match="could not build"):
        build_plan(mlp_request(), progress=progress)


def test_nested_phases_are_one_fraction():
    phases = Phases()
    assert phases.start("whole", None, 4) == 0.0
    assert phases.step("whole", 0) == 0.25
    assert phases.start("part", "whole", 2) == 0.25
    assert phases.step("part", 0) == 0.375
    assert phases.finish("part") == 0.5
    assert phases.step("whole", 1) is None  # the same place
    assert phases.start("again", "whole", 10) == 0.5
    assert phases.step("stranger", 3) is None
    assert phases.finish("whole") == 1.0


def test_nothing_is_left_beside_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(Flavor, "has_initializer_loading", False)
    model, weights = networks.without_weights(networks.mlp())
    unknown = tuple(Initializer(f"no.{n}", w.ctypes.data, w.nbytes, owner=w) for n, w in weights.items())
    with pytest.raises(Failure, match=r"no weight named 'no\.layers\.0\.weight'"):
        build_plan(Request(model, networks.mlp_profile(), unknown))
    assert list(pathlib.Path(tmp_path).iterdir()) == []
