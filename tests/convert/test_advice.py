"""Every message that proposes a change of config.json, of the tensors or of an option, followed literally.

Each row of :data:`CASES` breaks a checkpoint, expects the message, does what the message says and nothing
else, and converts again: the tensors must be those of the sound checkpoint. All packings of ``tiny_models``
give the same tensors, so there is one expected model. Scale groups have their own tests in
test_scale_groups.py, GGUF files in test_from_gguf.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bitexport.convert import convert
from bitexport.convert.choices import EMBED_TYPES
from bitexport.errors import BitexportError, CheckpointError, UnsupportedError
from bitexport.gguf.reader import read_gguf
from tests.support.damaged_checkpoints import config, edited, resaved, tensors
from tests.support.gguf_files import tensors_of, values
from tests.support.tiny_models import Shape, save_checkpoint, tiny_model

Checkpoints = Callable[..., Path]
Change = Callable[[Path], None]

SHAPE = Shape(hidden=128, ffn=256, layers=1, heads=4, kv_heads=2, vocab=416)
UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


def quantization(**entries: Any) -> Change:
    """Set entries of quantization_config; None removes one."""

    def change(found: dict[str, Any]) -> None:
        listed = found.setdefault("quantization_config", {})
        listed.update(entries)
        for key in [key for key, value in entries.items() if value is None]:
            del listed[key]

    return config(change)


NO_CONFIG = config(lambda found: found.pop("quantization_config"))


def nothing(folder: Path) -> None:
    """For advice about options."""


@dataclass(frozen=True)
class Case:
    """A checkpoint of ``packing`` that ``change`` breaks, the message, and its advice as ``follow``.

    ``restore`` is a tensor that is saved again as it was, in float32.
    """

    packing: str
    change: Change
    message: str
    follow: Change
    options: Mapping[str, Any] = field(default_factory=dict)
    restore: str = ""


def unpacked(found: dict[str, torch.Tensor]) -> None:
    """As transformers saves a packed checkpoint again: the trits as floats, beside their scales."""
    for name in found:
        if name.endswith("_proj.weight"):
            codes = torch.cat([(found[name] >> (2 * k)) & 3 for k in range(4)])
            found[name] = codes.float() - 1


def both(first: Change, second: Change) -> Change:
    def change(folder: Path) -> None:
        first(folder)
        second(folder)

    return change


CASES = {
    "trits beside scales, no config": Case(
        "packed-multiply",
        both(tensors(unpacked), NO_CONFIG),
        'has a weight_scale, .*expected one with quant_method bitnet: .*"autobitlinear" if it multiplies',
        quantization(quant_method="bitnet", linear_class="autobitlinear"),
    ),
    "trits beside scales, config of master weights": Case(
        "packed-multiply",
        both(tensors(unpacked), quantization(quantization_mode="online")),
        "has a weight_scale, .*says online; .*: set quantization_mode to offline",
        quantization(quantization_mode="offline"),
    ),
    "packed, no config, multiplies": Case(
        "packed-multiply",
        NO_CONFIG,
        'expected one with quant_method bitnet: .*"autobitlinear" if it multiplies',
        quantization(quant_method="bitnet", linear_class="autobitlinear"),
    ),
    "packed, no config, divides": Case(
        "packed-divide",
        NO_CONFIG,
        'set its linear_class to "bitlinear" if the model divides by weight_scale',
        quantization(quant_method="bitnet", linear_class="bitlinear"),
    ),
    "master, no config": Case(
        "master",
        NO_CONFIG,
        'linear_class "autobitlinear" and quantization_mode "online"',
        quantization(quant_method="bitnet", linear_class="autobitlinear", quantization_mode="online"),
    ),
    "master, config of packed weights": Case(
        "master",
        quantization(quantization_mode="offline"),
        "or set linear_class to autobitlinear and quantization_mode to online",
        quantization(linear_class="autobitlinear", quantization_mode="online"),
    ),
    "master, config of packed weights that divide": Case(
        "master",
        quantization(linear_class=None, quantization_mode=None),
        "or set linear_class to autobitlinear and quantization_mode to online",
        quantization(linear_class="autobitlinear", quantization_mode="online"),
    ),
    "ternary floats, config of packed weights": Case(
        "pre-dequantized",
        quantization(quant_method="bitnet"),
        "for weights that are ternary already, remove quantization_config",
        NO_CONFIG,
    ),
    "packed, config of master weights": Case(
        "packed-multiply",
        quantization(quantization_mode="online"),
        "for packed weights, set quantization_mode to offline",
        quantization(quantization_mode="offline"),
    ),
    "unknown linear_class": Case(
        "packed-divide",
        quantization(linear_class="bit"),
        "unknown packing: linear_class 'bit'.*bitlinear offline",
        quantization(linear_class="bitlinear", quantization_mode="offline"),
    ),
    "unknown quantization_mode": Case(
        "master",
        quantization(quantization_mode="dynamic"),
        "quantization_mode 'dynamic'; expected one of: autobitlinear online",
        quantization(linear_class="autobitlinear", quantization_mode="online"),
    ),
    "a packed layer listed as float": Case(
        "packed-multiply",
        quantization(modules_to_not_convert=["up_proj", "lm_head"]),
        "'.*up_proj.weight' has dtype U8, so it is packed, .*remove it from the list",
        quantization(modules_to_not_convert=["lm_head"]),
    ),
    "every layer listed as float": Case(
        "master",
        quantization(modules_to_not_convert=["model", "lm_head"]),
        "expected only layers that are not ternary, such as lm_head",
        quantization(modules_to_not_convert=["lm_head"]),
    ),
    "modules_to_not_convert is text": Case(
        "master",
        quantization(modules_to_not_convert="lm_head"),
        r'expected a list of non-empty module names, such as \["lm_head"\]',
        quantization(modules_to_not_convert=["lm_head"]),
    ),
    "a scale of integers": Case(
        "packed-multiply",
        tensors(lambda found: found.update({f"{UP}_scale": torch.ones(1, dtype=torch.int64)})),
        f"'{UP}_scale' has dtype I64; expected .*save it as F32",
        nothing,
        restore=f"{UP}_scale",
    ),
    "a norm of integers": Case(
        "master",
        tensors(lambda found: found.update({NORM: torch.ones(128, dtype=torch.int16)})),
        f"'{NORM}' has dtype I16; expected .*save it as BF16",
        nothing,
        restore=NORM,
    ),
    "ternary, --float": Case(
        "master",
        nothing,
        "so the model is ternary; expected a float one: convert it without --float",
        nothing,
        {"all_float": True},
    ),
}


@pytest.fixture(scope="module")
def right(checkpoint_of: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tensors that every case must lead to."""
    file = tmp_path_factory.mktemp("right") / "x.gguf"
    convert(checkpoint_of("packed-multiply", shape=SHAPE), file, embed_type="f16")
    return tensors_of(file)


