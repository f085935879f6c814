"""``bitexport convert`` on architectures that only llama.cpp's converter knows: the command, and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bitexport
from bitexport.checkpoint import open_checkpoint
from bitexport.convert import convert, from_upstream
from bitexport.errors import BitexportError, CheckpointError, UnsupportedError
from bitexport.gguf.dequantize import dequantize
from bitexport.gguf.reader import read_gguf
from bitexport.upstream import TESTED, is_upstream, known_architectures, package
from bitexport.upstream.run import take_recipe
from tests.support.cli import run
from tests.support.upstream_models import MODELS, as_master
from tests.upstream.changed import edit
from tests.upstream.conftest import Changed, Made


@pytest.fixture
def changed(changed_models: dict[str, Changed], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A changed checkpoint by name; what the converter says about it was asked for before."""

    def prepared(name: str) -> Path:
        recipe = changed_models[name].recipe
        monkeypatch.setattr(from_upstream, "read_recipe", lambda checkpoint: take_recipe(recipe))  # noqa: ARG005
        return changed_models[name].checkpoint

    return prepared


def values_of(path: Path) -> dict[str, np.ndarray]:
    file = read_gguf(path)
    return {tensor.name: dequantize(file, tensor) for tensor in file.tensors}


def absmean(weights: np.ndarray) -> np.ndarray:
    """The values of master weights, as transformers quantizes one linear layer."""
    mean = np.float32(np.abs(weights).mean(dtype=np.float64))
    return (np.clip(np.rint(weights / mean), -1, 1) * mean).astype(np.float32)


def test_experts_of_master_weights_have_a_scale_each(
    upstream_models: dict[str, Made], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(upstream_models["Qwen3-MoE"].checkpoint, tmp_path / "checkpoint"))
    as_master(folder)
    done = run("convert", folder, tmp_path / "model.gguf", "--embed-type", "f16", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["packing"] == "master"
    assert report["ternary_tensors"] == 2 * (4 + 3)
    written = values_of(tmp_path / "model.gguf")
    weights = load_file(folder / "model.safetensors")
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        for part in ("gate", "up", "down"):
            experts = [weights[f"{prefix}.mlp.experts.{number}.{part}_proj.weight"] for number in range(4)]
            expected = np.stack([absmean(expert) for expert in experts])
            found = written[f"blk.{layer}.ffn_{part}_exps.weight"].reshape(expected.shape)
            np.testing.assert_array_equal(np.sign(found), np.sign(expected))
            np.testing.assert_allclose(found, expected, rtol=2.0**-10)  # scales are float16 there
        # the router is not one of transformers' linear layers and stays as it is
        router = weights[f"{prefix}.mlp.gate.weight"]
        np.testing.assert_array_equal(written[f"blk.{layer}.ffn_gate_inp.weight"], router)
        query = absmean(weights[f"{prefix}.self_attn.q_proj.weight"])
        np.testing.assert_allclose(written[f"blk.{layer}.attn_q.weight"], query, rtol=1e-6)
    model = bitexport.load(tmp_path / "model.gguf", n_ctx=32)
    model.eval([3, 4, 5])
    model.close()


def test_packed_weights_are_permuted_as_float_ones(
    upstream_models: dict[str, Made], changed: Callable[[str], Path], tmp_path: Path
) -> None:
    report = convert(changed("packed"), tmp_path / "packed.gguf", embed_type="f16")
    assert report.packing == "packed-divide"
    written = values_of(tmp_path / "packed.gguf")
    expected = values_of(upstream_models["Mistral, linear RoPE"].reference)
    assert set(written) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(written[name], values, rtol=1e-6, err_msg=name)


def refused(folder: Path, tmp_path: Path, error: type[BitexportError], match: str) -> None:
    with pytest.raises(error, match=match):
        convert(folder, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("sub norm", UnsupportedError, "refuses the checkpoint.*attn_sub_norm"),
        # what our own graph lacks says more than that llama.cpp's has no SubLN, or no window
        ("student with YaRN", UnsupportedError, "^rope_type 'yarn' is not supported"),
        ("student with a window", UnsupportedError, "^some layers use sliding-window attention"),
        ("relu2", UnsupportedError, "hidden_act 'relu2'.*computes 'silu' only"),
        ("bias", UnsupportedError, "olmo graph refuses.*wrong number of tensors"),
        ("damaged", CheckpointError, r"model\.layers\.1\.mlp\.up_proj\.weight"),
        ("float", CheckpointError, "use --float"),
    ],
)
def test_refused(
    changed: Callable[[str], Path], tmp_path: Path, name: str, error: type[BitexportError], match: str
) -> None:
    refused(changed(name), tmp_path, error, match)


