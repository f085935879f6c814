"""Pack a trained checkpoint into four trits per byte, as the examples are shipped.

Usage: pack_checkpoint.py MASTER OUT [--force]

MASTER is the model of a training stage, RUN/<stage>/model; OUT becomes a folder that transformers and
`bitexport convert` read. The same master weights always give the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bitexport.errors import BitexportError
from bitexport.train.student.pack import export_packed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("master", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--force", action="store_true", help="replace an existing model")
    options = parser.parse_args()
    try:
        export_packed(options.master, options.out, force=options.force)
    except BitexportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    size = (options.out / "model.safetensors").stat().st_size
    print(f"{options.out}: {size:,} bytes of weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
