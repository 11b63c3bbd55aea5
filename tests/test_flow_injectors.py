"""What is measured of and drawn from normalising flows, against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dlas.context import Context
from dlas.errors import ConfigurationError, TrainingError
from dlas.injectors import create_injector
from test_injectors import Widened


def run(options: dict[str, Any], state: dict[str, Tensor], start: int = 0, seed: int = 0) -> Tensor:
    count = len(next(iter(state.values())))
    written = create_injector({"out": "o", **options})(
        state, Context({"flow": Widened()}, positions=range(start, start + count), seed=seed)
    )
    return written["o"]


def pairs(count: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "hq": torch.randint(0, 256, (count, 3, 8, 8), generator=generator) / 255,
        "lq": torch.rand(count, 3, 4, 4, generator=generator),
    }


def test_both_conventions_of_the_likelihood():
    """z = x / 2 with a condition of zeros: ln p(x) = ln N(x / 2) - ln 2 for each number."""
    state = {"hq": torch.zeros(2, 3, 8, 8), "lq": torch.zeros(2, 3, 4, 4)}
    one = 0.5 * math.log2(2 * math.pi) + 1
    torch.testing.assert_close(run({"type": "flow_nll", "generator": "flow"}, state), torch.full((2,), 3 * one))
    bits = run({"type": "flow_nll", "generator": "flow", "unit": "dimension"}, state)
    torch.testing.assert_close(bits, torch.full((2,), one + math.log2(255)), rtol=1e-6, atol=0)
    both = {"hq": pairs()["hq"][:1].expand(2, -1, -1, -1), "lq": state["lq"]}
    bits = run({"type": "flow_nll", "generator": "flow", "unit": "dimension"}, both)
    assert bits[0] != bits[1]  # the noise is a sample's own
    assert bits.equal(run({"type": "flow_nll", "generator": "flow", "unit": "dimension"}, both))


def test_the_bound_of_the_discrete_likelihood_is_one():
    """Whole probability of 256 values is at most 1, for a picture of one number by the mean over the noise."""
    values = torch.arange(256.0)[:, None, None, None] / 255
    low_res = torch.zeros(256, 1, 1, 1)
    hq = values.expand(256, 1, 2, 2)
    bits = run({"type": "flow_nll", "generator": "flow", "unit": "dimension"}, {"hq": hq, "lq": low_res})
    assert 0 < torch.exp2(-bits).sum() <= 1


def test_latents_that_are_normal_have_their_entropy():
    latents = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    state = {"hq": 2 * latents, "lq": torch.zeros(4, 3, 32, 32)}
    for name in ("flow_gaussian_nll", "flownet_gaussian"):
        found = run({"type": name, "generator": "flow"}, state)
        torch.testing.assert_close(found, torch.full((4,), -0.5 * math.log(2 * math.pi) - 0.5), atol=0.02, rtol=0)
    wider = run({"type": "flow_gaussian_nll", "generator": "flow"}, {**state, "hq": 4 * latents})
    assert (wider < -2.5).all()


def test_samples_depend_on_seed_and_place_and_widen_with_the_heat():
    state = {"lq": pairs(4)["lq"]}
    options = {"type": "flow_sample", "generator": "flow", "heat": 0.5}
    one = run(options, state)
    assert one.equal(run(options, state))
    assert one[1:3].equal(run(options, {"lq": state["lq"][1:3]}, start=1))
    assert not one.equal(run(options, state, seed=1))
    series = run({**options, "heat": [0, 0.5, 1, 1]}, state)
    assert series.shape == (4, 4, 3, 8, 8)
    mean = torch.nn.functional.interpolate(state["lq"], scale_factor=2)
    assert series[:, 0].equal(mean)
    assert not series[:, 2].equal(series[:, 3])
    for place, heat in ((1, 0.5), (2, 1.0)):
        assert (series[:, place] - mean).std().item() == pytest.approx(2 * heat, rel=0.1)


def test_sides_that_do_not_fit_are_cut_for_densities_and_continued_for_samples(monkeypatch):
    monkeypatch.setattr(Widened, "multiple", 4)
    state = {"hq": torch.rand(2, 3, 10, 14), "lq": torch.rand(2, 3, 5, 7)}
    whole = {"hq": state["hq"][:, :, :8, :8], "lq": state["lq"][:, :, :4, :4]}
    for options in ({"type": "flow_nll"}, {"type": "flow_nll", "unit": "dimension"}, {"type": "flow_gaussian_nll"}):
        options["generator"] = "flow"
        assert run(options, state).equal(run(options, whole))
    drawn = run({"type": "flow_sample", "generator": "flow", "heat": 0}, {"lq": state["lq"]})
    assert drawn.equal(torch.nn.functional.interpolate(state["lq"], scale_factor=2))


def test_a_network_that_is_no_flow_is_refused():
    with pytest.raises(TrainingError, match="network 'flow' is a Linear, and a conditional flow is needed"):
        create_injector({"type": "flow_sample", "generator": "flow", "out": "o"})(
            pairs(), Context({"flow": torch.nn.Linear(1, 1)}, positions=range(2))
        )


def test_deviation_is_that_of_the_samples_in_steps_of_8_bits():
    samples = torch.stack([torch.full((1, 3, 4, 4), value / 255) for value in (10, 20, 30)], dim=1)
    assert run({"type": "diversity", "in": "x"}, {"x": samples}).tolist() == [10.0]
    assert run({"type": "diversity", "in": "x"}, {"x": samples[:, :1].expand(1, 3, 3, 4, 4)}).tolist() == [0.0]


def test_local_gain_counts_what_is_different_and_right():
    truth = torch.zeros(1, 3, 2, 2)
    left, right = truth.clone(), truth.clone()
    left[..., 0], right[..., 1] = 10 / 255, 20 / 255  # each is right where the other is wrong
    options = {"type": "diversity", "in": "x", "measure": "local_gain", "target": "hq"}

    def gain(*samples: Tensor) -> float:
        return run(options, {"x": torch.stack(samples, dim=1), "hq": truth}).item()

    assert gain(left, right) == 100
    assert gain(left, left) == 0
    assert gain(truth, right) == 0  # the best is perfect as it is
    assert gain(left, torch.full_like(truth, 5 / 255)) == pytest.approx(50)  # 25 all over is best; 25 and 0 are chosen


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ConfigurationError, match="name it as 'target'"):
        create_injector({"type": "diversity", "in": "x", "out": "o", "measure": "local_gain"})
    with pytest.raises(TrainingError, match=r"must hold 2 samples or more of each input, 5-D; it is 1 x 1 x 3 x 4 x 4"):
        run({"type": "diversity", "in": "x"}, {"x": torch.zeros(1, 1, 3, 4, 4)})
