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

import inspect
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from bitexport.checkpoint import Checkpoint, open_checkpoint
from bitexport.checkpoint.packings import keeps_float
from bitexport.errors import BitexportError, UnsupportedError
from bitexport.upstream.graph import evaluate, leaves_of, row_numbers
from bitexport.upstream.recipe import ARRAYS, DESCRIPTION, METADATA, as_runs
from bitexport.upstream.sources import SourceTensor, real_values, source_tensors

#: The file that says why there is no recipe.
ERROR = "error.json"

#: The pre-tokenizer's name if llama.cpp's converter does not know it.
UNKNOWN_PRE = "unknown"

#: Notes that say nothing about a checkpoint: on RoPE's ordinary kind, and on pairs of texts.
EXPECTED_NOTES = ("Unknown RoPE type: default", "Unknown separator token")

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
        self.unknown_pre = False
        #: why the converter could not convert the tokenizer
        self.no_vocabulary: str | None = None
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

    def model(self) -> Any:
        """The converter's object, with this checkpoint's tensors as recorded ones."""
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
        architecture = base.get_model_architecture(hparams, base.ModelType.TEXT)
        from conversion import get_model_class

        chosen = get_model_class(architecture)
        _check_activation(hparams, chosen)
        self._patch(chosen)
        output = Path(os.devnull)
        return chosen(self.checkpoint.path, gguf.LlamaFileType.MOSTLY_F16, output, hparams=hparams)

    def _patch(self, chosen: Any) -> None:
        """Let the converter see our tensors, never remote code, and never quantize."""
        base, torch, extraction = self.base, self.torch, self

        def index_tensors(model: Any, remote_hf_model_id: str | None = None) -> dict[str, Any]:  # noqa: ARG001
            found = {}
            for source in extraction.sources.values():
                meta = torch.empty(source.shape, dtype=torch.float32, device="meta")
                recorded = base.LazyTorchTensor(meta=meta, args=(source,), func=extraction.real)
                if kept := model.filter_tensors((source.name, lambda recorded=recorded: recorded)):
                    name, tensor = kept
                    found[name] = tensor
                else:
                    extraction.filtered.append(source.name)
            return found

        def to_eager(cls: Any, value: Any) -> Any:  # noqa: ARG001
            return evaluate(value, extraction.real)

        recognise = base.TextModel.get_vocab_base_pre

        def get_vocab_base_pre(model: Any, tokenizer: Any) -> str:
            logger = base.logger
            level = logger.level
            logger.setLevel(logging.CRITICAL)  # thirteen lines of advice to its own developers
            try:
                return str(recognise(model, tokenizer))
            except NotImplementedError:
                extraction.unknown_pre = True
                return UNKNOWN_PRE
            finally:
                logger.setLevel(level)

        read_sentencepiece = base.TextModel._create_vocab_sentencepiece

        def create_vocab_sentencepiece(model: Any) -> Any:
            # before it imports sentencepiece, so that only those who have the file need the package
            if not (model.dir_model / "tokenizer.model").is_file():
                raise FileNotFoundError("tokenizer.model")
            return read_sentencepiece(model)

        convert_vocabulary = chosen.set_vocab

        def set_vocab(model: Any) -> None:
            before = [dict(part) for part in model.gguf_writer.kv_data]
            try:
                convert_vocabulary(model)
            except Exception as error:
                model.gguf_writer.kv_data = before
                extraction.no_vocabulary = _failure(error)["message"]

        chosen.index_tensors = index_tensors
        chosen.set_vocab = set_vocab
        gguf.LazyBase.to_eager = classmethod(to_eager)
        gguf.quants.quantize = lambda data, kind: data  # noqa: ARG005
        base.TextModel.get_vocab_base_pre = get_vocab_base_pre
        base.TextModel._create_vocab_sentencepiece = create_vocab_sentencepiece
        _forbid_remote_code()

    def run(self) -> tuple[dict[str, Any], dict[str, Any], bytes]:
        """The recipe: its description, arrays and metadata."""
        notes = _Notes()
        for name in ("hf-to-gguf", "gguf", "gguf.vocab", "gguf.gguf_writer"):
            logging.getLogger(name).addHandler(notes)
        model = self.model()
        with self.torch.inference_mode():
            model.prepare_tensors()
            model.prepare_metadata(vocab_only=False)
            infos = {name: info for part in model.gguf_writer.tensors for name, info in part.items()}
            used = {name: self._leaves(name, info.tensor) for name, info in infos.items()}
            self.linear = self._linear(infos, used)
            tensors, arrays = [], {}
            for number, (name, info) in enumerate(infos.items()):
                entry, arrays[str(number)] = self._tensor(name, info, used[name])
                tensors.append(entry)
        taken = {name for leaves in used.values() for name in leaves}
        positions, data, strings = _metadata(model.gguf_writer)
        tokens = model.gguf_writer.kv_data[0].get("tokenizer.ggml.tokens")
        types = model.gguf_writer.kv_data[0].get("tokenizer.ggml.token_type")
        described = {
            "architecture": model.gguf_writer.arch,
            "class_name": type(model).__name__,
            "metadata": positions,
            "strings": strings,
            "tokens": len(tokens.value) if tokens else 0,
            "padded": sum(kind == gguf.TokenType.UNUSED for kind in types.value) if types else 0,
            "unknown_pre": self.unknown_pre,
            "no_vocabulary": self.no_vocabulary,
            "blocks": int(getattr(model, "block_count", 0)),
            "filtered": self.filtered,
            "tensors": tensors,
            "left_out": [name for name in self.sources if name not in taken and name not in self.filtered],
            "notes": notes.messages,
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

    def _tensor(self, name: str, info: Any, leaves: dict[str, SourceTensor]) -> tuple[dict[str, Any], Any]:
        matrix = _is_matrix(info)
        table = row_numbers(self.torch, info.tensor, leaves) if matrix and leaves else None
        shape = [int(size) for size in info.tensor.shape]
        entry = {"name": name, "shape": shape, "matrix": matrix, "sources": list(leaves)}
        if table is not None:
            return {**entry, "kind": "rows"}, as_runs(table)
        values = info.tensor
        if isinstance(values, gguf.LazyBase):
            values = evaluate(values, self.real)
        return {**entry, "kind": "values"}, np.ascontiguousarray(values, dtype=np.float32)


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


def _metadata(writer: Any) -> tuple[list[tuple[str, int, int]], bytes, dict[str, str]]:
    """The keys with the positions of their bytes, these bytes, and the values that are strings."""
    positions, data, strings = [], bytearray(), {}
    for part in writer.kv_data:
        for key, value in part.items():
            if key == "general.architecture":
                continue
            begin = len(data)
            data += writer._pack_val(value.value, value.type, add_vtype=True, sub_type=value.sub_type)
            positions.append((key, begin, len(data)))
            if isinstance(value.value, str):
                strings[key] = value.value
    return positions, bytes(data), strings


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


def _forbid_remote_code() -> None:
    """Never run code of the checkpoint; a tokenizer that asks for it is read from tokenizer.json alone."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    original = AutoTokenizer.from_pretrained

    def from_pretrained(folder: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["trust_remote_code"] = False
        try:
            return original(folder, *args, **kwargs)
        except Exception:
            if not (Path(folder) / "tokenizer.json").is_file():
                raise
            return PreTrainedTokenizerFast.from_pretrained(folder)

    AutoTokenizer.from_pretrained = from_pretrained


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


def main() -> int:
    """Write the recipe, or why there is none."""
    checkpoint, folder = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        described, arrays, data = Extraction(open_checkpoint(checkpoint)).run()
    except (Exception, SystemExit) as error:
        if os.environ.get("BITEXPORT_DEBUG"):
            raise
        (folder / ERROR).write_text(json.dumps(_failure(error)), encoding="utf-8")
        return 1
    np.savez(folder / ARRAYS, **arrays)
    (folder / METADATA).write_bytes(data)
    (folder / DESCRIPTION).write_text(json.dumps(described), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
