"""Package metadata. Every dependency has an upper bound: a fresh install next year must get versions that were tried."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="dlas",
    version="0.1.0",
    description="A config-driven trainer for generative models: super-resolution, flow, diffusion, VQ and speech.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    package_dir={"": "codes"},
    packages=find_packages("codes"),
    install_requires=[
        "torch>=2.6,<2.14",
        "numpy>=1.26,<3",
        "pyyaml>=6,<7",
        "safetensors>=0.4,<1",
        "tensorboard>=2.14,<3",
        "opencv-python-headless>=4.8,<6",  # the module `cv2` of opencv-python, without its need for libGL
        "pillow>=10,<14",
        "tqdm>=4.60,<5",
        # Decompresses PNGs twice as fast as zlib. Where it has no wheel, zlib is used.
        "isal>=1.6,<2; platform_machine in 'x86_64 AMD64 aarch64 arm64'",
        # The photographs that the quick start trains on lie in these two wheels.
        "scikit-image>=0.22,<0.27",
        "scikit-learn>=1.3,<2",
    ],
    extras_require={
        "vision": ["torchvision>=0.21,<0.29"],
        "audio": ["soundfile>=0.12,<1"],  # what reads sound files
        "speech": ["tokenizers>=0.13,<1", "inflect>=7,<8", "Unidecode>=1.3,<2"],  # what reads texts
        "deepspeed": ["deepspeed>=0.19,<0.20"],
        "shards": ["zstandard>=0.22,<1"],  # to read MDS shards that are compressed by zstd; all others need nothing
        "lmdb": ["lmdb>=1.4,<4"],  # to read the databases that BasicSR writes
        "metrics": ["torchmetrics>=1.4,<2"],
        "onnx": ["onnx>=1.16,<2", "onnxscript>=0.5,<1", "onnxruntime>=1.18,<2"],
        "test": [
            "pytest>=8,<10",
            "pytest-xdist>=3.5,<4",
            "pytest-timeout>=2.3,<3",
            "hypothesis>=6.100,<7",
            "jsonschema>=4,<5",
            "ruff>=0.6,<0.18",
            "mypy>=1.11,<3",
            "types-PyYAML>=6,<7",
            # Opens the checkpoints that the tests write, as other programs do. It imports torchvision.
            "spandrel>=0.4,<0.5",
            "torchvision>=0.21,<0.29",
            "soundfile>=0.12,<1",
            "tokenizers>=0.13,<1",
            "inflect>=7,<8",
            "Unidecode>=1.3,<2",
            "deepspeed>=0.19,<0.20",
        ],
    },
    entry_points={"console_scripts": ["dlas = dlas.cli.main:entry_point"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
