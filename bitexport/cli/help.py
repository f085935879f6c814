"""The look of ``--help``: one name per option, a short word for what it takes, and nothing for a switch."""

from __future__ import annotations

import copy
from typing import Any

from typer.core import TyperCommand, TyperGroup, TyperOption

from bitexport.cli.values import PlainOrTyper

# typer's names for types that are not choices
_NAMES = {"<bool>": "", "<str>": "TEXT", "<list[str]>": "TEXT", "<path>": "PATH"}


class _Look:
    """What the two classes below share."""

    _helping = False

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As typer's, with this look."""
        self._helping = True
        try:
            super().format_help(ctx, formatter)  # type: ignore[misc]
        except SystemExit:  # rich's, because the reader has left: ``bitexport --help | head``
            raise SystemExit(0) from None
        finally:
            self._helping = False

    def get_params(self, ctx: Any) -> list[Any]:
        """As typer's; simplified copies while help is shown."""
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        if not self._helping:
            for each in parameters:
                if getattr(each, "_runtime_param", self) is None:
                    each._runtime_param = PlainOrTyper(each.type_descriptor)
            return parameters
        return [_simplified(each, ctx) for each in parameters]


def _simplified(option: Any, context: Any) -> Any:
    """An option with one long name, and with the others in its help text; an argument without its type."""
    shown = copy.copy(option)
    if not isinstance(option, TyperOption):
        shown.display_type_rich = lambda ctx: None  # noqa: ARG005 (typer's parameter)
        return shown
    if option.metavar is None:
        kind = str(option.display_type(context))
        number = "N" if "int" in kind else "X" if "float" in kind else None
        shown.metavar = number or _NAMES.get(kind, kind.strip("<>"))
    long, *aliases = [name for name in option.opts if name.startswith("--")]
    if aliases:
        shown.opts = [long, *(name for name in option.opts if not name.startswith("--"))]
        shown.help = f"{option.help} Also {' and '.join(aliases)}."
    return shown


class Command(_Look, TyperCommand):
    """A command with this look."""


class Group(_Look, TyperGroup):
    """A group of commands with this look."""
