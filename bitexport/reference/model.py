"""A checkpoint run by transformers' own classes and BitNet layers, in float32, without compilation.

Nothing is fetched and no code of the checkpoint is run: local files, safetensors only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import nn
from transformers.utils import logging as transformers_logging

from bitexport.errors import CheckpointError, TokenizerError, UsageError
from bitexport.families import family_of
from bitexport.gguf.embeddings import OUTPUT_HEAD

#: Parameters below which threads cost more than they bring: on a busy machine each layer would wait for them.
_SMALL = 20_000_000


class Reference:
    """A causal language model in float32 on the CPU, as :func:`load_reference` returns it.

    Attributes:
        path: the checkpoint's folder.
        model: the transformers model, in evaluation mode.
        tokenizer: the transformers tokenizer.
        n_vocab: V, the number of logits.
        n_ctx: positions that the model was made for.
        n_layer: how many blocks.
    """

    def __init__(self, path: Path, model: Any, tokenizer: Any) -> None:
        self.path = path
        self.model = model
        self.tokenizer = tokenizer
        self.n_vocab = int(model.config.vocab_size)
        self.n_ctx = int(model.config.max_position_embeddings)
        self.n_layer = int(model.config.num_hidden_layers)
        self._cache: Any = None
        self._threads = 1 if model.num_parameters() < _SMALL else torch.get_num_threads()

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
        family = family_of(self.model.config.to_dict())
        found = {
            target: module
            for name, module in self.model.named_modules()
            if (target := family.gguf_name(f"{name}.weight")) is not None
        }
        found.setdefault(OUTPUT_HEAD, self.model.get_output_embeddings())
        return found

    def column_orders(self) -> dict[str, npt.NDArray[np.intp]]:
        """For GGUF weights whose rows the file holds in another order: ``file[i] = checkpoint[order[i]]``."""
        config = self.model.config.to_dict()
        family = family_of(config)
        numbers = family.hyperparameters(config)
        return {
            claim.target: order
            for claim in family.claims(numbers)
            if (order := family.row_order(claim, numbers)) is not None
        }

    def _run(self, ids: Sequence[int], **options: Any) -> Any:
        if not ids:
            raise UsageError("there are no tokens to run; give a text that is not empty")
        options.setdefault("use_cache", False)
        with torch.inference_mode(), eager(), _threads(self._threads):
            return self.model(input_ids=torch.tensor([list(ids)]), **options)


@contextmanager
def _threads(count: int) -> Iterator[None]:
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
        TokenizerError: it has no tokenizer that transformers can load.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no config.json; give the folder of a checkpoint")
    with _quiet(), eager():
        model = _load_model(folder)
        tokenizer = _load_tokenizer(folder)
    # Whatever dtype is asked for, transformers leaves what a pre-quantized checkpoint stores as bfloat16 as
    # it is; and its own float() refuses quantized models, though packed weights stay uint8.
    nn.Module.float(model)
    return Reference(folder, model.eval(), tokenizer)


def _load_model(folder: Path) -> Any:
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise CheckpointError(
            f"{folder}: transformers {transformers.__version__} cannot load it: {_first_line(error)}; "
            "see `bitexport inspect` on that folder"
        ) from error
    for kind, found in info.items():
        if kind in ("missing_keys", "mismatched_keys", "unexpected_keys") and found:
            what = kind.replace("_keys", "")
            raise CheckpointError(
                f"{folder}: {len(found)} tensors are {what} for transformers' {type(model).__name__}, "
                f"'{min(map(str, found))}' among them; expected exactly its own: save the checkpoint again"
            )
    return model


def _load_tokenizer(folder: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise TokenizerError(
            f"{folder}: transformers cannot load its tokenizer: {_first_line(error)}; "
            "put the model's tokenizer.json there"
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
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
