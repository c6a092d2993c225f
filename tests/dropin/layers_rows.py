"""Layers, parameters, attributes, hooks."""

from __future__ import annotations

import copy
import json
import types

import pytest
import torch
from dropin_table import Case, close, row
from torch import nn
from torch.nn.utils import parameters_to_vector, prune

import torchtrt_bridge as ttb
from torchtrt_bridge.attributes import Record
from torchtrt_bridge.errors import InvalidOption, NoLayers

GROUP = "Layers, parameters, hooks"


@row(GROUP, "`list(fast.parameters())`", "the weights", "empty: the engine holds them")
def parameters(case: Case) -> None:
    assert len(list(case.model.parameters())) == 6
    assert list(case.fast.parameters()) == list(case.fast.named_parameters()) == []


@row(GROUP, "`sum(p.numel() for p in fast.parameters())`", "their number", "0")
def count_parameters(case: Case) -> None:
    assert sum(p.numel() for p in case.fast.parameters()) == 0
    assert len(parameters_to_vector(case.model.parameters())) > 0


@row(GROUP, "`next(fast.buffers())`, `next(fast.children())`", "the first", "`StopIteration` that says why")
def first_of_nothing(case: Case) -> None:
    for iterator, what in ((case.fast.buffers(), "buffers"), (case.fast.children(), "layers")):
        with pytest.raises(StopIteration, match=what):
            next(iterator)
    assert list(case.fast.named_buffers()) == list(case.fast.named_children()) == []


@row(GROUP, "`fast.modules()`, `fast.named_modules()`", "every layer", "`fast` itself")
def modules(case: Case) -> None:
    assert list(case.fast.modules()) == [case.fast]
    assert dict(nn.Sequential(case.fast).named_modules())["0"] is case.fast


@row(GROUP, "`fast.apply(fn)`", "`fn` of every layer", "`fn(fast)`; an `isinstance(m, nn.Linear)` in it is never true")
def apply(case: Case) -> None:
    seen = []

    def initialize(module: nn.Module) -> None:
        seen.append(module)
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.zeros_(module.weight)

    assert case.fast.apply(initialize) is case.fast and seen == [case.fast]
    case.right()


@row(GROUP, "`fast.head`, a layer", "the layer", "`NoLayers`, an `AttributeError`: there is one engine")
def a_layer(case: Case) -> None:
    assert isinstance(case.model.head, nn.Linear)
    with pytest.raises(NoLayers, match="'head': the model became one engine"):
        case.fast.head  # noqa: B018
    with pytest.raises(AttributeError):
        case.fast.head.weight  # noqa: B018


@row(GROUP, "`hasattr(fast, 'head')`, `getattr(fast, 'head', None)`", "True, the layer", "False, None")
def has_a_layer(case: Case) -> None:
    assert hasattr(case.model, "head") and not hasattr(case.fast, "head")
    assert getattr(case.fast, "head", None) is None
    assert not hasattr(case.fast, "_no_split_modules") and not hasattr(case.fast, "__len__")


@row(GROUP, "`fast.forward_features(x)`, another method", "what it does", "`NoLayers`")
def a_method(case: Case) -> None:
    with pytest.raises(NoLayers, match="'forward_features'.*methods"):
        case.fast.forward_features(case.x)


@row(GROUP, "`fast.num_parameters()` (transformers)", "`AttributeError`, but there", "`NoLayers`")
def num_parameters(case: Case) -> None:
    with pytest.raises(NoLayers, match="num_parameters"):
        case.fast.num_parameters()


@row(GROUP, "`fast.get_submodule('head')`, `get_parameter`, `get_buffer`", "the layer", "`NoLayers`; `''` is `fast`")
def get_submodule(case: Case) -> None:
    assert case.fast.get_submodule("") is case.fast
    assert nn.Sequential(case.fast).get_submodule("0") is case.fast
    for get in (case.fast.get_submodule, case.fast.get_parameter, case.fast.get_buffer):
        with pytest.raises(NoLayers, match="head.weight"):
            get("head.weight")


