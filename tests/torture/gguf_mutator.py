"""Damages GGUF files and keeps their structure: other values, types, shapes and names, in the right places.

Random bytes rarely get past a reader of headers; these files do, because lengths, offsets and sizes agree.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bitexport.gguf.reader import read_gguf
from bitexport.gguf.types import TYPES, TensorType

ARRAY, STRING = 9, 8
#: struct's formats of GGUF's scalar types.
FORMATS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}

NUMBERS = (
    0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 33, 63, 64, 127, 128, 129, 255, 256, 257, 512, 1024, 4095, 4096,
    65535, 65536, 65537, 2**24, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63,
    2**64 - 1, -1, -2, -(2**31),
)  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-6, 1e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "", "\0", "a\0b", " ", "水", "水水水", "<0x1>", "<0x0A>", "<0xGG>", "<0x", "é" * 300, "x" * 5000,
    "[EMPTY_5]", "none", "linear", "yarn", "longrope", "mean", "{{ messages }}", "{% for",
)  # fmt: skip
MODELS = (
    "llama",
    "gpt2",
    "bert",
    "t5",
    "rwkv",
    "no_vocab",
    "none",
    "plamo2",
    "gemma4",
    "hybriddna",
    "whitespace",
    "test",
)


@dataclass
class Tensor:
    """A tensor of a file that is being changed; ``data`` need not have the size that the others say."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    data: bytes


@dataclass
class Content:
    """All parts of a file: values are the bytes of a type and a value."""

    values: dict[str, bytes]
    tensors: list[Tensor]
    alignment: int = 32
    version: int = 3


def parse(path: Path) -> Content:
    file = read_gguf(path)
    return Content(
        {key: file.raw(key) for key in file.metadata},
        [Tensor(t.name, t.shape, t.type, file.data(t).tobytes()) for t in file.tensors],
    )


