"""Ternary (1.58-bit) language models: out of PyTorch, onto CPUs, provably right.

Each command is also a function in the package of the same name, for example ``bitexport.convert.convert``.
Nothing heavy is imported until it is used.
"""

from __future__ import annotations

# typing is slow to import, and Ctrl-C ends with a traceback before bitexport.__main__ runs
TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Any

    from llama_cpp import Llama

__version__ = "0.1.0"


def load(
    path: str | os.PathLike[str],
    *,
    trial: bool = True,
    workers: str | Sequence[str] = (),
    layers: Sequence[int] = (),
    **kwargs: Any,
) -> Llama:
    """Open a GGUF file with our llama.cpp, which supports I2_S.

    Args:
        path: the GGUF file.
        trial: try a file that is new to this machine in a separate process first, so that a damaged one
            raises an error instead of ending this process. ``BITEXPORT_TRIAL=0`` in the environment turns all
            trials off.
        workers: ``"HOST:PORT"`` of each machine that runs ``bitexport worker`` and is to compute some of the
            layers.
        layers: how many layers this machine and each worker compute, in this order; empty for as even as
            their memory allows.
        kwargs: arguments of ``llama_cpp.Llama`` (``n_ctx``, ``n_threads``, ...). ``flash_attn`` is true by
            default, so that our attention kernels are used. With ``embedding=True`` it embeds texts with the
            file's pooling, and does not generate.

    Returns:
        An ordinary ``llama_cpp.Llama``.

    Raises:
        GGUFError: the file is damaged or cannot be run.
        NativeLibraryError: our library is missing, or another libllama is already loaded.
        WorkerError: a worker cannot be reached, or is another version of bitexport.
        UsageError: an argument is unknown or out of range.
    """
    from bitexport.runtime.loading import load as load_model

    return load_model(path, trial=trial, workers=workers, layers=layers, **kwargs)
