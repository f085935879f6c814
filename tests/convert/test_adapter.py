"""``--adapter``: LoRA adapters as PEFT saves them, merged here by formula and compared tensor by tensor.

The names, shapes and settings are those of PEFT 0.21, whose ``merge_and_unload`` gives the same values.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bitexport.checkpoint import open_checkpoint
from bitexport.checkpoint.adapter import merge_adapter
from bitexport.convert import convert
from bitexport.errors import CheckpointError, UnsupportedError, UsageError
from tests.support.gguf_files import tensors_of
from tests.support.tiny_models import save_checkpoint, tiny_model

PREFIX = "base_model.model."
Q, DOWN = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"
EMBEDDING = "model.embed_tokens"
RANK = 4


def save_adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """An adapter folder as PEFT's ``save_pretrained`` writes it; ``tensors`` without the common prefix."""
    folder.mkdir(parents=True)
    save_file({PREFIX + name: value for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    content = {
        "peft_type": "LORA",
        "base_model_name_or_path": "owner/name",
        "r": RANK,
        "lora_alpha": 12,
        "target_modules": ["q_proj", "down_proj"],
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "bias": "none",
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    (folder / "adapter_config.json").write_text(json.dumps(content | config))
    return folder


def factors(module: str, out: int, columns: int, rank: int = RANK) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(out + columns)
    a, b = (torch.randn(*shape, generator=generator) * 0.1 for shape in ((rank, columns), (out, rank)))
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}


LINEAR = factors(Q, 256, 256) | factors(DOWN, 256, 512)


def merged_by_hand(base: Path, tensors: dict[str, torch.Tensor], scaling: dict[str, float]) -> dict[str, Any]:
    """All tensors of ``base``, with ``W + s B A`` for the modules in ``scaling``."""
    found = load_file(base / "model.safetensors")
    for module, s in scaling.items():
        product = tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
        found[f"{module}.weight"] = found[f"{module}.weight"] + s * product
    return found


def check_values(base: Path, adapter: Path, expected: dict[str, torch.Tensor]) -> None:
    checkpoint = merge_adapter(open_checkpoint(base), adapter)
    assert checkpoint.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(checkpoint.read(name), tensor.numpy(), rtol=1e-5, atol=1e-7)
        rows = np.concatenate(list(checkpoint.read_rows(name, 100)))
        np.testing.assert_allclose(rows, tensor.numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, {Q: 3.0, DOWN: 3.0}),
        ({"use_rslora": True}, {Q: 6.0, DOWN: 6.0}),
        ({"alpha_pattern": {"down_proj": 2}}, {Q: 3.0, DOWN: 0.5}),
        ({"alpha_pattern": {r"layers\.0\..*": 2, "own_proj": 9}}, {Q: 3.0, DOWN: 0.5}),
    ],
)
def test_the_formula(
    tmp_path: Path, checkpoint_of: Callable[..., Path], config: dict[str, Any], scaling: dict[str, float]
) -> None:
    adapter = save_adapter(tmp_path / "adapter", LINEAR, **config)
    check_values(checkpoint_of(), adapter, merged_by_hand(checkpoint_of(), LINEAR, scaling))


def test_the_rank_is_that_of_the_matrices(tmp_path: Path, checkpoint_of: Callable[..., Path]) -> None:
    tensors = factors(DOWN, 256, 512, rank=2)
    adapter = save_adapter(tmp_path / "adapter", tensors, rank_pattern={"down_proj": 2})
    check_values(checkpoint_of(), adapter, merged_by_hand(checkpoint_of(), tensors, {DOWN: 6.0}))


def test_dora(tmp_path: Path, checkpoint_of: Callable[..., Path]) -> None:
    magnitude = torch.rand(256) + 0.5
    tensors = factors(DOWN, 256, 512) | {f"{DOWN}.lora_magnitude_vector": magnitude}
    adapter = save_adapter(tmp_path / "adapter", tensors, use_dora=True)
    expected = merged_by_hand(checkpoint_of(), tensors, {DOWN: 3.0})
    weight = expected[f"{DOWN}.weight"]
    expected[f"{DOWN}.weight"] = magnitude[:, None] * weight / torch.linalg.norm(weight, dim=1, keepdim=True)
    check_values(checkpoint_of(), adapter, expected)


