"""A checkpoint run by transformers' own classes and BitNet layers, in float32, without compilation.

Nothing is fetched and no code of the checkpoint is run: local files, safetensors only.
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
from bitexport.reference.norms import connect_norms, mark_heads_first, with_sub_norms

#: Parameters below which threads cost more than they bring: on a busy machine each layer would wait for them.
SMALL = 20_000_000


class Reference:
    """A causal language model in float32 on the CPU, as :func:`load_reference` returns it.

    Attributes:
        path: the checkpoint's folder.
        model: the transformers model, in evaluation mode.
        family: what the checkpoint is.
        tokenizer: the transformers tokenizer.
        n_vocab: V, the number of logits.
        n_ctx: positions that the model was made for.
        n_layer: how many blocks.
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
        """Token ids of ``text``, with the special tokens that the tokenizer puts around it."""
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def text(self, ids: Sequence[int]) -> str:
        """The text of some tokens, special ones by name."""
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
        """Forget what :meth:`feed` was given."""
        self._cache = None

    def feed(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Continue with ``ids`` and return the logits after the last of them, float32 ``[V]``."""
        output = self._run(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        return output.logits[0, -1].numpy()  # type: ignore[no-any-return]

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The ``count`` most likely tokens after ``ids``, one by one; it does not stop at an end of text."""
        self.clear()
        continuation: list[int] = []
        following: Sequence[int] = ids
        for _ in range(count):
            following = [int(self.feed(following).argmax())]
            continuation += following
        return continuation

    def ternary_layers(self) -> dict[str, nn.Module]:
        """The layers that run as ternary ones, by the GGUF name of their weight."""
        from transformers.integrations.bitnet import AutoBitLinear, BitLinear

        return {
            name: module
            for name, module in self.modules().items()
            if isinstance(module, (AutoBitLinear, BitLinear))
        }

    def modules(self) -> dict[str, nn.Module]:
        """The modules that hold a weight, by the GGUF name of it; the head under its own, even when tied."""
        found = {
            target: module
            for name, module in self.model.named_modules()
            # connect_norms moved the rms_norm of a quantized layer
            if (target := self.family.gguf_name(f"{name}.weight".replace(".norm_in.", ".rms_norm.")))
        }
        found.setdefault(OUTPUT_HEAD, self.model.get_output_embeddings())
        return found

    def column_orders(self) -> dict[str, npt.NDArray[np.intp]]:
        """For GGUF weights whose rows the file holds in another order: ``file[i] = checkpoint[order[i]]``."""
        numbers = self.family.hyperparameters(self.model.config.to_dict())
        return {
            claim.target: order
            for claim in self.family.claims(numbers)
            if (order := self.family.row_order(claim, numbers)) is not None
        }

    def threads(self) -> AbstractContextManager[None]:
        """Within the block, PyTorch has as many threads as this model is worth."""
        return torch_threads(self._threads)

    def _run(self, ids: Sequence[int], **options: Any) -> Any:
        if not ids:
            raise UsageError("there are no tokens to run; give a text that is not empty")
        options.setdefault("use_cache", False)
        with torch.inference_mode(), eager(), self.threads():
            return self.model(input_ids=torch.tensor([list(ids)]), **options)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within the block, PyTorch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def eager() -> Iterator[None]:
    """Run transformers' ``@torch.compile`` functions as plain Python while the ``with`` block lasts.

    Compiling them would need a C++ compiler at run time and minutes, and reorders float operations.
    """
    with torch.compiler.set_stance("force_eager"):
        yield


def load_reference(path: str | os.PathLike[str]) -> Reference:
    """Load a checkpoint folder as transformers does: float32, eager attention, on the CPU.

    Raises:
        CheckpointError: transformers cannot load it, or would leave weights unset.
        UnsupportedError: no family covers it.
        TokenizerError: it has no tokenizer that transformers can load.
    """
    checkpoint = open_checkpoint(Path(path))
    family = family_of(checkpoint.config, checkpoint.tensors)
    with quiet(), eager():
        model = _load_model(checkpoint, family)
        tokenizer = load_tokenizer(checkpoint.path)
    # Whatever dtype is asked for, transformers leaves what a pre-quantized checkpoint stores as bfloat16 as
    # it is; and its own float() refuses quantized models, though packed weights stay uint8.
    nn.Module.float(model)
    connect_norms(model)
    if family.qk_norm_after_rope:
        mark_heads_first(model)
    _take_ternary_weights(model)
    return Reference(checkpoint.path, model.eval(), family, tokenizer)


def _load_model(checkpoint: Checkpoint, family: Family) -> Any:
    parts = family.parts(checkpoint.config, checkpoint.tensors)
    model_class = getattr(transformers, family.model_class)
    if Part.SUB_NORMS in parts and model_class is not transformers.BitNetForCausalLM:
        model_class = with_sub_norms(model_class)
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
    """The configuration for transformers, with what tensors or the family say and config.json does not."""
    config = getattr(transformers, family.model_class).config_class.from_pretrained(
        checkpoint.path, local_files_only=True
    )
    quantization = dict(quantization_config(checkpoint.config) or ONLINE)
    numbers = family.hyperparameters(checkpoint.config, checkpoint.tensors)
    if Part.INPUT_NORMS in numbers.parts:
        quantization |= {"use_rms_norm": True, "rms_norm_eps": numbers.input_norm_eps}
    config.quantization_config = quantization
    return config


def _key_mapping(checkpoint: Checkpoint) -> dict[str, str] | None:
    """The tensors that transformers has to rename, see :mod:`bitexport.checkpoint.spelling`; None if none."""
    renamed = {re.escape(info.name): name for name, info in checkpoint.tensors.items() if info.name != name}
    return renamed or None


def _take_ternary_weights(model: nn.Module) -> None:
    """Master weights that are ternary already are not quantized once more, as in the conversion."""
    from transformers.integrations.bitnet import AutoBitLinear

    for module in model.modules():
        if not (isinstance(module, AutoBitLinear) and module.online_quant):
            continue
        if only_magnitude(module.weight.detach().numpy()):
            module.online_quant = False
            module.weight_scale = nn.Buffer(torch.ones(1))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint folder as transformers loads it.

    Raises:
        TokenizerError: there is none that it can load.
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
    """What a library says went wrong, without what it adds to it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers' log, progress bars and warnings off: what matters in them is checked here."""
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
