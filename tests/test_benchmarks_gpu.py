"""benchmarks/gpu.py: what its shares mean, and that all of it runs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from test_benchmarks import FOLDER


@pytest.fixture
def kernel_shares(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("kernel_shares")


@pytest.mark.parametrize(
    ("kernel", "product"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", True),
        ("nvjet_tst_192x192_64x4_1x2_h_bz_TNN", True),
        ("void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_256x64_16x4_nn_align4>", True),
        ("void flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128>>", True),
        ("void wgrad2d_grouped_direct_kernel<float>", True),
        ("triton_tem_fused_addmm_3", True),
        ("triton_poi_fused_convolution_leaky_relu_0", False),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", False),
        ("void cudnn::ops::nchwToNhwcKernel<float>", False),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<3>>", False),
        ("Memcpy HtoD (Pinned -> Device)", False),
        ("aten::addmm", True),
        ("aten::convolution_backward", True),
        ("aten::copy_", False),
    ],
)
def test_kernels_of_products_are_known_by_name(kernel_shares, kernel, product):
    assert kernel_shares.is_product(kernel) == product


def test_shares_count_time_once(kernel_shares):
    kernels = [("gemm", 0, 40), ("add", 30, 50), ("Memcpy HtoD", 10, 20), ("add", 60, 80)]
    shares = kernel_shares.Shares.of(kernels, 100)
    assert (shares.products, shares.other, shares.idle) == pytest.approx((0.4, 0.3, 0.3))
    assert shares.limit == "launch"
    assert kernel_shares.Shares.of(kernels, 80).limit == "compute"
    assert kernel_shares.Shares.of([("add", 0, 50), ("gemm", 50, 99)], 100).limit == "bandwidth"


@pytest.mark.slow
def test_every_case_runs_tiny(tmp_path):
    command = [sys.executable, FOLDER / "gpu.py", "--tiny", "--device", "cpu", "--markdown", tmp_path / "table.md"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert {row["case"] for row in rows} == {"rrdb_psnr", "rrdb_gan", "srflow", "unet_256", "unified_voice"}
    assert all(row["samples_per_second"] > 0 and 0 <= row["idle"] <= 1 for row in rows)
    ours = [row for row in rows if row["setting"] != "BasicSR"]
    assert len(ours) == 10
    assert all(row["mfu"] >= 0 for row in ours)
    assert (tmp_path / "table.md").read_text().count("| unet_256 |") == 2
