"""What is checked, and what a user is told, about a conversion that llama.cpp's own converter describes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from bitexport.checkpoint import Checkpoint
from bitexport.checkpoint.packings import Packing, keeps_float, modules_to_not_convert
from bitexport.checkpoint.packings.master import MasterWeights
from bitexport.convert.plan import HEAD, HEAD_STAYS_FLOAT
from bitexport.convert.source import PlannedTensor
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.families import has_family
from bitexport.gguf.names import TOKEN_EMBEDDING
from bitexport.upstream import Recipe, RecipeTensor
from bitexport.upstream.recipe import LAYER
from bitexport.upstream.sources import SourceTensor

#: Tensors of old checkpoints that follow from the configuration.
DERIVED = re.compile(r".*(rotary_emb\.inv_freq|\.attention\.(masked_)?bias)$")

#: Layers that predict further tokens, which llama.cpp's graphs do not use.
EXTRA_LAYERS = re.compile(r"(.*\.)?(mtp|nextn)[._].*")

#: Whether llama.cpp's graph divides the weights of the chosen experts by their sum, by GGUF architecture, and
#: what transformers does if config.json does not say.
NORMALIZED_EXPERTS: Mapping[str, tuple[bool, bool]] = MappingProxyType(
    {
        "qwen2moe": (False, False),
        "qwen3moe": (True, False),
        "qwen3next": (True, True),
        "olmoe": (False, False),
    }
)

#: In llama.cpp's graph of SmolLM3, every fourth layer has no RoPE.
NO_ROPE_INTERVAL = 4


def check_nothing_dropped(checkpoint: Checkpoint, recipe: Recipe) -> list[str]:
    """Warnings about parts of the model that llama.cpp leaves out on purpose."""
    out = list(recipe.filtered)
    for name in recipe.left_out:
        layer = LAYER.search(name)
        if DERIVED.fullmatch(name):
            continue
        if EXTRA_LAYERS.fullmatch(name) or (layer and int(layer[1]) >= recipe.blocks):
            out.append(name)
        elif name == HEAD:
            _check_tied(checkpoint, recipe)
        else:
            raise CheckpointError(
                f"tensor '{name}' does not belong to {recipe.architecture} (llama.cpp's {recipe.class_name}) "
                "and would be dropped; is the architecture in config.json right?"
            )
    if not out:
        return []
    parts = sorted({".".join(name.split(".")[:2]) for name in out})
    shown = ", ".join(parts[:5]) + (" and others" if len(parts) > 5 else "")
    return [
        f"{len(out)} tensors are not part of what llama.cpp runs as {recipe.architecture} and are left out: "
        f"{shown}"
    ]


def check_graph(config: Mapping[str, Any], recipe: Recipe) -> None:
    """Check settings that llama.cpp's graphs do not read, so that they would compute something else.

    Raises:
        UnsupportedError: a setting differs from what the graph computes.
    """
    text = config.get("text_config")
    settings = text if isinstance(text, dict) else config
    graph = recipe.architecture
    wrong = None
    if graph in NORMALIZED_EXPERTS:
        computed, default = NORMALIZED_EXPERTS[graph]
        if bool(settings.get("norm_topk_prob", default)) != computed:
            wrong = f"norm_topk_prob {not computed}", f"norm_topk_prob {computed}"
    if graph == "smollm3":
        layers = range(int(settings.get("num_hidden_layers", 0)))
        interval = settings.get("no_rope_layer_interval", NO_ROPE_INTERVAL)
        usual = [int((layer + 1) % NO_ROPE_INTERVAL != 0) for layer in layers]
        named = settings.get("no_rope_layers") or [int((layer + 1) % interval != 0) for layer in layers]
        if list(named) != usual:
            wrong = f"no_rope_layers {named}", "every fourth layer without RoPE"
    if graph == "minicpm" and f"{graph}.rope.scaling.attn_factor" not in recipe.metadata:
        scaling = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
        trained = scaling.get("original_max_position_embeddings")
        context = settings.get("max_position_embeddings")
        if isinstance(trained, int) and isinstance(context, int) and context > trained:
            wrong = (
                f"max_position_embeddings {context} with original_max_position_embeddings {trained}",
                f"max_position_embeddings {trained}: above it, the graph lacks longrope's attention factor",
            )
    if wrong is not None:
        raise UnsupportedError(
            f"config.json has {wrong[0]}, which llama.cpp's {graph} graph does not compute; expected "
            f"{wrong[1]}"
        )


def check_window(config: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """A warning if the model has sliding-window attention and llama.cpp's graph does not.

    Raises:
        UnsupportedError: the same for an architecture with a family written by hand, which would refuse it.
    """
    window = _window(config)
    if window is None or any(key.endswith(".attention.sliding_window") for key in recipe.metadata):
        return []
    if has_family(config):
        raise UnsupportedError(f"llama.cpp's {recipe.architecture} graph has no sliding-window attention")
    return [
        f"config.json has a sliding window of {window} tokens, but llama.cpp's {recipe.architecture} graph "
        f"has none: it computes the same only for contexts of up to {window} tokens"
    ]


def _window(config: Mapping[str, Any]) -> int | None:
    """The window of sliding-window attention, in tokens; None if no layer uses it or contexts are shorter."""
    text = config.get("text_config")
    settings = text if isinstance(text, dict) else config
    window, context = settings.get("sliding_window"), settings.get("max_position_embeddings")
    kinds = settings.get("layer_types")
    used = (
        any(kind == "sliding_attention" for kind in kinds)
        if isinstance(kinds, list)
        else settings.get("use_sliding_window", True)
    )
    if not isinstance(window, int) or not used or (isinstance(context, int) and window >= context):
        return None
    return window


def _check_tied(checkpoint: Checkpoint, recipe: Recipe) -> None:
    embeddings = [tensor.sources for tensor in recipe.tensors if tensor.name == TOKEN_EMBEDDING]
    if not any(len(names) == 1 and checkpoint.same_bytes(HEAD, names[0]) for names in embeddings):
        raise UnsupportedError(
            f"tie_word_embeddings is true, but {HEAD} is present and differs from the embeddings, and "
            f"llama.cpp's {recipe.class_name} drops it; expected a tied head, or tie_word_embeddings false"
        )


def rearranged_warning(tensors: Sequence[PlannedTensor[RecipeTensor]], ternary: set[str]) -> list[str]:
    """A warning if llama.cpp transposes or computes with ternary weights, so that they must become floats."""
    found = [t for t in tensors if not t.ternary and ternary.intersection(t.origin.sources)]
    if not found:
        return []
    source = next(name for name in found[0].origin.sources if name in ternary)
    return [
        f"{len(found)} tensors are written as {found[0].spec.type.name}, because llama.cpp transposes or "
        f"calculates with ternary weights for them: '{found[0].spec.name}' from '{source}', for example"
    ]


def float32_warning(recipe: Recipe, sources: Mapping[str, SourceTensor]) -> list[str]:
    """A warning if weights are packed that llama.cpp always stores as float32, such as those of a router."""
    packed = [t.name for t in recipe.tensors if not t.matrix and any(sources[n].packed for n in t.sources)]
    if not packed:
        return []
    return [
        f"{len(packed)} tensors are packed in the checkpoint, but llama.cpp stores them as float32 and does "
        f"not quantize their inputs: '{packed[0]}', for example"
    ]


def head_warning(checkpoint: Checkpoint, packing: Packing, recipe: Recipe) -> list[str]:
    """A warning if transformers would quantize the master weights of the head."""
    written = any(HEAD in tensor.sources for tensor in recipe.tensors)
    listed = modules_to_not_convert(checkpoint)
    if packing.name != MasterWeights.name or not written or listed is None or keeps_float(checkpoint, HEAD):
        return []
    return [HEAD_STAYS_FLOAT]
