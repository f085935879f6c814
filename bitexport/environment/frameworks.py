"""How PyTorch was built, and the accelerators that it can use."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from bitexport.environment.check import Check, gib
from bitexport.system.machine import cpu_flags

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def check_torch() -> list[Check]:
    meaning = "Runs the PyTorch side of `parity`, `eval` and `doctor CKPT`, and training."
    if importlib.util.find_spec("torch") is None:
        return [Check("torch", "not installed", "warning", meaning, "pip install 'bitexport[train]'")]
    try:
        import torch
    except (ImportError, OSError) as error:
        advice = "install it again: pip install --force-reinstall torch"
        return [Check("torch", f"cannot be loaded: {error}", "problem", meaning, advice)]
    kind = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    if getattr(torch.version, "hip", None):
        kind = f"ROCm {torch.version.hip}"
    fast = bool(_BF16_FLAGS & cpu_flags())
    bf16 = "bfloat16 in hardware" if fast else "no bfloat16 in hardware"
    threads = torch.get_num_threads()
    value = f"{torch.__version__}, {kind}, {threads} thread{'s'[: threads > 1]}; this CPU has {bf16}"
    if not fast:
        meaning += " On a CPU without it, bfloat16 is slower than float32: leave precision at float32 there."
    return [Check("torch", value, "ok", meaning)]


def check_accelerator(torch: Any = None, driver: bool | None = None) -> list[Check]:
    """The devices that torch can use.

    Args:
        torch: the module; imported if None.
        driver: whether NVIDIA's driver is installed; looked up if None.
    """
    meaning = "Stages 2 and 3 of training are meant for one; converting and running ternary models need none."
    if torch is None:
        try:
            import torch
        except (ImportError, OSError):
            return [Check("accelerator", "unknown without torch", "ok", meaning)]
    driver = _has_nvidia() if driver is None else driver
    if torch.cuda.is_available():
        names = [_describe(torch.cuda.get_device_properties(i)) for i in range(torch.cuda.device_count())]
        bf16 = torch.cuda.is_bf16_supported()
        value = "; ".join(names) + ("" if bf16 else "; no bfloat16")
        advice = "" if bf16 else 'train with precision = "float32"'
        return [Check("accelerator", value, "ok" if bf16 else "warning", meaning, advice)]
    if driver:
        built = torch.version.cuda
        why = f"torch is built for CUDA {built} and cannot use it" if built else "torch is built without CUDA"
        advice = (
            "check `nvidia-smi`: the driver is too old, or no device is visible (CUDA_VISIBLE_DEVICES)"
            if built
            else "install a CUDA build of the same version of torch"
        )
        return [Check("accelerator", f"NVIDIA driver found, but {why}", "warning", meaning, advice)]
    if getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available():
        return [Check("accelerator", "Apple GPU (mps)", "ok", meaning)]
    return [Check("accelerator", "none", "ok", f"{meaning} Tiny models can be trained on the CPU.")]


def _describe(device: Any) -> str:
    return f"{device.name}, {gib(device.total_memory)}, compute {device.major}.{device.minor}"


def _has_nvidia() -> bool:
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None
