"""A float model of transformers becomes a ternary student: SubLN added, its projections quantized; and back.

Nothing else moves: the student is an instance of the teacher's own class, and what it saves is an ordinary
checkpoint of that class, which ``bitexport convert`` reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from bitexport.checkpoint import open_checkpoint
from bitexport.checkpoint.packings import quantization_config as read_quantization
from bitexport.errors import CheckpointError, UnsupportedError, UsageError
from bitexport.families import family_of
from bitexport.reference.norms import add_sub_norms, connect_norms, with_sub_norms
from train.bitlinear import BitLinear, set_blend
from train.export import tokenizer_config, write_json
from train.model import quantization_config

#: The classes whose students our graph runs. SmolLM2 is a LlamaForCausalLM.
STUDENTS = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "HunYuanDenseV1ForCausalLM")

PROJECTIONS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
_SUB_NORMS = ("model.layers.0.self_attn.attn_sub_norm.weight", "model.layers.0.mlp.ffn_sub_norm.weight")


def make_student(model: Any) -> Any:
    """Turn a float model of transformers into a student, in place: SubLN of ones, seven BitLinear a layer.

    Embeddings and head stay as they are. Follow it with :func:`calibrate`, or the norms change what the
    teacher's layers receive.

    Raises:
        UnsupportedError: another class than :data:`STUDENTS`, or a configuration that could not be converted
            when the training is over.
        UsageError: it is a student already.
    """
    architecture = type(model).__name__
    if architecture not in STUDENTS:
        raise UnsupportedError(
            f"{architecture} cannot become a student; expected {', '.join(STUDENTS)}: start from one of those"
        )
    if getattr(model, "sub_norms_added", False):
        raise UsageError("the model has SubLN already; expected a float model: continue its training instead")
    names = (*model.state_dict(), *_SUB_NORMS)
    config = {**model.config.to_dict(), "architectures": [architecture]}
    family = family_of(config, names)
    family.extra_tensors(family.hyperparameters(config, names))  # refuses what the graph cannot run
    replace_projections(model)
    add_sub_norms(model)
    connect_norms(model)
    return model


def replace_projections(model: Any) -> None:
    """Make BitLinear layers of all seven projections of every layer, in place; parameters stay the same.

    Notes it in ``model.config.quantization_config``, as master weights.

    Raises:
        UnsupportedError: a projection is missing or no plain linear layer; then nothing was changed.
    """
    found: list[tuple[nn.Module, str, nn.Linear]] = []
    for number, layer in enumerate(model.model.layers):
        for part, names in PROJECTIONS.items():
            for name in names:
                linear = getattr(getattr(layer, part, None), name, None)
                if type(linear) is not nn.Linear:
                    raise UnsupportedError(
                        f"{type(model).__name__}: layer {number}'s {part}.{name} is {type(linear).__name__}; "
                        "expected seven projections that are nn.Linear: start from a float model"
                    )
                found.append((getattr(layer, part), name, linear))
    for parent, name, linear in found:
        bits = BitLinear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        bits.weight, bits.bias = linear.weight, linear.bias
        setattr(parent, name, bits.train(linear.training))
    model.config.quantization_config = quantization_config("online")


def calibrate(student: Any, batches: Sequence[Mapping[str, torch.Tensor]]) -> None:
    """Set each SubLN gain to the root mean square of what the float model gives to that projection.

    SubLN normalises to 1, which the teacher's o_proj and down_proj never saw: scaled back, the float student
    (blend 0) starts near its teacher. Measured with blend 0 and norms bypassed, which is the teacher itself,
    so call it before any training. The blend is 1 afterwards.

    Args:
        batches: of int64 ``input_ids`` and ``attention_mask`` ``[B, T]``; where the mask is 0 nothing counts.

    Raises:
        UsageError: no token to measure.
    """
    norms: list[Any] = []
    for layer in student.model.layers:
        norms += [layer.self_attn.attn_sub_norm, layer.mlp.ffn_sub_norm]
    squares = torch.zeros(len(norms), dtype=torch.float64)
    tokens = 0
    device = student.get_input_embeddings().weight.device
    was_training = student.training
    set_blend(student.eval(), 0)
    with torch.no_grad(), _bypassed(norms) as seen:
        for batch in batches:
            mask = batch["attention_mask"].to(device)
            student(input_ids=batch["input_ids"].to(device), attention_mask=mask, use_cache=False)
            for index, norm in enumerate(norms):
                values = seen[norm][mask.bool()]  # (tokens, in)
                squares[index] += values.double().square().mean(dim=-1).sum().cpu()
            tokens += int(mask.sum())
    set_blend(student.train(was_training), 1)
    if tokens == 0:
        raise UsageError("the calibration batches hold no token; give at least one that is not padding")
    for norm, square in zip(norms, squares, strict=True):
        nn.init.constant_(norm.weight, float((square / tokens).sqrt()))


@contextmanager
def _bypassed(norms: Sequence[Any]) -> Iterator[dict[Any, torch.Tensor]]:
    """Within the block the norms let everything through; gives what last entered each."""
    seen: dict[Any, torch.Tensor] = {}

    def let_through(norm: nn.Module, inputs: tuple[torch.Tensor], _output: torch.Tensor) -> torch.Tensor:
        seen[norm] = inputs[0]
        return inputs[0]

    handles = [norm.register_forward_hook(let_through) for norm in norms]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def load_causal_lm(folder: str | Path) -> Any:
    """Load a checkpoint folder for training: float32, on the CPU, in evaluation mode.

    One with master weights (``quantization_config`` online) becomes a model with BitLinear layers again, its
    SubLN connected; one without ``quantization_config`` is transformers' own class.

    Raises:
        CheckpointError: transformers cannot load it, or its tensors are not exactly those of the model.
        UnsupportedError: it is quantized otherwise: packed, or with norms of use_rms_norm.
    """
    checkpoint = open_checkpoint(folder)
    quantization = read_quantization(checkpoint.config)
    architecture = str((checkpoint.config.get("architectures") or ["?"])[0])
    model_class = getattr(transformers, architecture, None)
    if model_class is None or not architecture.endswith("ForCausalLM"):
        raise UnsupportedError(
            f"{folder}: transformers has no {architecture}; expected a causal language model"
        )
    if quantization is not None:
        mode = (quantization.get("linear_class"), quantization.get("quantization_mode"))
        if mode != ("autobitlinear", "online") or quantization.get("use_rms_norm"):
            raise UnsupportedError(
                f"{folder}: quantized as {mode}, use_rms_norm {quantization.get('use_rms_norm', False)}; "
                "expected ('autobitlinear', 'online') without it: give the folder that was trained"
            )
        if architecture in STUDENTS and _SUB_NORMS[0] in checkpoint.tensors:
            model_class = with_sub_norms(model_class)
    config = model_class.config_class.from_pretrained(folder, local_files_only=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # transformers would put in layers of its own
    model = _load(model_class, config, checkpoint.path)
    if quantization is not None:
        replace_projections(model)
        connect_norms(model)
    return model


def _load(model_class: Any, config: Any, folder: Path) -> Any:
    try:
        model, info = model_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {error}; save it again") from error
    for kind in ("missing", "unexpected", "mismatched"):
        if names := sorted(map(str, info[f"{kind}_keys"])):
            raise CheckpointError(
                f"{folder}: {len(names)} tensors are {kind}: {', '.join(names[:3])}; expected exactly those "
                f"of {model_class.__name__}: save the checkpoint again"
            )
    return model


def save(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Save a student as an ordinary checkpoint of its class: float32 master weights, config and tokenizer.

    ``bitexport convert`` reads it without being told anything.
    """
    model.config.use_cache = True  # the Trainer switches it off
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if type(tokenizer).__name__ == "TokenizersBackend":  # a name that transformers 4 does not know
        write_json(Path(folder) / "tokenizer_config.json", tokenizer_config(Path(folder)))
