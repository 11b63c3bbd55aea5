"""Names of weights in the published forms."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor


def rename_state_dict(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of one published layer under the names of `SwitchedConv2d`.

    In the soft form of 2021 kernels are ``weights.<i>``; in that of 2020 they are ``block_list.<i>.weight`` with a bias each,
    and the mapping network is ``switcher``. The hard form has our names.
    """
    kernels, biases, renamed = {}, {}, {}
    for name, tensor in published.items():
        if found := re.fullmatch(r"(?:weights\.(\d+)|block_list\.(\d+)\.weight)", name):
            kernels[int(found[1] or found[2])] = tensor
        elif found := re.fullmatch(r"block_list\.(\d+)\.bias", name):
            biases[int(found[1])] = tensor
        else:
            renamed[re.sub(r"^switcher\.", "coupler.", name)] = tensor
    if kernels:
        renamed["weight"] = torch.stack([kernels[number] for number in sorted(kernels)], dim=2)
    if biases:
        renamed["bias"] = torch.stack([biases[number] for number in sorted(biases)])
    return renamed
