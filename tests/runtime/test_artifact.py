"""The saved form: everything comes back exactly, and whatever was changed is named."""

import dataclasses
import hashlib
import json
import time

import pytest
import torch
from saved import PROVENANCE, SIGNATURE, artifact, plan, program

from torchtrt_bridge.backends.base import Wiring
from torchtrt_bridge.errors import ConversionFailed, InvalidFile
from torchtrt_bridge.runtime import artifact as artifact_module
from torchtrt_bridge.runtime import manifest
from torchtrt_bridge.runtime.artifact import from_tensors, to_tensors
from torchtrt_bridge.runtime.program import restore, run_callable
from torchtrt_bridge.structure import leaves
from torchtrt_bridge.version import __version__


def manifest_of(tensors):
    return json.loads(tensors["manifest"].numpy().tobytes())


def rewritten(tensors, change):
    """``tensors`` with a manifest that ``change`` altered, its digest put right: a file made to do harm."""
    data = manifest_of(tensors)
    del data["digest"]
    data = change(data) or data
    text = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
    data["digest"] = hashlib.sha256(text).hexdigest()
    text = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
    return {**tensors, "manifest": torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def assert_same(first, second):
    assert repr(first.signature) == repr(second.signature) and first.signature.result == second.signature.result
    assert (first.backend, first.precision) == (second.backend, second.precision)
    assert first.provenance == second.provenance and first.report == second.report
    assert len(first.segments) == len(second.segments)
    for a, b in zip(first.segments, second.segments):
        assert (a.runtime, a.inputs, a.outputs, a.wiring) == (b.runtime, b.inputs, b.outputs, b.wiring)
        assert (a.engine is None) == (b.engine is None) and (a.engine is None or torch.equal(a.engine, b.engine))
        assert_same_program(a.program, b.program)
    assert_same_program(first.source, second.source)
    assert first.results == second.results
    assert len(first.constants) == len(second.constants)
    assert all(same_tensor(a, b) for a, b in zip(first.constants, second.constants))


def assert_same_program(a, b):
    assert (a is None) == (b is None)
    if a is not None:
        assert a.graph == b.graph
        for mine, theirs in ((a.state, b.state), (a.constants, b.constants)):
            assert set(mine) == set(theirs) and all(same_tensor(mine[key], theirs[key]) for key in mine)


def same_tensor(a, b):
    same_bytes = artifact_module.contents(a) == artifact_module.contents(b)
    return (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device) and same_bytes


def test_one_plan_has_plain_names():
    made = artifact()
    tensors = to_tensors(made)
    assert set(tensors) == {"engine", "runtime_cache", "constant.0", "constant.1", "manifest"}
    assert tensors["engine"].data_ptr() == made.segments[0].engine.data_ptr()
    assert tensors["runtime_cache"].shape == (0,)
    copy, caches = from_tensors(tensors)
    assert_same(copy, made)
    assert len(caches) == 1 and caches[0].numel() == 0


def test_segments_are_numbered():
    middle = dataclasses.replace(plan(), runtime="torch", engine=None, program=program())
    wired = [
        dataclasses.replace(segment, wiring=Wiring((before,), (after,), sizes))
        for segment, before, after, sizes in (
            (plan(10), "input.0", "a", (SIGNATURE.inputs, SIGNATURE.outputs)),
            (middle, "a", "b", None),
            (plan(20), "b", "c", None),
        )
    ]
    made = artifact(*wired, source=program(), results=("c",))
    tensors = to_tensors(made, [b"first", torch.arange(3, dtype=torch.uint8)])
    state = {f"{prefix}.{name}" for prefix in ("program.1.state", "source.state") for name in ("weight", "bias")}
    assert set(tensors) - state == {
        *("engine.0", "runtime_cache.0", "program.1", "engine.2", "runtime_cache.2", "source"),
        *("constant.0", "constant.1", "manifest"),
    }
    copy, caches = from_tensors(tensors)
    assert_same(copy, made)
    assert caches[0].numpy().tobytes() == b"first" and caches[1].tolist() == [0, 1, 2]
    x = torch.randn(2, 4)
    run = run_callable(restore(copy.segments[1].program))
    assert torch.equal(run([x])[0], run_callable(restore(middle.program))([x])[0])


def test_a_module_that_runs_without_tensorrt_has_no_cache():
    eager = dataclasses.replace(plan(), runtime="torch", engine=None, program=program())
    for made in (artifact(plan(runtime="onnxruntime")), artifact(eager)):
        tensors = to_tensors(made)
        assert not any("runtime_cache" in key for key in tensors)
        copy, caches = from_tensors(tensors)
        assert_same(copy, made)
        assert caches == ()


def test_as_many_caches_as_plans():
    with pytest.raises(ValueError, match="2 runtime caches for 1 plans"):
        to_tensors(artifact(), [b"", b""])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4).t(),
        torch.randn(3, 4)[:, ::2],
        torch.randn(4).bfloat16(),
        torch.randn(4).to(torch.float8_e4m3fn),
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.randn(3, dtype=torch.complex128),
        torch.tensor(True),
        torch.empty(0, 3),
        torch.tensor(float("nan")),
        torch.ones(1).expand(5),
        torch.tensor([1, 60000], dtype=torch.uint16),
        torch.nn.Parameter(torch.ones(2)),
    ],
    ids=lambda t: f"{t.dtype}{list(t.shape)}",
)
def test_constants_of_any_dtype_and_layout_come_back(tensor):
    copy, _ = from_tensors(to_tensors(artifact(constants=(tensor, tensor))))
    assert same_tensor(copy.constants[0], tensor) and not copy.constants[0].requires_grad


