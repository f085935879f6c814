"""The kinds of torture, one module each.

A module has

- ``SHARE``: its part of the time;
- ``SECONDS``: the most that one case may take;
- ``MEMORY``: the bytes that a case may add to its process;
- ``prepare(folder)``: writes the files that all cases share;
- ``execute(chance, prepared, folder)``: does one case in an empty folder. It returns an outcome, which begins
  with ``"worked"`` or ``"refused"``, or raises whatever it likes: that is a finding;

and perhaps

- ``CASES``: how many different cases there are;
- ``again(chance, prepared, folder)``: does a case again whose process died. If this refuses it, that was no
  finding. It is for cases that leave out a protection, to be faster;
- ``missing()``: why it cannot run here; empty if it can.
"""

#: In the order of the help text.
NAMES = (
    "gguf_files",
    "checkpoints",
    "templates",
    "libllama",
    "lengths",
    "threads",
    "forks",
    "kills",
    "interrupts",
    "full_disks",
    "directed",
)
