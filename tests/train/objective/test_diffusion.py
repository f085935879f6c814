"""Block diffusion against a second implementation, and what its noise is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BitNetConfig, BitNetForCausalLM, Qwen3Config, Qwen3ForCausalLM

from bitexport.checkpoint.block_diffusion import BlockDiffusion
from bitexport.reference.norms import connect_norms
from bitexport.train.batch import NOT_COUNTED
from bitexport.train.config import TrainConfig
from bitexport.train.data.batches import collate
from bitexport.train.objective.diffusion import attention_mask, draw_masked, noisy_sequences, whole_blocks
from bitexport.train.objective.objective import Objective
from bitexport.train.student.bitlinear import set_blend
from bitexport.train.student.surgery import replace_projections
from tests.support import slow_diffusion
from tests.train.conftest import tiny_config

MASK, END, BLOCK = 59, 58, 4
SETTINGS = BlockDiffusion(BLOCK, MASK)
SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": END,
    "bos_token_id": END,
}


def model_of(kind: str, attention: str) -> Any:
    torch.manual_seed(1)
    if kind == "bitnet":
        model: Any = BitNetForCausalLM(BitNetConfig(**SHAPE))
        replace_projections(model)
        connect_norms(model)
        set_blend(model, 0)  # rounding would turn the last bits of a float into visible differences
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8))
    for parameter in model.parameters():  # far from uniform predictions
        parameter.data.mul_(3)
    model.config.block_diffusion = {"block_size": BLOCK, "mask_token_id": MASK, "token_shift": True}
    model.set_attn_implementation(attention)
    return model.eval()


def batch(*lengths: int, prompt: int = 3, ended: bool = True) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(len(lengths))
    examples = []
    for length in lengths:
        ids = random.integers(0, 50, length)
        if ended:
            ids[-1] = END
        labels = ids.copy()
        labels[:prompt] = NOT_COUNTED
        examples.append((ids, labels))
    return collate(examples, pad_id=END)


def config(folder: Path, **changes: object) -> TrainConfig:
    return tiny_config(folder, diffusion_weight=1.0, diffusion_block_size=BLOCK, **changes)


@pytest.mark.parametrize("complementary", [True, False])
@pytest.mark.parametrize(("kind", "attention"), [("bitnet", "sdpa"), ("qwen3", "eager")])
def test_loss_is_that_of_the_slow_twin(
    tmp_path: Path, kind: str, attention: str, complementary: bool
) -> None:
    """Texts of several lengths: one that ends with a block, and some that end within one."""
    model, inputs = model_of(kind, attention), batch(12, 15, 9)
    settings = config(tmp_path, diffusion_complementary=complementary)
    objective = Objective(settings, model, None)
    assert objective.noise is not None
    noisy = objective.noise.add(inputs, 5)
    found = float(objective.diffusion_loss(model, noisy, model).detach())

    whole = whole_blocks(inputs, BLOCK, {END})
    masked = draw_masked(whole["labels"], BLOCK, settings, [settings.seed, 5, 2]).tolist()
    expected = []
    for row, ids in enumerate(whole["input_ids"].tolist()):
        length = int(whole["attention_mask"][row].sum())
        counted = [label != NOT_COUNTED for label in whole["labels"][row].tolist()]
        copies = [masked[row]]
        if complementary:
            copies.append([each and not hidden for each, hidden in zip(counted, masked[row], strict=True)])
        by_position: dict[int, float] = {}
        for copy in copies:
            arguments = (ids[:length], counted, copy, BLOCK, MASK)
            by_position |= slow_diffusion.losses_of_copy(model, *arguments)
        if complementary:
            assert sorted(by_position) == [i for i in range(length) if counted[i]]  # each token once
        expected += by_position.values()
    assert found == pytest.approx(sum(expected) / len(expected), rel=2e-5)
    # chunked logits are the same
    chunked = Objective(config(tmp_path, diffusion_complementary=complementary, chunk_tokens=7), model, None)
    assert chunked.diffusion_loss(model, noisy, model).item() == pytest.approx(found, rel=1e-5)


def test_a_text_repeats_its_end_until_the_block_ends() -> None:
    whole = whole_blocks(batch(6, 8), BLOCK, {END})
    assert whole["input_ids"].shape == (2, 8)
    assert whole["labels"][0].tolist()[5:] == [END, END, END]
    assert whole["attention_mask"].sum(1).tolist() == [8, 8]
    cut = whole_blocks(batch(6, 8, ended=False), BLOCK, {END})
    assert cut["labels"][0].tolist()[6:] == [NOT_COUNTED] * 2
    assert cut["attention_mask"].sum(1).tolist() == [6, 8]


def test_every_block_draws_its_own_fraction(tmp_path: Path) -> None:
    labels = torch.zeros(400, 400, dtype=torch.int64)
    labels[:, :8] = NOT_COUNTED
    masked = draw_masked(labels, 40, config(tmp_path), [0])
    assert not masked[:, :8].any()
    shares = masked[:, 40:].reshape(400, 9, 40).float().mean(-1).flatten()
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.std() == pytest.approx((1 / 12 + 1 / 6 / 40) ** 0.5, abs=0.02)  # uniform, then binomial
    narrow = draw_masked(
        labels, 40, config(tmp_path, diffusion_min_masked=0.3, diffusion_max_masked=0.3), [0]
    )
    assert narrow[:, 8:].float().mean() == pytest.approx(0.3, abs=0.01)


def test_without_shift_a_masked_position_predicts_itself(tmp_path: Path) -> None:
    settings = BlockDiffusion(BLOCK, MASK, token_shift=False)
    inputs = batch(8)
    noisy = noisy_sequences(inputs, settings, config(tmp_path), {END}, [0])
    masked = noisy["input_ids"][0] == MASK
    aligned = noisy["labels"][0].roll(-1)  # what a loss compares with the logits of a position
    assert (aligned != NOT_COUNTED).tolist() == masked.tolist()
    clean = inputs["input_ids"][0].repeat(3)
    assert torch.equal(aligned[masked], clean[masked])


def test_no_token_sees_what_it_predicts(tmp_path: Path) -> None:
    """The gradient of a prediction with respect to the embeddings says what was seen."""
    model = model_of("qwen3", "eager")
    noisy = noisy_sequences(batch(12), SETTINGS, config(tmp_path), {END}, [0])
    labels = noisy.pop("labels")[0]
    noisy["attention_mask"] = attention_mask(noisy.pop("real"), 3, BLOCK)
    embedded = model.get_input_embeddings()(noisy.pop("input_ids")).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False, **noisy).logits[0]
    clean = 2 * 12
    for t in range(len(labels) - 1):
        if labels[t + 1] == NOT_COUNTED:
            continue
        (gradient,) = torch.autograd.grad(logits[t, 0], embedded, retain_graph=True)
        seen = gradient[0].abs().sum(-1) > 0
        position = (t + 1) % 12
        assert not seen[clean + position // BLOCK * BLOCK :].any()
        assert seen[clean : clean + position // BLOCK * BLOCK].all()


def test_the_weight_rises_and_evaluation_is_of_next_tokens(tmp_path: Path) -> None:
    model = model_of("qwen3", "sdpa")
    objective = Objective(config(tmp_path, diffusion_warmup_ratio=0.5), model, None)
    objective.train()
    weights = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        objective.progress = progress
        weights.append(objective.weights().get("diffusion", 0.0))
    assert weights == [0.0, 0.5, 1.0, 1.0]
    objective.eval()
    assert set(objective.weights()) == {"next_token"}
