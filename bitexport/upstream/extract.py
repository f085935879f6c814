"""The program that runs one of llama.cpp's converters and writes its :class:`~.recipe.Recipe`.

``python -m bitexport.upstream.extract CHECKPOINT FOLDER``, started by :mod:`.run` in a process of its own,
with llama.cpp's packages first on the path: the converters import PyTorch and transformers, and a ``gguf``
that is newer than ours.

The converter believes that it writes an ordinary float16 file. Its tensors are lazy, as llama.cpp's own are:
what it does with them is recorded and evaluated later. Here a recorded tensor is evaluated twice: with every
weight replaced by the numbers of its rows, which says which rows it consists of; and by the numbers of its
columns, which must come out unchanged, so that nothing was calculated with the values and no row was torn
apart. Only a tensor that does not consist of rows, and one that llama.cpp always stores as float32, is
evaluated with its real values.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np

from bitexport.checkpoint import Checkpoint, open_checkpoint
from bitexport.checkpoint.adapter import merge_adapter
from bitexport.checkpoint.packings import keeps_float
from bitexport.errors import BitexportError, UnsupportedError
from bitexport.upstream.graph import evaluate, leaves_of, row_numbers
from bitexport.upstream.recipe import ARRAYS, DESCRIPTION, ERROR, GIVEN, LAYER, METADATA, as_runs
from bitexport.upstream.sources import SourceTensor, real_values, source_tensors

#: The pre-tokenizer's name if llama.cpp's converter does not know it.
UNKNOWN_PRE = "unknown"

#: Notes that say nothing about a checkpoint: on RoPE's ordinary kind, on pairs of texts, on a default that
#: a class replaces, and on a model that transformers does not know.
EXPECTED_NOTES = (
    "Unknown RoPE type: default",
    "Unknown separator token",
    "Duplicated key name",
    "Failed to load model config",
    "Trying to load config.json instead",
)

#: The keys of config.json that name an activation, and names that ggml's functions do not distinguish.
ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function")
SAME_ACTIVATIONS = ({"silu", "swish"}, {"gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python"})


class Extraction:
    """One run of a converter."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        # importing conversion imports PyTorch and transformers
        import torch
        from conversion import base

        self.torch = torch
        self.base = base
        self.checkpoint = checkpoint
        self.sources = source_tensors(checkpoint)
        #: why the converter could not convert the tokenizer
        self.no_vocabulary: str | None = None
        #: the tensors whose values the converter asked for, to write them as metadata, for example
        self.asked: set[str] = set()
        #: the tensors that the converter does not even look at
        self.filtered: list[str] = []
        #: the weights that are quantized if they are master weights: those of linear layers
        self.linear: set[str] = set()
        self.bias_of = {
            name: weight
            for name in self.sources
            if name.endswith(".bias") and (weight := name.removesuffix("bias") + "weight") in self.sources
        }

    def real(self, source: SourceTensor) -> Any:
        """The values of a tensor, as float32."""
        quantized = source.name in self.linear and not keeps_float(self.checkpoint, source.name)
        values = real_values(self.checkpoint, source, quantized=quantized, bias_of=self.bias_of)
        return self.torch.from_numpy(np.array(values, dtype=np.float32))

    def converter(self) -> tuple[Any, dict[str, Any]]:
        """The class that converts the checkpoint, and its config.json as that class reads it."""
        base = self.base
        hparams = base.ModelBase.load_hparams(self.checkpoint.path, False)
        for part in (hparams, hparams.get("text_config")):
            if isinstance(part, dict):
                # our packings read the weights
                part.pop("quantization_config", None)
        if hparams.get("is_encoder_decoder"):
            raise UnsupportedError(
                "the model has an encoder and a decoder, and bitexport converts decoders only; convert it "
                "with llama.cpp's own converter"
            )
        from conversion import get_model_class

        chosen = get_model_class(base.get_model_architecture(hparams, base.ModelType.TEXT))
        _check_activation(hparams, chosen)
        return chosen, hparams

    @contextlib.contextmanager
    def patched(self, chosen: Any, hparams: dict[str, Any]) -> Iterator[None]:
        """Let a converter see our tensors, never run remote code, never quantize, and survive a tokenizer."""

        def asked(source: SourceTensor) -> Any:
            self.asked.add(source.name)
            return self.real(source)

        def to_eager(cls: Any, value: Any) -> Any:  # noqa: ARG001
            return evaluate(value, asked)

        with contextlib.ExitStack() as stack:
            for owner, name, value in (
                (self.base.ModelBase, "index_tensors", self._index_tensors),
                (chosen, "no_mtp", self._no_mtp(chosen, hparams)),
                (chosen, "set_vocab", self._set_vocab(chosen.set_vocab)),
                (gguf.LazyBase, "to_eager", classmethod(to_eager)),
                (gguf.quants, "quantize", lambda data, kind: data),  # noqa: ARG005
                *_tokenizer_patches(self.base),
            ):
                stack.callback(setattr, owner, name, vars(owner).get(name, getattr(owner, name)))
                setattr(owner, name, value)
            yield

    def _no_mtp(self, chosen: Any, hparams: dict[str, Any]) -> bool:
        """Whether the layers that predict further tokens are absent, which transformers does not save."""
        if not chosen.supports_mtp_export:
            return bool(chosen.no_mtp)
        settings = {**hparams, **(hparams.get("text_config") or {})}
        count = settings.get("num_hidden_layers", 0)
        layers = (LAYER.search(name) for name in self.sources)
        beyond = any(layer is not None and int(layer[1]) >= count for layer in layers)
        return not beyond and not any("mtp." in name for name in self.sources)

    @property
    def _index_tensors(self) -> Callable[..., dict[str, Any]]:
        extraction = self

        def index_tensors(model: Any, remote_hf_model_id: str | None = None) -> dict[str, Any]:  # noqa: ARG001
            found = {}
            for source in extraction.sources.values():
                meta = extraction.torch.empty(source.shape, dtype=extraction.torch.float32, device="meta")
                recorded = extraction.base.LazyTorchTensor(meta=meta, args=(source,), func=extraction.real)
                if kept := model.filter_tensors((source.name, lambda recorded=recorded: recorded)):
                    name, tensor = kept
                    found[name] = tensor
                else:
                    extraction.filtered.append(source.name)
            return found

        return index_tensors

    def _set_vocab(self, original: Any) -> Callable[[Any], None]:
        extraction = self

        def set_vocab(model: Any) -> None:
            before = [dict(part) for part in model.gguf_writer.kv_data]
            try:
                original(model)
            except Exception as error:
                model.gguf_writer.kv_data = before
                extraction.no_vocabulary = _failure(error)["message"]

        return set_vocab

    def run(self) -> tuple[dict[str, Any], dict[str, Any], bytes]:
        """The recipe: its description, arrays and metadata."""
        chosen, hparams = self.converter()
        with self.patched(chosen, hparams), self.torch.inference_mode():
            output = Path(os.devnull)
            model = chosen(self.checkpoint.path, gguf.LlamaFileType.MOSTLY_F16, output, hparams=hparams)
            model.prepare_tensors()
            model.prepare_metadata(vocab_only=False)
            infos = {name: info for part in model.gguf_writer.tensors for name, info in part.items()}
            used = {name: self._leaves(name, info.tensor) for name, info in infos.items()}
            self.linear = self._linear(infos, used)
            tensors: list[dict[str, Any]] = []
            arrays: dict[str, Any] = {}
            for number, (name, info) in enumerate(infos.items()):
                entry, found = self._tensor(name, info, used[name])
                tensors.append(entry)
                arrays |= {f"{number}.{part}": array for part, array in found.items()}
        taken = {name for leaves in used.values() for name in leaves}
        taken |= self.asked | set(self.filtered)
        left_out = [name for name in self.sources if name not in taken]
        described, data = _metadata(model.gguf_writer)
        described |= {
            "class_name": chosen.__name__,
            "no_vocabulary": self.no_vocabulary,
            "blocks": int(model.block_count),
            "tensors": tensors,
            "filtered": self.filtered,
            "left_out": left_out,
        }
        return described, arrays, data

    def _leaves(self, name: str, recorded: Any) -> dict[str, SourceTensor]:
        if isinstance(recorded, np.ndarray):
            return {}
        if not isinstance(recorded, gguf.LazyBase):
            raise UnsupportedError(f"llama.cpp writes '{name}' in a way that bitexport does not follow")
        return leaves_of(recorded)

    def _linear(self, infos: dict[str, Any], used: dict[str, dict[str, SourceTensor]]) -> set[str]:
        """The tensors that only become matrices in blocks."""
        found: dict[str, bool] = {}
        for name, leaves in used.items():
            matrix = _is_matrix(infos[name]) and name.startswith("blk.") and name.endswith(".weight")
            for source in leaves.values():
                found[source.name] = found.get(source.name, True) and matrix and len(source.shape) >= 2
        return {name for name, linear in found.items() if linear}

    def _tensor(
        self, name: str, info: Any, leaves: dict[str, SourceTensor]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a recipe says about one tensor, and its arrays."""
        matrix = _is_matrix(info)
        shape = [int(size) for size in info.tensor.shape]
        entry = {"name": name, "shape": shape, "matrix": matrix, "sources": list(leaves)}
        if matrix and leaves and (found := row_numbers(self.torch, info.tensor, leaves)):
            table, columns = found
            return entry, {"runs": as_runs(table), "columns": columns}
        values = info.tensor
        if isinstance(values, gguf.LazyBase):
            values = evaluate(values, self.real)
        return entry, {"values": np.ascontiguousarray(values, dtype=np.float32)}


def _is_matrix(info: Any) -> bool:
    return info.dtype == gguf.GGMLQuantizationType.F16 and len(info.tensor.shape) >= 2


class _Notes(logging.Handler):
    """Collects the warnings of a converter."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(record.getMessage().split())
        if message and message not in self.messages and not message.startswith(EXPECTED_NOTES):
            self.messages.append(message)


def _metadata(writer: Any) -> tuple[dict[str, Any], bytes]:
    """What a recipe says about the keys, and the bytes of their values."""
    keys = {key: value for part in writer.kv_data for key, value in part.items()}
    architecture = keys.pop("general.architecture").value
    positions, data = [], bytearray()
    for key, value in keys.items():
        begin = len(data)
        data += writer._pack_val(value.value, value.type, add_vtype=True, sub_type=value.sub_type)
        positions.append((key, begin, len(data)))
    strings = {key: value.value for key, value in keys.items() if isinstance(value.value, str)}
    types = keys["tokenizer.ggml.token_type"].value if "tokenizer.ggml.token_type" in keys else []
    described = {
        "architecture": architecture,
        "metadata": positions,
        "strings": strings,
        "tokens": len(keys["tokenizer.ggml.tokens"].value) if "tokenizer.ggml.tokens" in keys else 0,
        "padded": sum(kind == gguf.TokenType.UNUSED for kind in types),
        "unknown_pre": strings.get("tokenizer.ggml.pre") == UNKNOWN_PRE,
    }
    return described, bytes(data)


def _check_activation(hparams: dict[str, Any], chosen: Any) -> None:
    """llama.cpp's graphs compute the activation that the architecture is known for.

    Raises:
        UnsupportedError: config.json names another one, and the converter does not even look at it.
    """
    from transformers import AutoConfig

    settings = {**hparams, **(hparams.get("text_config") or {})}
    module = Path(inspect.getfile(chosen)).read_text(encoding="utf-8")
    try:
        usual = AutoConfig.for_model(str(settings.get("model_type"))).to_dict()
    except ValueError:
        usual = {"hidden_act": "silu"}
    usual = {**usual, **(usual.get("text_config") or {})}
    for key in ACTIVATION_KEYS:
        named, known = settings.get(key), usual.get(key)
        if None in (named, known) or key in module or _same_activation(str(named), str(known)):
            continue
        raise UnsupportedError(
            f"{key} {named!r} with {chosen.__name__}: llama.cpp's graph for this architecture computes "
            f"{known!r} only; request support in an issue"
        )


def _same_activation(first: str, second: str) -> bool:
    return any(first in names and second in names for names in ({first}, *SAME_ACTIVATIONS))


def _tokenizer_patches(base: Any) -> list[tuple[Any, str, Any]]:
    """What a converter does with tokenizers, made fit for any checkpoint: owner, attribute and value."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    recognise = base.TextModel.get_vocab_base_pre
    read_sentencepiece = base.TextModel._create_vocab_sentencepiece
    open_tokenizer = AutoTokenizer.from_pretrained

    def get_vocab_base_pre(model: Any, tokenizer: Any) -> str:
        level = base.logger.level
        base.logger.setLevel(logging.CRITICAL)  # thirteen lines of advice to its own developers
        try:
            return str(recognise(model, tokenizer))
        except NotImplementedError:
            return UNKNOWN_PRE
        finally:
            base.logger.setLevel(level)

    def create_vocab_sentencepiece(model: Any) -> Any:
        # before it imports sentencepiece, so that only those who have the file need the package
        if not (model.dir_model / "tokenizer.model").is_file():
            raise FileNotFoundError("tokenizer.model")
        return read_sentencepiece(model)

    def from_pretrained(folder: Any, *args: Any, **kwargs: Any) -> Any:
        # never code of the checkpoint; a tokenizer that asks for it is read from tokenizer.json alone
        kwargs["trust_remote_code"] = False
        try:
            return open_tokenizer(folder, *args, **kwargs)
        except Exception:
            if not (Path(folder) / "tokenizer.json").is_file():
                raise
            return PreTrainedTokenizerFast.from_pretrained(folder)

    return [
        (base.TextModel, "get_vocab_base_pre", get_vocab_base_pre),
        (base.TextModel, "_create_vocab_sentencepiece", create_vocab_sentencepiece),
        (AutoTokenizer, "from_pretrained", from_pretrained),
    ]


def _failure(error: BaseException) -> dict[str, str]:
    if isinstance(error, BitexportError):
        return {"class": type(error).__name__, "message": str(error)}
    if isinstance(error, ImportError):
        return {"class": "ImportError", "message": str(error.name or error)}
    text = " ".join(str(error).split())
    return {
        "class": "Refused",
        "message": f"{type(error).__name__}: {text}" if text else type(error).__name__,
    }


def _opened(path: Path, folder: Path) -> Checkpoint:
    """The checkpoint as it is converted: see :data:`~bitexport.upstream.recipe.GIVEN`."""
    checkpoint = open_checkpoint(path)
    if not (folder / GIVEN).is_file():
        return checkpoint
    given = json.loads((folder / GIVEN).read_text(encoding="utf-8"))
    checkpoint = replace(checkpoint, config=MappingProxyType(given["config"]))
    return merge_adapter(checkpoint, given["adapter"]) if given["adapter"] else checkpoint


def write_recipe(checkpoint: Path, folder: Path) -> None:
    """Write the recipe of a checkpoint into a folder, or why there is none."""
    notes = _Notes()
    logging.getLogger("hf-to-gguf").addHandler(notes)
    logging.getLogger("gguf").addHandler(notes)
    try:
        described, arrays, data = Extraction(_opened(checkpoint, folder)).run()
    except (Exception, SystemExit) as error:
        failure = _failure(error) | {"traceback": traceback.format_exc()}
        (folder / ERROR).write_text(json.dumps(failure), encoding="utf-8")
        return
    finally:
        logging.getLogger("hf-to-gguf").removeHandler(notes)
        logging.getLogger("gguf").removeHandler(notes)
    np.savez(folder / ARRAYS, **arrays)
    (folder / METADATA).write_bytes(data)
    (folder / DESCRIPTION).write_text(json.dumps({**described, "notes": notes.messages}), encoding="utf-8")


if __name__ == "__main__":
    write_recipe(Path(sys.argv[1]), Path(sys.argv[2]))
