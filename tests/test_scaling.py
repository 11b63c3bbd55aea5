"""What a training needs on many GPUs: the formulas against closed cases, and a plan of a file."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dlas.cli.main import main
from dlas.engine.dryrun import dry_run
from dlas.engine.dryrun.devices import DEVICES
from dlas.engine.scaling import (
    BACKWARD,
    LATENCY,
    LINK_EFFICIENCY,
    STRATEGIES,
    Cluster,
    Workload,
    find_cluster,
    plan,
    render,
    states,
)
from dlas.errors import ConfigurationError
from runs import configure
from toys import PSNR

P = 10**8
WORK = Workload(samples=4, seconds=0.3, flops=1e12, parameters=P, frozen=0, optimizer=8 * P, averages=4 * P, activations=10**9)
CLUSTER = Cluster(DEVICES["a100"], per_machine=8, link=100, network=50)


def test_one_gpu_sends_nothing_and_holds_everything():
    for strategy in STRATEGIES:
        row = plan(WORK, CLUSTER, 1, strategy)
        assert (row.traffic, row.communication, row.fastest, row.slowest) == (0, 0, 0.3, 0.3)
        assert row.memory == 20 * P + 10**9


@pytest.mark.parametrize("gpus", [2, 8])
def test_within_a_machine_all_reduce_is_a_ring(gpus):
    row = plan(WORK, CLUSTER, gpus, "ddp")
    sent = 2 * (gpus - 1) / gpus * 4 * P
    assert row.traffic == pytest.approx(sent)
    assert row.communication == pytest.approx(sent / (100e9 * LINK_EFFICIENCY) + 2 * (gpus - 1) * LATENCY)


def test_with_one_gpu_a_machine_only_the_network_counts():
    alone = replace(CLUSTER, per_machine=1)
    row = plan(WORK, alone, 16, "ddp")
    assert row.communication == pytest.approx(2 * 15 / 16 * 4 * P / (50e9 * LINK_EFFICIENCY) + 30 * LATENCY)
    assert plan(WORK, replace(alone, link=1e-9), 16, "ddp") == row


def test_over_machines_each_gpu_of_a_machine_sends_its_part():
    """As a ring of 4 parts inside, and per GPU a ring of 2 over machines with a quarter of the bytes and of the network."""
    cluster = replace(CLUSTER, per_machine=4)
    inside = 3 / 4 * 1e9 / 100e9
    across = 1 / 2 * (1e9 / 4) / (50e9 / 4)
    assert cluster.gather(1e9, 8) == pytest.approx((inside + across) / LINK_EFFICIENCY + 4 * LATENCY)


def test_fsdp_sends_half_as_much_again_or_as_much_with_half_the_bits():
    ddp = plan(WORK, CLUSTER, 64, "ddp")
    assert plan(WORK, CLUSTER, 64, "fsdp").traffic == pytest.approx(1.5 * ddp.traffic)
    assert plan(WORK, CLUSTER, 64, "fsdp", gather_bytes=2).traffic == pytest.approx(ddp.traffic)
    for stage in ("zero1", "zero2"):
        assert plan(WORK, CLUSTER, 64, stage).traffic == ddp.traffic


def test_stages_of_zero_cut_what_they_say():
    """With Adam 16 bytes a parameter (12 of them for two moments and gradients), and 4 for the averages."""
    bare = replace(WORK, averages=0)
    per_parameter = {strategy: [states(bare, gpus, strategy) / P for gpus in (1, 64)] for strategy in STRATEGIES}
    assert per_parameter["ddp"] == [16, 16]
    assert per_parameter["zero1"] == [16, pytest.approx(8 + 8 / 64)]
    assert per_parameter["zero2"] == [16, pytest.approx(4 + 12 / 64)]
    assert per_parameter["fsdp"] == [16, pytest.approx(16 / 64)]
    for gpus in (2, 8, 512):
        assert gpus * states(WORK, gpus, "fsdp") == pytest.approx(states(WORK, 1, "ddp"))


def test_communication_hides_behind_the_backward_pass_at_most():
    slow = replace(CLUSTER, link=1)
    row = plan(WORK, slow, 8, "ddp")
    assert row.communication > 0.3
    assert row.fastest == pytest.approx(0.3 + row.communication - 0.3 * BACKWARD)
    assert row.slowest == pytest.approx(0.3 + row.communication)
    assert plan(WORK, CLUSTER, 8, "ddp").fastest == 0.3


def test_a_shared_batch_divides_arithmetic_and_activations_but_not_what_is_sent():
    whole, shared = plan(WORK, CLUSTER, 4, "ddp"), plan(WORK, CLUSTER, 4, "ddp", share=True)
    assert (whole.samples, shared.samples) == (16, 4)
    assert shared.compute == pytest.approx(whole.compute / 4)
    assert whole.memory - shared.memory == pytest.approx(0.75 * WORK.activations)
    assert shared.traffic == whole.traffic


def test_clusters_are_found_by_name():
    found = find_cluster("4xH100")
    assert (found.per_machine, found.device.name, found.link, found.network) == (4, "h100", 450, 400)
    assert find_cluster("8xa100", network=12.5).network == 12.5
    for wrong, words in (("h100", "like 8xh100"), ("0xh100", "like 8xh100"), ("8xh10", "no device is called 'h10'")):
        with pytest.raises(ConfigurationError, match=words):
            find_cluster(wrong)


def test_a_file_is_rehearsed_for_its_figures(tmp_path, capsys):
    config = configure(tmp_path, PSNR, "train.ema={rate: 0.9}", "steps.generator.optimizer=adam")
    run = dry_run(config, DEVICES["a100"])
    work = Workload.of(run, config.datasets["train"].batch_size)
    assert work.parameters == sum(network.trainable for network in run.networks) > 0
    padding = 512 * 40  # the allocator's, for each tensor
    assert 8 * work.parameters <= work.optimizer <= 8 * work.parameters + padding
    assert 4 * work.parameters <= work.averages <= 4 * work.parameters + padding
    assert work.activations > 0 and work.seconds > 0 and work.flops > 0

    path = tmp_path / "toy.yml"
    path.write_text(PSNR)
    command = [
        "plan",
        "-opt",
        str(path),
        "--cluster",
        "2xa100",
        "--gpus",
        "1,2,4",
        "--sample-bytes",
        "1000",
        "--sample-ms",
        "2",
    ]
    assert main(command) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines if line[:1] and line[0] in "124"][-5:] == [
        ["1", "ddp"], ["2", "ddp"], ["2", "fsdp"], ["4", "ddp"], ["4", "fsdp"],
    ]  # fmt: skip
    assert main([*command[:-4], "--strategies", "ddp", "--shared-batch"]) == 0
    assert "nothing is known" not in capsys.readouterr().out


def test_what_does_not_fit_is_marked():
    large = replace(WORK, activations=90 * 10**9)
    assert "GB !" in render(large, CLUSTER, [plan(large, CLUSTER, 8, "ddp")])
    assert "GB !" not in render(WORK, CLUSTER, [plan(WORK, CLUSTER, 8, "ddp")])
