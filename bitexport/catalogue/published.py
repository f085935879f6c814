"""A published model: its repository, its configuration, and what ``convert`` writes for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from bitexport.gguf.types import F32, TYPES, TensorType, smallest_exact


class Storage(Enum):
    """How a checkpoint stores its ternary weights; the values are the words of the table."""

    MASTER = "master weights, float"
    PACKED_MULTIPLY = "2 bits, times `weight_scale`"
    PACKED_DIVIDE = "2 bits, divided by `weight_scale`"
    FLOAT_ROWS = "ternary floats, a scale per block of rows"
    FLOAT_GROUPS = "ternary floats, a scale per 128 columns"
    MLX = "MLX, 2 bits, a scale per 128 columns"


#: How many neighbouring weights of a row share a scale; None if the tensor has one, 0 if a row has one.
GROUPS: Mapping[Storage, int | None] = {
    Storage.MASTER: None,
    Storage.PACKED_MULTIPLY: None,
    Storage.PACKED_DIVIDE: None,
    Storage.FLOAT_ROWS: 0,
    Storage.FLOAT_GROUPS: 128,
    Storage.MLX: 128,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedModel:
    """One row of the catalogue.

    Attributes:
        repository: its name on the Hugging Face hub.
        config: the entries of config.json that decide the conversion, as published.
        storage: how the linear layers are stored.
        tokenizer: the pre-tokenizer, as llama.cpp names it; ``spm`` for sentencepiece.
        graph: the GGUF architecture of the output.
        sub_norms: whether a norm stands in front of o_proj and down_proj.
        ternary_embeddings: whether the embeddings and the head are ternary, too.
    """

    repository: str
    config: Mapping[str, Any]
    storage: Storage
    tokenizer: str
    graph: str
    sub_norms: bool = False
    ternary_embeddings: bool = False

    @property
    def architecture(self) -> str:
        """The class that config.json names."""
        return str(self.config["architectures"][0])

    @property
    def folder(self) -> str:
        """The last part of the repository's name, in which ``hf download --local-dir`` puts it."""
        return self.repository.rsplit("/", 1)[-1]

    @property
    def layers(self) -> int:
        """The number of decoder layers."""
        return int(self.config["num_hidden_layers"])

    def linear_shapes(self) -> list[tuple[int, int]]:
        """The shapes ``[out, in]`` of the linear layers of one decoder layer: q, k, v, o, gate, up, down."""
        config = self.config
        hidden, ffn = int(config["hidden_size"]), int(config["intermediate_size"])
        heads = int(config["num_attention_heads"])
        head = int(config.get("head_dim") or hidden // heads)
        q, kv = heads * head, int(config["num_key_value_heads"]) * head
        return [
            (q, hidden),
            (kv, hidden),
            (kv, hidden),
            (hidden, q),
            (ffn, hidden),
            (ffn, hidden),
            (hidden, ffn),
        ]

    def types(self) -> list[TensorType]:
        """The types of the linear layers in the output of ``convert``, without repetitions."""
        return list(dict.fromkeys(self._type(shape) for shape in self.linear_shapes()))

    def output_bytes(self, embed_type: str = "q6_k") -> int:
        """The bytes of all tensors in the output of ``convert``, without the header.

        Norms of q and k, and those in front of single layers, are left out.
        """
        config = self.config
        hidden, ffn = int(config["hidden_size"]), int(config["intermediate_size"])
        linear = sum(self._type(shape).nbytes(shape) for shape in self.linear_shapes())
        q = self.linear_shapes()[3][1]
        norms = F32.nbytes((2 * hidden + (q + ffn if self.sub_norms else 0),))
        embedding = (int(config["vocab_size"]), hidden)
        kind = TYPES[embed_type] if TYPES[embed_type].fits(embedding) else TYPES["q8_0"]
        if self.ternary_embeddings:
            kind = self._type(embedding)
        matrices = 1 if config.get("tie_word_embeddings") else 2
        return self.layers * (linear + norms) + matrices * kind.nbytes(embedding) + F32.nbytes((hidden,))

    def _type(self, shape: tuple[int, int]) -> TensorType:
        group = GROUPS[self.storage]
        return smallest_exact(shape, shape[1] if group == 0 else group)
