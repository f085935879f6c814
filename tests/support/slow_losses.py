"""A second implementation of train/objective/losses.py: loops over nested lists, written from the formulas.

It shares nothing with the code under test and does not even import torch. Arguments are ``tensor.tolist()``.
"""

from __future__ import annotations

import math


def softmax(values, temperature=1.0):
    largest = max(values)
    powers = [math.exp((value - largest) / temperature) for value in values]
    return [power / math.fsum(powers) for power in powers]


def divergence(teacher, student):
    return math.fsum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True) if t > 0)


def mean(values):
    return math.fsum(values) / len(values) if values else 0.0


def predictions(labels):
    """(row, position, next token) for every position whose next token is counted."""
    for b, row in enumerate(labels):
        for t in range(len(row) - 1):
            if row[t + 1] != -100:
                yield b, t, row[t + 1]


def next_token(logits, labels):
    return mean([-math.log(softmax(logits[b][t])[token]) for b, t, token in predictions(labels)])


def logits_distillation(student, teacher, labels, tau):
    found = []
    for b, t, _ in predictions(labels):
        found.append(divergence(softmax(teacher[b][t], tau), softmax(student[b][t], tau)))
    return mean(found)


def top_k_logits_distillation(student, values, indices, labels, tau):
    found = []
    for b, t, _ in predictions(labels):
        chosen = [student[b][t][index] for index in indices[b][t]]
        found.append(divergence(softmax(values[b][t], tau), softmax(chosen, tau)))
    return mean(found)


def relation(states, mask, i, head, heads, temperature, form):
    """Relations of position ``i`` in one sequence [T][width]: a distribution over the real positions."""
    size = len(states[0]) // heads
    slices = [state[head * size : (head + 1) * size] for state in states]
    scores = []
    for j, real in enumerate(mask):
        if real:
            score = math.fsum(slices[i][d] * slices[j][d] for d in range(size))
            if form == "cosine":
                score /= math.sqrt(math.fsum(x * x for x in slices[i]))
                score /= math.sqrt(math.fsum(x * x for x in slices[j]))
            else:
                score /= math.sqrt(size)
            scores.append(score)
    return softmax(scores, temperature)


def relation_distillation(students, teachers, mask, heads, temperature, form):
    total = 0.0
    for student, teacher in zip(students, teachers, strict=True):
        found = []
        for b, row in enumerate(mask):
            for i in (i for i, real in enumerate(row) if real):
                for head in range(heads):
                    teacher_relation = relation(teacher[b], row, i, head, heads, temperature, form)
                    student_relation = relation(student[b], row, i, head, heads, temperature, form)
                    found.append(divergence(teacher_relation, student_relation))
        total += mean(found)
    return total


def feature_loss(student, teacher, mask):
    found = []
    for b, row in enumerate(mask):
        for t in (t for t, real in enumerate(row) if real):
            student_rms = math.sqrt(mean([x * x for x in student[b][t]]))
            teacher_rms = math.sqrt(mean([y * y for y in teacher[b][t]]))
            pairs = zip(student[b][t], teacher[b][t], strict=True)
            found.append(mean([(x / student_rms - y / teacher_rms) ** 2 for x, y in pairs]))
    return mean(found)


def attention_loss(student, teacher, mask):
    def probability(heads, chosen, i, j):
        return mean([head[i][j] for head in heads]) if chosen is None else heads[chosen][i][j]

    same = len(student[0]) == len(teacher[0])
    found = []
    for b, row in enumerate(mask):
        real = [t for t, counts in enumerate(row) if counts]
        for chosen in range(len(student[0])) if same else [None]:
            for i in real:
                pairs = [
                    (probability(student[b], chosen, i, j), probability(teacher[b], chosen, i, j))
                    for j in real
                ]
                found.append(math.fsum((x - y) ** 2 for x, y in pairs))
    return mean(found)


def masked_mean(hidden, mask):
    pooled = []
    for states, row in zip(hidden, mask, strict=True):
        real = [state for state, counts in zip(states, row, strict=True) if counts]
        pooled.append([mean([state[d] for state in real]) for d in range(len(states[0]))])
    return pooled


def contrastive_loss(student, teacher, temperature):
    def cosine(x, y):
        lengths = math.sqrt(math.fsum(a * a for a in x)) * math.sqrt(math.fsum(a * a for a in y))
        return math.fsum(a * b for a, b in zip(x, y, strict=True)) / lengths if lengths else 0.0

    found = []
    for b, vector in enumerate(student):
        found.append(-math.log(softmax([cosine(vector, other) for other in teacher], temperature)[b]))
    return mean(found)
