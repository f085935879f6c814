"""What a student is trained for: next tokens, and what a teacher does at the same positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bitexport.errors import UsageError
from bitexport.train.config import TrainConfig
from bitexport.train.data.batches import Batch
from bitexport.train.objective import losses
from bitexport.train.objective.chunked import chunked_next_token, chunked_top_k, chunked_top_k_distillation
from bitexport.train.objective.projector import LogitProjector, check_vocabularies
from bitexport.train.objective.router import StudentAwareRouter
from bitexport.train.objective.schedules import term_weight

TERMS = ("logits", "relation", "feature", "attention", "contrastive")  # beside next_token


class Objective(nn.Module):
    """The loss of a stage. It holds what is trained beside the student: projector and router.

    Without a ``teacher`` it is the next-token loss only. UsageError: settings that do not fit the two models.
    """

    def __init__(self, config: TrainConfig, student: Any, teacher: Any | None) -> None:
        super().__init__()
        self.config, self.progress = config, 0.0
        self._teacher: list[Any] = [teacher]  # in a list it is no submodule: neither trained nor saved
        self.projector: LogitProjector | None = None
        self.router: StudentAwareRouter | None = None
        self.usage: torch.Tensor | None = None  # the router's, at the last line of the log
        if teacher is None:
            return
        teacher.eval().requires_grad_(False)
        mine, theirs = student.config, teacher.config
        if config.logits_weight:
            check_vocabularies(mine.vocab_size, theirs.vocab_size, projector=config.logit_projector)
        if config.logit_projector:
            self.projector = LogitProjector(mine.hidden_size, theirs.vocab_size, dtype=teacher.dtype)
        depths = mine.num_hidden_layers, theirs.num_hidden_layers
        widths = mine.hidden_size, theirs.hidden_size
        apart = f"hidden sizes of {widths[0]} (student) and {widths[1]} (teacher)" * (widths[0] != widths[1])
        top_k, features = config.logits_top_k, config.feature_weight
        for wrong, what in (
            (features and apart and not config.router, f"feature_weight with {apart}: set router"),
            (config.contrastive_weight and apart, f"contrastive_weight with {apart}: set it to 0"),
            (config.router and not features, "router without feature_weight: set that, too"),
            (config.logit_projector and not config.logits_weight, "logit_projector without logits_weight"),
            (top_k > theirs.vocab_size, f"logits_top_k = {top_k} of {theirs.vocab_size} tokens: set fewer"),
            (config.chunk_tokens and config.logits_weight and not top_k, "chunk_tokens needs logits_top_k"),
        ):
            if wrong:
                raise UsageError(f"config: {what}")
        if config.router:
            self.router = StudentAwareRouter(depths, widths, losses.feature_loss)
        layer = config.relation_layer if config.relation_layer >= 0 else depths[1] * 4 // 5
        if layer >= depths[1]:
            raise UsageError(f"config: relation_layer = {layer}; expected 0 to {depths[1] - 1}")
        self.teacher_layer = layer
        self.student_layer = min(depths[0] - 1, round(layer * depths[0] / depths[1]))
        if config.relation_weight:
            both = _projections(student, self.student_layer) + _projections(teacher, layer)
            widths_of_qkv = sorted({module.out_features for module in both})
            if any(width % config.relation_heads for width in widths_of_qkv):
                raise UsageError(
                    f"config: relation_heads = {config.relation_heads}; expected a divisor of the widths of "
                    f"queries, keys and values, {', '.join(map(str, widths_of_qkv))}"
                )

    def state(self) -> dict[str, torch.Tensor]:
        """Everything a resumed run needs, by name; the very tensors, not copies."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def forward(self, model: Any, inputs: Batch, student: Any) -> dict[str, torch.Tensor]:
        """The raw terms of one micro-batch that :meth:`weights` names, scalars.

        ``model`` is called: the student, wrapped as the trainer likes; ``student`` itself has the layers.
        ``inputs``: ``input_ids``, ``attention_mask``, ``labels``, each ``[B, T]``.
        """
        config, teacher, weights = self.config, self._teacher[0], self.weights()
        mask = inputs["attention_mask"]
        deep = any(name in weights for name in ("feature", "contrastive")) or self.projector is not None
        options: dict[str, Any] = {
            "input_ids": inputs["input_ids"],
            "attention_mask": mask,
            "output_hidden_states": deep or config.chunk_tokens > 0,
            "output_attentions": "attention" in weights,
            "use_cache": False,
            **({"logits_to_keep": 1} if config.chunk_tokens else {}),
        }
        with _captured(student, self.student_layer if "relation" in weights else None) as mine:
            out = model(**options)
        raw = {"next_token": self._next_token(out, inputs["labels"], student)}
        if len(weights) == 1:
            return raw
        with torch.no_grad(), _captured(teacher, self.teacher_layer) as theirs:
            wanted = teacher(**options)
        if "logits" in weights:
            raw["logits"] = self._logits(out, wanted, inputs["labels"], student)
        if "relation" in weights:
            how: dict[str, Any] = {"relation_heads": config.relation_heads, "form": config.relation_form}
            how["temperature"] = config.relation_temperature
            raw["relation"] = losses.relation_distillation(mine, theirs, mask, **how)
        if "feature" in weights:
            raw["feature"] = self._features(out.hidden_states, wanted.hidden_states, mask)
        if "attention" in weights:
            mapped = wanted.attentions[self.teacher_layer]
            raw["attention"] = losses.attention_loss(out.attentions[self.student_layer], mapped, mask)
        if "contrastive" in weights:
            a, b = (losses.masked_mean(each.hidden_states[-1], mask) for each in (out, wanted))
            raw["contrastive"] = losses.contrastive_loss(a, b)
        return raw

    def weights(self) -> dict[str, float]:
        """What the terms that take part now are multiplied with; the evaluation knows next_token only."""
        if not self.training:
            return {"next_token": 1.0}
        names = ("next_token", *(TERMS if self._teacher[0] is not None else ()))
        weights = {name: float(getattr(self.config, f"{name}_weight")) for name in names}
        if self.config.curriculum:
            weights = {name: weight * term_weight(name, self.progress) for name, weight in weights.items()}
        # The language-model loss is always among them, so that every log shows it.
        return {name: weight for name, weight in weights.items() if weight or name == "next_token"}

    def _next_token(self, out: Any, labels: torch.Tensor, student: Any) -> torch.Tensor:
        if not self.config.chunk_tokens:
            return losses.next_token(out.logits, labels)
        head = student.get_output_embeddings().weight
        return chunked_next_token(out.hidden_states[-1], head, labels, self.config.chunk_tokens)

    def _logits(self, out: Any, wanted: Any, labels: torch.Tensor, student: Any) -> torch.Tensor:
        config = self.config
        tau: dict[str, Any] = {"tau": config.logits_temperature, "tau_squared": config.logits_tau_squared}
        if config.chunk_tokens:
            mine, theirs = (each.get_output_embeddings().weight for each in (student, self._teacher[0]))
            mine = mine if self.projector is None else self.projector.master
            size = config.chunk_tokens
            best = chunked_top_k(wanted.hidden_states[-1], theirs, config.logits_top_k, size)
            return chunked_top_k_distillation(out.hidden_states[-1], mine, *best, labels, size, **tau)
        logits = out.logits if self.projector is None else self.projector(out.hidden_states[-1])
        if config.logits_top_k:
            values, indices = wanted.logits.topk(config.logits_top_k, dim=-1)
            return losses.top_k_logits_distillation(logits, values, indices, labels, **tau)
        return losses.logits_distillation(logits, wanted.logits, labels, **tau)

    def _features(self, mine: Any, theirs: Any, mask: torch.Tensor) -> torch.Tensor:
        """Hidden states after each layer: against the router's mixture, or against the layer as far up."""
        mine, theirs = mine[1:], theirs[1:]  # the first is the embedding
        if self.router is not None:
            return torch.as_tensor(self.router(mine, theirs, mask))
        above = [round((i + 1) * len(theirs) / len(mine)) - 1 for i in range(len(mine))]
        values = [losses.feature_loss(mine[i], theirs[j], mask) for i, j in enumerate(above)]
        return torch.stack(values).mean()


def _projections(model: Any, layer: int) -> list[Any]:
    attention = model.model.layers[layer].self_attn
    return [attention.q_proj, attention.k_proj, attention.v_proj]


@contextmanager
def _captured(model: Any, layer: int | None) -> Iterator[list[torch.Tensor]]:
    """What q_proj, k_proj and v_proj of ``layer`` put out while the block lasts, each ``[B, T, width]``."""
    found: list[torch.Tensor] = []
    modules = [] if layer is None else _projections(model, layer)
    handles = [module.register_forward_hook(lambda *call: found.append(call[-1])) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