@row(GROUP, "`fast.head = nn.Linear(...)`", "replaces the layer", "`NoLayers`: put it beside, in `nn.Sequential`")
def set_a_layer(case: Case) -> None:
    for value in (case.head(), nn.Parameter(torch.ones(1))):
        with pytest.raises(NoLayers, match="beside"):
            case.fast.head = value
    case.right()


@row(GROUP, "`fast.register_buffer(...)`, `register_parameter`, `add_module`", "adds it", "`NoLayers`")
def register(case: Case) -> None:
    for register_ in (case.fast.register_buffer, case.fast.register_parameter, case.fast.add_module):
        with pytest.raises(NoLayers, match="'extra' cannot be added"):
            register_("extra", None)
    with pytest.raises(NoLayers):
        case.fast.set_submodule("head", case.head())


@row(GROUP, "`prune.l1_unstructured(fast, 'weight', 0.5)`", "for a layer: prunes it", "`NoLayers`")
def pruning(case: Case) -> None:
    prune.l1_unstructured(case.model.head, "weight", 0.5)
    with pytest.raises(NoLayers):
        prune.l1_unstructured(case.fast, "weight", 0.5)


@row(GROUP, "`fast.note = 'mine'`, `del fast.note`", "an attribute", "the same; not saved")
def set_plain(case: Case) -> None:
    case.fast.note = "mine"
    assert case.fast.note == copy.deepcopy(case.fast).note == "mine"
    del case.fast.note
    assert not hasattr(case.fast, "note")


@row(GROUP, "`fast.num_classes`, plain data", "what it is", "copied when compiled, saved, and settable")
def plain_attribute(case: Case) -> None:
    assert case.fast.num_classes == 2 and "num_classes" in dir(case.fast)
    case.fast.num_classes = 3
    again = ttb.TRTModule()
    again.load_state_dict(case.fast.state_dict())
    assert again.num_classes == copy.deepcopy(case.fast).num_classes == 3
    case.fast.num_classes = object()
    with pytest.raises(InvalidOption, match="num_classes is a builtins.object"):
        case.fast.state_dict()
    del case.fast.num_classes
    assert not hasattr(case.fast, "num_classes") and case.fast.state_dict()


@row(
    GROUP,
    "`fast.config.hidden_size`, `.id2label`, `.to_dict()`",
    "the configuration",
    "a plain copy, saved with the module",
)
def configuration(case: Case) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(hidden_size=4, num_attention_heads=2, id2label={0: "no", 1: "yes"})
    case.model.config = config
    fast = ttb.compile(case.model, case.x, attributes=("config",))
    again = ttb.TRTModule()
    again.load_state_dict(fast.state_dict())
    for copied in (fast.config, again.config):
        assert type(copied) is Record
        for name in "hidden_size id2label label2id num_labels use_return_dict model_type pad_token_id dtype".split():
            assert getattr(copied, name) == getattr(config, name), name
        assert copied.to_dict() == config.to_dict() and json.loads(copied.to_json_string())["hidden_size"] == 4
        assert copied.get_text_config() is copied and dict(copied)["hidden_size"] == copied["hidden_size"] == 4


@row(GROUP, "`fast.config.use_cache = False`, `fast.config.nothing`", "set; `AttributeError`", "the same")
def change_configuration(case: Case) -> None:
    case.model.config = types.SimpleNamespace(width=4, inner=types.SimpleNamespace(depth=2), bad=object())
    fast = ttb.compile(case.model, case.x, attributes=("config",))
    fast.config.use_cache = False
    again = copy.deepcopy(fast)
    assert again.config.to_dict() == {"width": 4, "inner": {"depth": 2}, "use_cache": False}
    with pytest.raises(AttributeError, match="no 'nothing'.*the original had none"):
        fast.config.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="no 'bad'.*no plain data"):
        fast.config.bad  # noqa: B018
    assert not hasattr(fast.config, "nothing") and not hasattr(case.model.config, "nothing")


@row(GROUP, "`compile(..., attributes=('body',))`, a layer", "", "`InvalidOption`: only plain data is copied")
def attributes_that_cannot_be(case: Case) -> None:
    for names, message in [
        (("body",), "'body' cannot be copied.*Only plain data"),
        (("num_clases",), "Did you mean 'num_classes'"),
        (("device",), "means something else"),
        (("_modules",), "private"),
        ("config", "a tuple of names"),
    ]:
        with pytest.raises(InvalidOption, match=message):
            ttb.compile(case.model, case.x, attributes=names)


