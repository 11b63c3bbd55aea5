"""Trains all five networks of a small TorToiSe and puts them into a folder that `dlas speak` reads.

    python recipes/tortoise/small/synthesise.py datasets/commands
    python recipes/tortoise/make_corpus.py datasets/asterisk --languages en es fr it ru
    python recipes/tortoise/small/train_all.py
    dlas speak "sarah will help david at nine on thursday" --models models/small --voice datasets/commands/valid/joe \\
        --preset ultra_fast --max-codes 110 --repetition-penalty 1 --temperature 0.7 --sampler ddim --steps 3 -o hello.wav

Two trainings run beside each other, each on one thread: see `LANES`. A call that was stopped goes on where it was. What each
training cost is in models/small/times.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from dlas.config import load

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
MODELS = Path("models/small")
LANES = (("dvae", "autoregressive", "diffusion_latents"), ("vocoder", "clvp", "diffusion"))
"""Stages that are trained one after the other, beside those of the other lane."""

STAGES = (*LANES[0], *LANES[1])
BEGINS_WITH = {
    "autoregressive": {"dvae": ("dvae", "dvae")},
    "clvp": {"dvae": ("dvae", "dvae")},
    "diffusion": {"dvae": ("dvae", "dvae")},
    "diffusion_latents": {"dvae": ("dvae", "dvae"), "gpt": ("autoregressive", "gpt"), "decoder": ("diffusion", "decoder")},
}
"""By stage and network of its file: the stage, and its network, whose weights it begins with."""

NETWORKS = {
    "autoregressive": ("autoregressive", "gpt", "autoregressive"),
    "clvp2": ("clvp", "clvp", "clvp"),
    "diffusion_decoder": ("diffusion_latents", "decoder", "diffusion_decoder"),
    "vocoder": ("vocoder", "vocoder", "vocoder"),
}
"""By file that `dlas speak` reads: the stage, its network, and the entry of speech.yml with its options."""


def prepare(vocabulary: int = 255) -> None:
    """Writes the vocabulary, the divisors of bins, and which recordings are held out; what is there stays."""
    MODELS.mkdir(parents=True, exist_ok=True)
    held_out = MODELS / "held_out.txt"
    asterisk = Path("datasets/asterisk")
    held_out.write_text("".join(f"{asterisk / entry['file']}\n" for entry in entries(asterisk / "valid.jsonl")))
    texts = MODELS / "texts.txt"
    texts.write_text("".join(f"{entry['text']}\n" for entry in entries(Path("datasets/commands/train.jsonl"))))
    if not (MODELS / "tokenizer.json").is_file():
        options = ["--cleaner", "english", "--size", str(vocabulary)]
        run([sys.executable, "-m", "dlas", "data", "tokenizer", str(texts), "-o", str(MODELS / "tokenizer.json"), *options])
    if not (MODELS / "mel_norms.pth").is_file():
        clips = ["datasets/commands/train", str(asterisk)]
        run([sys.executable, str(HERE.parent / "mel_norms.py"), *clips, str(MODELS / "mel_norms.pth")])


def entries(path: Path) -> list[dict[str, Any]]:
    """The lines of a list of clips; none where there is no such list."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def run(command: list[str]) -> float:
    """Runs a command to its end, on one thread; gives the seconds of processor time that it took.

    Raises:
        SystemExit: it fails.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "codes"), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def overrides_of(stage: str, overrides: list[str]) -> list[str]:
    """What of `KEY=VALUE` and `STAGE:KEY=VALUE` is for one file, and where weights are that it begins with."""
    own = [each for each in overrides if ":" not in each.partition("=")[0]]
    own += [each.partition(":")[2] for each in overrides if each.partition("=")[0].partition(":")[0] == stage]
    begins = BEGINS_WITH.get(stage, {}).items()
    return own + [f"path.pretrain.{name}={weights(*source, overrides)}" for name, source in begins]


def weights(stage: str, network: str, overrides: list[str]) -> Path:
    """The averaged weights that a finished training leaves."""
    config = load(HERE / f"{stage}.yml", overrides_of(stage, overrides))
    return Path(config.path.experiments) / config.name / "checkpoints" / str(config.train.niter) / f"{network}.ema.safetensors"


def train(stage: str, overrides: list[str], times: dict[str, dict[str, float]]) -> None:
    """Trains one network; adds what it cost to `times`."""
    options = [word for each in overrides_of(stage, overrides) for word in ("--set", each)]
    begun = time.perf_counter()
    spent = run([sys.executable, str(ROOT / "train.py"), "-opt", str(HERE / f"{stage}.yml"), *options])
    before = times.get(stage, {"processor": 0.0, "wall": 0.0})
    now = {"processor": spent, "wall": time.perf_counter() - begun}
    times[stage] = {name: round(before[name] + now[name], 1) for name in now}
    (MODELS / "times.json").write_text(json.dumps(times, indent=1) + "\n")


def assemble(overrides: list[str]) -> None:
    """Copies the averaged weights into the folder of models, and writes speech.yml, which tells their sizes."""
    described: dict[str, Any] = {"decoder_reads": "latents", "decoder_predicts": "x0", "silence": None, "training_signs": True}
    for file, (stage, name, entry) in NETWORKS.items():
        config = load(HERE / f"{stage}.yml", overrides_of(stage, overrides))
        shutil.copyfile(weights(stage, name, overrides), MODELS / f"{file}.safetensors")
        described[entry] = dict(config.networks[name].options)
        if stage in ("autoregressive", "diffusion_latents"):
            heard = config.datasets["train"].options["conditioning_length"]
            described |= (
                {"clip_samples": heard} if stage == "autoregressive" else {"decoder_clip_samples": heard * 24000 // 22050}
            )
    (MODELS / "speech.yml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES), help="all, by default")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as of train.py, of all files; STAGE:KEY=VALUE of one"
    )
    given = parser.parse_args(arguments)
    prepare()
    file = MODELS / "times.json"
    times: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.is_file() else {}
    done, failed = {stage: threading.Event() for stage in STAGES}, list[BaseException]()

    def lane(stages: tuple[str, ...]) -> None:
        try:
            for stage in stages:
                for source, _ in BEGINS_WITH.get(stage, {}).values():
                    done[source].wait()
                if failed:
                    return
                if stage in given.stages:
                    train(stage, given.set, times)
                done[stage].set()
        except BaseException as error:  # is raised again below
            failed.append(error)
            for event in done.values():
                event.set()

    lanes = [threading.Thread(target=lane, args=(stages,)) for stages in LANES]
    for each in lanes:
        each.start()
    for each in lanes:
        each.join()
    if failed:
        raise failed[0]
    assemble(given.set)
    minutes = sum(each["processor"] for each in times.values()) / 60
    print(f"{MODELS} holds all networks; {minutes:.1f} minutes of processor time for training")
    return 0


if __name__ == "__main__":
    sys.exit(main())
