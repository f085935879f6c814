"""What went wrong, with the input and the command that does it again."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

#: Inputs that are kept of each kind.
KEPT = 30


@dataclass(frozen=True)
class Finding:
    """A case that shows a defect.

    Attributes:
        kind, seed, case: which one.
        reason: what happened.
        folder: of its process.
        died: whether its process died.
        late: whether it took too long.
    """

    kind: str
    seed: int
    case: int
    reason: str
    folder: Path
    died: bool = False
    late: bool = False

    @property
    def command(self) -> str:
        """Does the case again."""
        return f"make torture KINDS={self.kind} SEED={self.seed} START={self.case} CASES=1"

    def keep(self, findings: Path) -> None:
        """Print it, and copy its input and log to a folder of its own in ``findings``."""
        print(f"FINDING {self.kind} {self.case}: {self.reason}"[:400], file=sys.stderr, flush=True)
        if len(list(findings.glob(f"{self.kind}-{self.seed}-*"))) >= KEPT:
            return
        target = findings / f"{self.kind}-{self.seed}-{self.case}"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        (target / "command.txt").write_text(f"{self.command}\n# {self.reason}\n", encoding="utf-8")
        for name in ("scratch", "log"):
            source = self.folder / name
            if source.is_dir():
                # a link to a device or a FIFO is not followed
                shutil.copytree(source, target / name, symlinks=True, ignore=_special, dirs_exist_ok=True)
            elif source.is_file():
                shutil.copy(source, target / name)


def _special(folder: str, names: list[str]) -> list[str]:
    """Entries that cannot be copied, such as FIFOs; and files that are larger than a disk."""
    paths = {name: Path(folder) / name for name in names}
    return [
        name
        for name, path in paths.items()
        if not path.is_symlink()
        and not path.is_dir()
        and not (path.is_file() and path.stat().st_size < 1 << 28)
    ]
