"""The form in which a student with SubLN is saved: a model that transformers runs as it was trained.

transformers' own Llama, Qwen and HunYuan lack the norms of SubLN, and would load a student without them. So a
student of Llama is saved as what it is, a BitNetForCausalLM, unless that class lacks something else that the
student has. Any other student is saved as a class of ``modeling_subln.py``, which is copied beside its
config.json and has a model_type of its own: transformers does not load it without that file.

The tensors and their names do not depend on the form, only config.json does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from bitexport.checkpoint import open_checkpoint
from bitexport.checkpoint.shards import read_json
from bitexport.errors import CheckpointError
from bitexport.families.parts import SUBLN_ENDING, Part, find_parts
from bitexport.system.files import write_atomically

#: The classes of transformers that can become students; SmolLM2 is a LlamaForCausalLM.
STUDENTS = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "HunYuanDenseV1ForCausalLM")
#: The file that is copied, and its name as ``auto_map`` has it.
MODELING_FILE = Path(__file__).with_name("modeling_subln.py")

_CAUSAL_LM = "ForCausalLM"
# Keys of Llama that BitNet's configuration lacks: they have the only value that BitNetForCausalLM computes.
_LLAMA_ONLY = ("head_dim", "mlp_bias", "pretraining_tp")


def saved_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a student with SubLN, from that of its base model.

    Args:
        config: config.json with the architecture of the base model, one of :data:`STUDENTS`.
    """
    architecture = str(config["architectures"][0])
    if architecture == "LlamaForCausalLM" and _fits_bitnet(config):
        # complete, because the two classes have different defaults
        complete = json.loads(LlamaConfig.from_dict(dict(config)).to_json_string())
        kept = {key: value for key, value in complete.items() if key not in _LLAMA_ONLY}
        return {**kept, "architectures": ["BitNetForCausalLM"], "model_type": "bitnet"}
    base = architecture.removesuffix(_CAUSAL_LM)
    module = MODELING_FILE.stem
    return {
        **config,
        "architectures": [base + SUBLN_ENDING],
        "model_type": f"{config['model_type']}_subln",
        "auto_map": {
            "AutoConfig": f"{module}.{base}SubLNConfig",
            "AutoModelForCausalLM": f"{module}.{base}{SUBLN_ENDING}",
        },
    }


def write_saved_form(folder: Path, *, has_sub_norms: bool) -> None:
    """Give a saved student its form: config.json, and the modelling file if it needs one.

    A model without SubLN does not change, and neither does a student that has its form already.

    Args:
        folder: has config.json; the weights may be missing.

    Raises:
        CheckpointError: config.json does not name the model's class.
        OutputError: a file cannot be written.
    """
    config = read_json(folder / "config.json")
    named = config.get("architectures")
    if not isinstance(named, list) or not named:
        raise CheckpointError(
            f"{folder / 'config.json'} has no architectures; add the name of the model's class"
        )
    if has_sub_norms and named[0] in STUDENTS:
        config = saved_config(config)
        content = json.dumps(config, indent=2, sort_keys=True) + "\n"
        write_atomically(folder / "config.json", content.encode())
    if config["architectures"][0].endswith(SUBLN_ENDING):
        write_atomically(folder / MODELING_FILE.name, MODELING_FILE.read_bytes())


def resave(folder: Path) -> None:
    """Give a student that an earlier version has saved its form, in place; its weights do not change.

    Raises:
        CheckpointError: the folder is not a checkpoint.
        OutputError: a file cannot be written.
    """
    checkpoint = open_checkpoint(folder)
    parts = find_parts(checkpoint.config, checkpoint.tensors)
    write_saved_form(folder, has_sub_norms=Part.SUB_NORMS in parts)


def _fits_bitnet(config: Mapping[str, Any]) -> bool:
    """Whether transformers' BitNetForCausalLM has everything that a Llama student may have.

    It has no biases in the MLP, and its norm in front of o_proj is as wide as the hidden state.
    """
    heads = int(config["num_attention_heads"])
    width = heads * int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    return width == config["hidden_size"] and not config.get("mlp_bias")
