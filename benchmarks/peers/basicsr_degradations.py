"""Times BasicSR's own Real-ESRGAN data path on the CPU: its data set (in this process) and its model's `feed_data`.

Run by benchmarks/degradations.py with the interpreter of an environment that has the package `basicsr` (1.4.2):

    python basicsr_degradations.py FOLDER ROUNDS BATCH

Waits for a line on standard input before each round, and prints milliseconds of CPU time a sample after it, so that the caller
can run something else in between.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import older_torchvision
import torch

older_torchvision.prepare()
torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]  # its pool of pairs is always put on a GPU
torch.set_num_threads(1)

from basicsr.data.realesrgan_dataset import RealESRGANDataset  # noqa: E402
from basicsr.models.realesrnet_model import RealESRNetModel  # noqa: E402
from basicsr.utils import DiffJPEG, USMSharp  # noqa: E402

FAMILIES = ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
SHARES = [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]


def main() -> None:
    folder, rounds, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    names = sorted(path.name for path in Path(folder).glob("*.png"))
    listing = Path(folder) / "meta_info.txt"
    listing.write_text("\n".join(names))
    blurs: dict[str, object] = {}
    for suffix, sigma in (("", [0.2, 3]), ("2", [0.2, 1.5])):
        blurs |= {f"kernel_list{suffix}": FAMILIES, f"kernel_prob{suffix}": SHARES, f"blur_sigma{suffix}": sigma}
        blurs |= {f"betag_range{suffix}": [0.5, 4], f"betap_range{suffix}": [1, 2], f"sinc_prob{suffix}": 0.1}
        blurs |= {f"blur_kernel_size{suffix}": 21}
    files = {"dataroot_gt": folder, "meta_info": str(listing), "io_backend": {"type": "disk"}}
    dataset = RealESRGANDataset({**files, **blurs, "final_sinc_prob": 0.8, "use_hflip": True, "use_rot": False})
    model = RealESRNetModel.__new__(RealESRNetModel)
    model.is_train, model.device, model.queue_size = True, torch.device("cpu"), batch
    jpeg = DiffJPEG(differentiable=False)
    model.jpeger = lambda images, quality: jpeg(images, quality=quality).contiguous()  # or its next step fails on this torch
    model.usm_sharpener = USMSharp()
    model.opt = {"gt_usm": True, "scale": 4, "gt_size": 256, "second_blur_prob": 0.8}
    model.opt |= {"resize_prob": [0.2, 0.7, 0.1], "resize_range": [0.15, 1.5], "gaussian_noise_prob": 0.5}
    model.opt |= {"noise_range": [1, 30], "poisson_scale_range": [0.05, 3], "gray_noise_prob": 0.4, "jpeg_range": [30, 95]}
    model.opt |= {"resize_prob2": [0.3, 0.4, 0.3], "resize_range2": [0.3, 1.2], "gaussian_noise_prob2": 0.5}
    model.opt |= {"noise_range2": [1, 25], "poisson_scale_range2": [0.05, 2.5], "gray_noise_prob2": 0.4}
    model.opt |= {"jpeg_range2": [30, 95]}

    def step(start: int) -> None:
        samples = [dataset[(start + i) % len(names)] for i in range(batch)]
        keys = ("gt", "kernel1", "kernel2", "sinc_kernel")
        model.feed_data({key: torch.stack([sample[key] for sample in samples]) for key in keys})

    step(0)
    print("ready", flush=True)
    for number in range(rounds):
        sys.stdin.readline()
        started = time.process_time()
        step(number * batch)
        print(f"{1e3 * (time.process_time() - started) / batch:.3f}", flush=True)


if __name__ == "__main__":
    main()
