"""Converts plain values of options itself, because typer imports pydantic for the first one.

That takes a tenth of a second, as long as everything else before a model is loaded. Whatever is not plain,
and whatever is wrong, is left to typer and its messages.
"""

from __future__ import annotations

from typing import Any

from typer._coercion import RuntimeParam, build_runtime_param

_NUMBERS = (int, float)


class PlainOrTyper(RuntimeParam):
    """How an option's value becomes the argument of a command.

    Args:
        descriptor: typer's description of the option.
    """

    def __init__(self, descriptor: Any) -> None:
        super().__init__(parameter_info=descriptor.parameter_info, annotation=descriptor.annotation)
        object.__setattr__(self, "descriptor", descriptor)  # typer's class is frozen

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The converted value.

        Raises:
            BadParameter: it is invalid.
        """
        several = param.multiple or param.nargs == -1
        if value is None and not several:
            return None
        if not several and self._is_plain(value):
            return self.annotation(value)
        return super().coerce(value, param, ctx)

    def _is_plain(self, value: Any) -> bool:
        kind, info = self.annotation, self.parameter_info
        if info.parser is not None:
            return False
        if kind is str:
            return isinstance(value, str)
        if kind not in _NUMBERS or info.clamp:
            return False
        if isinstance(value, str) and not (value.isascii() and value.isdecimal() and len(value) < 19):
            return False
        if not isinstance(value, (str, kind)) or isinstance(value, bool):
            return False
        number = kind(value)
        least, most = info.min, info.max
        return (least is None or number >= least) and (most is None or number <= most)

    def _coerce_value(self, value: Any, param: Any, ctx: Any) -> Any:
        if self.parameter_info.parser is not None and isinstance(value, str):
            try:
                return self.parameter_info.parser(value)
            except Exception:  # typer calls it again, for its message
                pass
        return build_runtime_param(self.descriptor).coerce(value, param, ctx)  # type: ignore[attr-defined]
