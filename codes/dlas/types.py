"""Names for what an option in YAML means, used as annotations in the signatures of registered components.

The configuration layer reads these annotations from the source text (nothing is imported), so a component is checked, wired
and documented by its signature alone:

========================  ======================================================================================
annotation                meaning in YAML
========================  ======================================================================================
``StateIn``               name of a state key that is read
``StateIns``              a state key, or a (nested) list of keys and literals; the string ``None`` stands for no value
``StateOut``              name of a state key that is written
``StateOuts``             a state key or a list of keys that are written
``NetworkName``           name of an entry under ``networks``
``PositiveInt`` ..        a number with a range
``DegradationOptions``    a degradation and its options: `{type: realesrgan}`
``ProcessOptions``        a diffusion's process and its options: `{type: vp, schedule: cosine}`
``TimesOptions``          a distribution of its times: `{type: logit_normal}`
``WeightingOptions``      a weighting of its errors: `{type: min_snr}`
``SamplerOptions``        a way to draw samples: `{type: heun}`
``QuantizerOptions``      what replaces vectors by codes, and its options: `{type: fsq, levels: [8, 8, 8]}`
``DatasetOptions``        a data set and its options: `{mode: digits}`
``NetworkOptions``        a network and its options: `{which_model: resnet50}`
``FlowOptions``           the shape of a normalising flow; ``FlowSplitOptions`` .. are parts of it
``BetaScheduleOptions``   a diffusion's noise as DL-Art-School's files tell it
``DiffusionArgsOptions``  its training, likewise
========================  ======================================================================================

A parameter whose name is a Python keyword ends in an underscore in Python and not in YAML (``in_`` is ``in``).
"""

from __future__ import annotations

from typing import Any, TypeAlias

StateIn: TypeAlias = str
StateIns: TypeAlias = Any
StateOut: TypeAlias = str
StateOuts: TypeAlias = str | list[str]
NetworkName: TypeAlias = str
DegradationOptions: TypeAlias = dict[str, Any]
ProcessOptions: TypeAlias = dict[str, Any]
TimesOptions: TypeAlias = dict[str, Any]
WeightingOptions: TypeAlias = dict[str, Any]
SamplerOptions: TypeAlias = dict[str, Any]
QuantizerOptions: TypeAlias = dict[str, Any]
DatasetOptions: TypeAlias = dict[str, Any]
NetworkOptions: TypeAlias = dict[str, Any]
FlowOptions: TypeAlias = dict[str, Any]
FlowSplitOptions: TypeAlias = dict[str, Any]
FlowBlocksOptions: TypeAlias = dict[str, Any]
FlowAffineOptions: TypeAlias = dict[str, Any]
BetaScheduleOptions: TypeAlias = dict[str, Any]
DiffusionArgsOptions: TypeAlias = dict[str, Any]

PositiveInt: TypeAlias = int
NonNegativeInt: TypeAlias = int
PositiveFloat: TypeAlias = float
NonNegativeFloat: TypeAlias = float
Fraction: TypeAlias = float
"""A float in [0, 1]."""
