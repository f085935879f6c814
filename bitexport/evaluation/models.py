"""From paths to sides: checks what was given, and converts the student if it has no GGUF file."""

from __future__ import annotations

import importlib
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from bitexport.errors import UnsupportedError, UsageError
from bitexport.evaluation.side import ModelRole, Side
from bitexport.gguf.embedding_settings import check_generates
from bitexport.gguf.reader import is_gguf_path, read_gguf
from bitexport.progress import Progress

#: Types in a temporary file. With float16 embeddings, C++ and Python use practically the same weights.
EMBEDDING_TYPE = "f16"

ModelPath = str | Path


@dataclass(frozen=True, slots=True)
class Models:
    """What to evaluate: student and teacher, each a folder or a file, and GGUF files made from folders."""

    student: ModelPath
    teacher: ModelPath | None = None
    student_gguf: ModelPath | None = None
    teacher_gguf: ModelPath | None = None

    def check(self) -> None:
        """Raise UsageError for paths that do not go together, and for files of embedding models."""
        if self.teacher_gguf is not None and self.teacher is None:
            raise UsageError("--teacher-gguf needs its teacher; give --teacher")
        for folder, file, option in (
            (self.student, self.student_gguf, "--student-gguf"),
            (self.teacher, self.teacher_gguf, "--teacher-gguf"),
        ):
            if file is not None and folder is not None and is_gguf_path(folder):
                raise UsageError(
                    f"{option} {file} was given with {folder}, which is also a file; expected a "
                    "checkpoint folder there, or no second file"
                )
            if file is not None and not is_gguf_path(file):
                raise UsageError(f"{option} {file}: not a file; give the path of a GGUF file")
        for path in (self.student, self.teacher, self.student_gguf, self.teacher_gguf):
            if path is not None and is_gguf_path(path):
                check_generates(read_gguf(path))

    @property
    def needs_pytorch(self) -> bool:
        """Whether any of them is a folder."""
        return not all(is_gguf_path(each) for each in (self.student, self.teacher) if each is not None)


def require_modules(*modules: str) -> None:
    """Raise UnsupportedError for a missing package now, rather than after minutes of work."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UnsupportedError(
                f"this evaluation needs the Python package {error.name}, which is not installed; "
                "pip install 'bitexport[eval]'"
            ) from error


def open_sides(
    stack: ExitStack, models: Models, threads: int, skipped: dict[str, str], progress: Progress
) -> tuple[list[Side], dict[str, str] | None]:
    """All sides with their tokenizers, closed by ``stack``; and how the student was converted, if it was.

    Args:
        skipped: gets an entry if the student cannot be converted.
    """
    sides: list[Side] = []
    converted = None
    roles: tuple[tuple[ModelRole, ModelPath | None, ModelPath | None], ...] = (
        ("teacher", models.teacher, models.teacher_gguf),
        ("student", models.student, models.student_gguf),
    )
    for role, source, gguf in roles:
        if source is None:
            continue
        file = source if is_gguf_path(source) else gguf
        if file is not source:
            sides.append(stack.enter_context(closing(_python_side(role, source, threads))))
            if file is None and role == "student":
                try:
                    file, kind = _convert_student(stack, source, sides[-1].kind == "float", progress)
                    converted = {"type": kind, "embed_type": EMBEDDING_TYPE}
                except UnsupportedError as error:
                    skipped["student-c++"] = f"convert refuses: {error}"
        if file is not None:
            sides.append(stack.enter_context(closing(_cpp_side(role, file, threads))))
    return sides, converted


# Imported when needed: a GGUF file alone needs no PyTorch, and a float folder alone needs no libllama.
def _python_side(role: ModelRole, path: ModelPath, threads: int) -> Side:
    from bitexport.evaluation.python_side import PythonSide

    return PythonSide(role, path, threads)


def _cpp_side(role: ModelRole, path: ModelPath, threads: int) -> Side:
    from bitexport.evaluation.cpp_side import CppSide

    return CppSide(role, path, threads)


def _convert_student(
    stack: ExitStack, folder: ModelPath, all_float: bool, progress: Progress
) -> tuple[Path, str]:
    """Convert a folder to a temporary file; returns it and the type of most of its linear layers."""
    from bitexport.convert import convert

    target = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "student.gguf"
    report = convert(folder, target, embed_type=EMBEDDING_TYPE, all_float=all_float, progress=progress)
    # ternary types come first, and the largest of them before the others
    return target, "f16" if all_float else report.types[0].type
