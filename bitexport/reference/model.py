"""Runs a checkpoint with transformers' own classes and BitNet layers, in float32, without compilation.

Nothing is downloaded and no code from the checkpoint is run: only local files are read, safetensors or, with
``torch.load(weights_only=True)``, PyTorch's own format.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import nn
from transformers.utils import logging as transformers_logging

from bitexport.checkpoint import open_checkpoint
from bitexport.checkpoint.folders import check_files
from bitexport.checkpoint.packings import packing_of
from bitexport.checkpoint.shards import read_json
from bitexport.errors import TokenizerError, UsageError
from bitexport.families import Family
from bitexport.gguf.names import OUTPUT_HEAD
from bitexport.reference.any_architecture import Names
from bitexport.reference.orders import input_orders, row_orders
from bitexport.reference.ternary_layers import TernaryExperts, TernaryLinear
from bitexport.tokenizer.trial import check_tokenizer_json

#: Below this number of parameters one thread is used: on a busy machine each layer would wait for the others.
SMALL = 20_000_000

#: The activations that ggml reads from a table of float16 values: the approximations of GELU by tanh.
FLOAT16_ACTIVATIONS = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")

#: The context in tokens of a model without a limit.
UNLIMITED_CONTEXT = 1 << 20


class Reference:
    """A causal language model in float32 on the CPU.

    Attributes:
        path: the checkpoint's folder.
        model: the transformers model, in evaluation mode.
        family: the checkpoint's family; None if it has none, see :mod:`bitexport.reference.any_architecture`.
        tokenizer: the transformers tokenizer.
        n_vocab: V, the number of logits.
        n_ctx: the model's context length in tokens.
        n_layer: number of blocks.
    """

    def __init__(self, path: Path, model: Any, family: Family | None, tokenizer: Any, names: Names) -> None:
        self.path = path
        self.model = model
        self.family = family
        self.tokenizer = tokenizer
        config = model.config.get_text_config()
        self.n_vocab = int(config.vocab_size)
        # state-space models have no limit
        self.n_ctx = int(getattr(config, "max_position_embeddings", None) or UNLIMITED_CONTEXT)
        self.n_layer = int(config.num_hidden_layers)
        self._names = names
        self._cache: Any = None
        self._threads = 1 if model.num_parameters() < SMALL else torch.get_num_threads()

    def tokenize(self, text: str) -> list[int]:
        """Token ids of ``text``, with the special tokens that the tokenizer adds around it."""
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def text(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; special tokens appear by name."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits after every position of ``ids``.

        Args:
            ids: T token ids.

        Returns:
            float32, shape ``[T, V]``.

        Raises:
            UsageError: T is 0.
        """
        return self.run(ids).logits[0].numpy()  # type: ignore[no-any-return]

    def clear(self) -> None:
        """Empty the key-value cache that :meth:`feed` fills."""
        self._cache = None

    def feed(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Continue with ``ids`` and return the logits after the last of them, float32 ``[V]``."""
        output = self.run(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        return output.logits[0, -1].numpy()  # type: ignore[no-any-return]

    def ternary_layers(self) -> dict[str, nn.Module]:
        """The layers that run ternary, by the GGUF name of their weight."""
        from transformers.integrations.bitnet import AutoBitLinear, BitLinear

        found: dict[str, nn.Module] = {
            name: module
            for name, module in self.modules().items()
            if isinstance(module, (AutoBitLinear, BitLinear, TernaryLinear))
        }
        for module in self.model.modules():
            if isinstance(module, TernaryExperts):
                found.update({name: module for name in module.names.values() if name})
        return found

    def modules(self) -> dict[str, nn.Module]:
        """All modules with a weight, by its GGUF name; the head is ``output.weight`` even if tied."""
        found = {
            target: module
            for name, module in self.model.named_modules()
            # connect_norms moved the rms_norm of a quantized layer
            if (target := self._names(f"{name}.weight".replace(".norm_in.", ".rms_norm.")))
        }
        found.setdefault(OUTPUT_HEAD, self.model.get_output_embeddings())
        return found

    def unpacked(self, name: str) -> torch.Tensor | None:
        """A ternary weight as our packings read it, float32 ``[out, in]``, by its GGUF name."""
        source = None if self.family is None else self.family.source_name(name)
        if source is None:
            return None  # without a family, that is what the layer has
        checkpoint = open_checkpoint(self.path)
        return torch.from_numpy(packing_of(checkpoint).unpack(checkpoint, source).dequantize())

    def column_orders(self, path: str | os.PathLike[str]) -> dict[str, npt.NDArray[np.intp]]:
        """For GGUF weights whose rows are permuted in a file: ``file[i] = checkpoint[order[i]]``.

        The family says which they are; without one, the file at ``path`` does.
        """
        if self.family is None:
            return row_orders(self.modules(), path, self.model.config.get_text_config())
        numbers = self.family.hyperparameters(self.model.config.to_dict())
        return {
            claim.target: order
            for claim in self.family.claims(numbers)
            if (order := self.family.row_order(claim, numbers)) is not None
        }

    def after_gelu(self) -> frozenset[str]:
        """The ternary weights that multiply the result of GELU, which ggml looks up in a float16 table."""
        config = self.model.config.get_text_config()
        activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
        if activation not in FLOAT16_ACTIVATIONS:
            return frozenset()
        return frozenset(name for name in self.ternary_layers() if ".ffn_down" in name)

    def mark_layouts(self) -> None:
        """Find the norms on queries and keys that run after heads and tokens have been transposed.

        :mod:`bitexport.reference.visit` needs to know them. A family says which they are.
        """
        if self.family is not None:
            return
        tokens = int(getattr(self.model.config.get_text_config(), "num_attention_heads", 0)) + 1

        def mark(module: nn.Module, _inputs: object, output: Any) -> None:
            module.heads_first = output.dim() == 4 and output.shape[1] != tokens

        norms = [module for name, module in self.modules().items() if re.search(r"attn_[qk]_norm", name)]
        handles = [norm.register_forward_hook(mark) for norm in norms]
        try:
            self.logits([0] * tokens)
        finally:
            for handle in handles:
                handle.remove()

    def input_orders(self, path: str | os.PathLike[str]) -> dict[str, npt.NDArray[np.intp]]:
        """For GGUF weights whose columns are permuted in a file, see :mod:`bitexport.reference.orders`."""
        if self.family is not None:
            return {}
        return input_orders(self.modules(), path, self.model.config.get_text_config())

    def threads(self) -> AbstractContextManager[None]:
        """Within the block, PyTorch uses one thread for a small model, otherwise its default."""
        return torch_threads(self._threads)

    def run(self, ids: Sequence[int], **options: Any) -> Any:
        """The model's output for ``ids``, with ``options`` of its forward method.

        Raises:
            UsageError: there are no ids.
        """
        if not ids:
            raise UsageError("there are no tokens to run; give a text that is not empty")
        options.setdefault("use_cache", False)
        with torch.inference_mode(), eager(), self.threads():
            return self.model(input_ids=torch.tensor([list(ids)]), **options)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within the block, PyTorch computes with ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def eager() -> Iterator[None]:
    """Within the block, transformers' ``@torch.compile`` functions run as plain Python.

    Compiling them would need minutes and a C++ compiler at run time, and reorders float operations.
    """
    with torch.compiler.set_stance("force_eager"):
        yield


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint folder, loaded by transformers.

    Raises:
        CheckpointError: tokenizer_config.json is damaged, or a file is not a regular file.
        TokenizerError: transformers cannot load it, or it would take all memory or time.
    """
    check_files(folder)
    check_tokenizer_json(folder)
    try:
        with quiet():
            # a class whose code is in the checkpoint is not run: tokenizer.json says everything
            chosen = transformers.AutoTokenizer
            if _has_remote_code(folder) and (folder / "tokenizer.json").is_file():
                chosen = transformers.PreTrainedTokenizerFast
            return chosen.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **_tokenizer_options(folder)
            )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise TokenizerError(
            f"{folder}: transformers cannot load its tokenizer: {first_line(error)}; "
            "put the model's tokenizer.json there"
        ) from error


def _has_remote_code(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    remote = read_json(path).get("auto_map") if path.is_file() else None
    return isinstance(remote, dict) and "AutoTokenizer" in remote


def _tokenizer_options(folder: Path) -> dict[str, Any]:
    """A configuration of Llama's, if config.json is of a type that transformers lacks and cannot parse."""
    file = folder / "config.json"
    kind = read_json(file).get("model_type") if file.is_file() else None
    return {"config": transformers.LlamaConfig()} if kind == "minicpm" else {}


def first_line(error: BaseException) -> str:
    """The first line of a library's error message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block, transformers' log, progress bars and warnings are off; callers check the result."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
