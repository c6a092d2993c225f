"""TensorRT's placements as a quantizer of torchao's PT2E flow.

:func:`torchtrt_bridge.calibrate` uses it to put observers into a captured graph. It serves torchao's own flow too::

    prepared = prepare_pt2e(torch.export.export(model, inputs).module(), TensorRTQuantizer())
    for batch in data:
        prepared(batch)
    fast = torchtrt_bridge.compile(convert_pt2e(prepared), inputs, "int8")     # taken as it is
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

from ..errors import InvalidOption
from .formats import FORMATS
from .observer import MagnitudeObserver
from .placement import Placement, placements
from .settings import Quantization

_KEY = "quantization_annotation"  # where torchao looks


class TensorRTQuantizer(Quantizer):  # type: ignore[misc]
    """Symmetric int8 or fp8: a scale per output channel of a weight (fp8: per weight), a scale per activation.

    Args:
        precision: ``"int8"`` or ``"fp8"``.
        settings: how ranges are chosen, and what is quantized besides.
        wanted: decides on each operator besides the placements' own rules.
        weights: False leaves the weights alone, for who only wants to see activations.
    """

    def __init__(
        self,
        precision: str = "int8",
        settings: Quantization | None = None,
        wanted: Callable[[Node], bool] = lambda node: True,
        weights: bool = True,
    ):
        if precision not in ("int8", "fp8"):
            raise InvalidOption(f"TensorRTQuantizer({precision!r}): there is 'int8' and 'fp8'.")
        self._settings, self._wanted = settings or Quantization(), wanted
        form = FORMATS[precision]
        limits = {"dtype": form.dtype, "quant_min": form.min, "quant_max": form.max}
        observer = MagnitudeObserver.with_args(form=form, settings=self._settings)
        self._activation = QuantizationSpec(
            **limits, qscheme=torch.per_tensor_symmetric, observer_or_fake_quant_ctr=observer
        )
        self._weight = None
        if weights and precision == "fp8":
            largest = MagnitudeObserver.with_args(form=form, settings=Quantization(method="max"))
            self._weight = QuantizationSpec(
                **limits, qscheme=torch.per_tensor_symmetric, observer_or_fake_quant_ctr=largest
            )
        elif weights:
            self._weight = QuantizationSpec(
                **limits, qscheme=torch.per_channel_symmetric, ch_axis=0,
                observer_or_fake_quant_ctr=PerChannelMinMaxObserver,
            )  # fmt: skip

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark in ``model`` what is quantized, and how."""
        settings = self._settings
        for place in placements(
            model.graph,
            lambda node: node.op == "get_attr",
            attention=settings.attention,
            last_layer=settings.last_layer,
            wanted=self._wanted,
        ):
            place.node.meta[_KEY] = self._annotation(place)
        return model

    def validate(self, model: GraphModule) -> None:
        """Every placement is one that TensorRT has."""

    def _annotation(self, place: Placement) -> QuantizationAnnotation:
        specs: dict[Node, QuantizationSpec | None] = dict.fromkeys(place.activations, self._activation)
        if place.weight is not None and self._weight is not None:
            weight = self._weight
            if weight.ch_axis is not None and weight.ch_axis != place.axis:
                weight = QuantizationSpec(**{**vars(weight), "ch_axis": place.axis})
            specs[place.weight] = weight
        return QuantizationAnnotation(input_qspec_map=specs, _annotated=True)
