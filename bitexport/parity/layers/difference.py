"""How far one step's values are apart, gathered over all tokens of all prompts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: Steps of the 8-bit grid between zero and the largest value of a token: 127, as transformers quantizes.
_GRID = 127


@dataclass(frozen=True, slots=True)
class Difference:
    """C++ against PyTorch at one step.

    Attributes:
        tokens: how many were compared.
        cosine_min: the smallest cosine of a token's two vectors.
        cosine_gap: 1 minus it, without the loss of digits.
        grid_steps_max: the largest difference of a value, in steps of the grid on which this token's values
            would be rounded to 8 bits: its largest magnitude over 127.
        relative_error_max: largest length of a token's difference, over the length of PyTorch's vector.
        length_ratio: length of all of C++'s values over that of PyTorch's.
        excess: the largest ratio of a token's difference to what is allowed; above 1 the step parts.
        columns, columns_off: values of a token, and how many of them are ever beyond what is allowed.
        first_column: the first such one.
        first_token: the first token with such a one, counted from the beginning of its prompt.
    """

    tokens: int
    cosine_min: float
    cosine_gap: float
    grid_steps_max: float
    relative_error_max: float
    length_ratio: float
    excess: float
    columns: int
    columns_off: int
    first_column: int | None
    first_token: int | None

    @property
    def parted(self) -> bool:
        """Whether it is more than allowed. NaN is."""
        return not self.excess <= 1


class Tally:
    """Gathers a :class:`Difference`."""

    def __init__(self) -> None:
        self._tokens = 0
        self._gap = self._grid_steps = self._relative = self._excess = 0.0
        self._squares = [0.0, 0.0]
        self._off: torch.Tensor | None = None
        self._first_token: int | None = None

    def add(
        self, python: torch.Tensor, cpp: torch.Tensor, allowed: torch.Tensor, *, relative: bool = False
    ) -> None:
        """Count one prompt's values.

        Args:
            python, cpp: ``[T, width]``.
            allowed: ``[T]``; grid steps of a value, or with ``relative`` a fraction of the vector's length.
        """
        a, b = python.double(), cpp.double()
        apart = (a - b).abs()
        # transformers' ActQuant has the same floor
        grid = apart / (a.abs().amax(dim=1, keepdim=True).clamp(min=1e-5) / _GRID)
        long_a, long_b, long_apart = a.norm(dim=1), b.norm(dim=1), apart.norm(dim=1)
        same = long_apart == 0
        fraction = torch.where(same, 0.0, long_apart / long_a)
        excess = fraction / allowed if relative else grid.amax(dim=1) / allowed
        off = ~(grid <= allowed[:, None])
        if relative:
            off &= ~(fraction <= allowed)[:, None]

        self._tokens += len(a)
        self._gap = _larger(self._gap, torch.where(same, 0.0, _cosine_gap(a, b, long_a, long_b)))
        self._grid_steps = _larger(self._grid_steps, grid)
        self._relative = _larger(self._relative, fraction)
        self._excess = _larger(self._excess, excess)
        self._squares[0] += float((long_a**2).sum())
        self._squares[1] += float((long_b**2).sum())
        columns = off.any(dim=0)
        self._off = columns if self._off is None else self._off | columns
        late = torch.nonzero(~(excess <= 1))
        if len(late):
            first = int(late[0])
            self._first_token = first if self._first_token is None else min(self._first_token, first)

    def result(self) -> Difference:
        """What was gathered; at least one prompt was added."""
        assert self._off is not None
        off = torch.nonzero(self._off)
        python, cpp = self._squares
        return Difference(
            tokens=self._tokens,
            cosine_min=1 - self._gap,
            cosine_gap=self._gap,
            grid_steps_max=self._grid_steps,
            relative_error_max=self._relative,
            length_ratio=(cpp / python) ** 0.5 if python else float("inf" if cpp else 1),
            excess=self._excess,
            columns=len(self._off),
            columns_off=len(off),
            first_column=int(off[0]) if len(off) else None,
            first_token=self._first_token,
        )


def _cosine_gap(a: torch.Tensor, b: torch.Tensor, long_a: torch.Tensor, long_b: torch.Tensor) -> torch.Tensor:
    """1 - cos, as half the squared distance of the two unit vectors: exact where the cosine rounds to 1."""
    return ((a / long_a[:, None] - b / long_b[:, None]) ** 2).sum(dim=1) / 2


def _larger(before: float, values: torch.Tensor) -> float:
    """The maximum; NaN stays and wins."""
    now = float(values.max())
    return now if now != now or now > before else before