@pytest.mark.parametrize("name", CASES)
def test_advice_leads_to_the_right_model(
    name: str, tmp_path: Path, checkpoint_of: Checkpoints, right: dict[str, Any]
) -> None:
    case = CASES[name]
    source = checkpoint_of(case.packing, shape=SHAPE)
    folder = tmp_path / "c"
    shutil.copytree(source, folder)
    case.change(folder)
    options = {"embed_type": "f16", **case.options}
    with pytest.raises(BitexportError, match=case.message):
        convert(folder, tmp_path / "x.gguf", **options)
    assert not (tmp_path / "x.gguf").exists()
    case.follow(folder)
    if case.restore:
        saved = load_file(source / "model.safetensors")[case.restore].float()
        tensors(lambda found: found.update({case.restore: saved}))(folder)
    convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert tensors_of(tmp_path / "x.gguf") == right


@pytest.mark.parametrize("packing", ["packed-multiply", "pre-dequantized"])
def test_a_float_layer_among_ternary_ones(
    packing: str, tmp_path: Path, checkpoint_of: Checkpoints, right: dict[str, Any]
) -> None:
    """A layer that stays float but is not listed must not be quantized, nor the others changed."""
    master = load_file(checkpoint_of("master", shape=SHAPE) / "model.safetensors")[UP]

    def keep(found: dict[str, torch.Tensor]) -> None:
        found[UP] = master
        found.pop(f"{UP}_scale", None)

    folder = resaved(checkpoint_of(packing, shape=SHAPE), tmp_path / "c", keep)
    module = UP.removesuffix(".weight")
    with pytest.raises(CheckpointError, match=rf'"{module}".* modules_to_not_convert'):
        convert(folder, tmp_path / "x.gguf", embed_type="f16")
    if packing == "packed-multiply":
        listed = {"modules_to_not_convert": [module]}
    else:
        listed = {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online",
            "modules_to_not_convert": [module],
        }
    quantization(**listed)(folder)
    convert(folder, tmp_path / "x.gguf", embed_type="f16")
    found = tensors_of(tmp_path / "x.gguf")
    np.testing.assert_array_equal(
        values(read_gguf(tmp_path / "x.gguf"), "blk.0.ffn_up.weight"), master.numpy().astype(np.float16)
    )
    del found["blk.0.ffn_up.weight"]
    assert found == {name: tensor for name, tensor in right.items() if name != "blk.0.ffn_up.weight"}
    if packing == "pre-dequantized":  # without the entry, a warning names the layer
        quantization(modules_to_not_convert=None)(folder)
        report = convert(folder, tmp_path / "y.gguf", embed_type="f16")
        assert any(f"'{UP}'" in text and "modules_to_not_convert" in text for text in report.warnings)


