"""Checks tensors: names that libllama knows, types that ggml computes with, shapes of our graphs."""

from __future__ import annotations

from bitexport.errors import GGUFError
from bitexport.gguf.checks.hyperparameters import PLAIN
from bitexport.gguf.checks.libllama import Known, known
from bitexport.gguf.checks.numbers import Numbers, damaged
from bitexport.gguf.checks.shapes import expected_shapes
from bitexport.gguf.names import EXPERTS, TOKEN_EMBEDDING
from bitexport.gguf.reader import GGUFFile, GGUFTensor
from bitexport.gguf.types import F32, I2_S, MAX_I2_S_ROW, alternatives, runs

INTEGER_TYPES = ("i8", "i16", "i32", "i64")

#: ggml types that are not used for weights: numbers, and what activations become inside a product.
NON_WEIGHT_TYPES = (*INTEGER_TYPES, "f64", "q8_1", "q8_k")

FLOAT_TYPES = ("f32", "f16", "bf16")

#: Operations on gains, biases and the like, whose second operand ggml wants in float.
_ELEMENTWISE = ("mul", "add", "div", "rope", "ssm_scan")


def check_tensors(file: GGUFFile) -> None:
    """Check the tensors of a file whose numbers are checked.

    Raises:
        GGUFError: a tensor's name, type or shape is not one that libllama can run; names it.
    """
    shapes = expected_shapes(file)
    libllama = known()
    for tensor in file.tensors:
        operation = _check_name(file, tensor, libllama)
        if shapes is not None:
            _check_shape(file, tensor, shapes)
        if tensor.type is I2_S:
            _check_i2_s(file, tensor)
        else:
            _check_type(file, tensor, operation)


def _check_name(file: GGUFFile, tensor: GGUFTensor, libllama: Known) -> str:
    operation = libllama.operation(tensor.name)
    if operation is None:
        raise damaged(file, f"tensor '{tensor.name}' is not one that this llama.cpp knows")
    return operation


def _check_shape(file: GGUFFile, tensor: GGUFTensor, shapes: dict[str, tuple[int, ...]]) -> None:
    expected = shapes.get(tensor.name)
    if expected is None:
        architecture = Numbers(file).architecture
        raise damaged(file, f"tensor '{tensor.name}' does not belong to architecture '{architecture}'")
    if tensor.shape != expected:
        raise damaged(
            file,
            f"tensor '{tensor.name}' has shape {list(tensor.shape)}; expected {list(expected)} from the "
            "hyper-parameters",
        )


def _check_i2_s(file: GGUFFile, tensor: GGUFTensor) -> None:
    """Check that our kernels support the tensor: one matrix, or one per expert, whose sums fit in 32 bits."""
    where = f"{file.path.name}: tensor '{tensor.name}' of type i2_s has shape {list(tensor.shape)}"
    if tensor.name == TOKEN_EMBEDDING:
        raise GGUFError(
            f"{where}, but an embedding is a lookup table, not a matrix to multiply by; expected f16, q8_0 "
            "or q6_k: convert the checkpoint again"
        )
    experts = EXPERTS.fullmatch(tensor.name) is not None
    if len(tensor.shape) != 2 + experts:
        expected = "three dimensions, as for experts" if experts else "two dimensions"
        raise GGUFError(f"{where}; expected {expected}: convert the checkpoint again")
    if not runs(I2_S, tensor.shape):
        each = ", and experts of a multiple of 128 weights" if experts else ""
        raise GGUFError(
            f"{where}; expected rows of a multiple of 4 and at most {MAX_I2_S_ROW} weights{each}: use "
            f"bitexport convert with --type {alternatives(tensor.shape)}"
        )


def _check_type(file: GGUFFile, tensor: GGUFTensor, operation: str) -> None:
    """Check that gains and biases are float32, as ggml requires, and that weights have a type for weights."""
    kind = tensor.type
    vector = len(tensor.shape) == 1
    where = f"{file.path.name}: tensor '{tensor.name}' has"
    plain = Numbers(file).architecture in PLAIN
    if vector and kind is not F32 and (plain or operation in _ELEMENTWISE):
        raise GGUFError(
            f"{where} one dimension and type {kind.name}; expected f32, the type of gains and biases: "
            "convert the checkpoint again"
        )
    if operation in _ELEMENTWISE and kind.name not in FLOAT_TYPES:
        raise GGUFError(f"{where} type {kind.name}; expected f32 or f16: convert the checkpoint again")
    # tables of indices are looked up as i32
    indices = operation in ("get_rows", "none") and tensor.name != TOKEN_EMBEDDING and kind.name == "i32"
    if kind.name in NON_WEIGHT_TYPES and not indices:
        raise GGUFError(
            f"{where} type {kind.name}; expected a weight type, such as f16 or q6_k: convert the checkpoint "
            "again"
        )
