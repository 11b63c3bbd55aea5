"""What features and logits are worth: numbers of each sample, for `eval.values`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from dlas.context import Context
from dlas.errors import TrainingError
from dlas.injectors.base import Injector, State
from dlas.registry import INJECTORS
from dlas.types import PositiveInt, StateIn, StateOut


@INJECTORS.register("feature_distance")
class FeatureDistance(Injector):
    """Euclidean distance between two features of each sample.

    Args:
        one: key of the first features, (B, ...).
        two: key of the second, of the same shape.
        out: key of the distances, (B,).
        normalize: features are brought to length 1 first: distances are 0 to 2 then.
    """

    def __init__(self, *, one: StateIn, two: StateIn, out: StateOut, normalize: bool = False) -> None:
        self.one, self.two, self.out, self.normalize = one, two, out, normalize

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        features = [state[key].float().flatten(1) for key in (self.one, self.two)]
        if features[0].shape != features[1].shape:
            shapes = " and ".join(str(tuple(each.shape)) for each in features)
            raise TrainingError(f"feature_distance: '{self.one}' and '{self.two}' have the shapes {shapes}; expected the same")
        if self.normalize:
            features = [F.normalize(each, dim=1) for each in features]
        return {self.out: (features[0] - features[1]).norm(dim=1)}


@INJECTORS.register("classification_error")
class ClassificationError(Injector):
    """1 for each sample whose class is not among the most probable ones, else 0; its mean is 1 - accuracy.

    Args:
        logits: key of the logits, (B, classes).
        labels: key of the classes, (B,).
        out: key of the result, (B,) in float32.
        top: how many of the most probable classes count.
    """

    def __init__(self, *, logits: StateIn, labels: StateIn, out: StateOut, top: PositiveInt = 1) -> None:
        self.logits, self.labels, self.out, self.top = logits, labels, out, top

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        logits, labels = state[self.logits], state[self.labels]
        if logits.dim() != 2 or labels.shape != logits.shape[:1] or self.top > logits.shape[1]:
            raise TrainingError(
                f"classification_error: expected logits (B, classes), labels (B,) and top up to the number of classes; "
                f"'{self.logits}' is {tuple(logits.shape)}, '{self.labels}' {tuple(labels.shape)}, top {self.top}"
            )
        found: Tensor = (logits.topk(self.top).indices == labels[:, None]).any(1)
        return {self.out: 1 - found.float()}