def test_a_sparse_constant_is_refused_at_saving():
    with pytest.raises(ConversionFailed, match="sparse"):
        to_tensors(artifact(constants=(torch.eye(3).to_sparse(), torch.ones(1))))


def test_reports_and_provenance_keep_what_json_lacks():
    report = {"nan": float("nan"), "rows": ({"error": float("-inf")},), "text": "é\ud800"}
    copy, _ = from_tensors(to_tensors(artifact(report=report)))
    assert copy.report["nan"] != copy.report["nan"]
    assert copy.report["rows"] == [{"error": float("-inf")}] and copy.report["text"] == "é\ud800"
    assert copy.provenance == PROVENANCE
    with pytest.raises(TypeError, match=r"manifest\.report\.a\.0 is a set"):
        to_tensors(artifact(report={"a": [set()]}))


def test_the_manifest_says_what_the_file_is():
    data = manifest_of(to_tensors(artifact()))
    assert (data["format"], data["version"], data["package"]) == ("torchtrt_bridge", 1, __version__)
    assert data["segments"] == [{"runtime": "tensorrt", "inputs": ["x"], "outputs": ["y"]}]
    assert data["tensors"]["constant.1"]["dtype"] == "float32" and data["tensors"]["constant.1"]["shape"] == [2, 3]
    assert data["signature"] == json.loads(json.dumps(SIGNATURE.to_dict()))


def test_saving_twice_gives_the_same_bytes_and_hashes_once(monkeypatch):
    made = artifact(plan(1000), source=program())
    first = to_tensors(made)
    hashed = []
    real = artifact_module.contents
    monkeypatch.setattr(artifact_module, "contents", lambda t: hashed.append(t.numel()) or real(t))
    again = to_tensors(dataclasses.replace(made, report={}))
    assert torch.equal(again["manifest"], first["manifest"])
    assert 1000 not in hashed and 16 not in hashed  # neither the plan nor the source's weight


def test_loading_hashes_once_too(monkeypatch):
    tensors = to_tensors(artifact(plan(1000)))
    copy, _ = from_tensors(tensors)
    monkeypatch.setattr(artifact_module, "contents", lambda t: pytest.fail("hashed again") if t.numel() > 900 else b"")
    to_tensors(copy)


def test_a_tensor_that_was_written_to_is_hashed_again():
    made = artifact()
    before = manifest_of(to_tensors(made))
    made.constants[1].add_(1)
    after = to_tensors(made)
    assert manifest_of(after)["tensors"]["constant.1"] != before["tensors"]["constant.1"]
    assert torch.equal(from_tensors(after)[0].constants[1], made.constants[1])


def test_an_engine_made_in_inference_mode_is_saved():
    with torch.inference_mode():
        made = artifact(plan())
        tensors = to_tensors(made)
    assert_same(from_tensors(tensors)[0], made)


