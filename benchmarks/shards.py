"""What it costs to read files from shards in random order, and to find them at the start of a run.

    python benchmarks/shards.py [--files 20000] [--bytes 20000] [--rounds 5]

Files of random bytes in folders of 1000, and the same packed as tar and as MDS; warm in memory, one thread, each kind timed in
turn within each round. Prints microseconds a file (median of the rounds; quartiles in parentheses), and seconds to list them.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

from dlas.data.images.files import list_images, read_bytes
from dlas.data.shards import folder, packing, tar
from dlas.data.shards.names import files_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20000)
    parser.add_argument("--bytes", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "files"
        rng = random.Random(0)
        for number in range(arguments.files):
            path = source / f"{number // 1000:04d}" / f"{number:08d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.randbytes(arguments.bytes))
        roots = {"files": source}
        for kind in ("tar", "mds"):
            packing.pack(source, Path(temporary) / kind, kind, 10**8)
            roots[kind] = Path(temporary) / kind / ("*.tar" if kind == "tar" else "index.json")

        indices = [tar.index_file(path) for path in files_of(str(roots["tar"]))]
        for what in ("tar", "tar without its index", "mds", "files"):
            if "without" in what:
                for index in indices:
                    index.unlink()
            folder._open.clear()
            start = time.perf_counter()
            found = list_images(roots[what.split()[0]])
            print(f"listing {len(found)} files, {what}: {time.perf_counter() - start:.2f} s")

        paths = {kind: list_images(root) for kind, root in roots.items()}
        times: dict[str, list[float]] = {kind: [] for kind in roots}
        for number in range(arguments.rounds):
            order = random.Random(number).sample(range(arguments.files), min(arguments.files, 2000))
            for kind in roots:
                start = time.perf_counter()
                for index in order:
                    read_bytes(paths[kind][index])
                times[kind].append((time.perf_counter() - start) / len(order) * 1e6)
        for kind, found in times.items():
            low, middle, high = statistics.quantiles(found, n=4)
            print(f"reading a file, {kind}: {middle:.0f} us ({low:.0f} to {high:.0f})")


if __name__ == "__main__":
    main()
