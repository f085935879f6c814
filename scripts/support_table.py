"""Write README's tables of what is supported, from the tables that the code itself works with.

Usage: support_table.py [--check]

``--check`` writes nothing and fails where README.md is out of date. Families, packings, GGUF types and kernel
tiers each have one table in the code; a new entry there shows up here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from bitexport.checkpoint.packings import PACKINGS
from bitexport.convert.choices import EMBED_TYPES
from bitexport.families import FAMILIES
from bitexport.gguf.packers import PACKERS, Packer

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TIERS = ROOT / "native" / "ternary" / "tiers.inc"

BEGIN = "<!-- made by scripts/support_table.py: change the code's tables instead -->"
END = "<!-- end of what scripts/support_table.py makes -->"

MACHINES = {"__x86_64__": "x86-64", "__aarch64__": "Arm64"}


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def families() -> str:
    """Architectures of config.json, what they are, and the graph that runs them."""
    return table(
        ("family", "`architectures` in config.json", "what it is", "runs as"),
        (
            (
                family.name,
                ", ".join(f"`{name}`" for name in family.architectures),
                family.particulars,
                f"`{family.gguf_architecture}`",
            )
            for family in FAMILIES
        ),
    )


def packings() -> str:
    """How the weights are stored, by what, and what a value is."""
    kinds = {packing.name: packing for packing in PACKINGS.values()}
    return table(
        ("weights", "recognised by", "value"),
        ((kind.name, kind.recognised_by, kind.meaning) for kind in kinds.values()),
    )


def types() -> str:
    """GGUF types of ternary tensors."""
    return table(
        ("`--type`", "bits a weight", "rows of", "runs in", "scale"),
        (
            (
                f"`{name}`" + (" (default)" if number == 0 else ""),
                f"{8 * packer.type.block_bytes / packer.type.block:.4g}",
                _rows(packer),
                packer.runs_in,
                packer.scale_text,
            )
            for number, (name, packer) in enumerate(PACKERS.items())
        ),
    )


def _rows(packer: Packer) -> str:
    if packer.type.tail_bytes:
        return f"a multiple of 4; {packer.type.block} in the tensor"
    return f"a multiple of {packer.type.block}" if packer.type.block > 1 else "any length"


def tiers() -> str:
    """Kernel tiers, the one that is chosen first on top."""
    rows: list[tuple[str, str]] = []
    machine = "any CPU"
    for line in TIERS.read_text(encoding="utf-8").splitlines():
        if line.startswith(("#if", "#elif")):
            machine = next(name for macro, name in MACHINES.items() if macro in line)
        elif line.startswith("#endif"):
            machine = "any CPU"
        elif found := re.fullmatch(r"TERNARY_TIER\((\w+), (.+)\)", line):
            features = [part.upper() for part in re.findall(r"cpu\.(\w+)", found[2])]
            rows.append((f"{machine} with {', '.join(features)}" if features else machine, f"`{found[1]}`"))
    return table(("CPU", "kernel tier"), rows[::-1])


def region() -> str:
    """Everything between the two marks of README.md."""
    default, *others = (f"`{name}`" for name in EMBED_TYPES)
    embed = f"{', '.join([f'{default} (default)', *others[:-1]])} or {others[-1]}"
    return "\n\n".join(
        (
            BEGIN,
            families(),
            "Anything else is an error that names it. Their weights may be stored as",
            packings(),
            "and are written as",
            types(),
            "`convert` takes a GGUF file of any of these types as well, and keeps all else in it. The "
            "embedding,\n"
            f"which is the output head too when they are tied, is stored as `--embed-type` {embed}.",
            tiers(),
            END,
        )
    )


def main() -> None:
    """Rewrite README.md, or compare."""
    before = README.read_text(encoding="utf-8")
    start, end = before.find(BEGIN), before.find(END)
    if start < 0 or end < start:
        sys.exit(f"support_table.py: README.md lacks one of the two marks:\n{BEGIN}\n{END}")
    after = before[:start] + region() + before[end + len(END) :]
    if "--check" in sys.argv[1:]:
        if after != before:
            sys.exit("README.md's tables of what is supported are out of date; run scripts/support_table.py")
    else:
        README.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
