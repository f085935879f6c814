"""What keeps an accelerator busy, shown on a CPU: no wait in a step, nothing compiled twice, no padding.

A CPU has nothing to wait for. So the tests count what would wait: every read of a tensor's value by Python,
and every operation whose result's size depends on values.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from bitexport.train import compiling
from bitexport.train.attention import CAUSAL
from bitexport.train.config import TrainConfig
from bitexport.train.data.batches import BatchPlan, sample_batches
from bitexport.train.data.bpe import train_tokenizer
from bitexport.train.data.examples import ListedExamples
from bitexport.train.data.packing import padding
from bitexport.train.loss_curve import read_log
from bitexport.train.models import StageModels
from bitexport.train.objective.diffusion import noise_of
from bitexport.train.stages import train
from bitexport.train.student.checkpoint import load_causal_lm
from bitexport.train.student.diffusion import prepare_diffusion
from bitexport.train.student.surgery import make_student
from bitexport.train.trainer import StudentTrainer
from tests.train.conftest import student_config, tiny_config

# Operations that wait for an accelerator: item(), bool(), tolist(); and those whose result's size is a value.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")


# Reads that are no operation on a CPU.
_READ_BY = ("tolist", "numpy", "cpu", "item", "__bool__", "__float__")
READS = tuple(getattr(torch.Tensor, name) for name in _READ_BY)


class Waits(TorchDispatchMode):
    """Collects the places that would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []
        self.reads = Reads(self)

    def note(self, name: str) -> None:
        lines = [line for line in traceback.format_stack() if "_python_dispatch" not in line]
        self.places.append(f"{name}: {''.join(lines[-8:-2])}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        with self, self.reads:
            yield

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITS or by_mask:
            self.note(name)
        return function(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """Python's own ways to read a tensor."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in READS:
            self.waits.note(function.__name__)
        return function(*args, **(kwargs or {}))


def reading_by(how: str, values: torch.Tensor) -> None:
    if how == "mask":
        values[values > 1]
    elif how == "bool":
        bool(values[0] > 1)
    elif how == "float":
        float(values[0])
    else:
        getattr(values[:1], how)()


@pytest.mark.parametrize("how", ["mask", "bool", "float", "tolist", "item", "nonzero", "cpu"])
def test_every_way_to_wait_is_counted(how: str) -> None:
    waits = Waits()
    values = torch.arange(3.0)
    with waits.watching():
        values * 2 + values.sum()
        assert waits.places == []
        reading_by(how, values)
    assert waits.places


def examples(count: int = 300, longest: int = 24) -> ListedExamples:
    random = np.random.default_rng(3)
    found = []
    for length in random.integers(4, longest + 1, count):
        ids = random.integers(4, 290, length).tolist()
        found.append((ids, [-100, -100, *ids[2:]]))
    return ListedExamples(found)


def tiny_llama() -> Any:
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., StudentTrainer]:
    """A trainer of stage 3 with every term that is given a weight, for untrained models."""

    def build(*, width: int = 0, **changes: Any) -> StudentTrainer:
        config = tiny_config(tmp_path, **changes)
        models = StageModels(make_student(tiny_llama()), tiny_llama(), train_tokenizer(["a b"], 258, 64))
        prepare_diffusion(models.student, models.tokenizer, config)
        for model in (models.student, models.teacher):
            model.set_attn_implementation("eager" if config.attention_weight else CAUSAL)
            if compiling.compiles(config):
                compiling.compile_layers(model)
        sizes = {"micro_tokens": 192, "per_step": 2, "budget": 2500, "width": width}
        plan = BatchPlan(examples(), seed=1, pad_id=0, noise=noise_of(config, models.student), **sizes)
        held_out = sample_batches(examples(40), 192, 40, 0, width)
        return StudentTrainer(config, tmp_path / "stage", models, plan, held_out, 1e-3)

    return build


ALL_TERMS: dict[str, Any] = {"feature_weight": 0.5, "contrastive_weight": 0.2, "lambda_warmup_ratio": 0.5}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        ALL_TERMS,
        {"logits_top_k": 16, "chunk_tokens": 16},
        {"width": 48},
        {"attention_weight": 1.0, "packing": "off"},
        {"activation_checkpointing": True},
        {"diffusion_weight": 0.5, "diffusion_block_size": 4},
        {"diffusion_weight": 0.5, "diffusion_block_size": 4, "logits_top_k": 16, "chunk_tokens": 16},
    ],
)
def test_a_step_waits_for_nothing(
    make: Callable[..., StudentTrainer], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the batch on the device to the clipped gradient, over several steps; a logged line waits."""
    trainer = make(**{"log_every": 100, "eval_every": 1000, "save_every": 1000, **changes})
    waits = Waits()
    step = trainer.training_step
    clip = trainer._clip_grad_norm

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with waits.watching():
                return function(*args, **kwargs)

        return run

    monkeypatch.setattr(trainer, "training_step", watched(step))
    monkeypatch.setattr(trainer, "_clip_grad_norm", watched(clip))
    monkeypatch.setattr(trainer, "_save_checkpoint", lambda *_: None)
    trainer.train()
    assert trainer.state.global_step > 4
    assert waits.places == []


def test_a_bad_term_is_named_although_it_is_looked_at_later(make: Callable[..., StudentTrainer]) -> None:
    trainer = make(log_every=5, eval_every=1000, save_every=1000)
    assert trainer.objective._teacher[0] is not None
    forward = trainer.objective.forward
    calls = 0

    def spoiled(*args: Any) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        terms: dict[str, torch.Tensor] = forward(*args)
        if calls == 6:  # the second micro-batch of step 3
            terms["relation"] = terms["relation"] * float("inf")
        return terms

    trainer.objective.forward = spoiled  # type: ignore[method-assign]
    with pytest.raises(Exception, match=r"step 3: the term relation is inf"):
        trainer.train()


@contextmanager
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Compile without C++; the function that is given counts graphs so far."""
    graphs = 0

    def backend(module: Any, _inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return module

    monkeypatch.setattr(compiling, "_BACKEND", backend)
    torch._dynamo.reset()
    with torch.compiler.set_stance("default"):
        yield lambda: graphs
    torch._dynamo.reset()


def test_nothing_is_compiled_twice(
    make: Callable[..., StudentTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers share a graph, but the one that shows queries, keys and values; evaluation has its own."""
    with compiled(monkeypatch) as graphs:
        trainer = make(width=48, compile="layers", eval_every=2, save_every=1000, log_every=1)
        counts: list[int] = []
        trainer.add_callback(_after_step(lambda: counts.append(graphs())))
        monkeypatch.setattr(trainer, "_save_checkpoint", lambda *_: None)
        torch._dynamo.utils.counters.clear()
        trainer.train()
        assert len(counts) > 6
        assert counts[3:] == [counts[3]] * len(counts[3:])  # after the first evaluation
        assert counts[0] > 0
        assert counts[-1] <= 6
        assert not torch._dynamo.utils.counters["graph_break"]
        assert not torch._dynamo.utils.counters["recompile_limit"]


def test_lambda_does_not_compile_again(
    make: Callable[..., StudentTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    with compiled(monkeypatch) as graphs:
        trainer = make(width=48, compile="layers", lambda_warmup_ratio=0.7, eval_every=1000, save_every=1000)
        counts: list[int] = []
        trainer.add_callback(_after_step(lambda: counts.append(graphs())))
        monkeypatch.setattr(trainer, "_save_checkpoint", lambda *_: None)
        trainer.train()
    changes = [step for step in range(1, len(counts)) if counts[step] != counts[step - 1]]
    assert len(changes) <= 2  # from 0 to the ramp, and from the ramp to 1


def _after_step(function: Callable[[], None]) -> Any:
    from transformers import TrainerCallback

    class After(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            function()

    return After()


def losses_of(trainer: StudentTrainer) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Means of all terms over a pass of the plan, and the gradients."""
    trainer.model.train().zero_grad()
    for index in range(len(trainer.train_dataset)):
        trainer.compute_loss(trainer.model, dict(trainer.train_dataset[index])).backward()
    gradients = {name: value.grad.clone() for name, value in trainer.model.named_parameters()}
    return trainer.term_sums.take_means(), gradients


@pytest.mark.parametrize("terms", [{}, {"feature_weight": 0.5, "attention_weight": 1.0}, {"logits_top_k": 8}])
def test_packed_rows_give_the_losses_of_unpacked_ones(
    make: Callable[..., StudentTrainer], terms: dict[str, Any]
) -> None:
    """Attention, positions and relations stay within each pair: the same examples in one step, both ways."""
    results = []
    for width in (0, 48):
        trainer = make(width=width, **terms)
        whole = BatchPlan(
            examples(60),
            micro_tokens=96,
            per_step=len(one_pass(width)),
            budget=1,
            seed=1,
            pad_id=0,
            width=width,
        )
        trainer.train_dataset = whole
        results.append(losses_of(trainer))
    (unpacked, unpacked_gradients), (packed, packed_gradients) = results
    ignored = {"loss"}
    for name in unpacked.keys() - ignored:
        assert packed[name] == pytest.approx(unpacked[name], rel=1e-4), name
    for name, expected in unpacked_gradients.items():
        scale = float(expected.abs().max()) + 1e-9
        ours = packed_gradients[name] / len(one_pass(48)) * len(one_pass(0))
        assert float((ours - expected).abs().max()) < 5e-3 * scale, name


def one_pass(width: int) -> list[Any]:
    """The micro-batches of the first pass over the 60 examples."""
    plan = BatchPlan(examples(60), micro_tokens=96, per_step=1, budget=10_000, seed=1, pad_id=0, width=width)
    return [batch for batch in plan.batches if batch[0] == 0]


def test_packed_rows_have_little_padding_and_one_shape() -> None:
    """Lengths as of sentences; every example once per pass."""
    random = np.random.default_rng(0)
    lengths = np.minimum(random.lognormal(3.6, 0.6, 20_000).astype(int) + 8, 512)
    found = ListedExamples([([7] * length,) * 2 for length in lengths])
    plan = BatchPlan(
        found, micro_tokens=4096, per_step=4, budget=int(lengths.sum()), seed=1, pad_id=0, width=512
    )
    first = [indices for number, indices, _ in plan.batches if number == 0]
    assert sorted(np.concatenate(first).tolist()) == list(range(20_000))
    shapes = {plan[index]["input_ids"].shape for index in range(0, len(plan), 7)}
    assert shapes == {(8, 512)}
    real = sum(int(plan[index]["attention_mask"].bool().sum()) for index in range(len(plan)))
    assert 1 - real / (4096 * len(plan)) < 0.05
    assert padding([[0, 1], [2]], np.array([3, 4, 5]), 10) == pytest.approx(0.4)


def test_checkpointed_activations_give_equal_losses(teacher: Path, student_run: Path, tmp_path: Path) -> None:
    """To the bit, weights included."""
    student = str(student_run / "stage1" / "model")
    runs: list[TrainConfig] = []
    for on in (False, True):
        changes: dict[str, Any] = {"student": student, "activation_checkpointing": on, "stage3_tokens": 1500}
        runs.append(student_config(tmp_path / str(on), teacher, **changes, threads=1))
        train(runs[-1], "3", say=lambda _: None)
    logs = [read_log(Path(run.run_dir) / "stage3" / "log.jsonl") for run in runs]
    for log in logs:
        for line in log:
            del line["seconds"]
    assert logs[0] == logs[1]
    models = [load_causal_lm(Path(run.run_dir) / "stage3" / "model").state_dict() for run in runs]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_packed_run_is_resumed_and_learns(teacher: Path, student_run: Path, tmp_path: Path) -> None:
    student = str(student_run / "stage1" / "model")
    config = student_config(
        tmp_path, teacher, student=student, packing="on", micro_batch_tokens=240, batch_tokens=480
    )
    train(config, "3", say=lambda _: None)
    lines = [line for line in read_log(Path(config.run_dir) / "stage3" / "log.jsonl") if "loss" in line]
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles for the CPU with g++")
def test_compiled_layers_give_the_losses_of_eager_ones(make: Callable[..., StudentTrainer]) -> None:
    """The fused quantizers, norms and attention, against the same operations one by one."""
    results = []
    for setting, stance in (("off", "force_eager"), ("layers", "default")):
        torch._dynamo.reset()
        with torch.compiler.set_stance(stance):
            # Without the relations all layers share one graph, which is compiled in half a minute.
            results.append(losses_of(make(width=48, compile=setting, relation_weight=0.0)))
    torch._dynamo.reset()
    (eager, eager_gradients), (fused, fused_gradients) = results
    for name, expected in eager.items():
        assert fused[name] == pytest.approx(expected, rel=1e-4), name
    for name, expected in eager_gradients.items():
        # An activation next to a rounding boundary may fall on its other side: a few entries differ by more.
        ours = fused_gradients[name].flatten()
        assert float(torch.cosine_similarity(ours, expected.flatten(), dim=0)) > 0.999, name
