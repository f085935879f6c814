"""How far one step's values differ, accumulated over all tokens of all prompts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: Steps of the 8-bit grid between zero and a token's largest magnitude: 127, as transformers quantizes.
_GRID = 127


@dataclass(frozen=True, slots=True)
class Difference:
    """C++ against PyTorch at one step.

    Attributes:
        tokens: number of tokens compared.
        cosine_min: smallest cosine between the two vectors of a token.
        cosine_gap: 1 - cosine_min, without cancellation.
        grid_steps_max: largest difference of a value, in steps of the grid on which the token's values would
            be rounded to 8 bits: PyTorch's largest magnitude divided by 127.
        relative_error_max: largest L2 norm of a token's difference, divided by the norm of PyTorch's vector.
        length_ratio: L2 norm of all C++ values divided by that of all PyTorch values.
        excess: largest ratio of a token's difference to its tolerance; above 1 the step diverges.
        columns: values per token.
        columns_off: number of columns that exceed the tolerance at any token.
        first_column: index of the first of them.
        first_token: index of the first token, in its prompt, that exceeds the tolerance.
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
    def diverged(self) -> bool:
        """Whether the difference exceeds the tolerance. True for NaN."""
        return not self.excess <= 1


class DifferenceAccumulator:
    """Accumulates a :class:`Difference` over prompts."""

    def __init__(self) -> None:
        self._tokens = 0
        self._gap = self._grid_steps = self._relative = self._excess = 0.0
        self._python_squares = self._cpp_squares = 0.0
        self._off: torch.Tensor | None = None
        self._first_token: int | None = None

    def add(
        self, python: torch.Tensor, cpp: torch.Tensor, tolerance: torch.Tensor, *, relative: bool = False
    ) -> None:
        """Add one prompt's values.

        Args:
            python, cpp: ``[T, width]``.
            tolerance: ``[T]``, for each token: grid steps for any value, or with ``relative`` a fraction of
                the L2 norm of PyTorch's vector.
        """
        a, b = python.double(), cpp.double()
        apart = (a - b).abs()
        # transformers' ActQuant has the same floor
        grid = apart / (a.abs().amax(dim=1, keepdim=True).clamp(min=1e-5) / _GRID)
        norm_a, norm_b, norm_apart = a.norm(dim=1), b.norm(dim=1), apart.norm(dim=1)
        same = norm_apart == 0
        fraction = torch.where(same, 0.0, norm_apart / norm_a)
        excess = fraction / tolerance if relative else grid.amax(dim=1) / tolerance
        off = ~(grid <= tolerance[:, None])
        if relative:
            off &= ~(fraction <= tolerance)[:, None]

        self._tokens += len(a)
        self._gap = _larger(self._gap, torch.where(same, 0.0, _cosine_gap(a, b, norm_a, norm_b)))
        self._grid_steps = _larger(self._grid_steps, grid)
        self._relative = _larger(self._relative, fraction)
        self._excess = _larger(self._excess, excess)
        self._python_squares += float((norm_a**2).sum())
        self._cpp_squares += float((norm_b**2).sum())
        columns = off.any(dim=0)
        self._off = columns if self._off is None else self._off | columns
        tokens_off = torch.nonzero(~(excess <= 1))
        if len(tokens_off):
            first = int(tokens_off[0])
            self._first_token = first if self._first_token is None else min(self._first_token, first)

    def result(self) -> Difference:
        """The difference over all prompts added so far, at least one."""
        assert self._off is not None
        off = torch.nonzero(self._off)
        python, cpp = self._python_squares, self._cpp_squares
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


def _cosine_gap(a: torch.Tensor, b: torch.Tensor, norm_a: torch.Tensor, norm_b: torch.Tensor) -> torch.Tensor:
    """1 - cos = |a/|a| - b/|b||^2 / 2, which keeps its digits where the cosine rounds to 1."""
    return ((a / norm_a[:, None] - b / norm_b[:, None]) ** 2).sum(dim=1) / 2


def _larger(before: float, values: torch.Tensor) -> float:
    """The maximum of both; NaN if either contains one."""
    now = float(values.max())
    return now if now != now or now > before else before