def test_a_float_teacher_without_the_option(tmp_path: Path) -> None:
    model = tiny_model(SHAPE, architecture="llama")
    folder = save_checkpoint(model, tmp_path / "c", config_changes={"quantization_config": None})
    with pytest.raises(CheckpointError, match="to convert a float teacher to float16, use --float"):
        convert(folder, tmp_path / "x.gguf", embed_type="f16")
    convert(folder, tmp_path / "x.gguf", all_float=True)
    saved = load_file(folder / "model.safetensors")[UP].numpy()
    np.testing.assert_array_equal(
        values(read_gguf(tmp_path / "x.gguf"), "blk.0.ffn_up.weight"), saved.astype(np.float16)
    )


def test_packed_1bitllm_without_a_config(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    """Its architecture is ternary by definition, as master weights; packed ones need to say how."""

    def published(found: dict[str, Any]) -> None:
        found["architectures"] = ["BitnetForCausalLM"]
        del found["quantization_config"]

    packed = checkpoint_of("packed-divide", architecture="1bitllm", shape=SHAPE)
    plain = edited(packed, tmp_path / "c", published)
    with pytest.raises(BitexportError, match=r'quant_method bitnet.*"bitlinear" if the model divides'):
        convert(plain, tmp_path / "x.gguf", embed_type="f16")
    quantization(quant_method="bitnet", linear_class="bitlinear")(plain)
    master = edited(checkpoint_of("master", architecture="1bitllm", shape=SHAPE), tmp_path / "m", published)
    with pytest.raises(CheckpointError, match=r"is ternary by definition.*without --float"):
        convert(master, tmp_path / "x.gguf", all_float=True)
    convert(plain, tmp_path / "x.gguf", embed_type="f16")
    convert(master, tmp_path / "y.gguf", embed_type="f16")
    assert tensors_of(tmp_path / "x.gguf") == tensors_of(tmp_path / "y.gguf")


@pytest.mark.parametrize(("hidden", "option"), [(96, "type"), (96, "embed_type")])
def test_every_type_that_a_message_names(
    hidden: int, option: str, tmp_path: Path, checkpoint_of: Checkpoints
) -> None:
    """Rows of 96: neither 256 nor 64 divides them."""
    shape = Shape(hidden=hidden, ffn=256, layers=1, heads=4, kv_heads=2, vocab=416)
    source = checkpoint_of("packed-multiply", shape=shape)
    wrong = {"type": "tq2_0", "embed_type": "q6_k"}
    with pytest.raises(UnsupportedError, match=rf"; use --{option.replace('_', '-')} ") as error:
        convert(source, tmp_path / "x.gguf", **{"type": "i2_s", "embed_type": "f16", option: wrong[option]})
    proposed = str(error.value).split(f"use --{option.replace('_', '-')} ")[1].split(" or ")
    assert proposed
    for kind in proposed:
        convert(
            source, tmp_path / "x.gguf", force=True, **{"type": "i2_s", "embed_type": "f16", option: kind}
        )


@pytest.mark.parametrize("kind", [kind for kind in EMBED_TYPES if kind != "f16"])
def test_another_type_for_large_embeddings(kind: str, tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    shape = Shape(hidden=256, ffn=256, layers=1, heads=4, kv_heads=2, vocab=416)

    def change(found: dict[str, torch.Tensor]) -> None:
        found["model.embed_tokens.weight"][3, 4] = 1e5

    folder = resaved(checkpoint_of("packed-multiply", shape=shape), tmp_path / "c", change)
    with pytest.raises(UnsupportedError, match="more than float16's 65504; use another --embed-type"):
        convert(folder, tmp_path / "x.gguf", embed_type="f16")
    convert(folder, tmp_path / "x.gguf", embed_type=kind)
    assert values(read_gguf(tmp_path / "x.gguf"), "token_embd.weight")[3, 4] == pytest.approx(1e5, rel=0.01)


def test_four_rows_to_a_byte(tmp_path: Path) -> None:
    """A weight whose rows are not a multiple of four cannot be packed; as master weights it converts."""
    shape = Shape(hidden=128, ffn=254, layers=1, heads=4, kv_heads=2, vocab=416)
    model = tiny_model(shape)
    folder = save_checkpoint(model, tmp_path / "c", "master")
    source = tmp_path / "d"
    shutil.copytree(folder, source)
    quantization(quantization_mode="offline")(source)

    def pack(found: dict[str, torch.Tensor]) -> None:
        for name in [name for name in found if name.endswith("_proj.weight")]:
            out, columns = found[name].shape
            found[name] = torch.full((out // 4, columns), 0x55, dtype=torch.uint8)
            found[f"{name}_scale"] = torch.ones(1)

    tensors(pack)(source)
    with pytest.raises(UnsupportedError, match="expected a multiple of 4: use master weights"):
        convert(source, tmp_path / "x.gguf", embed_type="f16")
    convert(folder, tmp_path / "x.gguf", embed_type="f16")