def test_a_float_model_is_converted_with_float(changed: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed("float")
    report = convert(folder, tmp_path / "float.gguf", all_float=True)
    assert report.ternary_tensors == 0
    stored = load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    written = values_of(tmp_path / "float.gguf")["blk.0.ffn_up.weight"]
    np.testing.assert_array_equal(written, stored.astype(np.float16).astype(np.float32))


def test_remote_code_is_never_run(changed: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed("remote code")
    assert convert(folder, tmp_path / "model.gguf", embed_type="f16").architecture == "minicpm"
    assert not (folder / "trace").exists()


def test_a_vision_part_is_left_out_and_named(changed: Callable[[str], Path], tmp_path: Path) -> None:
    warnings = convert(changed("vision"), tmp_path / "model.gguf", embed_type="f16").warnings
    assert warnings == [
        "1 tensors are not part of what llama.cpp runs as llama and are left out: model.vision_tower"
    ]


def test_gptq_is_refused_before_the_converter_is_asked(
    upstream_models: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_upstream, "read_recipe", None)
    source = upstream_models["Mistral, linear RoPE"].checkpoint
    folder = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    edit(folder, quantization_config={"quant_method": "gptq", "bits": 2})
    refused(folder, tmp_path, UnsupportedError, "gptq")


def test_without_pytorch_the_message_names_the_extra(
    upstream_models: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder = upstream_models["Mistral, linear RoPE"].checkpoint
    refused(folder, tmp_path, UnsupportedError, r"needs the package torch: pip install 'bitexport\[parity\]'")


def test_the_table_of_architectures() -> None:
    known = known_architectures()
    assert len(known) > 100
    assert known["MistralForCausalLM"] == "llama"
    assert is_upstream({"architectures": ["MistralForCausalLM"]})
    assert is_upstream({"architectures": ["X"], "text_config": {"architectures": ["Qwen3ForCausalLM"]}})
    # its graph computes SiLU, and 2B4T's activation is ReLU squared
    assert not is_upstream({"architectures": ["BitNetForCausalLM"]})
    assert not is_upstream({"architectures": ["GPT9ForCausalLM"]})


def test_the_documentation_names_the_tested_architectures() -> None:
    assert set(TESTED) == {model.architecture or model.model_class for model in MODELS.values()}
    assert set(TESTED) <= set(known_architectures())


def test_without_the_package_the_message_says_to_build(
    upstream_models: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = upstream_models["Mistral, linear RoPE"].checkpoint
    library = tmp_path / "lib"
    library.mkdir()
    (library / "libllama.so").touch()
    monkeypatch.setenv("BITEXPORT_LIB_DIR", str(library))
    package._read_table.cache_clear()
    refused(folder, tmp_path, BitexportError, "make native")


def test_a_checkpoint_is_read_as_transformers_saves_it(upstream_models: dict[str, Made]) -> None:
    # so that the names in tests/support/upstream_models.py are those of published checkpoints
    names = set(open_checkpoint(upstream_models["Qwen3-MoE"].checkpoint).tensors)
    assert "model.layers.0.mlp.experts.3.down_proj.weight" in names


def test_an_adapter_changes_what_the_converter_computes_too(
    upstream_models: dict[str, Made], tmp_path: Path
) -> None:
    # norms and routers are read in the converter's own process, which opens the checkpoint again
    folder = Path(shutil.copytree(upstream_models["Qwen3-MoE"].checkpoint, tmp_path / "checkpoint"))
    as_master(folder)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 2}))
    layer = "base_model.model.model.layers.0"
    left, right = np.arange(4, dtype=np.float32)[:, None], np.ones((1, 256), dtype=np.float32)
    changes = {
        f"{layer}.mlp.gate.lora_A.weight": right,
        f"{layer}.mlp.gate.lora_B.weight": left,
        f"{layer}.input_layernorm.weight": np.full(256, 3, dtype=np.float32),
    }
    save_file(changes, adapter / "adapter_model.safetensors")
    done = run("convert", folder, tmp_path / "model.gguf", "--adapter", adapter, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["adapter"] == str(adapter)
    assert any("is merged into the master weights" in warning for warning in report["warnings"])
    written = values_of(tmp_path / "model.gguf")
    router = load_file(folder / "model.safetensors")["model.layers.0.mlp.gate.weight"]
    np.testing.assert_allclose(written["blk.0.ffn_gate_inp.weight"], router + 2 * left @ right, rtol=1e-6)
    np.testing.assert_array_equal(written["blk.0.attn_norm.weight"], np.full((1, 256), 3))


def test_master_weights_that_the_converter_splits(upstream_models: dict[str, Made], tmp_path: Path) -> None:
    # the first half of kv_b_proj is transposed in the converter's process, which has to quantize it; the
    # second is a 3-D matrix of heads, which I2_S cannot hold
    folder = Path(shutil.copytree(upstream_models["DeepSeek-V2 (MLA)"].checkpoint, tmp_path / "checkpoint"))
    as_master(folder)
    edit(folder, quantization_config=None)
    done = run("convert", folder, tmp_path / "model.gguf", "--master", "--json")
    assert done.returncode == 0, done.stderr
    written = values_of(tmp_path / "model.gguf")
    weights = load_file(folder / "model.safetensors")["model.layers.0.self_attn.kv_b_proj.weight"]
    expected = absmean(weights).reshape(4, 64, 128)
    keys = written["blk.0.attn_k_b.weight"].reshape(4, 128, 32)
    np.testing.assert_allclose(keys, expected[:, :32].transpose(0, 2, 1), rtol=2.0**-10)
    values = written["blk.0.attn_v_b.weight"].reshape(4, 32, 128)
    np.testing.assert_allclose(values, expected[:, 32:], rtol=2.0**-10)


@pytest.mark.parametrize("embed_type", ["auto", "f16"])
def test_packed_embeddings_with_one_scale(
    upstream_models: dict[str, Made], tmp_path: Path, embed_type: str
) -> None:
    # I2_S has no rows to look up, and --embed-type is for embeddings whatever they are stored as
    made = upstream_models["SmolLM3 (NoPE layers)"]
    folder = Path(shutil.copytree(made.checkpoint, tmp_path / "checkpoint"))
    weights = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    weights[name] = np.where(weights[name] > 0, np.float32(0.125), np.float32(-0.125))
    embeddings = weights[name]
    for each in (*made.ternary, name):
        scale = np.abs(weights[each]).max()
        weights[f"{each}_scale"] = np.array([scale], dtype=np.float32)
        weights[each] = np.sign(weights[each]).astype(np.int8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    offline = {"linear_class": "autobitlinear", "quantization_mode": "offline"}
    edit(folder, quantization_config={"quant_method": "bitnet", **offline})
    report = convert(folder, tmp_path / "model.gguf", embed_type=embed_type)
    assert not any("transposes" in warning for warning in report.warnings)
    (written,) = [t for t in read_gguf(tmp_path / "model.gguf").tensors if t.name == "token_embd.weight"]
    assert written.type.name == ("tq1_0" if embed_type == "auto" else "f16")
    np.testing.assert_array_equal(values_of(tmp_path / "model.gguf")["token_embd.weight"], embeddings)


@pytest.mark.parametrize(
    ("name", "entries", "expected"),
    [
        ("Qwen3-MoE", {"norm_topk_prob": False}, "norm_topk_prob is false .* always normalizes"),
        ("Qwen3-MoE", {"norm_topk_prob": None}, "norm_topk_prob is false .* always normalizes"),
        ("Qwen2-MoE", {"norm_topk_prob": True}, "norm_topk_prob is true .* never normalizes"),
        ("SmolLM3 (NoPE layers)", {"no_rope_layers": [1, 0, 1, 0]}, r"no_rope_layers is \[1, 0, 1, 0\]"),
        (
            "SmolLM3 (NoPE layers)",
            {"no_rope_layers": None, "no_rope_layer_interval": 2},
            r"no_rope_layers is \[1, 0, 1, 0\]",
        ),
    ],
)
def test_settings_that_the_graph_fixes(
    upstream_models: dict[str, Made],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    entries: dict[str, Any],
    expected: str,
) -> None:
    made = upstream_models[name]
    monkeypatch.setattr(from_upstream, "read_recipe", lambda checkpoint: take_recipe(made.recipe))  # noqa: ARG005
    folder = Path(shutil.copytree(made.checkpoint, tmp_path / "checkpoint"))
    edit(folder, **entries)
    with pytest.raises(UnsupportedError, match=expected):
        convert(folder, tmp_path / "model.gguf", dry_run=True)


def test_a_window_that_the_graph_ignores(
    upstream_models: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = upstream_models["Phi-3, longrope"]
    monkeypatch.setattr(from_upstream, "read_recipe", lambda checkpoint: take_recipe(made.recipe))  # noqa: ARG005
    folder = Path(shutil.copytree(made.checkpoint, tmp_path / "checkpoint"))
    # the file has the window, as Phi-3's has, but llama.cpp's graph does not use it
    edit(folder, sliding_window=64)
    report = convert(folder, tmp_path / "model.gguf", dry_run=True)
    assert any("a sliding window of 64 tokens" in warning for warning in report.warnings)
