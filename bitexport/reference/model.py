"""Runs a checkpoint with transformers' own classes and BitNet layers, in float32, without compilation.

Nothing is downloaded and no code from the checkpoint is run: local files, safetensors only.
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

from bitexport.checkpoint import Checkpoint, open_checkpoint
from bitexport.checkpoint.packings import ONLINE, quantization_config
from bitexport.checkpoint.packings.pre_dequantized import only_magnitude
from bitexport.errors import CheckpointError, TokenizerError, UsageError
from bitexport.families import Family, Part, family_of
from bitexport.gguf.names import OUTPUT_HEAD
from bitexport.reference.loading import check_tensors
from bitexport.reference.norms import connect_norms, mark_heads_first, with_sub_norms, without_sub_norms

#: Below this number of parameters one thread is used: on a busy machine each layer would wait for the others.
SMALL = 20_000_000


class Reference:
    """A causal language model in float32 on the CPU, as :func:`load_reference` returns it.

    Attributes:
        path: the checkpoint's folder.
        model: the transformers model, in evaluation mode.
        family: the checkpoint's family.
        tokenizer: the transformers tokenizer.
        n_vocab: V, the number of logits.
        n_ctx: the model's context length in tokens.
        n_layer: number of blocks.
    """

    def __init__(self, path: Path, model: Any, family: Family, tokenizer: Any) -> None:
        self.path = path
        self.model = model
        self.family = family
        self.tokenizer = tokenizer
        self.n_vocab = int(model.config.vocab_size)
        self.n_ctx = int(model.config.max_position_embeddings)
        self.n_layer = int(model.config.num_hidden_layers)
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
        return self._run(ids).logits[0].numpy()  # type: ignore[no-any-return]

    def clear(self) -> None:
        """Empty the key-value cache that :meth:`feed` fills."""
        self._cache = None

    def feed(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Continue with ``ids`` and return the logits after the last of them, float32 ``[V]``."""
        output = self._run(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        return output.logits[0, -1].numpy()  # type: ignore[no-any-return]

    def ternary_layers(self) -> dict[str, nn.Module]:
        """The layers that run ternary, by the GGUF name of their weight."""
        from transformers.integrations.bitnet import AutoBitLinear, BitLinear

        return {
            name: module
            for name, module in self.modules().items()
            if isinstance(module, (AutoBitLinear, BitLinear))
        }

    def modules(self) -> dict[str, nn.Module]:
        """All modules with a weight, by its GGUF name; the head is ``output.weight`` even if tied."""
        found = {
            target: module
            for name, module in self.model.named_modules()
            # connect_norms moved the rms_norm of a quantized layer
            if (target := self.family.gguf_name(f"{name}.weight".replace(".norm_in.", ".rms_norm.")))
        }
        found.setdefault(OUTPUT_HEAD, self.model.get_output_embeddings())
        return found

    def column_orders(self) -> dict[str, npt.NDArray[np.intp]]:
        """For GGUF weights whose rows are permuted in the file: ``file[i] = checkpoint[order[i]]``."""
        numbers = self.family.hyperparameters(self.model.config.to_dict())
        return {
            claim.target: order
            for claim in self.family.claims(numbers)
            if (order := self.family.row_order(claim, numbers)) is not None
        }

    def threads(self) -> AbstractContextManager[None]:
        """Within the block, PyTorch uses one thread for a small model, otherwise its default."""
        return torch_threads(self._threads)

    def _run(self, ids: Sequence[int], **options: Any) -> Any:
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


def load_reference(path: str | os.PathLike[str]) -> Reference:
    """Load a checkpoint folder as transformers does: float32, eager attention, on the CPU.

    Raises:
        CheckpointError: transformers cannot load it, or would leave weights uninitialized.
        UnsupportedError: no family covers it.
        TokenizerError: it has no tokenizer that transformers can load.
    """
    checkpoint = open_checkpoint(Path(path))
    family = family_of(checkpoint.config, checkpoint.tensors)
    with quiet(), eager():
        model = _load_model(checkpoint, family)
        tokenizer = load_tokenizer(checkpoint.path)
    # transformers keeps the bfloat16 tensors of a pre-quantized checkpoint whatever dtype is requested, and
    # its own float() rejects quantized models. nn.Module.float() leaves packed weights uint8.
    nn.Module.float(model)
    connect_norms(model)
    if family.qk_norm_after_rope or family.model_class == "Gemma3ForCausalLM":
        mark_heads_first(model)
    _keep_ternary_weights(model)
    return Reference(checkpoint.path, model.eval(), family, tokenizer)


def _load_model(checkpoint: Checkpoint, family: Family) -> Any:
    parts = family.parts(checkpoint.config, checkpoint.tensors)
    model_class = getattr(transformers, family.model_class)
    if Part.SUB_NORMS in parts and model_class is not transformers.BitNetForCausalLM:
        model_class = with_sub_norms(model_class)
    if Part.SUB_NORMS not in parts and model_class is transformers.BitNetForCausalLM:
        model_class = without_sub_norms(model_class)
    try:
        config = _model_config(checkpoint, family)
        model, info = model_class.from_pretrained(
            checkpoint.path,
            config=config,
            key_mapping=_key_mapping(checkpoint),
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: transformers {transformers.__version__} cannot load it: "
            f"{first_line(error)}; see `bitexport inspect` on that folder"
        ) from error
    check_tensors(checkpoint.path, model, info)
    return model


def _model_config(checkpoint: Checkpoint, family: Family) -> Any:
    """The configuration for transformers, completed from the tensors and the family."""
    config = getattr(transformers, family.model_class).config_class.from_pretrained(
        checkpoint.path, local_files_only=True
    )
    quantization = dict(quantization_config(checkpoint.config) or ONLINE)
    numbers = family.hyperparameters(checkpoint.config, checkpoint.tensors)
    if Part.INPUT_NORMS in numbers.parts:
        quantization |= {"use_rms_norm": True, "rms_norm_eps": numbers.input_norm_eps}
    config.quantization_config = quantization
    config.tie_word_embeddings = numbers.tied  # a model without a head has none to load
    return config


def _key_mapping(checkpoint: Checkpoint) -> dict[str, str] | None:
    """Patterns of the tensors to rename, see :mod:`bitexport.checkpoint.spelling`; None if there are none."""
    # anchored: "norm.weight", as a model without a head has it, is the end of many other names
    renamed = {
        f"^{re.escape(info.name)}$": name for name, info in checkpoint.tensors.items() if info.name != name
    }
    return renamed or None


def _keep_ternary_weights(model: nn.Module) -> None:
    """Turn off the quantization of master weights that are already ternary, as the conversion does."""
    from transformers.integrations.bitnet import AutoBitLinear

    for module in model.modules():
        if not (isinstance(module, AutoBitLinear) and module.online_quant):
            continue
        if only_magnitude(module.weight.detach().numpy()):
            module.online_quant = False
            module.weight_scale = nn.Buffer(torch.ones(1))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint folder, loaded by transformers.

    Raises:
        TokenizerError: transformers cannot load it.
    """
    try:
        with quiet():
            return transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise TokenizerError(
            f"{folder}: transformers cannot load its tokenizer: {first_line(error)}; "
            "put the model's tokenizer.json there"
        ) from error


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
