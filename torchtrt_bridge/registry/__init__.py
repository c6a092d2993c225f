"""Converters of custom layers: what is registered, for what, by whom; and what a compilation sees of it."""

from .registration import Call, Conversion, Converter, Definition, Registration
from .table import Registry, Snapshot

converter = Registry()
"""The registry of this process: ``@torchtrt_bridge.converter(target)`` registers in it."""

__all__ = ["Call", "Conversion", "Converter", "Definition", "Registration", "Registry", "Snapshot", "converter"]
