#!/usr/bin/env python
"""Runs packages on an emulated Arm processor and here, and compares what they reply.

    .venv/bin/python scripts/arm_run.py FOLDER PACKAGE... [--image samples/scene.png]

needs Debian with a cross compiler and qemu's user emulation (gcc-aarch64-linux-gnu, qemu-user).
FOLDER keeps what is fetched: a Python of Debian's for arm64, unpacked without being installed, and
wheels of what avl needs at run time. The library of kernels is compiled for Arm beside a copy of
avl. Replies are greedy and have to be the same, here without AMX, which rounds to bf16; the first
that is not ends the script with status 1. An emulator says nothing of speed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import kernel_checks
from avl_plugins import cpu

ROOT = Path(__file__).parents[1]
PYTHON = "python3.11"
DEBS = (
    *(f"{PYTHON}-minimal", f"lib{PYTHON}-minimal", f"lib{PYTHON}-stdlib", "libc6", "libstdc++6"),
    *("libgcc-s1", "zlib1g", "libexpat1", "libbz2-1.0", "liblzma5", "libffi8", "libssl3"),
    *("libuuid1", "libcrypt1"),
)
WHEELS = ("numpy", "onnxruntime", "tokenizers", "pillow", "jinja2")
TAGS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
# With dotprod. ONNX Runtime reads what a machine says of itself when it is imported.
PROCESSOR = "cortex-a76"
CPUINFO = """processor\t: 0
Features\t: fp asimd atomics fphp asimdhp asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0b
CPU revision\t: 1
"""
# Prints which kernels run, and then a reply for each policy; arguments: a package and a picture.
REPLIES = """
import sys
from avl_plugins.cpu.host import host
from avl_runtime import LVLM
kernels = host()
print(kernels.instructions() if kernels else "no kernels")
with LVLM.load(sys.argv[1]) as model:
    for policy in ("dense", "avl:keep=0.5,core=0.3,refresh=3"):
        reply = model.generate("Describe the picture.", [sys.argv[2]], policy=policy,
                               max_new_tokens=16)
        print(policy, repr(reply.text))
"""
MACHINE = "import platform; platform.machine = lambda: 'aarch64'\n"
BUILD = MACHINE + "from avl_plugins.cpu import build; build.build()"


def fetch_root(folder: Path) -> Path:
    """A root with a Python for arm64, and what its ONNX Runtime reads of a machine."""
    root = folder / "root"
    if root.is_dir():
        return root
    debs = folder / "debs"
    for name in ("lists/partial", "cache/archives/partial"):
        (debs / name).mkdir(parents=True, exist_ok=True)
    options = ["APT::Architecture=arm64", "APT::Architectures=arm64"]
    options += [f"Dir::State::Lists={debs}/lists", f"Dir::Cache={debs}/cache"]
    apt = ["apt-get", "-qq", *(part for one in options for part in ("-o", one))]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *DEBS], cwd=debs, check=True)
    unpacked = folder / "unpacking"
    for deb in debs.glob("*.deb"):
        subprocess.run(["dpkg", "-x", deb, unpacked], check=True)
    cores = unpacked / "sys/devices/system/cpu"
    cores.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cores / name).write_text("0\n")
    (unpacked / "proc").mkdir()
    (unpacked / "proc/cpuinfo").write_text(CPUINFO)
    return unpacked.rename(root)


def fetch_wheels(folder: Path) -> Path:
    """Packages that avl needs at run time."""
    site = folder / "site"
    if not site.is_dir():
        tags = [part for tag in TAGS for part in ("--platform", tag)]
        pip = [sys.executable, "-m", "pip", "install", "-q", "--only-binary=:all:"]
        pip += ["--python-version", PYTHON.removeprefix("python"), *tags]
        fetched = folder / "fetching"
        constraints = ROOT / "constraints.txt"
        subprocess.run([*pip, "-c", constraints, "--target", fetched, *WHEELS], check=True)
        fetched.rename(site)
    return site


def copy_avl(folder: Path) -> list[Path]:
    """Where a copy of avl is imported from, with a library for Arm."""
    places = []
    for name in ("runtime", "plugins"):
        shutil.copytree(ROOT / name, folder / name, dirs_exist_ok=True)
        places.append(folder / name)
    _python([sys.executable, "-c", BUILD], {"CC": kernel_checks.COMPILER}, places)
    return places


def _python(command: Sequence[str], environment: dict[str, str], places: Sequence[Path]) -> str:
    path = {"PYTHONPATH": os.pathsep.join(map(str, places))}
    done = subprocess.run(
        command, env=os.environ | path | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("packages", nargs="+", type=Path)
    parser.add_argument("--image", type=Path, default=ROOT / "samples/scene.png")
    parsed = parser.parse_args()
    tools = (kernel_checks.COMPILER, kernel_checks.EMULATOR, "apt-get", "dpkg")
    if problem := kernel_checks.missing(*tools):
        parser.error(f"{problem}; install gcc-aarch64-linux-gnu and qemu-user on Debian")
    folder = parsed.folder.resolve()
    root, site, places = fetch_root(folder), fetch_wheels(folder), copy_avl(folder)
    emulator = [kernel_checks.EMULATOR, "-cpu", PROCESSOR, "-L", str(root)]
    here = [ROOT / "runtime", ROOT / "plugins"]
    for package in parsed.packages:
        asked = ["-c", REPLIES, str(package.resolve()), str(parsed.image.resolve())]
        python = [*emulator, str(root / "usr/bin" / PYTHON), *asked]
        found = _python(python, {"PYTHONHOME": str(root / "usr")}, [*places, site])
        wanted = _python([sys.executable, *asked], {cpu.AMX_SWITCH: "off"}, here)
        print(f"{package}, emulated: {found}{package}, here: {wanted}", end="")
        if found.partition("\n")[2] != wanted.partition("\n")[2]:
            print(f"{package}: the replies differ", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
