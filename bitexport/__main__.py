"""``python -m bitexport``."""

from __future__ import annotations

from bitexport.cli import main

if __name__ == "__main__":
    main()