def test_an_embedding_and_modules_to_save(tmp_path: Path, checkpoint_of: Callable[..., Path]) -> None:
    base = checkpoint_of(tied=False)
    expected = load_file(base / "model.safetensors")
    a, b = torch.randn(RANK, 512) * 0.1, torch.randn(256, RANK) * 0.1
    tensors = {
        f"{EMBEDDING}.lora_embedding_A": a,
        f"{EMBEDDING}.lora_embedding_B": b,
        f"{EMBEDDING}.base_layer.weight": expected[f"{EMBEDDING}.weight"],
        "lm_head.weight": torch.randn(512, 256),
        "model.norm.weight": torch.rand(256),
    }
    adapter = save_adapter(tmp_path / "adapter", tensors, modules_to_save=["lm_head", "norm"])
    expected[f"{EMBEDDING}.weight"] = expected[f"{EMBEDDING}.weight"] + 3 * (b @ a).T
    expected |= {name: tensors[name] for name in ("lm_head.weight", "model.norm.weight")}
    check_values(base, adapter, expected)


def test_a_tied_head_that_was_trained_by_itself(tmp_path: Path) -> None:
    """PEFT saves the head with the adapter; the base has none of its own."""
    base = save_checkpoint(tiny_model(architecture="llama"), tmp_path / "base")
    expected = load_file(base / "model.safetensors")
    head = torch.randn(512, 256).half().float()
    tensors = LINEAR | {"lm_head.weight": head}
    adapter = save_adapter(tmp_path / "adapter", tensors, modules_to_save=["lm_head"])
    check_values(base, adapter, merged_by_hand(base, LINEAR, {Q: 3.0, DOWN: 3.0}) | {"lm_head.weight": head})
    report = convert(base, tmp_path / "x.gguf", embed_type="f16", adapter=adapter)
    assert any("differs from the embeddings: it is written as the head" in text for text in report.warnings)
    assert tensors_of(tmp_path / "x.gguf")["output.weight"][2] == head.half().numpy().tobytes()
    assert "lm_head.weight" not in expected


def test_a_tied_head_stays_tied_to_the_changed_embedding(
    tmp_path: Path, checkpoint_of: Callable[..., Path]
) -> None:
    """An adapter of an embedding whose model also stores the head: the head is not the same any more."""
    base = tmp_path / "base"
    shutil.copytree(checkpoint_of(), base)
    tensors = load_file(base / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": tensors[f"{EMBEDDING}.weight"].clone()}, base / "model.safetensors"
    )
    parts = {
        f"{EMBEDDING}.lora_embedding_A": torch.randn(RANK, 512),
        f"{EMBEDDING}.lora_embedding_B": torch.randn(256, RANK),
    }
    merged = merge_adapter(open_checkpoint(base), save_adapter(tmp_path / "adapter", parts))
    assert open_checkpoint(base).same_bytes("lm_head.weight", f"{EMBEDDING}.weight")
    assert not merged.same_bytes("lm_head.weight", f"{EMBEDDING}.weight")
    assert merged.same_bytes("model.norm.weight", "model.norm.weight")


@pytest.mark.parametrize(("packing", "options"), [("master", {}), ("float", {"all_float": True})])
def test_converted_as_the_merged_model_would_be(
    tmp_path: Path,
    checkpoint_of: Callable[..., Path],
    run_cli: Callable[..., subprocess.CompletedProcess[str]],
    packing: str,
    options: dict[str, Any],
) -> None:
    base = checkpoint_of()
    if packing == "float":
        model = tiny_model(architecture="llama")
        base = save_checkpoint(model, tmp_path / "llama", config_changes={"quantization_config": None})
    adapter = save_adapter(tmp_path / "adapter", LINEAR)
    merged = tmp_path / "merged"
    shutil.copytree(base, merged)
    # read here rather than merged by hand, whose last bits differ
    read = merge_adapter(open_checkpoint(base), adapter)
    tensors = {name: torch.from_numpy(np.array(read.read(name))) for name in read.tensors}
    save_file(tensors, merged / "model.safetensors")
    convert(merged, tmp_path / "expected.gguf", embed_type="f16", **options)
    arguments = ["--adapter", adapter, "--embed-type", "f16", "--json", *(["--float"] if options else [])]
    done = run_cli("convert", base, tmp_path / "x.gguf", *arguments)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["adapter"] == str(adapter)
    assert any("is merged into the master weights" in text for text in report["warnings"]) != bool(options)
    assert tensors_of(tmp_path / "x.gguf") == tensors_of(tmp_path / "expected.gguf")
    convert(base, tmp_path / "base.gguf", embed_type="f16", **options)
    assert tensors_of(tmp_path / "x.gguf") != tensors_of(tmp_path / "base.gguf")


