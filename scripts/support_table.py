"""Writes the tables of supported models into the documentation, from the tables that the code itself uses.

Usage: support_table.py [--check]

With ``--check`` nothing is written, and the script fails if the page is out of date. Families, packings, GGUF
types and kernel tiers each have one table in the code; a new entry there appears here.
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
#: The page that contains the tables, between the two markers.
PAGE = ROOT / "docs" / "support.md"
TIERS = ROOT / "native" / "kernels" / "ternary" / "tiers.inc"

BEGIN = "<!-- made by scripts/support_table.py: change the code's tables instead -->"
END = "<!-- end of what scripts/support_table.py makes -->"

MACHINES = {"__x86_64__": "x86-64", "__aarch64__": "Arm64"}


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def families() -> str:
    """The model families: their architectures in config.json, and the graph that runs them."""
    return table(
        ("family", "`architectures` in config.json", "models", "runs as"),
        (
            (
                family.name,
                ", ".join(f"`{name}`" for name in family.architectures),
                family.summary,
                f"`{family.gguf_architecture}`",
            )
            for family in FAMILIES
        ),
    )


def packings() -> str:
    """The packings: how each is recognised, and the value of a weight."""
    kinds = {packing.name: packing for packing in PACKINGS.values()}
    return table(
        ("weights", "recognised by", "value"),
        ((kind.name, kind.recognised_by, kind.meaning) for kind in kinds.values()),
    )


def types() -> str:
    """The GGUF types of ternary tensors."""
    return table(
        ("`--type`", "bits per weight", "row length", "runs in", "scale"),
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
        return f"a multiple of 4; all rows together a multiple of {packer.type.block}"
    return f"a multiple of {packer.type.block}" if packer.type.block > 1 else "any"


def tiers() -> str:
    """The kernel tiers, in order of preference."""
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
    """The two markers and everything between them."""
    default, *others = (f"`{name}`" for name in EMBED_TYPES)
    embed = f"{', '.join([f'{default} (default)', *others[:-1]])} or {others[-1]}"
    return "\n\n".join(
        (
            BEGIN,
            families(),
            "Any other architecture is an error that names it. The weights may be stored in one of these "
            "packings:",
            packings(),
            "Ternary tensors are written as one of these types:",
            types(),
            "`convert` also accepts a GGUF file of any of these types; it changes the types and keeps "
            "everything else.\n"
            "The token embedding and the output head are stored as `--embed-type` "
            f"{embed}.",
            "The kernels choose the first of these tiers that the CPU supports:",
            tiers(),
            END,
        )
    )


def main() -> None:
    """Rewrite the tables of the page, or compare them."""
    before = PAGE.read_text(encoding="utf-8")
    start, end = before.find(BEGIN), before.find(END)
    if start < 0 or end < start:
        sys.exit(f"support_table.py: {PAGE.name} lacks one of the two markers:\n{BEGIN}\n{END}")
    after = before[:start] + region() + before[end + len(END) :]
    if "--check" in sys.argv[1:]:
        if after != before:
            sys.exit(f"the tables in {PAGE.name} are out of date; run scripts/support_table.py")
    else:
        PAGE.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
