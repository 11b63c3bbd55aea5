"""What losses between two pictures share: looking them up, and the message where they do not fit."""

from __future__ import annotations

from torch import Tensor

from dlas.errors import ConfigurationError
from dlas.losses.base import State


def pictures(loss: str, state: State, real: str, fake: str, channels: int | None = None) -> tuple[Tensor, Tensor]:
    """The true and the generated pictures, (B, C, H, W), in float32.

    Args:
        loss: its name, for messages.
        state: the state.
        real: key of the true pictures.
        fake: key of the generated ones.
        channels: how many there must be; None for any number.

    Raises:
        ValueError: they are no pictures or have different shapes.
    """
    true, made = state[real], state[fake]
    if true.shape != made.shape:
        raise ValueError(
            f"{loss}: real '{real}' {tuple(true.shape)} and fake '{fake}' {tuple(made.shape)} must have the same "
            "shape; check the scale of the network, and that both keys are of the same crop"
        )
    if made.dim() != 4 or (channels is not None and made.shape[1] != channels):
        wanted = f"(B, {channels or 'C'}, H, W)"
        raise ValueError(f"{loss}: expected pictures {wanted}, but '{fake}' has the shape {tuple(made.shape)}")
    return true.float(), made.float()


def check_choice(loss: str, option: str, value: str, known: tuple[str, ...]) -> None:
    """Raises a ConfigurationError unless an option has one of its values."""
    if value not in known:
        raise ConfigurationError(f"{loss}: no {option} is called '{value}'; known: {', '.join(known)}")