def test_a_packed_base(tmp_path: Path, checkpoint_of: Callable[..., Path]) -> None:
    """The advice: the checkpoint with the master weights."""
    adapter = save_adapter(tmp_path / "adapter", LINEAR)
    for packing in ("packed-multiply", "packed-divide"):
        with pytest.raises(
            UnsupportedError, match=rf"--adapter with {packing} weights, .* already ternary.*master"
        ):
            convert(checkpoint_of(packing), tmp_path / "x.gguf", embed_type="f16", adapter=adapter)
    assert not (tmp_path / "x.gguf").exists()
    convert(checkpoint_of("master"), tmp_path / "x.gguf", embed_type="f16", adapter=adapter)


def test_a_base_without_quantization_config(tmp_path: Path) -> None:
    model = tiny_model(architecture="llama")
    master = save_checkpoint(model, tmp_path / "m", config_changes={"quantization_config": None})
    ternary = save_checkpoint(model, tmp_path / "t", "pre-dequantized")
    adapter = save_adapter(tmp_path / "adapter", LINEAR)
    for folder in (master, ternary):
        with pytest.raises(
            UnsupportedError, match=r"for a float model, add --float; for master weights, .* --master"
        ):
            convert(folder, tmp_path / "x.gguf", embed_type="f16", adapter=adapter)
    report = convert(master, tmp_path / "x.gguf", embed_type="f16", adapter=adapter, master=True)
    assert (report.packing, report.adapter) == ("master", str(adapter))
    with pytest.raises(UnsupportedError, match=r"'model.*_proj\.weight' is already ternary, and the adapter"):
        convert(ternary, tmp_path / "y.gguf", embed_type="f16", adapter=adapter, master=True)
    convert(ternary, tmp_path / "y.gguf", embed_type="f16", adapter=adapter, all_float=True)


def test_an_adapter_in_the_folder_of_a_model_and_both_ways_on(
    tmp_path: Path, checkpoint_of: Callable[..., Path], gguf_of: Callable[..., Path]
) -> None:
    folder = tmp_path / "master"
    shutil.copytree(checkpoint_of(), folder)
    adapter = save_adapter(tmp_path / "adapter", LINEAR)
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    match = rf"a model and an adapter .*--adapter {folder}, or move adapter_config\.json to another folder"
    with pytest.raises(CheckpointError, match=match):
        convert(folder, tmp_path / "x.gguf", embed_type="f16")
    convert(folder, tmp_path / "x.gguf", embed_type="f16", adapter=folder)
    convert(checkpoint_of(), tmp_path / "y.gguf", embed_type="f16", adapter=adapter)
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "y.gguf").read_bytes()
    (tmp_path / "elsewhere").mkdir()
    shutil.move(folder / "adapter_config.json", tmp_path / "elsewhere")
    convert(folder, tmp_path / "x.gguf", embed_type="f16", force=True)
    assert (tmp_path / "x.gguf").read_bytes() == gguf_of().read_bytes()


@pytest.mark.parametrize("nested", ["", "checkpoint-7"])
@pytest.mark.parametrize("local", [True, False])
def test_an_adapter_without_its_model(
    tmp_path: Path, checkpoint_of: Callable[..., Path], local: bool, nested: str
) -> None:
    base = str(checkpoint_of()) if local else "owner/name"
    save_adapter(tmp_path / "a" / nested, LINEAR, base_model_name_or_path=base)
    with pytest.raises(CheckpointError) as caught:
        convert(tmp_path / "a", tmp_path / "x.gguf")
    message = str(caught.value)
    if not local:
        assert "download its base model 'owner/name' into a folder BASE and run: bitexport convert" in message
    words = shlex.split(message.partition("bitexport convert ")[2])
    source = base if local else words[0].replace("BASE", str(checkpoint_of()))
    assert words[1:3] == ["OUT.gguf", "--adapter"]
    convert(source, tmp_path / "x.gguf", embed_type="f16", adapter=words[3])


