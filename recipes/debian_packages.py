"""Packages of Debian and Ubuntu, fetched and unpacked without being installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


class PreparationError(Exception):
    """What the user has to do before a script can work."""


def fetch(debs: Path, packages: list[str], *, what: str, size: str, without: str = "") -> None:
    """Downloads the packages that do not lie in the folder.

    Args:
        debs: the folder.
        packages: their names.
        what: lies in them, for messages.
        size: of the downloads, for messages.
        without: what can be done without them, for messages.

    Raises:
        PreparationError: there is no apt, or it does not find the packages.
    """
    wanted = [package for package in packages if not list(debs.glob(f"{package}_*.deb"))]
    if not wanted:
        return
    if shutil.which("apt-get") is None:
        raise PreparationError(
            f"apt-get is not here: the {what} lie in packages of Debian and Ubuntu. On another system, fetch the files\n"
            f"{', '.join(wanted)} from https://packages.debian.org/bookworm/all/<package>/download into a folder\n"
            f"and name it with --debs.{without}"
        )
    print(f"downloading {', '.join(wanted)} ({size})", flush=True)
    done = subprocess.run(["apt-get", "-q", "download", *wanted], cwd=debs, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise PreparationError(
            f"apt-get download failed: {''.join(reason)}\nIf it cannot locate a package, its lists are old or "
            "empty: run 'apt-get update' as root, and on Ubuntu have the component 'universe' enabled."
        )


def unpack(debs: Path, tree: Path, packages: list[str]) -> None:
    """Unpacks the packages into a folder.

    Raises:
        PreparationError: dpkg-deb is not here, or cannot read a file.
    """
    if shutil.which("dpkg-deb") is None:
        raise PreparationError(
            "dpkg-deb is not here; it unpacks the packages. It is part of the package dpkg of most distributions."
        )
    for package in packages:
        for deb in sorted(debs.glob(f"{package}_*.deb"))[-1:]:
            done = subprocess.run(["dpkg-deb", "-x", str(deb), str(tree)], capture_output=True, text=True)
            if done.returncode:
                raise PreparationError(f"{deb} cannot be unpacked ({done.stderr.strip()}); delete it and start again")