def test_big_tensors_are_not_copied():
    tensors = to_tensors(artifact(plan(100_000)))
    copy, _ = from_tensors(tensors)
    assert copy.segments[0].engine.data_ptr() == tensors["engine"].data_ptr()
    assert copy.constants[1].data_ptr() == tensors["constant.1"].data_ptr()


@pytest.mark.gpu
def test_what_was_moved_to_a_gpu_is_brought_back():
    made = artifact()
    copy, caches = from_tensors({key: tensor.cuda() for key, tensor in to_tensors(made).items()})
    assert_same(copy, made)
    assert caches[0].device.type == "cpu"
    on_gpu = dataclasses.replace(made, constants=tuple(c.cuda() for c in made.constants))
    assert torch.equal(to_tensors(on_gpu)["manifest"], to_tensors(made)["manifest"])


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return to_tensors(artifact(source=program()), [b"kernels"])


def refused(tensors, message):
    with pytest.raises(InvalidFile, match=message):
        from_tensors(tensors)


def test_no_manifest(tensors):
    del tensors["manifest"]
    refused(tensors, "no tensor 'manifest'.*It holds engine")
    refused({}, "It holds nothing")
    refused({"weight": torch.ones(1)}, "no saved TRTModule. It holds weight")


def test_a_prefix_is_named(tensors):
    refused({f"encoder.{key}": value for key, value in tensors.items()}, "under the prefix 'encoder.'")


@pytest.mark.parametrize(
    "value", [torch.ones(3), torch.ones(3, 3, dtype=torch.uint8), torch.tensor(1, dtype=torch.uint8)]
)
def test_a_manifest_that_is_no_row_of_bytes(tensors, value):
    refused({**tensors, "manifest": value}, "'manifest' is .* where uint8")


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"{", b"[" * 100_000, b'{"a":NaN}', b'{"a":' + b"9" * 9999 + b"}"])
def test_a_manifest_that_is_no_json(tensors, text):
    value = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)
    refused({**tensors, "manifest": value}, "'manifest' is no JSON text")


@pytest.mark.parametrize("text", [b"[]", b"null", b'"x"', b"{}", b'{"format":"other"}', b'{"format":["x"]}'])
def test_a_manifest_of_another_format(tensors, text):
    value = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    refused({**tensors, "manifest": value}, "no saved TRTModule")


def test_a_newer_version_says_to_update(tensors):
    refused(rewritten(tensors, lambda d: d.update(version=7)), r"format version 7 .*reads version 1\. Update it")


@pytest.mark.parametrize("version", [0, -1, None, "1", 1.0, True, [], {}])
def test_a_version_that_is_none(tensors, version):
    refused(rewritten(tensors, lambda d: d.update(version=version)), "format version")


def test_an_older_version_says_to_save_again(tensors, monkeypatch):
    monkeypatch.setattr(manifest, "VERSION", 2)
    refused(tensors, r"format version 1 .*reads version 2 only\. Compile and save")


def test_every_flipped_byte_of_the_manifest_is_noticed(tensors):
    whole = tensors["manifest"]
    for index in range(whole.numel()):
        changed = whole.clone()
        changed[index] ^= 1 << (index % 8)
        with pytest.raises(InvalidFile):
            from_tensors({**tensors, "manifest": changed})


def test_a_manifest_written_otherwise_is_noticed(tensors):
    data = manifest_of(tensors)
    for text in (json.dumps(data, sort_keys=True), json.dumps(data, separators=(",", ":")) + " "):
        value = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        refused({**tensors, "manifest": value}, "does not match its digest")


@pytest.mark.parametrize(
    "key", ["engine", "runtime_cache", "constant.0", "constant.1", "source", "source.state.weight"]
)
def test_a_damaged_missing_or_converted_tensor_is_named(tensors, key):
    damaged = tensors[key].clone()
    damaged.view(-1).view(torch.uint8)[-1] ^= 1
    refused({**tensors, key: damaged}, rf"'{key}' does not match its digest")
    refused({k: v for k, v in tensors.items() if k != key}, rf"lacks the tensor '{key}'")
    other = torch.float16 if tensors[key].dtype != torch.float16 else torch.float32
    refused({**tensors, key: tensors[key].to(other)}, rf"'{key}' is float16.* was saved\. Something converted")
    refused({**tensors, key: tensors[key][None]}, rf"'{key}' is .* was saved")
    refused({**tensors, key: tensors[key].to("meta")}, rf"'{key}' is no dense tensor")
    refused({**tensors, key: None}, rf"'{key}' is no dense tensor")


