"""Runs a checkpoint of any architecture that transformers has, without a family written by hand.

transformers' class gives the graph, our packings the weights, and the ``gguf`` package the names that
llama.cpp gives them. Nothing is downloaded and no code from the checkpoint is run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gguf
import torch
import transformers
from torch import nn

from bitexport.checkpoint import Checkpoint
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.reference.delivered import Delivered, deliver
from bitexport.reference.grids import Grid
from bitexport.reference.loading import check_tensors
from bitexport.reference.minicpm import MiniCPMForCausalLM
from bitexport.reference.ternary_layers import TernaryExperts, TernaryLinear

#: llama.cpp's names for the types of models that it does not name like transformers.
_GGUF_ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "gemma3_text": "gemma3",
    "qwen3_5_text": "qwen35",
    "qwen3_5_moe_text": "qwen35moe",
    "hunyuan_v1_moe": "hunyuan-moe",
    "hunyuan_v1_dense": "hunyuan-dense",
    "cohere": "command-r",
    "gpt_neox": "gptneox",
    "glm": "chatglm",
}

#: Layers whose rows llama.cpp's converter divides among several weights, all with the same input: GGUF
#: architecture -> name in the gguf package's map -> one of these weights.
_DIVIDED = {"qwen3next": {"ssm_in": "attn_qkv"}}

#: The projections of an expert by their names in checkpoints.
_PROJECTIONS = {"gate": ("gate_proj", "w1"), "up": ("up_proj", "w3"), "down": ("down_proj", "w2")}

Names = Callable[[str], str | None]


def load_any(
    checkpoint: Checkpoint,
    architecture: str | None,
    model_class: Any = None,
    names: Names | None = None,
) -> tuple[Any, Names]:
    """The model in float32 with eager attention, and the function from a tensor's name to its GGUF name.

    Args:
        checkpoint: the checkpoint.
        architecture: the GGUF architecture; None to derive it from ``model_type``.
        model_class: the class; None for transformers' own of the architecture in config.json.
        names: the function from a tensor's name to its GGUF name; None for the one of the ``gguf`` package.

    Raises:
        UnsupportedError: transformers or the gguf package has no such architecture, or the layout of its
            experts is not known.
        CheckpointError: the tensors are not those of the class.
    """
    model_class = model_class or _model_class(checkpoint)
    delivered = deliver(checkpoint)
    try:
        config = model_class.config_class.from_pretrained(checkpoint.path, local_files_only=True)
        vars(config).pop("quantization_config", None)  # our packings have read the weights
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=delivered.state,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: transformers {transformers.__version__} cannot load it as "
            f"{model_class.__name__}: {error}; see `bitexport inspect` on that folder"
        ) from error
    check_tensors(checkpoint.path, model, info)
    text = config.get_text_config()
    names = names or gguf_names(architecture or _architecture(text), int(text.num_hidden_layers))
    _make_ternary(model, delivered, names)
    return model, names


def _model_class(checkpoint: Checkpoint) -> Any:
    name = checkpoint.config["architectures"][0]
    if name == MiniCPMForCausalLM.__name__:
        return MiniCPMForCausalLM
    found = getattr(transformers, name, None)
    if found is None or not issubclass(found, transformers.PreTrainedModel):
        raise UnsupportedError(
            f"transformers {transformers.__version__} has no class {name}, so there is no PyTorch side to "
            "compare with (code from checkpoints is never run); `bitexport bench` works with the GGUF file"
        )
    return found


def _architecture(config: Any) -> str:
    kind = str(config.model_type)
    known = set(gguf.MODEL_ARCH_NAMES.values())
    for candidate in (_GGUF_ARCHITECTURES.get(kind, kind), kind.replace("_", ""), kind.replace("_", "-")):
        if candidate in known:
            return candidate
    raise UnsupportedError(
        f"the gguf package does not know a model_type {kind!r}; expected an architecture that llama.cpp runs"
    )


def gguf_names(architecture: str, layers: int) -> Names:
    """The function from a checkpoint's tensor name, such as ``model.norm.weight``, to its GGUF name.

    Args:
        architecture: as in a file's ``general.architecture``.
        layers: the number of blocks.

    Raises:
        UnsupportedError: the gguf package has no such architecture.
    """
    numbers = [number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture]
    if not numbers:
        raise UnsupportedError(
            f"the gguf package has no architecture {architecture!r}, so PyTorch's layers cannot be matched "
            "with the file's"
        )
    known = gguf.get_tensor_name_map(numbers[0], layers)
    divided = _DIVIDED.get(architecture, {})

    def name_of(name: str) -> str | None:
        # one tensor has all experts, and a model may be part of a larger one
        name = re.sub(r"\.experts\.\d+\.", ".experts.", name)
        for spelled in (name, name.replace("model.language_model.", "model.").replace("language_model.", "")):
            found = known.get_name(spelled, try_suffixes=(".weight", ".bias"))
            if found is not None:
                block, _, suffix = str(found).rpartition(".")
                stem, _, kind = block.rpartition(".")
                return f"{stem}.{divided[kind]}.{suffix}" if kind in divided else str(found)
        return None

    return name_of


def _make_ternary(model: nn.Module, delivered: Delivered, names: Names) -> None:
    """Replace the layers with ternary weights by ones that round their inputs.

    Raises:
        UnsupportedError: a ternary weight belongs to no layer that can be replaced.
    """
    ternary = delivered.ternary | {target for name in delivered.ternary if (target := names(name))}
    replaced: set[str | None] = set()
    for name, module in list(model.named_modules()):
        weight = f"{name}.weight"
        if type(module) is nn.Linear and (weight in ternary or names(weight) in ternary):
            if names(weight) is None:
                raise UnsupportedError(
                    f"the gguf package has no name for {name}, so its activations cannot be compared"
                )
            bias = None if module.bias is None else module.bias.data
            model.set_submodule(name, TernaryLinear(module.weight.data, bias, delivered.grid))
            replaced.update((weight, names(weight)))
        elif isinstance(getattr(module, "down_proj", None), nn.Parameter) and module.down_proj.dim() == 3:
            replaced.update(_replace_experts(model, name, module, ternary, delivered.grid, names))
    for name in sorted(delivered.ternary):
        # a class may leave out layers on purpose, which then have no name either
        if names(name) is not None and not {name, names(name)} & replaced:
            raise UnsupportedError(
                f"tensor '{name}' is ternary, but in {type(model).__name__} it is not the weight of a linear "
                "layer or of known experts, so PyTorch cannot round its input; request support in an issue"
            )


def _replace_experts(
    model: nn.Module, name: str, module: Any, ternary: set[str], grid: Grid, names: Names
) -> set[str]:
    """Replace the experts if any projection is ternary; returns the names of what is."""
    targets: dict[str, str] = {}
    found: set[str] = set()
    for projection, spellings in _PROJECTIONS.items():
        known = (names(f"{name}.{spelled}.weight") for spelled in spellings)
        target = next((target for target in known if target), "")
        fused = f"{name}.{'down_proj' if projection == 'down' else 'gate_up_proj'}"
        targets[projection] = target if {target, fused} & ternary else ""
        found.update({target, fused} & ternary)
    if any(targets.values()):
        grids = {projection: grid if target else Grid.FLOAT for projection, target in targets.items()}
        model.set_submodule(name, TernaryExperts(module, targets, grids))
    return found
