"""Python of another architecture, from Debian's packages, for QEMU's user-mode emulation.

Nothing of it is installed on this machine: apt keeps its lists and packages below the folder that is given,
and they are unpacked there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

#: NumPy's wheels need the second one.
PACKAGES = ("python3", "libstdc++6")
#: Debian's name of an architecture.
DEBIAN_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}


def missing_programs(architecture: str) -> list[str]:
    """The programs that :func:`python_command` needs and that this machine lacks."""
    return [name for name in ("apt-get", "dpkg-deb", f"qemu-{architecture}") if shutil.which(name) is None]


def python_command(folder: Path, architecture: str) -> tuple[list[str], str]:
    """How to start that Python: the command without a CPU model, and the version, such as "3.11".

    Downloads about 17 MB into ``folder`` the first time.

    Raises:
        subprocess.CalledProcessError: apt-get or dpkg-deb failed; its output has been shown.
    """
    root = folder / "root"
    stamp = folder / "unpacked"
    if not stamp.is_file():
        shutil.rmtree(root, ignore_errors=True)
        for package in _download(folder, DEBIAN_NAMES[architecture]):
            subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
        stamp.touch()
    program = (root / "usr" / "bin" / "python3").resolve()
    version = os.fspath(program.name).removeprefix("python")
    return [f"qemu-{architecture}", "-L", str(root), str(program)], version


def _download(folder: Path, debian_name: str) -> list[Path]:
    """:data:`PACKAGES` for an architecture, and all they need, from this machine's sources of packages."""
    archives = folder / "cache" / "archives"
    for needed in (folder / "lists" / "partial", archives / "partial"):
        needed.mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()  # of an empty system, so that every dependency is downloaded
    settings = {
        "APT::Architecture": debian_name,
        "APT::Architectures::": debian_name,
        "APT::Sandbox::User": "root",
        "Dir::State": folder,
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
    }
    apt = ["apt-get", "--quiet", "--yes", *(f"--option={key}={value}" for key, value in settings.items())]
    for words in (["update"], ["install", "--download-only", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run([*apt, *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            print(done.stdout)
            done.check_returncode()
    return sorted(archives.glob("*.deb"))