def build(content: Content) -> bytes:
    """The file, with the positions that the tensors' types and shapes require."""
    parts = [struct.pack("<4sIQQ", b"GGUF", content.version, len(content.tensors), len(content.values))]
    for key, value in content.values.items():
        name = key.encode("utf-8", errors="surrogatepass")
        parts += [struct.pack("<Q", len(name)), name, value]
    offset = 0
    align = content.alignment
    data = []
    for tensor in content.tensors:
        name = tensor.name.encode()
        dims = tensor.shape[::-1]
        parts += [struct.pack("<Q", len(name)), name]
        parts.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.type.id, offset))
        size = tensor.type.nbytes(tensor.shape)
        fitting = (
            (tensor.data * (size // max(len(tensor.data), 1) + 1))[:size] if size < 1 << 24 else tensor.data
        )
        data.append(fitting + bytes(-len(fitting) % align))
        offset += size + -size % align
    header = b"".join(parts)
    return header + bytes(-len(header) % align) + b"".join(data)


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", errors="surrogatepass")
    return struct.pack("<IQ", STRING, len(encoded)) + encoded


def scalar(kind: int, chance: random.Random) -> bytes:
    layout = FORMATS[kind]
    if layout in ("<f", "<d"):
        return struct.pack("<I", kind) + struct.pack(layout, chance.choice(FLOATS))
    if layout == "<?":
        return struct.pack("<I?", kind, chance.random() < 0.5)
    width = struct.calcsize(layout)
    return struct.pack("<I", kind) + (chance.choice(NUMBERS) % 2 ** (8 * width)).to_bytes(width, "little")


def any_value(chance: random.Random) -> bytes:
    roll = chance.random()
    if roll < 0.5:
        return scalar(chance.choice(list(FORMATS)), chance)
    if roll < 0.75:
        return text(chance.choice(TEXTS))
    if roll < 0.85:
        return struct.pack("<IIQ", ARRAY, STRING, 2) + 2 * text("a")[4:]
    kind, count = chance.choice((4, 5, 6, 7)), chance.choice((0, 1, 2, 3))
    elements = b"".join(scalar(kind, chance)[4:] for _ in range(count))
    return struct.pack("<IIQ", ARRAY, kind, count) + elements


def change_value(content: Content, chance: random.Random) -> None:
    """Another number of the same type under a key of the model."""
    keys = [k for k, v in content.values.items() if int.from_bytes(v[:4], "little") in FORMATS]
    key = chance.choice(keys)
    content.values[key] = scalar(int.from_bytes(content.values[key][:4], "little"), chance)


def retype_value(content: Content, chance: random.Random) -> None:
    content.values[chance.choice(list(content.values))] = any_value(chance)


def drop_value(content: Content, chance: random.Random) -> None:
    content.values.pop(chance.choice(list(content.values)))


def add_value(content: Content, chance: random.Random) -> None:
    """A key that libllama reads and the file lacks."""
    prefix = architecture(content)
    name = chance.choice(
        (
            "expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count",
            "nextn_predict_layers", "rope.dimension_count", "attention.key_length", "vocab_size",
            "attention.value_length", "attention.sliding_window", "rope.scaling.type", "rope.scaling.factor",
            "pooling_type", "attention.causal", "rope.dimension_sections", "hidden_activation",
            "attention.layer_norm_epsilon",
            "attention.sub_norm", "attention.qk_norm", "leading_dense_block_count", "expert_shared_count",
        )
    )  # fmt: skip
    key = f"{prefix}.{name}"
    if chance.random() < 0.2:
        key = "tokenizer.ggml." + chance.choice(
            ("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix", "bos_token_id",
             "eos_token_id", "seperator_token_id", "padding_token_id", "mask_token_id", "token_type_count",
             "suppress_tokens", "precompiled_charsmap", "scores", "remove_extra_whitespaces")
        )  # fmt: skip
    content.values[key] = scalar(4, chance) if chance.random() < 0.5 else any_value(chance)


def change_architecture(content: Content, chance: random.Random, names: tuple[str, ...]) -> None:
    old, new = architecture(content), chance.choice(names)
    content.values = {
        key.replace(f"{old}.", f"{new}.", 1) if key.startswith(f"{old}.") else key: value
        for key, value in content.values.items()
    }
    content.values["general.architecture"] = text(new)


def architecture(content: Content) -> str:
    return content.values.get("general.architecture", bytes(12))[12:].decode(errors="replace")


def change_model(content: Content, chance: random.Random) -> None:
    content.values["tokenizer.ggml.model"] = text(chance.choice(MODELS))


def change_token(content: Content, chance: random.Random) -> None:
    raw = content.values.get("tokenizer.ggml.tokens", b"")
    if int.from_bytes(raw[:4], "little") != ARRAY or int.from_bytes(raw[4:8], "little") != STRING:
        return
    tokens, at = [], 16
    for _ in range(int.from_bytes(raw[8:16], "little")):
        size = int.from_bytes(raw[at : at + 8], "little")
        tokens.append(raw[at : at + 8 + size])
        at += 8 + size
    if not tokens:
        return
    for _ in range(chance.choice((1, 1, 3, len(tokens)))):
        tokens[chance.randrange(len(tokens))] = text(
            chance.choice(TEXTS) + chance.choice(("", str(chance.random())))
        )[4:]
    content.values["tokenizer.ggml.tokens"] = raw[:8] + struct.pack("<Q", len(tokens)) + b"".join(tokens)


def change_token_types(content: Content, chance: random.Random) -> None:
    raw = content.values.get("tokenizer.ggml.token_type", b"")
    if int.from_bytes(raw[:4], "little") != ARRAY:
        return
    types = np.frombuffer(raw[16:], "<i4").copy() if (len(raw) - 16) % 4 == 0 else np.ones(400, "<i4")
    if chance.random() < 0.5:
        types = types[::-1].copy()
    elif types.size:
        for _ in range(chance.choice((1, 5, 100))):
            types[chance.randrange(types.size)] = chance.choice((0, 1, 2, 3, 4, 5, 6, 7, -1))
    content.values["tokenizer.ggml.token_type"] = raw[:16] + types.tobytes()


def retype_tensor(content: Content, chance: random.Random) -> None:
    tensor = chance.choice(content.tensors)
    kind = chance.choice(list(TYPES.values()))
    if kind.fits(tensor.shape):
        tensor.type = kind


def reshape_tensor(content: Content, chance: random.Random) -> None:
    tensor = chance.choice(content.tensors)
    sizes = list(tensor.shape)
    roll = chance.random()
    if roll < 0.25:
        sizes = sizes[::-1]
    elif roll < 0.6:
        sizes[chance.randrange(len(sizes))] = chance.choice((0, 1, 2, 64, 128, 256, 257, 512))
    elif roll < 0.8:
        sizes = [int(np.prod(sizes))]
    else:
        sizes = [1] * chance.randint(0, 2) + sizes
    shape = tuple(sizes[:4])
    if tensor.type.nbytes(shape) < 1 << 24:
        tensor.shape = shape


def rename_tensor(content: Content, chance: random.Random) -> None:
    tensor = chance.choice(content.tensors)
    other = chance.choice(content.tensors)
    names = (
        tensor.name.replace("weight", "bias"), tensor.name.replace("blk.0", "blk.1"), f"{tensor.name}x", "",
        other.name, "rope_freqs.weight", "output.weight", "token_types.weight", "blk.0.ffn_gate_inp.weight",
        "blk.0.attn_q_norm.weight", "blk.0.attn_sinks.weight", "blk.0.ffn_gate_exps.weight", "cls.weight",
    )  # fmt: skip
    tensor.name = chance.choice(names)


def add_tensor(content: Content, chance: random.Random) -> None:
    tensor = chance.choice(content.tensors)
    content.tensors.append(Tensor(tensor.name, tensor.shape, tensor.type, tensor.data))
    rename_tensor(Content({}, content.tensors[-1:]), chance)


def drop_tensor(content: Content, chance: random.Random) -> None:
    if len(content.tensors) > 1:
        content.tensors.pop(chance.randrange(len(content.tensors)))


def change_data(content: Content, chance: random.Random) -> None:
    tensor = chance.choice(content.tensors)
    tensor.data = chance.choice(
        (bytes(len(tensor.data)), b"\xff" * len(tensor.data), chance.randbytes(len(tensor.data)))
    )


def change_alignment(content: Content, chance: random.Random) -> None:
    content.alignment = chance.choice((1, 2, 4, 8, 16, 32, 64, 4096))
    content.values["general.alignment"] = struct.pack("<II", 4, content.alignment)


CHANGES: tuple[Callable[[Content, random.Random], None], ...] = (
    change_value, change_value, retype_value, drop_value, add_value, add_value, change_model, change_token,
    change_token_types, retype_tensor, retype_tensor, reshape_tensor, rename_tensor, add_tensor, drop_tensor,
    change_data, change_alignment,
)  # fmt: skip


def mutant(seed: Content, architectures: tuple[str, ...], chance: random.Random) -> bytes:
    """A damaged copy of a file, as bytes; ``seed`` stays as it is."""
    content = replace(seed, values=dict(seed.values), tensors=[replace(tensor) for tensor in seed.tensors])
    for _ in range(chance.randint(1, 3)):
        if not content.tensors or not content.values:
            break
        if chance.random() < 0.1:
            change_architecture(content, chance, architectures)
        else:
            chance.choice(CHANGES)(content, chance)
    data = bytearray(build(content))
    if chance.random() < 0.15:
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    if chance.random() < 0.03:
        del data[chance.randrange(len(data)) :]
    return bytes(data)
