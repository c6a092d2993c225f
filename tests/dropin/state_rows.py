"""Saving, loading, copying."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from dropin_table import Case, close, row
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import EngineMismatch, InvalidFile, InvalidInput

GROUP = "Saving, loading, copying"


def through_a_file(value: object, **options: object) -> object:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **options)


@row(
    GROUP,
    "`torch.save(fast.state_dict())`, `load_state_dict`",
    "into the model's class",
    "into an empty `TRTModule()`",
)
def state_dict(case: Case) -> None:
    again = ttb.TRTModule()
    assert str(again.load_state_dict(through_a_file(case.fast.state_dict()))) == "<All keys matched successfully>"
    close(again(case.x), case.eager())
    assert repr(again.signature) == repr(case.fast.signature)
    assert repr(again.report) == repr(case.fast.report)


@row(GROUP, "the same with `map_location='cpu'`, or a GPU", "tensors there", "the module runs where `device=` says")
def map_location(case: Case) -> None:
    for place in ("cpu", case.device, lambda storage, location: storage):
        again = ttb.TRTModule(case.device)
        again.load_state_dict(through_a_file(case.fast.state_dict(), map_location=place))
        close(again(case.x), case.eager())


@row(GROUP, "`map_location='meta'`", "empty weights", "`InvalidFile`: a tensor without data")
def map_location_meta(case: Case) -> None:
    state = through_a_file(case.fast.state_dict(), map_location="meta")
    with pytest.raises(InvalidFile, match="no dense tensor with data|manifest"):
        ttb.TRTModule().load_state_dict(state)


@row(GROUP, "`load_state_dict(..., assign=True)`", "takes the tensors", "the same result")
def assign(case: Case) -> None:
    again = ttb.TRTModule()
    again.load_state_dict(case.fast.state_dict(), assign=True)
    close(again(case.x), case.eager())


@row(
    GROUP,
    "`fast.load_state_dict(model.state_dict())`, weights",
    "takes them",
    "torch's `RuntimeError`: load, then compile",
)
def load_weights(case: Case) -> None:
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="weights are fixed in its engine"):
            case.fast.load_state_dict(case.model.state_dict(), strict=strict)
    case.right()


@row(GROUP, "`load_state_dict({}, strict=False)`", "missing keys, by name", "the same; the engine stays")
def load_nothing(case: Case) -> None:
    assert case.fast.load_state_dict({}, strict=False).missing_keys == ["manifest"]
    with pytest.raises(RuntimeError, match="Missing key.*manifest"):
        case.fast.load_state_dict({})
    case.right()


@row(GROUP, "a damaged or converted state dict", "wrong numbers, or an error", "`InvalidFile`; the engine stays")
def load_damaged(case: Case) -> None:
    name = next(name for name in case.fast.state_dict() if name.startswith("engine"))
    state = {key: value.clone() for key, value in case.fast.state_dict().items()}
    state[name][len(state[name]) // 2] ^= 1
    with pytest.raises(InvalidFile, match="does not match its digest"):
        case.fast.load_state_dict(state)
    with pytest.raises(InvalidFile, match="converted"):
        case.fast.load_state_dict({key: value.half() for key, value in case.fast.state_dict().items()})
    case.right()


@row(
    GROUP,
    "the state dict of `nn.Sequential(fast, head)`",
    "both, prefixed",
    "both; loads into `Sequential(TRTModule(), head)`",
)
def state_of_a_whole(case: Case) -> None:
    whole = nn.Sequential(case.fast, case.head())
    state = through_a_file(whole.state_dict())
    assert {"0.manifest", "1.weight"} < set(state)
    again = nn.Sequential(ttb.TRTModule(), case.head())
    again.load_state_dict(state)
    close(again(case.x), whole(case.x))


@row(GROUP, "a checkpoint of the head alone, `strict=False`", "loads the head", "the same; the engine stays")
def state_of_a_part(case: Case) -> None:
    whole = nn.Sequential(case.fast, case.head())
    found = whole.load_state_dict({"1.weight": torch.ones(3, 2), "1.bias": torch.zeros(3)}, strict=False)
    assert found.missing_keys == ["0.manifest"] and found.unexpected_keys == []
    close(whole(case.x), case.eager().sum(1, keepdim=True).expand(-1, 3))


@row(
    GROUP,
    "`torch.save(fast)`, `torch.load`",
    "needs the class, or `weights_only=False`",
    "plain `torch.load` takes it",
)
def whole_module(case: Case) -> None:
    again = through_a_file(case.fast)
    assert type(again) is ttb.TRTModule and again.num_classes == 2
    close(again(case.x), case.eager())


@row(GROUP, "`torch.save(nn.Sequential(fast, head))`", "torch's rules", "torch's rules: its containers are to be named")
def whole_container(case: Case) -> None:
    whole = nn.Sequential(case.fast, nn.Softmax(dim=1))
    with pytest.raises(pickle.UnpicklingError, match="Sequential"):
        through_a_file(whole)
    with torch.serialization.safe_globals([nn.Sequential, nn.Softmax]):
        close(through_a_file(whole)(case.x), case.eager().softmax(1))


@row(GROUP, "`pickle.dumps(fast)`", "works", "works; hooks and later attributes are left out")
def pickled(case: Case) -> None:
    case.fast.register_forward_hook(lambda *_: 1 / 0)
    close(pickle.loads(pickle.dumps(case.fast))(case.x), case.eager())


@row(GROUP, "`copy.deepcopy(fast)`", "a second model, hooks copied", "a second engine, hooks copied")
def deepcopy(case: Case) -> None:
    case.fast.register_forward_hook(lambda module, args, result: result + 1)
    again = copy.deepcopy({"a": case.fast, "b": case.fast})
    assert again["a"] is again["b"] and again["a"] is not case.fast
    close(again["a"](case.x), case.eager() + 1)


@row(GROUP, "`copy.copy(fast)`", "shares the weights", "shares the engine")
def shallow_copy(case: Case) -> None:
    again = copy.copy(case.fast)
    close(again(case.x), case.eager())
    again.note = 1
    assert not hasattr(case.fast, "note")


@row(GROUP, "`safetensors.torch.save_file(fast.state_dict(), f)`", "works", "works; `ttb.load(f)` reads it")
def safetensors_file(case: Case) -> None:
    from safetensors.torch import save_file

    save_file({k: v.cpu() for k, v in case.fast.state_dict().items()}, case.folder / "fast.safetensors")
    close(ttb.load(case.folder / "fast.safetensors")(case.x), case.eager())


@row(GROUP, "`swa_utils.AveragedModel(fast)`, `update_parameters`", "averages weights", "a copy; nothing to average")
def averaged(case: Case) -> None:
    ema = torch.optim.swa_utils.AveragedModel(case.fast)
    ema.update_parameters(case.fast)
    close(ema(case.x), case.eager())
    assert set(ema.state_dict()) == {"n_averaged", *(f"module.{name}" for name in case.fast.state_dict())}


@row(GROUP, "EMA by the state dict (timm's `ModelEmaV3`)", "averages weights", "the engine's bytes are left alone")
def ema_by_timm(case: Case) -> None:
    timm_utils = pytest.importorskip("timm.utils")
    whole = nn.Sequential(case.fast, case.head())
    ema = timm_utils.ModelEmaV3(whole, decay=0.5)
    before = whole[1].weight.detach().clone()
    with torch.no_grad():
        whole[1].weight.add_(1)
    ema.update(whole)
    close(ema.module[1].weight, before + 0.5)
    close(ema.module[0](case.x), case.eager())


@row(GROUP, "state dict hooks (`register_state_dict_post_hook`)", "called", "the same")
def state_dict_hooks(case: Case) -> None:
    seen = []
    case.fast.register_state_dict_post_hook(lambda module, state, prefix, meta: seen.append(prefix))
    case.fast.register_load_state_dict_post_hook(lambda module, keys: seen.append(keys.missing_keys))
    case.fast.load_state_dict(nn.Sequential(case.fast).state_dict(prefix="", keep_vars=True) and case.fast.state_dict())
    assert seen == ["0.", "", []]


@row(GROUP, "`fast.matches(model)`", "", "whether the model still has the weights that were compiled, on any device")
def matches(case: Case) -> None:
    assert case.fast.matches(case.model) and case.fast.matches(copy.deepcopy(case.fast))
    again = ttb.TRTModule()
    again.load_state_dict(case.fast.state_dict())
    assert again.matches(case.model.cpu())
    with torch.no_grad():
        case.model.norm.running_mean[0] += 1e-3
    assert not again.matches(case.model) and not case.fast.matches(case.model)
    assert not case.fast.matches(case.head())
    with pytest.raises(InvalidInput, match="given a OrderedDict"):
        case.fast.matches(case.model.state_dict())


@row(GROUP, "load into a module that ran already", "new weights", "the new engine; on an error the old one")
def load_over(case: Case) -> None:
    other = copy.deepcopy(case.model)
    with torch.no_grad():
        other.head.bias.add_(1)
    case.fast.load_state_dict(ttb.compile(other, case.x).state_dict())
    close(case.fast(case.x), case.eager() + 1)


@row(
    GROUP,
    "`ttb.load(file, device='cuda')` of a module for the CPU",
    "moves",
    "`EngineMismatch`, or torch finds no GPU",
)
def load_elsewhere(case: Case) -> None:
    case.fast.save(case.folder / "fast.safetensors")
    if case.device.type == "cpu":
        with pytest.raises(EngineMismatch, match="CPU"):
            ttb.load(case.folder / "fast.safetensors", device="cuda")
    else:
        waiting = ttb.load(case.folder / "fast.safetensors", device="cpu")
        assert waiting.device.type == "cpu"
        close(waiting.cuda()(case.x), case.eager())


@row(GROUP, "host names and paths in the file", "none", "none; versions and the GPU's name")
def provenance(case: Case) -> None:
    import os
    import socket

    case.fast.save(case.folder / "fast.safetensors")
    data = (case.folder / "fast.safetensors").read_bytes()
    for secret in (socket.gethostname(), os.getcwd(), os.path.expanduser("~"), str(case.folder)):
        assert len(secret) < 4 or secret.encode() not in data, secret
    assert case.fast.provenance["torch"] == torch.__version__


@row(GROUP, "a result class that this process has not imported", "an import", "a dict with its fields, said once")
def unknown_result_class(case: Case) -> None:
    from torchtrt_bridge.structure import FallbackResult, rebuild

    node = {"class": "no_such_module:Output", "style": "mapping", "fields": [["logits", {"leaf": 0}]]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = rebuild(node, lambda index: case.x)
    assert type(result) is FallbackResult and result.logits is result["logits"] is result[0] is case.x
