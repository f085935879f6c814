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

#: Architectures whose files have a sliding window that their graphs do not use (src/models/phi3.cpp).
IGNORE_WINDOW = ("phi3",)


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


#: Whether a graph divides the weights of the chosen experts by their sum, which it does not read from the
#: file (``build_moe_ffn`` in llama.cpp's src/models), and what norm_topk_prob is if config.json lacks it.
NORMALIZES_EXPERTS: Mapping[str, tuple[bool, bool]] = MappingProxyType(
    {
        "deepseek": (False, False),
        "olmoe": (False, False),
        "qwen2moe": (False, False),
        "qwen3moe": (True, False),
        "qwen3vlmoe": (True, True),
        "qwen3next": (True, True),
    }
)

#: SmolLM3's graph leaves RoPE out in every n-th layer.
SMOLLM3, NO_ROPE_STEP = "smollm3", 4

MINICPM = "minicpm"


def check_graph(config: Mapping[str, Any], recipe: Recipe) -> None:
    """Check the settings that llama.cpp's graph fixes and its converter does not look at.

    Raises:
        UnsupportedError: config.json has another one, so that the graph would compute something else.
    """
    text = config.get("text_config")
    settings = text if isinstance(text, dict) else config
    if recipe.architecture in NORMALIZES_EXPERTS:
        fixed, usual = NORMALIZES_EXPERTS[recipe.architecture]
        found = settings.get("norm_topk_prob", usual)
        if bool(found) != fixed:
            raise UnsupportedError(
                f"norm_topk_prob is {str(found).lower()} in config.json or by default, but llama.cpp's "
                f"{recipe.architecture} graph {'always' if fixed else 'never'} normalizes the weights of the "
                f"chosen experts; expected a model that was trained with norm_topk_prob {str(fixed).lower()}"
            )
    if recipe.architecture == SMOLLM3:
        layers = _rope_layers(settings, recipe.blocks)
        fixed_layers = [int((number + 1) % NO_ROPE_STEP != 0) for number in range(recipe.blocks)]
        if layers != fixed_layers:
            raise UnsupportedError(
                f"no_rope_layers is {layers} in config.json or by its no_rope_layer_interval, but "
                f"llama.cpp's {SMOLLM3} graph always computes {fixed_layers}; expected a model that was "
                "trained with these"
            )
    if recipe.architecture == MINICPM and f"{MINICPM}.rope.scaling.attn_factor" not in recipe.metadata:
        scaling = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
        trained = scaling.get("original_max_position_embeddings")
        context = settings.get("max_position_embeddings")
        if isinstance(trained, int) and isinstance(context, int) and context > trained:
            raise UnsupportedError(
                f"max_position_embeddings is {context} and original_max_position_embeddings {trained} in "
                f"config.json, but llama.cpp's {MINICPM} graph lacks the attention factor that longrope has "
                f"then; expected at most {trained}"
            )


def _rope_layers(settings: Mapping[str, Any], blocks: int) -> list[int]:
    """For each layer of a SmolLM3, 1 if it has RoPE and 0 if not, as transformers reads config.json."""
    listed = settings.get("no_rope_layers")
    if isinstance(listed, list):
        return [int(bool(each)) for each in listed[:blocks]]
    step = settings.get("no_rope_layer_interval", NO_ROPE_STEP)
    step = step if isinstance(step, int) and step > 0 else NO_ROPE_STEP
    return [int((number + 1) % step != 0) for number in range(blocks)]


def check_window(config: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """A warning if the model has sliding-window attention and llama.cpp's graph does not.

    Raises:
        UnsupportedError: the same for an architecture with a family written by hand, which would refuse it.
    """
    window = _window(config)
    written = any(key.endswith(".attention.sliding_window") for key in recipe.metadata)
    if window is None or (written and recipe.architecture not in IGNORE_WINDOW):
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
    found = [t for t in tensors if t.origin.rows is None and ternary.intersection(t.origin.sources)]
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
