"""One page that shows a parity run: ``bitexport parity --report``."""

from __future__ import annotations
