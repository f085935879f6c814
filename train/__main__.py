"""``python -m train``: the same as ``bitexport train``, for torchrun and accelerate, which start modules."""

from __future__ import annotations

import sys

from bitexport.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
