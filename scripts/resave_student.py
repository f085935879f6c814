"""Give a student that an earlier version of bitexport has trained the form in which students are saved now.

Usage: resave_student.py FOLDER

Changes config.json in place, and adds the modelling file if the student needs one; the weights do not change.
Afterwards transformers runs the student as it was trained, see docs/training.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bitexport.errors import BitexportError
from bitexport.train.student.saved_form import resave


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    try:
        resave(folder)
    except BitexportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{folder}: {json.loads((folder / 'config.json').read_text())['architectures'][0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