@row(GROUP, "a path in `config._name_or_path`", "the path", "None: files hold no paths of the machine that compiled")
def no_paths(case: Case) -> None:
    case.model.config = types.SimpleNamespace(_name_or_path=str(case.folder), url="https://example.org/a", home="~/x")
    fast = ttb.compile(case.model, case.x, attributes=("config",))
    assert (fast.config._name_or_path, fast.config.home, fast.config.url) == (None, None, "https://example.org/a")
    fast.save(case.folder / "fast.safetensors")
    assert str(case.folder).encode() not in (case.folder / "fast.safetensors").read_bytes()


@row(GROUP, "`timm.data.resolve_data_config({}, model=fast)`", "the model's preprocessing", "the same")
def timm_data_config(case: Case) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=3).eval()
    case.model.pretrained_cfg, case.model.default_cfg = model.pretrained_cfg, model.default_cfg
    fast = ttb.compile(case.model, case.x)
    assert timm.data.resolve_data_config({}, model=fast) == timm.data.resolve_data_config({}, model=model)


@row(GROUP, "`fast.can_generate()` (transformers' pipelines)", "whether `generate` works", "False")
def can_generate(case: Case) -> None:
    assert case.fast.can_generate() is False


@row(GROUP, "`fast.register_forward_pre_hook(hook, with_kwargs=True)`", "called", "the same")
def pre_hooks(case: Case) -> None:
    def doubled(module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        return (), {"x": kwargs["x"] * 2}

    for module in (case.model, case.fast):
        module.register_forward_pre_hook(doubled, with_kwargs=True)
    close(case.fast(x=case.x), case.eager(x=case.x))


@row(GROUP, "`fast.register_forward_hook(hook)`; `handle.remove()`", "called, may replace the result", "the same")
def hooks(case: Case) -> None:
    handle = case.fast.register_forward_hook(lambda module, args, result: result + 1)
    close(case.fast(case.x), case.eager() + 1)
    handle.remove()
    case.right()


@row(
    GROUP,
    "`fast.register_full_backward_hook(hook)`",
    "called in backward",
    "accepted; backward raises `NotTrainable`",
)
def backward_hook(case: Case) -> None:
    case.fast.register_full_backward_hook(lambda module, inputs, outputs: None)
    result = case.fast(case.x.clone().requires_grad_())
    case.right(result)
    with pytest.raises(ttb.errors.NotTrainable):
        result.sum().backward()


@row(GROUP, "a summary by hooks (torchinfo, FLOP counters)", "a line per layer", "one line, no parameters")
def summary(case: Case) -> None:
    lines = []

    def note(module: nn.Module, args: tuple, result: torch.Tensor) -> None:
        lines.append((type(module).__name__, tuple(result.shape), sum(p.numel() for p in module.parameters())))

    for module in case.fast.modules():
        module.register_forward_hook(note)
    case.fast(case.x)
    assert lines == [("TRTModule", (4, 2), 0)]


@row(GROUP, "`print(fast)`, `repr`, `_repr_html_`", "the layers", "route, precision, inputs and results")
def printed(case: Case) -> None:
    text = repr(nn.Sequential(case.fast, case.head()))
    assert "TRTModule" in text and "x: float32[batch, 3, 6, 6]" in text and "Linear" in text
    assert "<table>" in case.fast._repr_html_()


@row(GROUP, "`fast in {fast}`, `fast == fast`, `if fast:`, `weakref`", "by identity, True", "the same")
def identity(case: Case) -> None:
    other = copy.deepcopy(case.fast)
    assert case.fast in {case.fast} and case.fast != other and bool(case.fast) and isinstance(case.fast, nn.Module)


@row(GROUP, "`fast[0]`, `len(fast)`, `for layer in fast`", "for `nn.Sequential`: its layers", "`TypeError`")
def indexing(case: Case) -> None:
    for ask in (lambda: case.fast[0], lambda: len(case.fast), lambda: iter(case.fast)):
        with pytest.raises(TypeError):
            ask()
