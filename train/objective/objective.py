"""The loss of a stage: next tokens, masked tokens of blocks, and agreement with a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bitexport.train.attention import attention_options
from bitexport.train.batch import Batch
from bitexport.train.config import TrainConfig
from bitexport.train.objective import losses
from bitexport.train.objective.checks import (
    check_relation_heads,
    check_relation_layer,
    check_settings,
    shared_vocabulary,
)
from bitexport.train.objective.chunked import chunked_next_token, chunked_top_k, chunked_top_k_distillation
from bitexport.train.objective.diffusion import noise_of
from bitexport.train.objective.projector import LogitProjector
from bitexport.train.objective.router import StudentAwareRouter
from bitexport.train.objective.schedules import curriculum_factor

#: The terms that need a teacher; next_token does not.
TEACHER_TERMS = ("logits", "relation", "feature", "attention", "contrastive")

#: Per term, what it is a mean over: one of :data:`bitexport.train.batch.UNITS`.
UNIT_OF_TERM = {
    "next_token": "targets",
    "logits": "targets",
    "relation": "tokens",
    "feature": "tokens",
    "attention": "tokens",
    "contrastive": "examples",
    "diffusion": "masked",
}


def needs_teacher(config: TrainConfig) -> bool:
    """Whether any term with a weight compares the student with a teacher."""
    return any(_configured_weight(config, term) for term in TEACHER_TERMS)


class Objective(nn.Module):
    """The loss of a stage, with the parameters trained in addition to the student's: projector, router.

    Without a ``teacher`` it is the next-token loss, and the one of block diffusion.

    Raises:
        UsageError: settings do not fit the two models.
    """

    def __init__(self, config: TrainConfig, student: Any, teacher: Any | None) -> None:
        super().__init__()
        self.config = config
        self.progress = 0.0  # of the stage, 0 to 1; for the curriculum
        self._teacher: list[Any] = [teacher]  # in a list it is not a submodule: neither trained nor saved
        self.projector: LogitProjector | None = None
        self.router: StudentAwareRouter | None = None
        self.usage: Tensor | None = None  # the router's, at the last line of the log
        self.noise = noise_of(config, student)  # None without block diffusion
        self.shared_vocabulary: int | None = None  # of student and teacher, if the student's is larger
        if teacher is not None:
            teacher.eval().requires_grad_(False)
            check_settings(config, student, teacher)
            self._add_trained_parts(student.config, teacher.config, teacher.dtype)
            self._choose_layers(student, teacher)
            shared = shared_vocabulary(student.config, teacher.config)
            if shared < student.config.vocab_size:
                self.shared_vocabulary = shared

    def _add_trained_parts(self, student: Any, teacher: Any, teacher_dtype: torch.dtype) -> None:
        """Make projector and router from the ``config`` of both models."""
        if self.config.logit_projector:
            self.projector = LogitProjector(student.hidden_size, teacher.vocab_size, dtype=teacher_dtype)
        if self.config.router:
            layers = (student.num_hidden_layers, teacher.num_hidden_layers)
            widths = (student.hidden_size, teacher.hidden_size)
            self.router = StudentAwareRouter(layers, widths, losses.feature_loss)

    def _choose_layers(self, student: Any, teacher: Any) -> None:
        """Set the layers that the relation and attention terms compare."""
        student_layers = student.config.num_hidden_layers
        teacher_layers = teacher.config.num_hidden_layers
        self.teacher_layer = self.config.relation_layer
        if self.teacher_layer < 0:
            self.teacher_layer = teacher_layers * 4 // 5
        check_relation_layer(self.teacher_layer, teacher_layers)
        at_same_depth = round(self.teacher_layer * student_layers / teacher_layers)
        self.student_layer = min(student_layers - 1, at_same_depth)
        if self.config.relation_weight:
            student_qkv = _qkv_projections(student, self.student_layer)
            teacher_qkv = _qkv_projections(teacher, self.teacher_layer)
            check_relation_heads(self.config.relation_heads, student_qkv + teacher_qkv)

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, by name; the tensors themselves, not copies."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def weights(self) -> dict[str, float]:
        """The factors of the terms that take part now; in evaluation only next_token does."""
        if not self.training:
            return {"next_token": 1.0}
        has_teacher = self._teacher[0] is not None
        weights = {}
        terms = ["next_token"]
        if self.noise is not None:
            terms.append("diffusion")
        if has_teacher:
            terms += TEACHER_TERMS
        for term in terms:
            weight = _configured_weight(self.config, term)
            if term == "diffusion":
                weight *= self._diffusion_factor()
            elif self.config.curriculum:
                weight *= curriculum_factor(term, self.progress)
            # The next-token loss is always computed, so that every log shows it.
            if weight or term == "next_token":
                weights[term] = weight
        return weights

    def _diffusion_factor(self) -> float:
        """The factor, 0 to 1, on the weight of block diffusion, which has a warm-up of its own."""
        ratio = self.config.diffusion_warmup_ratio
        return min(1.0, self.progress / ratio) if ratio else 1.0

    def forward(self, model: Any, inputs: Batch, student: Any) -> dict[str, Tensor]:
        """The terms of one micro-batch, by the names of :meth:`weights`: scalars, not yet weighted.

        Args:
            model: the student as the Trainer wrapped it, for the forward pass.
            inputs: see :data:`Batch`.
            student: the student itself, for its layers.
        """
        weights = self.weights()
        mask = inputs["attention_mask"]
        labels: Tensor | losses.Targets = inputs["labels"]
        if "positions" in inputs:
            labels = losses.Targets(inputs["positions"], inputs["targets"])
        options = self._forward_options(inputs, weights)
        options |= attention_options(inputs, student.config._attn_implementation, student.dtype)

        with _capture_qkv(student, self.student_layer if "relation" in weights else None) as student_qkv:
            student_output = model(**options)
        terms = {"next_token": self._next_token(student_output, labels, student)}
        if "diffusion" in weights:
            terms["diffusion"] = self.diffusion_loss(model, inputs, student)
        if not any(term in weights for term in TEACHER_TERMS):
            return terms

        teacher = self._teacher[0]
        with torch.no_grad(), _capture_qkv(teacher, self.teacher_layer) as teacher_qkv:
            teacher_output = teacher(**options)
        if "logits" in weights:
            terms["logits"] = self._logits(student_output, teacher_output, labels, student)
        if "relation" in weights:
            terms["relation"] = self._relations(student_qkv, teacher_qkv, mask)
        if "feature" in weights:
            terms["feature"] = self._features(student_output, teacher_output, mask)
        if "attention" in weights:
            terms["attention"] = self._attention(student_output, teacher_output, mask)
        if "contrastive" in weights:
            terms["contrastive"] = self._contrastive(student_output, teacher_output, mask)
        return terms

    def diffusion_loss(self, model: Any, inputs: Batch, student: Any) -> Tensor:
        """Mean cross-entropy in nats of the masked tokens, see :mod:`bitexport.train.objective.diffusion`.

        ``inputs`` is a micro-batch of a plan with noise, or one that :meth:`Noise.add` has prepared.
        """
        assert self.noise is not None
        options, targets = self.noise.forward_options(inputs)
        chunked = self.config.chunk_tokens > 0
        rest = {"logits_to_keep": 1} if chunked else {}
        output = model(**options, output_hidden_states=chunked, use_cache=False, **rest)
        return self._next_token(output, targets, student)

    def _forward_options(self, inputs: Batch, weights: dict[str, float]) -> dict[str, Any]:
        """Arguments of both models' forward pass: the inputs, and the outputs that the terms need."""
        chunked = self.config.chunk_tokens > 0
        needs_hidden_states = (
            chunked or self.projector is not None or "feature" in weights or "contrastive" in weights
        )
        options: dict[str, Any] = {
            "input_ids": inputs["input_ids"],
            "output_hidden_states": needs_hidden_states,
            "output_attentions": "attention" in weights,
            "use_cache": False,
        }
        if chunked:
            options["logits_to_keep"] = 1  # the losses compute logits from hidden states, chunk by chunk
        return options

    def _next_token(self, output: Any, labels: Tensor | losses.Targets, student: Any) -> Tensor:
        if not self.config.chunk_tokens:
            return losses.next_token(output.logits, labels)
        head = student.get_output_embeddings().weight  # [V, D]
        return chunked_next_token(output.hidden_states[-1], head, labels, self.config.chunk_tokens)

    def _logits(
        self, student_output: Any, teacher_output: Any, labels: Tensor | losses.Targets, student: Any
    ) -> Tensor:
        config = self.config
        if config.chunk_tokens:
            return self._chunked_logits(student_output, teacher_output, labels, student)
        if self.projector is None:
            logits = student_output.logits[..., : self.shared_vocabulary]  # [B, T, V]
        else:
            logits = self.projector(student_output.hidden_states[-1])
        if not config.logits_top_k:
            return losses.logits_distillation(
                logits,
                teacher_output.logits,
                labels,
                tau=config.logits_temperature,
                tau_squared=config.logits_tau_squared,
            )
        values, indices = teacher_output.logits.topk(config.logits_top_k, dim=-1)  # [B, T, K]
        return losses.top_k_logits_distillation(
            logits, values, indices, labels, config.logits_temperature, config.logits_tau_squared
        )

    def _chunked_logits(
        self, student_output: Any, teacher_output: Any, labels: Tensor | losses.Targets, student: Any
    ) -> Tensor:
        config = self.config
        teacher_head = self._teacher[0].get_output_embeddings().weight  # [V, D_t]
        if self.projector is None:
            student_head = student.get_output_embeddings().weight[: self.shared_vocabulary]  # [V, D_s]
        else:
            student_head = self.projector.master
        values, indices = chunked_top_k(
            teacher_output.hidden_states[-1], teacher_head, config.logits_top_k, config.chunk_tokens
        )
        return chunked_top_k_distillation(
            student_output.hidden_states[-1],
            student_head,
            values,
            indices,
            labels,
            config.chunk_tokens,
            config.logits_temperature,
            config.logits_tau_squared,
        )

    def _relations(self, student_qkv: list[Tensor], teacher_qkv: list[Tensor], mask: Tensor) -> Tensor:
        return losses.relation_distillation(
            student_qkv,
            teacher_qkv,
            mask,
            relation_heads=self.config.relation_heads,
            temperature=self.config.relation_temperature,
            form=self.config.relation_form,
        )

    def _features(self, student_output: Any, teacher_output: Any, mask: Tensor) -> Tensor:
        """Hidden states after each layer against the router's mixture or the teacher's at the same depth."""
        student_states = student_output.hidden_states[1:]  # the first is the embedding
        teacher_states = teacher_output.hidden_states[1:]
        if self.router is not None:
            return torch.as_tensor(self.router(student_states, teacher_states, mask))
        layer_losses = []
        for i, student_state in enumerate(student_states):
            at_same_depth = round((i + 1) * len(teacher_states) / len(student_states)) - 1
            layer_losses.append(losses.feature_loss(student_state, teacher_states[at_same_depth], mask))
        return torch.stack(layer_losses).mean()

    def _attention(self, student_output: Any, teacher_output: Any, mask: Tensor) -> Tensor:
        student_attention = student_output.attentions[self.student_layer]  # [B, H_s, T, T]
        teacher_attention = teacher_output.attentions[self.teacher_layer]  # [B, H_t, T, T]
        return losses.attention_loss(student_attention, teacher_attention, mask)

    def _contrastive(self, student_output: Any, teacher_output: Any, mask: Tensor) -> Tensor:
        student_pooled = losses.masked_mean(student_output.hidden_states[-1], mask)  # [B, D]
        teacher_pooled = losses.masked_mean(teacher_output.hidden_states[-1], mask)
        return losses.contrastive_loss(student_pooled, teacher_pooled)


def _configured_weight(config: TrainConfig, term: str) -> float:
    return float(getattr(config, f"{term}_weight"))


def _qkv_projections(model: Any, layer: int) -> list[Any]:
    attention = model.model.layers[layer].self_attn
    return [attention.q_proj, attention.k_proj, attention.v_proj]


@contextmanager
def _capture_qkv(model: Any, layer: int | None) -> Iterator[list[Tensor]]:
    """After the block, the outputs of q_proj, k_proj, v_proj of ``layer``, each [B, T, width]; None: none."""
    captured: list[Tensor] = []
    projections = [] if layer is None else _qkv_projections(model, layer)
    for projection in projections:
        # The hook stays: a hook that comes and goes would compile its layer again in every step.
        if not hasattr(projection, "shown_output"):
            projection.shown_output = None
            projection.register_forward_hook(_show_output)
    yield captured
    for projection in projections:
        captured.append(projection.shown_output)
        projection.shown_output = None


def _show_output(module: Any, _inputs: Any, output: Tensor) -> None:
    module.shown_output = output
