"""A float or ternary checkpoint in PyTorch, run in batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bitexport.checkpoint import open_checkpoint
from bitexport.evaluation.items import Item
from bitexport.evaluation.side import ModelRole
from bitexport.families import family_of, has_family
from bitexport.metrics.likelihood import PredictionScore
from bitexport.progress import Progress, ProgressEvent
from bitexport.reference.float_model import float_sizes, is_ternary, load_float
from bitexport.reference.model import SMALL, eager, load_tokenizer, torch_threads
from bitexport.reference.opening import load_reference

#: The most logits computed at once: 256 MiB of float32.
_MAX_LOGITS = 1 << 26
_MAX_ROWS = 64


class PythonSide:
    """See :class:`~bitexport.evaluation.side.Side`. Only the tokenizer is loaded before ``open``.

    Args:
        role: whether the checkpoint is the teacher or the student.
        path: its folder.
        threads: 0 means one for a small model, otherwise PyTorch's default.

    Raises:
        CheckpointError, TokenizerError, UnsupportedError: it cannot be run.
    """

    def __init__(self, role: ModelRole, path: str | Path, threads: int = 0) -> None:
        self.role = role
        self.name = f"{role}-python"
        self.path = str(path)
        self._threads = threads
        self._checkpoint = open_checkpoint(path)
        self.kind = "ternary" if is_ternary(self._checkpoint) else "float"
        self.n_vocab, self.n_ctx = self._sizes()
        self._tokenizer = load_tokenizer(self._checkpoint.path)
        self.end: int | None = self._tokenizer.eos_token_id
        self.ends = self._end_tokens()

    def encode(self, text: str, special: bool) -> list[int]:
        """Token ids."""
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, without special ones."""
        return str(
            self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    @contextmanager
    def open(self, longest: int) -> Iterator[PythonRunner]:
        """Load the model in float32; a ternary one as transformers quantizes it."""
        if self.kind == "float":
            model = load_float(self._checkpoint)
        else:
            model = load_reference(self._checkpoint.path).model
            with eager():
                _quantize_once(model)
        small = model.num_parameters() < SMALL
        threads = self._threads or (1 if small else torch.get_num_threads())
        with torch_threads(threads), torch.inference_mode(), eager():
            yield PythonRunner(model, longest)

    def close(self) -> None:
        """Nothing to do: the model is freed at the end of ``open``."""

    def _sizes(self) -> tuple[int, int]:
        """Sizes of the vocabulary and of the context, in tokens."""
        checkpoint = self._checkpoint
        if self.kind == "float" or not has_family(checkpoint.config):
            return float_sizes(checkpoint)
        family = family_of(checkpoint.config, checkpoint.tensors)
        numbers = family.hyperparameters(checkpoint.config, checkpoint.tensors)
        return numbers.vocab_size, numbers.context_length

    def _end_tokens(self) -> frozenset[int]:
        """From config.json, generation_config.json and the tokenizer."""
        file = self._checkpoint.path / "generation_config.json"
        settings = [self._checkpoint.config.get("eos_token_id"), self.end]
        with suppress(OSError, ValueError, AttributeError):  # it is optional
            settings.append(json.loads(file.read_text(encoding="utf-8")).get("eos_token_id"))
        flat = [token for each in settings for token in (each if isinstance(each, list) else [each])]
        return frozenset(token for token in flat if isinstance(token, int) and 0 <= token < self.n_vocab)


def _quantize_once(model: Any) -> None:
    """Quantize the master weights once instead of in every forward pass: the same numbers, faster."""
    from transformers.integrations.bitnet import AutoBitLinear, WeightQuant

    for module in model.modules():
        if isinstance(module, AutoBitLinear) and module.online_quant:
            module.weight.data = WeightQuant.apply(module.weight.data)
            module.online_quant = False
            module.weight_scale = torch.nn.Buffer(torch.ones(1))


class PythonRunner:
    """See :class:`~bitexport.evaluation.side.Runner`."""

    def __init__(self, model: Any, n_ctx: int) -> None:
        self._model = model
        self._n_ctx = n_ctx
        self._n_vocab = int(model.config.vocab_size)

    def score(self, items: Sequence[Item], progress: Progress) -> PredictionScore:
        """How well the counted tokens of all items are predicted."""
        score = PredictionScore()
        for done, batch in self._batches([item.ids for item in items]):
            progress(ProgressEvent(done, len(items), "items", "predicting"))
            ids = [items[index].ids for index in batch]
            # padded on the right, where causal attention never sees the padding
            logits = self._model(input_ids=_padded(ids), use_cache=False).logits
            for row, index in enumerate(batch):
                item = items[index]
                counted = logits[row, item.first - 1 : len(item.ids) - 1].numpy()
                score.add(counted, np.asarray(item.ids[item.first :]))
        return score

    def greedy(
        self, prompts: Sequence[Sequence[int]], ends: frozenset[int], max_tokens: int, progress: Progress
    ) -> list[list[int]]:
        """The most likely tokens after each prompt, one by one."""
        answers: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for begin in range(0, len(order), _MAX_ROWS):
            progress(ProgressEvent(begin, len(prompts), "pairs", "answering"))
            batch = order[begin : begin + _MAX_ROWS]
            limits = [min(max_tokens, self._n_ctx - len(prompts[index])) for index in batch]
            found = self._continue([prompts[index] for index in batch], ends, limits)
            for index, answer in zip(batch, found, strict=True):
                answers[index] = answer
        return answers

    def _continue(
        self, prompts: Sequence[Sequence[int]], ends: frozenset[int], limits: Sequence[int]
    ) -> list[list[int]]:
        """Continue a batch of prompts; they are padded on the left, and the padding is masked."""
        answers: list[list[int]] = [[] for _ in prompts]
        ids = _padded(prompts, left=True)
        mask = _padded([[1] * len(prompt) for prompt in prompts], left=True)
        running = list(range(len(prompts)))
        cache = None
        while running:
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            output = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            ids = output.logits[:, -1].argmax(dim=-1, keepdim=True)
            for row, index in enumerate(running):
                answers[index].append(int(ids[row]))
            unfinished = [
                row
                for row, index in enumerate(running)
                if answers[index][-1] not in ends and len(answers[index]) < limits[index]
            ]
            if len(unfinished) < len(running):
                rows = torch.tensor(unfinished, dtype=torch.int64)
                running = [running[row] for row in unfinished]
                ids, mask = ids[rows], mask[rows]
                cache.batch_select_indices(rows)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        return answers

    def embed(self, sequences: Sequence[Sequence[int]], progress: Progress) -> npt.NDArray[np.float32]:
        """The mean of each sequence's last hidden states, float32 ``[N, hidden]``."""
        found = np.empty((len(sequences), int(self._model.config.hidden_size)), dtype=np.float32)
        for done, batch in self._batches(sequences):
            progress(ProgressEvent(done, len(sequences), "prompts", "embedding"))
            ids = [sequences[index] for index in batch]
            states = self._model.base_model(input_ids=_padded(ids), use_cache=False).last_hidden_state
            for row, index in enumerate(batch):
                found[index] = states[row, : len(sequences[index])].mean(dim=0).numpy()
        return found

    def _batches(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[int]]]:
        """Batches of sequences of similar length, small enough for their logits: (number before, indices)."""
        order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
        done = 0
        while done < len(order):
            longest = len(sequences[order[done]])
            rows = max(1, min(_MAX_ROWS, _MAX_LOGITS // (longest * self._n_vocab)))
            yield done, order[done : done + rows]
            done += rows


def _padded(sequences: Sequence[Sequence[int]], left: bool = False) -> torch.Tensor:
    """Sequences as one int64 tensor ``[B, T]``, padded with zeros on the right, or on the left."""
    width = max(map(len, sequences))
    rows = torch.zeros(len(sequences), width, dtype=torch.int64)
    for row, ids in enumerate(sequences):
        begin = width - len(ids) if left else 0
        rows[row, begin : begin + len(ids)] = torch.tensor(ids)
    return rows
