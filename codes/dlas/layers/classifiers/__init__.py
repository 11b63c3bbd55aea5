"""Published image classifiers as extractors of features, with the names of their published files, and where these are found."""

from __future__ import annotations

from dlas.layers.classifiers.base import Classifier
from dlas.layers.classifiers.choice import CLASSIFIERS, DEFAULT_LAYERS, build_classifier, load_classifier
from dlas.layers.classifiers.files import PUBLISHED, find_weights, read_tensors

__all__ = [
    "CLASSIFIERS",
    "DEFAULT_LAYERS",
    "PUBLISHED",
    "Classifier",
    "build_classifier",
    "find_weights",
    "load_classifier",
    "read_tensors",
]
