"""``python -m bitexport.evaluation.tasks``: lm_eval's own command, which also knows ``--model bitexport``."""

from __future__ import annotations

import sys

from bitexport.errors import UnsupportedError
from bitexport.evaluation.tasks import register

if __name__ == "__main__":
    try:
        register()
    except UnsupportedError as error:
        sys.exit(f"error: {error}")
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
