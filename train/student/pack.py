"""From a trained model to a packed checkpoint: four trits per byte and one scale per matrix.

The layout is transformers' offline ``autobitlinear``: value = trit * weight_scale. Trits and scale come from
the function that quantizes in the forward pass, so the saved model is the one that was trained.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save
from transformers.integrations.bitnet import WeightQuant

from bitexport.checkpoint.packings import ONLINE
from bitexport.checkpoint.shards import INDEX, find_tensors, read_json, stored_as_safetensors
from bitexport.errors import CheckpointError, OutputError
from bitexport.families.parts import Part, find_parts
from bitexport.ternary import TernaryTensor
from bitexport.train.student.saved_form import write_saved_form

CHAT_TEMPLATE = "chat_template.jinja"
#: For config.json. The output head stays float, as in every BitNet model.
FLOAT_HEAD = {**ONLINE, "modules_to_not_convert": ["lm_head"]}


def export_packed(master: Path, output: Path, *, force: bool = False) -> None:
    """Pack the checkpoint in ``master`` (online quantization, float master weights) into folder ``output``.

    Trits and scales are those of the forward pass in float32, which is how evaluation runs; under bfloat16
    autocast a training step sees the same trits and a rounded scale.

    Embeddings are rounded to float16, so that a float16 GGUF has exactly the same values, but stored as
    float32 like everything that is not packed: transformers keeps the dtypes of a quantized checkpoint, and
    cannot compute with a mixture of two.

    A student with SubLN gets its saved form, whatever form ``master`` has. A chat template is copied.

    Raises:
        CheckpointError: ``master`` is incomplete, or is not a checkpoint with online quantization.
        OutputError: ``output`` already contains a model and ``force`` is off, or it cannot be written.
    """
    config = read_online_config(master)
    if (output / "model.safetensors").exists() and not force:
        raise OutputError(f"{output}: already contains a model; add --force to replace it")
    tensors = _packed_tensors(_load(master))
    config["quantization_config"] = FLOAT_HEAD | {"quantization_mode": "offline"}
    config["dtype"] = "float32"
    config["use_cache"] = True  # the Trainer switches it off
    try:
        _write(master, output, config, tensors)
    except OSError as error:
        raise OutputError(f"{output}: {error.strerror}; give another folder, or make room") from error


def _packed_tensors(master_tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, tensor in master_tensors.items():
        if name.endswith("_proj.weight"):
            ternary = quantize_as_forward(tensor, name)
            tensors[name] = torch.from_numpy(pack(ternary.trits))
            tensors[name + "_scale"] = torch.tensor([ternary.scale], dtype=torch.float32)
            bias = name.removesuffix("weight") + "bias"
            if bias in master_tensors:  # transformers multiplies it by the scale, together with the product
                tensors[bias] = master_tensors[bias].to(torch.float32) / tensors[name + "_scale"]
        elif name.endswith("_proj.bias"):
            pass  # stored together with its weight
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensor.to(torch.float16).to(torch.float32)
        else:
            tensors[name] = tensor.to(torch.float32)
    return tensors


def _write(master: Path, output: Path, config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    # Old weights are removed first and new ones added last: a folder with model.safetensors is complete.
    (output / "model.safetensors").unlink(missing_ok=True)
    shutil.copyfile(master / "tokenizer.json", output / "tokenizer.json")
    write_json(output / "tokenizer_config.json", tokenizer_config(master))
    (output / CHAT_TEMPLATE).unlink(missing_ok=True)
    if (master / CHAT_TEMPLATE).exists():
        shutil.copyfile(master / CHAT_TEMPLATE, output / CHAT_TEMPLATE)
    generation = {
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": config.get("eos_token_id"),
        "pad_token_id": config.get("eos_token_id"),
    }
    write_json(output / "generation_config.json", generation)
    write_json(output / "config.json", config)
    write_saved_form(output, has_sub_norms=Part.SUB_NORMS in find_parts(config, tensors))
    temporary = output / "model.safetensors.tmp"
    temporary.write_bytes(save(tensors, metadata={"format": "pt"}))
    temporary.replace(output / "model.safetensors")


def _load(master: Path) -> dict[str, torch.Tensor]:
    """All tensors, from one file or from several with an index; every header is checked."""
    find_tensors(master)
    if not stored_as_safetensors(master):
        raise CheckpointError(
            f"{master}: no safetensors; expected a folder that `bitexport train` has written"
        )
    files = ["model.safetensors"]
    if (master / INDEX).exists():
        files = sorted(set(read_json(master / INDEX)["weight_map"].values()))
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= load_file(master / file)
    return tensors


def quantize_as_forward(weight: torch.Tensor, name: str) -> TernaryTensor:
    """The trits and the scale that transformers' online layer computes with.

    Args:
        weight: master weights ``[out, in]``.
        name: of the tensor, for the message.

    Raises:
        CheckpointError: every trit is zero, or a weight is not finite.
    """
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        values = WeightQuant.apply(weight.to(torch.float32))  # each one is -scale, 0 or +scale
    scale = np.float32(values.abs().max().item())
    if not (np.isfinite(scale) and scale > 0):
        raise CheckpointError(
            f"{name}: quantizes to scale {scale}; expected a positive, finite number; "
            "the training has diverged: export an earlier checkpoint"
        )
    return TernaryTensor(trits=values.sign().to(torch.int8).numpy(), scale=scale)


def pack(trits: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """int8 ``[out, in]`` in {-1, 0, 1} to uint8 ``[out / 4, in]``: four quarters of the rows, low bits first.

    Raises:
        CheckpointError: the number of rows is not a multiple of 4.
    """
    rows, columns = trits.shape
    if rows % 4:
        raise CheckpointError(f"a weight has {rows} rows; expected a multiple of 4, since four share a byte")
    codes = (trits + 1).astype(np.uint8).reshape(4, rows // 4, columns)  # 0, 1, 2
    packed: npt.NDArray[np.uint8] = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6
    return packed


def read_online_config(master: Path) -> dict[str, object]:
    """config.json of a checkpoint with master weights.

    Raises:
        CheckpointError: a file is missing, or its quantization is not autobitlinear and online.
    """
    weights = INDEX if (master / INDEX).exists() else "model.safetensors"
    for name in ("config.json", weights, "tokenizer.json", "tokenizer_config.json"):
        if not (master / name).exists():
            raise CheckpointError(
                f"{master}: no {name}; give a folder that a training stage saved: RUN/<stage>/model or "
                "RUN/<stage>/checkpoint-<step>"
            )
    config: dict[str, object] = json.loads((master / "config.json").read_text(encoding="utf-8"))
    found = config.get("quantization_config")
    mode = (found.get("linear_class"), found.get("quantization_mode")) if isinstance(found, dict) else None
    if mode != ("autobitlinear", "online"):
        raise CheckpointError(
            f"{master}: quantization is {mode}; expected autobitlinear and online; "
            "give RUN/<stage>/model of a training run"
        )
    return config


def tokenizer_config(master: Path) -> dict[str, object]:
    """tokenizer_config.json with a class name that transformers 4 also knows."""
    settings: dict[str, object] = json.loads((master / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("backend", None)
    return {**settings, "tokenizer_class": "PreTrainedTokenizerFast"}


def write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
