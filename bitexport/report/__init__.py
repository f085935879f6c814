"""Pages and pictures: a parity run (``bitexport parity --report``), the losses of a training run."""

from __future__ import annotations
