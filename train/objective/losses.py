"""The terms of a training loss, as pure functions: tensors in, one scalar out, no state.

B batch, T positions, V vocabulary, D hidden size, H heads, K kept logits. Whatever the inputs are (bfloat16
under autocast, say), a loss is computed in float32, or in float64 where its input is. What stands at a
position that is not counted, NaN included, changes neither a loss nor a gradient. A batch in which nothing is
counted gives 0, still with a gradient. No function detaches the teacher: run it under ``torch.no_grad``.

``labels`` is int64 [B, T] in line with the input ids, ``NOT_COUNTED`` where a token is no target. The shift
by one happens here: logits of position t are judged by labels[t + 1]. A ``mask`` is [B, T], 1 at real tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bitexport.errors import UsageError

NOT_COUNTED = -100
QKV = Sequence[Tensor]


def counted(labels: Tensor) -> Tensor:
    """Bool [B, T]: position t predicts a counted token, which is labels[t + 1]; never true for the last t."""
    return F.pad(labels[:, 1:] != NOT_COUNTED, (0, 1), value=False)


def targets(labels: Tensor) -> Tensor:
    """Int64 [N]: the tokens that the counted positions predict, in the order of ``x[counted(labels)]``."""
    return labels.roll(-1, dims=1)[counted(labels)]


def precise(values: Tensor) -> Tensor:
    """The same in float32; what is float64 stays so."""
    return values if values.dtype == torch.float64 else values.float()


def next_token(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats over counted tokens; ``logits`` [B, T, V], ``labels`` [B, T]."""
    kept = precise(logits[counted(labels)])
    return F.cross_entropy(kept, targets(labels), reduction="sum") / max(len(kept), 1)


def logits_distillation(
    student: Tensor, teacher: Tensor, labels: Tensor, *, tau: float = 5.0, tau_squared: bool = False
) -> Tensor:
    """KL(teacher || student) of softmax(z / tau) in nats, mean over counted positions.

    ``student`` and ``teacher`` [B, T, V], ``labels`` [B, T]. L_LD of BitNet Distillation (arXiv 2510.13998),
    whose formula has no factor tau squared although its authors' code has; ``tau_squared`` puts it in front,
    which keeps the gradient about as large at every tau (arXiv 1503.02531). UsageError: vocabularies differ.
    """
    _same_width(student, teacher, "vocabulary", "configure a logit projector")
    keep = counted(labels)
    return tempered_kl(student[keep], teacher[keep], tau, tau_squared)


def top_k_logits_distillation(
    logits: Tensor, values: Tensor, indices: Tensor, labels: Tensor, tau: float = 5, tau_squared: bool = False
) -> Tensor:
    """:func:`logits_distillation` over the teacher's K largest logits, both sides renormalised over these K.

    ``logits`` [B, T, V], the student's; ``values`` and ``indices`` (int64) [B, T, K], the teacher's top-k.
    Both distributions are conditional on the token being one of the K, so that this is a KL divergence (never
    negative, 0 where they agree) and at K = V the full loss. The student's mass outside of the K is not seen.
    """
    keep = counted(labels)
    # Gathered before selected, so that no second [N, V] exists.
    kept = logits.gather(-1, indices.masked_fill(~keep[..., None], 0))
    return tempered_kl(kept[keep], values[keep], tau, tau_squared)


def tempered_kl(student: Tensor, teacher: Tensor, tau: float, tau_squared: bool) -> Tensor:
    """What both functions above take the mean of; ``student`` and ``teacher`` are logits [N, classes]."""
    log_s, log_t = (F.log_softmax(precise(logits) / tau, dim=-1) for logits in (student, teacher))
    total = F.kl_div(log_s, log_t, reduction="sum", log_target=True)
    return total / max(len(student), 1) * (tau * tau if tau_squared else 1.0)


