"""Standard tasks: lm-evaluation-harness on GGUF files.

``bitexport eval FILE.gguf --tasks arc_easy,hellaswag`` and lm_eval's own command with ``--model bitexport``
use the same model class, :class:`~bitexport.evaluation.tasks.model.BitexportLM`.

lm-eval finds it by the entry point ``lm_eval.models`` from the release after 0.4.13 on. Before, ``python -m
bitexport.evaluation.tasks`` is lm_eval's command that knows it.

The package needs lm-eval: nothing here is imported before it is used.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bitexport.errors import UnsupportedError

if TYPE_CHECKING:
    from bitexport.evaluation.tasks.report import TaskReport

__all__ = ["evaluate_tasks", "register"]


def evaluate_tasks(*arguments: Any, **named: Any) -> TaskReport:
    """See :func:`bitexport.evaluation.tasks.driver.evaluate_tasks`.

    Raises:
        UnsupportedError: lm-eval is not installed.
    """
    require_harness()
    from bitexport.evaluation.tasks.driver import evaluate_tasks as run

    return run(*arguments, **named)


def register() -> None:
    """Make ``bitexport`` known to lm-eval as a model.

    Raises:
        UnsupportedError: lm-eval is not installed.
    """
    require_harness()
    import bitexport.evaluation.tasks.model  # noqa: F401  # registers its class


def require_harness() -> None:
    """Raise UnsupportedError if lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise UnsupportedError(
            "standard tasks need the Python package lm-eval, which is not installed; "
            "pip install 'bitexport[tasks]'"
        )