BAD = {
    "another kind": ({}, {"peft_type": "LOHA"}, r"of type 'LOHA'; expected 'LORA'"),
    "changed base": ({}, {"init_lora_weights": "pissa"}, r"init_lora_weights 'pissa' changed the base"),
    "unknown switch": ({}, {"use_qalora": True}, r"sets use_qalora to True; expected a plain LoRA"),
    "invocation": ({}, {"alora_invocation_tokens": [1]}, r"sets alora_invocation_tokens to \[1\]"),
    "layers": ({}, {"layer_replication": [[0, 2]]}, r"sets layer_replication"),
    "alpha": ({}, {"lora_alpha": "12"}, r"lora_alpha is '12'; expected a number"),
    "pattern": ({}, {"alpha_pattern": {"(": 1}}, r"invalid name '\('"),
    "another model": (
        factors("model.layers.9.mlp.up_proj", 512, 256),
        {},
        r"changes 'model\.layers\.9\.mlp\.up",
    ),
    "another width": (
        factors(Q, 256, 128),
        {},
        r"q_proj' is for a weight of shape \[256, 128\], but 'model.*256, 256",
    ),
    "no B": ({f"{Q}.lora_A.weight": torch.ones(4, 256)}, {}, r"q_proj' has only lora_A"),
    "ranks": (
        {f"{Q}.lora_A.weight": torch.ones(4, 256), f"{Q}.lora_B.weight": torch.ones(256, 3)},
        {},
        r"has A \[4, 256\] and B \[256, 3\]; expected \[r, in\] and \[out, r\]",
    ),
    "bias of B": ({**LINEAR, f"{Q}.lora_B.bias": torch.ones(256)}, {}, r"changes '.*lora_B\.bias', which"),
    "resized": ({**LINEAR, "model.embed_tokens.weight": torch.ones(600, 256)}, {}, r"vocabulary was resized"),
    "integers": (
        {f"{Q}.lora_A.weight": torch.ones(4, 256, dtype=torch.int64)},
        {},
        r"dtype I64; expected BF16",
    ),
    "no magnitude": (LINEAR, {"use_dora": True}, r"has no magnitude vector"),
    "square": (factors(Q, 256, 256), {"fan_in_fan_out": True}, r"fan_in_fan_out is true and '.*' is square"),
    "nan": (
        {**LINEAR, f"{Q}.lora_A.weight": torch.full((4, 256), math.nan)},
        {},
        r"q_proj\.lora_A\.weight' holds nan",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_adapters_that_are_refused(
    tmp_path: Path, checkpoint_of: Callable[..., Path], empty_folder: Path, case: str
) -> None:
    tensors, config, message = BAD[case]
    adapter = save_adapter(tmp_path / "adapter", tensors or LINEAR, **config)
    with pytest.raises((CheckpointError, UnsupportedError), match=message):
        convert(checkpoint_of(), empty_folder / "x.gguf", embed_type="f16", adapter=adapter)


def test_a_layer_that_stores_its_weight_transposed(
    tmp_path: Path, checkpoint_of: Callable[..., Path]
) -> None:
    """With fan_in_fan_out the shape decides: here the layer is an ordinary one, where PEFT ignores it."""
    tensors = factors(DOWN, 256, 512)
    adapter = save_adapter(tmp_path / "adapter", tensors, fan_in_fan_out=True)
    check_values(checkpoint_of(), adapter, merged_by_hand(checkpoint_of(), tensors, {DOWN: 3.0}))
    turned = factors(DOWN, 512, 256)
    adapter = save_adapter(tmp_path / "turned", turned, fan_in_fan_out=True)
    expected = load_file(checkpoint_of() / "model.safetensors")
    product = turned[f"{DOWN}.lora_B.weight"] @ turned[f"{DOWN}.lora_A.weight"]
    expected[f"{DOWN}.weight"] = expected[f"{DOWN}.weight"] + 3 * product.T
    check_values(checkpoint_of(), adapter, expected)


def test_folders_that_hold_no_adapter(tmp_path: Path, checkpoint_of: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json; expected the folder of an adapter"):
        convert(checkpoint_of(), tmp_path / "x.gguf", adapter=tmp_path)
    adapter = save_adapter(tmp_path / "adapter", LINEAR)
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    check_values(checkpoint_of(), adapter, merged_by_hand(checkpoint_of(), LINEAR, {Q: 3.0, DOWN: 3.0}))
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors or adapter_model\.bin"):
        convert(checkpoint_of(), tmp_path / "x.gguf", adapter=adapter)


def test_a_gguf_file_takes_no_adapter(tmp_path: Path, gguf_of: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="--adapter is for a checkpoint"):
        convert(gguf_of(), tmp_path / "x.gguf", adapter=tmp_path)
    with pytest.raises(UsageError, match="--master is for a checkpoint"):
        convert(gguf_of(), tmp_path / "x.gguf", master=True)