def test_a_strange_tensor_is_named(tensors):
    refused({**tensors, "extra": torch.ones(1)}, "'extra' is no part")


def test_swapped_tensors_are_noticed():
    first, second = to_tensors(artifact()), to_tensors(artifact())
    refused({**first, "engine": second["engine"]}, "'engine' does not match")


HOSTILE = [None, [], {}, 3, -1, 1.5, True, "x", "../x", [None], [[]], [{}], {"x": None}, "9" * 5000]
PATHS = [
    *[
        (key,)
        for key in ("package", "backend", "precision", "provenance", "report", "signature", "segments", "tensors")
    ],
    *[("segments", 0), ("segments", 0, "runtime"), ("segments", 0, "inputs"), ("segments", 0, "inputs", 0)],
    *[("tensors", "engine"), ("tensors", "engine", "dtype"), ("tensors", "engine", "shape")],
    *[("tensors", "engine", "shape", 0), ("tensors", "engine", "sha256")],
    *[("signature", "result"), ("signature", "inputs"), ("signature", "dims"), ("signature", "arguments")],
]


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_a_hostile_manifest_is_an_invalid_file_or_harmless(tensors, path):
    refusals = 0
    for value in [*HOSTILE, KeyError]:

        def change(data, value=value):
            at = data
            for key in path[:-1]:
                at = at[key]
            if value is KeyError:
                del at[path[-1]]
            else:
                at[path[-1]] = value

        try:
            from_tensors(rewritten(tensors, change))
        except InvalidFile:
            refusals += 1
    assert refusals >= 8


def test_more_hostile_manifests(tensors):
    refused(rewritten(tensors, lambda d: d.update(extra=1)), "the fields extra")
    refused(rewritten(tensors, lambda d: d["segments"].append(d["segments"][0])), "needs a tensor 'engine.0'")
    refused(rewritten(tensors, lambda d: d["segments"][0].update(runtime="torch")), "needs a tensor 'program'")
    refused(
        rewritten(tensors, lambda d: d["segments"][0].update(runtime="onnxruntime")), "'runtime_cache' out of place"
    )
    result = {"leaf": {"constant": 5}}
    refused(rewritten(tensors, lambda d: d["signature"].update(result=result)), "constant.5, which it does not hold")


def test_a_manifest_of_any_depth_is_read_or_refused(tensors):
    data = manifest_of(tensors)
    refusals = 0
    depths = (300, *range(800, 1100, 10), 100_000)
    for depth in depths:
        nest = '{"x":' * depth + "1" + "}" * depth
        without = {**data, "report": {"x": "HERE"}}
        del without["digest"]
        texts = []
        for document in (without, {**without, "digest": "DIGEST"}):
            texts.append(json.dumps(document, sort_keys=True, separators=(",", ":")).replace('"HERE"', nest))
        text = texts[1].replace("DIGEST", hashlib.sha256(texts[0].encode()).hexdigest())
        try:
            copy, _ = from_tensors(
                {**tensors, "manifest": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}
            )
            assert copy.report
        except InvalidFile:
            refusals += 1
    assert 0 < refusals < len(depths)


def test_a_constant_in_place_of_an_engine(tensors):
    def change(data):
        entries = data["tensors"]
        entries["engine"], entries["constant.1"] = entries["constant.1"], entries["engine"]

    changed = rewritten(tensors, change)
    changed["engine"], changed["constant.1"] = changed["constant.1"], changed["engine"]
    refused(changed, "needs a tensor 'engine' of uint8")


def test_an_ordinary_state_dict_call_is_quick():
    made = artifact(plan(50_000_000))
    to_tensors(made)
    start = time.perf_counter()
    to_tensors(made)
    assert time.perf_counter() - start < 0.02


def test_the_result_of_the_copy_is_what_the_signature_says(tensors):
    copy, _ = from_tensors(tensors)
    y = torch.ones(2, 4)
    result = copy.signature.assemble([y], [y], copy.constants)
    assert result[0] is y and torch.equal(result[1], copy.constants[1]) and result[2] == float("inf")
    assert list(leaves(copy.signature.result)) == [{"output": 0}, {"constant": 1}]
