"""The terms of a training loss, as pure functions: tensors in, one scalar out, no state.

B batch, T positions, V vocabulary, D hidden size, H heads, K kept logits. Whatever dtype the inputs have (for
example bfloat16 under autocast), a loss is computed in float32, or in float64 where its input is float64. The
content of a position that is not counted, even NaN, changes neither a loss nor a gradient. A batch in which
nothing is counted gives 0, with a gradient of 0. No function detaches the teacher: run it under
``torch.no_grad``.

``labels`` is int64 [B, T], aligned with the input ids, ``NOT_COUNTED`` where a token is not a target. The
shift by one happens here: logits of position t are compared with labels[t + 1]. A ``mask`` is [B, T], above
0 at real tokens: in a row with several examples, 1, 2, ... at the tokens of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bitexport.errors import UsageError
from bitexport.train.batch import NOT_COUNTED

#: Outputs of q_proj, k_proj and v_proj of one layer, each [B, T, width].
QKV = Sequence[Tensor]
RELATION_FORMS = ("cosine", "scaled")


def counted(labels: Tensor) -> Tensor:
    """Bool [B, T]: position t predicts a counted token, labels[t + 1]; never true for the last position."""
    return F.pad(labels[:, 1:] != NOT_COUNTED, (0, 1), value=False)


def targets(labels: Tensor) -> Tensor:
    """Int64 [N]: the tokens that the counted positions predict, in the order of ``x[counted(labels)]``."""
    return labels.roll(-1, dims=1)[counted(labels)]


class Targets(NamedTuple):
    """What :func:`counted` and :func:`targets` say, as indices: functions that take labels take this, too.

    Finding them in labels on an accelerator waits for everything it has still to do; a batch brings them.
    """

    positions: Tensor  # int64 [N], places in [B * T]
    ids: Tensor  # int64 [N]


def as_targets(labels: Tensor | Targets) -> Targets:
    """``labels`` [B, T] as indices."""
    if isinstance(labels, Targets):
        return labels
    return Targets(counted(labels).flatten().nonzero()[:, 0], targets(labels))


def at_positions(values: Tensor, positions: Tensor) -> Tensor:
    """``values`` [B, T, ...] at places in [B * T]: [N, ...]."""
    return values.flatten(0, 1).index_select(0, positions)


def at_least_float32(values: Tensor) -> Tensor:
    """``values`` in float32, or unchanged if they are float64."""
    return values if values.dtype == torch.float64 else values.float()


def next_token(logits: Tensor, labels: Tensor | Targets) -> Tensor:
    """Mean cross-entropy in nats over counted tokens; ``logits`` [B, T, V], ``labels`` [B, T]."""
    positions, ids = as_targets(labels)
    kept = at_least_float32(at_positions(logits, positions))  # [N, V]
    return F.cross_entropy(kept, ids, reduction="sum") / max(len(kept), 1)


def logits_distillation(
    student: Tensor, teacher: Tensor, labels: Tensor | Targets, *, tau: float = 5.0, tau_squared: bool = False
) -> Tensor:
    """KL(teacher || student) of softmax(z / tau) in nats, mean over counted positions.

    L_LD of BitNet Distillation (arXiv 2510.13998), whose formula has no factor tau squared although its
    authors' code has. ``tau_squared`` adds the factor, which keeps the gradient about equally large for every
    tau (arXiv 1503.02531).

    Args:
        student, teacher: logits [B, T, V].
        labels: [B, T].

    Raises:
        UsageError: the vocabularies differ in size.
    """
    _check_same_width(student, teacher, "vocabulary", "configure a logit projector")
    positions = as_targets(labels).positions
    kept = at_positions(student, positions)
    return tempered_kl(kept, at_positions(teacher, positions), tau, tau_squared)


def top_k_logits_distillation(
    logits: Tensor,
    values: Tensor,
    indices: Tensor,
    labels: Tensor | Targets,
    tau: float = 5,
    tau_squared: bool = False,
) -> Tensor:
    """:func:`logits_distillation` over the teacher's K largest logits, both sides renormalised over these K.

    Both distributions are conditional on the token being one of the K, so that this is a KL divergence (never
    negative, 0 where they agree) and at K = V the full loss. The student's probability outside the K is
    ignored.

    Args:
        logits: the student's, [B, T, V].
        values, indices: the teacher's top-k and its int64 token ids, [B, T, K].
        labels: [B, T].
    """
    positions = as_targets(labels).positions
    # Gather first, then select: the other order would need a second [N, V]. 0 where nothing is counted.
    chosen = torch.zeros_like(indices).flatten(0, 1)
    chosen = chosen.index_copy(0, positions, at_positions(indices, positions)).view_as(indices)
    kept = at_positions(logits.gather(-1, chosen), positions)
    return tempered_kl(kept, at_positions(values, positions), tau, tau_squared)


def tempered_kl(student: Tensor, teacher: Tensor, tau: float, tau_squared: bool) -> Tensor:
    """Mean KL(teacher || student) over the rows of logits [N, classes], as both functions above use it."""
    student_log = F.log_softmax(at_least_float32(student) / tau, dim=-1)
    teacher_log = F.log_softmax(at_least_float32(teacher) / tau, dim=-1)
    mean = F.kl_div(student_log, teacher_log, reduction="sum", log_target=True) / max(len(student), 1)
    return mean * (tau * tau) if tau_squared else mean


def relation_distillation(
    student_qkv: QKV,
    teacher_qkv: QKV,
    mask: Tensor,
    relation_heads: int,
    temperature: float = 1,
    form: str = "cosine",
) -> Tensor:
    """KL(teacher || student) in nats of the relations of queries, keys and values, summed over the three.

    Each tensor is cut along its width into ``relation_heads`` slices of size d_r, independent of the models'
    attention heads. Position i relates to the real positions j of its example by
    softmax_j(a_i . a_j / temperature), without a causal mask; the result is the mean over relation heads and
    all real i of the batch. ``form`` "cosine"
    scales each a_i to length 1 (arXiv 2510.13998, algorithm 1), "scaled" divides a_i . a_j by sqrt(d_r) (its
    equation 12).

    The backward pass recomputes the relations, so that those of Q, K and V are never in memory together.

    Args:
        student_qkv, teacher_qkv: three tensors [B, T, width]; the widths may all differ.
        mask: [B, T].

    Raises:
        UsageError: a width is not divisible by ``relation_heads``, or ``form`` is unknown.
    """
    if form not in RELATION_FORMS:
        raise UsageError(f'the relation form "{form}" is unknown; choose "cosine" or "scaled"')
    _check_widths("student", student_qkv, relation_heads)
    _check_widths("teacher", teacher_qkv, relation_heads)
    real = mask.bool()

    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        student_log = _relations(student, mask, relation_heads, temperature, form)
        teacher_log = _relations(teacher, mask, relation_heads, temperature, form)
        kl = F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(-1)  # [B, heads, T]
        return kl.masked_fill(~real[:, None], 0.0).sum() / (real.sum().clamp(min=1) * relation_heads)

    terms = []
    for student, teacher in zip(student_qkv, teacher_qkv, strict=True):
        terms.append(checkpoint(divergence, student, teacher, use_reentrant=False))
    return torch.stack(terms).sum()


def feature_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared error of hidden states [B, T, D] at unit RMS, mean over D and over the real positions.

    Hidden states grow by orders of magnitude over the layers, and the RMSNorm that reads them removes their
    length anyway. At unit RMS every layer has the same weight: an error is 2 (1 - cosine), 0 to 4.

    Raises:
        UsageError: the hidden sizes differ.
    """
    _check_same_width(student, teacher, "hidden size", "set this term's weight to 0")
    real = mask.bool()
    padding = ~real[..., None]
    student = student.masked_fill(padding, 0.0)
    teacher = teacher.masked_fill(padding, 0.0)
    # The mean over D at unit RMS is the sum over D at unit length; a position of zeros adds nothing.
    return (_unit(student) - _unit(teacher)).square().sum() / real.sum().clamp(min=1)


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared error of attention probabilities [B, H, T, T]: sum over keys, mean over heads and real queries.

    The mean over queries makes it independent of the sequence length: 0 to 2 for every T. Squares instead of
    a KL divergence, because causal attention is full of exact zeros. Where H differs, the means over the
    heads are compared.
    """
    student = at_least_float32(student)
    teacher = at_least_float32(teacher)
    if student.shape[1] != teacher.shape[1]:
        student = student.mean(1, keepdim=True)
        teacher = teacher.mean(1, keepdim=True)
    heads = student.shape[1]
    real = mask.bool()
    pairs = (real[:, :, None] & real[:, None, :])[:, None]  # [B, 1, T, T]
    squares = (student - teacher).masked_fill(~pairs, 0.0).square()
    return squares.sum() / (real.sum().clamp(min=1) * heads)


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """[B, D]: the mean of ``hidden`` [B, T, D] over the real positions; 0 for a row that has none."""
    real = mask.bool()[..., None]
    return at_least_float32(hidden).masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp(min=1)


def contrastive_loss(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE (arXiv 1807.03748) in nats: each student vector should be closest to its own teacher vector.

    By chance it is ln B; a batch of 1 has nothing to contrast and gives 0.

    Args:
        student, teacher: [B, D] with the same D, pooled by :func:`masked_mean`; compared by cosine.

    Returns:
        The mean over B.

    Raises:
        UsageError: the hidden sizes differ.
    """
    _check_same_width(student, teacher, "hidden size", "set this term's weight to 0")
    similarities = _products(_unit(student), _unit(teacher)) / temperature  # [B, B]
    return F.cross_entropy(similarities, torch.arange(len(student), device=student.device))


