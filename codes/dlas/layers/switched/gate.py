"""From logits to how much each switch takes part: dropout, softmax, a memory of how often each is used, the winner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from dlas.layers.switched.routing import NoisyRouter, Routed, RouterForm, route_top1
from dlas.ranks import add_up

NormForm: TypeAlias = Literal["sum_to_one", "rescaled"]
"""sum_to_one: shares are renormalised after the division (June 2020 to May 2021). rescaled: they are not; the divisor itself
is scaled to a mean of 1 over the switches (DL-Art-School from June 2021)."""

DropoutForm: TypeAlias = Literal["zero", "exclude"]
"""zero: a dropped switch has the logit 0, as published, and may still win. exclude: it has no share."""


class SwitchNorm(nn.Module):
    """Divides the shares of switches by how much each was used lately, so that none falls out of use.

    Nothing is divided before as many training passes as the memory has rows. Processes that train together share one memory.

    Args:
        breadth: number of switches.
        window: rows of the memory: training passes that count.
        form: what is normalised; `NormForm`.

    Raises:
        ValueError: the form is unknown.

    Source: the published implementation (`neonbjb/SwitchedConvolutions`), which calls it AttentionNorm in its first generation.
    """

    accumulator: Tensor
    accumulator_index: Tensor
    accumulator_filled: Tensor

    def __init__(self, breadth: int, window: int = 128, form: NormForm = "sum_to_one") -> None:
        super().__init__()
        if form not in ("sum_to_one", "rescaled"):
            raise ValueError(f"SwitchNorm has the forms 'sum_to_one' and 'rescaled', got {form!r}")
        self.form = form
        self.register_buffer("accumulator_index", torch.zeros(1, dtype=torch.long))
        self.register_buffer("accumulator_filled", torch.zeros(1, dtype=torch.long))
        self.register_buffer("accumulator", torch.zeros(window, breadth))

    def forward(self, shares: Tensor) -> Tensor:
        """(B, breadth, H, W), positive -> the same shape; in training the memory moves on by a row."""
        # A backward pass that computes activations again sees the memory as the forward pass left it.
        if self.training and torch.is_grad_enabled() and not _in_backward():
            self._remember(shares)
        usual = self.accumulator.mean(dim=0)
        if self.form == "rescaled":
            usual = usual / usual.mean()
        # Chosen without asking for the value, so that nothing waits for the device.
        usual = torch.where(self.accumulator_filled > 0, usual, 1.0)
        shares = shares / usual[:, None, None].to(shares.dtype)
        return shares / shares.sum(dim=1, keepdim=True) if self.form == "sum_to_one" else shares

    @torch.no_grad()
    def _remember(self, shares: Tensor) -> None:
        used = shares.sum(dim=(0, 2, 3), dtype=torch.float32)
        add_up(used)
        self.accumulator.index_copy_(0, self.accumulator_index, (used / used.mean())[None].to(self.accumulator.dtype))
        self.accumulator_index += 1
        self.accumulator_filled |= (self.accumulator_index == len(self.accumulator)).long()
        self.accumulator_index %= len(self.accumulator)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1  # what torch itself asks; there is no public name


def drop_switches(logits: Tensor, rate: float, form: DropoutForm = "zero") -> Tensor:
    """Takes switches out of the choice, each sample other ones; where all would be out, all stay.

    Args:
        logits: (B, breadth, H, W).
        rate: probability for each switch and sample.
        form: what a dropped switch has instead of its logit; `DropoutForm`.
    """
    kept = torch.rand(*logits.shape[:2], 1, 1, device=logits.device) > rate
    kept = kept | ~kept.any(dim=1, keepdim=True)
    return logits * kept if form == "zero" else logits.masked_fill(~kept, -torch.inf)


class Gate(nn.Module):
    """Logits to shares: dropout (in training), softmax with a temperature, `SwitchNorm`, and the winner alone if it is hard.

    Args:
        breadth: number of switches.
        hard: the winner takes all.
        norm: form of `SwitchNorm`; None: without.
        norm_window: its memory, in training passes.
        dropout: probability with which a switch is out of a sample's choice.
        dropout_form: what such a switch has instead of its logit; `DropoutForm`.
        temperature: divides the logits. It is an attribute that training may change: high at first, 1 at the end.
        router: how the winner is found; `RouterForm`.

    Attributes:
        watcher: told of what each forward makes; None: nobody.

    Raises:
        ValueError: the dropout is not in [0, 1), its form unknown, or the temperature not positive; or a noisy router is not
            hard, or has a norm.
    """

    def __init__(
        self,
        breadth: int,
        *,
        hard: bool,
        norm: NormForm | None = None,
        norm_window: int = 256,
        dropout: float = 0.0,
        dropout_form: DropoutForm = "zero",
        temperature: float = 1.0,
        router: RouterForm = "largest",
    ) -> None:
        super().__init__()
        if router not in ("largest", "noisy"):
            raise ValueError(f"the winner among switches is found by a router 'largest' or 'noisy', got {router!r}")
        if router == "noisy" and (not hard or norm is not None or dropout_form == "exclude"):
            raise ValueError("a noisy router is hard, and has no norm and no excluded switches: losses balance it")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout of switches is a probability below 1, got {dropout}")
        if dropout_form not in ("zero", "exclude"):
            raise ValueError(f"dropout of switches has the forms 'zero' and 'exclude', got {dropout_form!r}")
        if temperature <= 0:
            raise ValueError(f"the temperature of switches must be above 0, got {temperature}")
        self.hard, self.dropout, self.dropout_form, self.temperature = hard, dropout, dropout_form, temperature
        self.norm = SwitchNorm(breadth, norm_window, norm) if norm else None
        self.router = NoisyRouter(breadth) if router == "noisy" else None
        self.watcher: Callable[[Routed], None] | None = None

    def forward(self, logits: Tensor) -> Tensor:
        """(B, breadth, H, W) -> shares of the same shape, in float32."""
        routed = self.route(logits.float())
        if self.watcher is not None:
            self.watcher(routed)
        return routed.chosen

    def route(self, logits: Tensor) -> Routed:
        """All that `forward` makes of logits in float32."""
        if self.training and self.dropout:
            logits = drop_switches(logits, self.dropout, self.dropout_form)
        logits = logits / self.temperature
        if self.router is not None:
            return self.router(logits)
        shares = torch.softmax(logits, dim=1)
        if self.norm is not None:
            shares = self.norm(shares)
        return Routed(route_top1(shares) if self.hard else shares, shares)
