"""CPU, threads, memory and disk, and what a container leaves of them."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from pathlib import Path

from bitexport.environment.check import Check, gib
from bitexport.system.machine import available_bytes, cpu_flags, cpu_model, memory_limit, old_cpu_quota

#: Bytes a parameter takes in float32 training: itself, its gradient, and AdamW's two moments.
TRAINING_BYTES = 16
#: Bytes it takes on disk in a checkpoint to resume from: itself and the two moments.
CHECKPOINT_BYTES = 12
LITTLE_MEMORY = 2 << 30
LITTLE_DISK = 5 << 30


def check_cpu() -> list[Check]:
    flags = cpu_flags()
    fast = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "BF16",
            "amx_int8": "AMX", "asimddp": "dotprod", "i8mm": "I8MM", "sve": "SVE"}  # fmt: skip
    has = [name for flag, name in fast.items() if flag in flags]
    value = f"{cpu_model()}, {platform.machine()}" + (f": {', '.join(has)}" if has else "")
    meaning = "Ternary models run on it; see `kernels` for which of its instructions they use."
    if platform.machine() in ("x86_64", "AMD64") and flags and "avx2" not in flags:
        advice = "use a CPU of 2015 or later; in a virtual machine, let it see the host's (`-cpu host`)"
        return [Check("cpu", f"{value}, no AVX2", "warning", meaning, advice)]
    return [Check("cpu", value, "ok", meaning)]


def check_threads() -> list[Check]:
    from bitexport.runtime.ggml import processors
    from bitexport.runtime.threads import cpu_quota, default_threads

    usable, machine, chosen = processors(), os.cpu_count() or 1, default_threads()
    parts = [f"{chosen} by default", f"{usable} of {machine} hardware threads"]
    meaning = (
        "One thread a core is fastest: hardware threads of one core share what computes, and its memory."
    )
    quota, old = cpu_quota(), old_cpu_quota()
    if quota is not None and quota < usable:
        parts.append(f"the container pays for {quota}")
        meaning += " A container's share is kept to."
    if old is not None and old < chosen:
        value = ", ".join([*parts, f"the container pays for {old} (cgroup v1)"])
        return [
            Check(
                "threads", value, "warning", meaning, f"give --threads {old}, and set OMP_NUM_THREADS={old}"
            )
        ]
    return [Check("threads", ", ".join(parts), "ok", meaning)]


def check_memory(available: int | None = None, left: int | None = None) -> list[Check]:
    """Args: bytes that the machine has available, and that its container leaves; looked up when None."""
    available = available_bytes() if available is None else available
    left = memory_limit() if left is None else left
    meaning = "Converting needs little, and running a model the size of its file."
    if available is None:
        return [Check("memory", "unknown on this system", "ok", meaning)]
    value, usable = f"{gib(available)} available", available
    if left is not None and left < available:
        value, usable = f"{gib(left)} left in the container, {gib(available)} on the machine", left
    millions = usable / TRAINING_BYTES / 1e6
    meaning += (
        f" Training in float32 takes {TRAINING_BYTES} bytes a parameter before any activations: "
        f"at most {millions:,.0f} million parameters here, the teacher's 4 bytes each not counted."
    )
    if usable < LITTLE_MEMORY:
        advice = "end other programs, raise the container's limit, or work on a larger machine"
        return [Check("memory", value, "warning", meaning, advice)]
    return [Check("memory", value, "ok", meaning)]


def check_disk(places: dict[str, Path] | None = None) -> list[Check]:
    """Free space where results go and where temporary files go."""
    if places is None:
        places = {"disk here": Path.cwd(), "disk for temporary files": Path(tempfile.gettempdir())}
    meanings = {
        "disk here": f"A checkpoint to resume training from takes {CHECKPOINT_BYTES} bytes a parameter; "
        "a GGUF file takes a quarter of a byte, and 2 for each of the embeddings.",
    }
    checks = []
    for name, place in places.items():
        meaning = meanings.get(name, "`doctor CKPT` converts into it; TMPDIR moves it.")
        free = shutil.disk_usage(place).free
        value = f"{gib(free)} free in {place}"
        if not os.access(place, os.W_OK):
            checks.append(
                Check(name, f"{value}, not writable", "warning", meaning, "work in a folder of your own")
            )
        elif free < LITTLE_DISK:
            advice = "make room, or give a folder on another disk"
            checks.append(Check(name, value, "warning", meaning, advice))
        else:
            checks.append(Check(name, value, "ok", meaning))
    return checks