def _check_same_width(student: Tensor, teacher: Tensor, name: str, remedy: str) -> None:
    student_width, teacher_width = student.shape[-1], teacher.shape[-1]
    if student_width != teacher_width:
        found = f"the student's {name} is {student_width}, the teacher's {teacher_width}"
        raise UsageError(f"{found}; make them equal or {remedy}")


def _check_widths(owner: str, qkv: QKV, relation_heads: int) -> None:
    for name, states in zip("qkv", qkv, strict=True):
        width = states.shape[-1]
        if width % relation_heads:
            problem = f"the {owner}'s {name}_proj has width {width}, not divisible by {relation_heads}"
            raise UsageError(f"{problem} relation heads; choose a divisor of all widths")


def _unit(vectors: Tensor) -> Tensor:
    # The gradient of x / |x| grows as 1 / |x|, and quantization makes zeros: none below 1e-4 is stretched.
    return F.normalize(at_least_float32(vectors), dim=-1, eps=1e-4)


def _products(left: Tensor, right: Tensor) -> Tensor:
    with torch.autocast(left.device.type, enabled=False):  # it would round the factors to bfloat16
        return left @ right.transpose(-1, -2)


def _relations(states: Tensor, mask: Tensor, heads: int, temperature: float, form: str) -> Tensor:
    """Log probabilities [B, heads, T, T] from [B, T, width]; rows are queries.

    Padding and the tokens of other examples are never keys.
    """
    B, T, _ = states.shape
    real = mask.bool()
    keys = real[:, None] & (mask[:, :, None] == mask[:, None])  # [B, T, T]
    states = at_least_float32(states).masked_fill(~real[..., None], 0.0)
    slices = states.reshape(B, T, heads, -1).transpose(1, 2)  # [B, heads, T, d_r]
    slices = _unit(slices) if form == "cosine" else slices / slices.shape[-1] ** 0.25
    scores = _products(slices, slices) / temperature
    # The lowest finite value instead of -inf: a batch row without any real key stays free of NaN.
    lowest = torch.finfo(scores.dtype).min
    return F.log_softmax(scores.masked_fill(~keys[:, None], lowest), dim=-1)