def relation_distillation(
    mine: QKV, theirs: QKV, mask: Tensor, relation_heads: int, temperature: float = 1, form: str = "cosine"
) -> Tensor:
    """KL(teacher || student) in nats of the relations of queries, keys and values, summed over the three.

    ``mine`` (student), ``theirs``: what q_proj, k_proj and v_proj of a layer put out, each [B, T, width],
    every width its own, cut along it into ``relation_heads`` parts of d_r, whatever the models' own heads
    are. Position i relates to the real positions j by softmax_j(a_i . a_j / temperature), without a causal
    mask; mean over relation heads and all real i of the batch. ``form`` "cosine" takes each a_i at length 1
    (arXiv 2510.13998, algorithm 1), "scaled" divides a_i . a_j by sqrt(d_r) (its equation 12). The backward
    pass computes the relations anew, so that those of Q, K and V are never in memory together.
    UsageError: a width is not divisible by ``relation_heads``, or ``form`` is unknown.
    """
    if form not in ("cosine", "scaled"):
        raise UsageError(f'the relation form "{form}" is unknown; choose "cosine" or "scaled"')
    for owner, states in (("student", mine), ("teacher", theirs)):
        for name, width in zip("qkv", (state.shape[-1] for state in states), strict=True):
            if width % relation_heads:
                problem = f"the {owner}'s {name}_proj has width {width}, not divisible by {relation_heads}"
                raise UsageError(f"{problem} relation heads; choose a divisor of all widths")
    real = mask.bool()

    def divergence(*pair: Tensor) -> Tensor:
        log_s, log_t = (_relations(states, real, relation_heads, temperature, form) for states in pair)
        kl = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1)  # (B, heads, T)
        return kl.masked_fill(~real[:, None], 0.0).sum() / (real.sum().clamp(min=1) * relation_heads)

    pairs = zip(mine, theirs, strict=True)
    return torch.stack([checkpoint(divergence, *pair, use_reentrant=False) for pair in pairs]).sum()


def feature_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared error of hidden states [B, T, D] at unit RMS, mean over D and over the real positions.

    Raw states grow by orders of magnitude over the layers, and the RMSNorm that reads them drops their length
    anyway. So all layers weigh alike: an error is 2 (1 - cosine), 0 to 4. UsageError: hidden sizes differ.
    """
    _same_width(student, teacher, "hidden size", "set this term's weight to 0")
    student, teacher = student[mask.bool()], teacher[mask.bool()]
    # The mean over D at unit RMS is the sum over D at unit length.
    return (_unit(student) - _unit(teacher)).square().sum() / max(len(student), 1)


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared error of attention probabilities [B, H, T, T], summed over keys, mean over heads, real queries.

    The mean over queries is the division by the sequence length: 0 to 2 whatever T is. Squares, no KL, since
    causal attention is full of exact zeros. Where H differs, the means over the heads are compared.
    """
    real, student, teacher = mask.bool(), precise(student), precise(teacher)
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    pairs = (real[:, :, None] & real[:, None, :])[:, None]  # (B, 1, T, T)
    squares = (student - teacher).masked_fill(~pairs, 0.0).square()
    return squares.sum() / (real.sum().clamp(min=1) * student.shape[1])


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """[B, D]: the mean of ``hidden`` [B, T, D] over the real positions; 0 for a row that has none."""
    real = mask.bool()[..., None]
    return precise(hidden).masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp(min=1)


def contrastive_loss(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE (arXiv 1807.03748) in nats: each student finds its own teacher among the batch's, by cosine.

    ``student`` and ``teacher`` [B, D], D the same, pooled by :func:`masked_mean`; mean over B. By chance it
    is ln B; a batch of 1 has nothing to contrast and gives 0. UsageError: the hidden sizes differ.
    """
    _same_width(student, teacher, "hidden size", "set this term's weight to 0")
    similarities = _products(_unit(student), _unit(teacher)) / temperature
    return F.cross_entropy(similarities, torch.arange(len(student), device=student.device))


def _same_width(student: Tensor, teacher: Tensor, name: str, remedy: str) -> None:
    if (s := student.shape[-1]) != (t := teacher.shape[-1]):
        raise UsageError(f"the student's {name} is {s}, the teacher's {t}; make them equal or {remedy}")


def _unit(vectors: Tensor) -> Tensor:
    # The gradient of x / |x| grows as 1 / |x|, and quantization makes zeros: below 1e-4 none is stretched.
    return F.normalize(precise(vectors), dim=-1, eps=1e-4)


def _products(left: Tensor, right: Tensor) -> Tensor:
    with torch.autocast(left.device.type, enabled=False):  # it would round the factors to bfloat16
        return left @ right.transpose(-1, -2)


def _relations(states: Tensor, mask: Tensor, heads: int, temperature: float, form: str) -> Tensor:
    """Log probabilities [B, heads, T, T] from [B, T, width]; rows are queries, padding is no key."""
    real = precise(states).masked_fill(~mask[..., None], 0.0)
    parts = real.reshape(*real.shape[:2], heads, -1).transpose(1, 2)  # (B, heads, T, d_r)
    parts = _unit(parts) if form == "cosine" else parts / parts.shape[-1] ** 0.25
    scores = _products(parts, parts) / temperature
    # The lowest finite value, no -inf: a batch row without any real key stays free of NaN.
    return F.log_softmax(scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min), dim=-1)
