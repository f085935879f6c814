"""The program ``bitexport``, also ``python -m bitexport``."""

from __future__ import annotations

from bitexport.system.early_interrupt import end_on_interrupts


def main() -> None:
    """Run the command line and exit, see :func:`bitexport.cli.main`."""
    end_on_interrupts()
    from bitexport.cli import main as run

    try:
        run()
    finally:
        end_on_interrupts()  # while Python ends


if __name__ == "__main__":
    main()
