"""The reference is transformers' own model in float32: nothing compiled, fetched, guessed or left unset."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bitexport.errors import CheckpointError, TokenizerError, UsageError
from bitexport.reference import load_reference
from tests.support.decoding import greedy
from tests.support.repository import REPOSITORY
from tests.support.tiny_models import PACKINGS

Checkpoints = Callable[..., Path]
IDS = [0, 17, 33, 250, 99, 4, 61, 300, 12, 5]


@pytest.fixture
def copy(checkpoint_of: Checkpoints, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint_of("packed-multiply"), tmp_path / "copy"))


def test_three_packings_of_one_model_agree(checkpoint_of: Checkpoints) -> None:
    first, *others = (load_reference(checkpoint_of(packing)).logits(IDS) for packing in PACKINGS)
    assert first.shape == (len(IDS), 512)
    assert first.dtype == np.float32
    for other in others:
        cosine = (first * other).sum(-1) / np.linalg.norm(first, axis=-1) / np.linalg.norm(other, axis=-1)
        assert cosine.min() > 0.999


def test_logits_are_those_of_the_formula(checkpoint_of: Checkpoints) -> None:
    """One ternary layer by hand: y = trits . round(127 x / max|x|) * max|x| / 127 * scale."""
    reference = load_reference(checkpoint_of("packed-multiply"))
    layer = reference.ternary_layers()["blk.0.ffn_gate.weight"]
    x = torch.randn(1, 3, layer.in_features, generator=torch.Generator().manual_seed(1))
    largest = x.abs().amax(dim=-1, keepdim=True)
    steps = torch.clamp(torch.round(x.double() * 127 / largest.double()), -128, 127)
    trits = torch.from_numpy(np.asarray(layer.weight.detach()))
    assert set(trits.unique().tolist()) == {-1.0, 0.0, 1.0}
    expected = steps @ trits.double().T * largest.double() / 127 * layer.weight_scale.double()
    with torch.inference_mode():
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_nothing_is_compiled(checkpoint_of: Checkpoints) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    for packing in PACKINGS:
        load_reference(checkpoint_of(packing)).logits(IDS)
    assert not counters["frames"], counters["frames"]
    assert not counters["inductor"]


@pytest.mark.parametrize("packing", PACKINGS)
def test_bfloat16_on_disk_runs_in_float32(checkpoint_of: Checkpoints, packing: str) -> None:
    reference = load_reference(checkpoint_of(packing, dtype=torch.bfloat16))
    kinds = {value.dtype for value in reference.model.state_dict().values()}
    assert kinds <= {torch.float32, torch.uint8}
    assert reference.logits(IDS).dtype == np.float32


def test_attention_is_eager(checkpoint_of: Checkpoints) -> None:
    assert load_reference(checkpoint_of("master")).model.config._attn_implementation == "eager"


def test_feeding_and_greedy_follow_the_logits(checkpoint_of: Checkpoints) -> None:
    reference = load_reference(checkpoint_of("packed-multiply"))
    reference.clear()
    reference.feed(IDS[:4])
    np.testing.assert_allclose(reference.feed(IDS[4:]), reference.logits(IDS)[-1], rtol=0, atol=0.5)
    tokens = greedy(reference, IDS, 3)
    assert tokens[0] == reference.logits(IDS)[-1].argmax()
    assert greedy(reference, IDS, 3) == tokens  # nothing is left over from the run before


def test_ternary_layers_by_gguf_name(checkpoint_of: Checkpoints) -> None:
    for architecture in ("bitnet", "llama"):
        layers = load_reference(checkpoint_of("packed-multiply", architecture=architecture)).ternary_layers()
        assert len(layers) == 2 * 7
        assert "blk.1.attn_output.weight" in layers
        assert "output.weight" not in layers


def test_special_tokens_of_the_tokenizer(checkpoint_of: Checkpoints) -> None:
    reference = load_reference(checkpoint_of("master"))
    ids = reference.tokenize("def add")
    assert ids[0] == 0
    assert reference.text(ids) == "<|begin_of_text|>def add"


def test_no_tokens(checkpoint_of: Checkpoints) -> None:
    with pytest.raises(UsageError, match="no tokens"):
        load_reference(checkpoint_of("master")).logits([])


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_reference(tmp_path)


def test_missing_tensor_is_not_filled_with_random_numbers(copy: Path) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.mlp.ffn_sub_norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing.*ffn_sub_norm"):
        load_reference(copy)


def test_surplus_tensor(copy: Path) -> None:
    file = copy / "model.safetensors"
    save_file(
        {**load_file(file), "model.layers.0.extra.weight": torch.ones(3)}, file, metadata={"format": "pt"}
    )
    with pytest.raises(CheckpointError, match=r"unexpected.*extra"):
        load_reference(copy)


def test_code_in_pickled_weights_is_not_run(copy: Path, tmp_path: Path) -> None:
    """The weights themselves are read, see tests/checkpoint/test_torch_file.py."""

    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "was-run",)

    tensors = load_file(copy / "model.safetensors")
    torch.save({**tensors, "x": Attack()}, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="the pickle uses") as caught:
        load_reference(copy)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "was-run").exists()


def test_code_in_the_checkpoint_is_not_run(copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    (copy / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Model: pass\nclass Config: pass\n")
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    (copy / "config.json").write_text(json.dumps(config))
    load_reference(copy).logits(IDS)
    config["model_type"] = "evil"  # what runs it follows from its architecture
    (copy / "config.json").write_text(json.dumps(config))
    load_reference(copy).logits(IDS)
    assert not marker.exists()


def test_no_tokenizer(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_reference(copy)


def test_quiet(checkpoint_of: Checkpoints) -> None:
    code = (
        "from bitexport.reference import load_reference\n"
        f"reference = load_reference({str(checkpoint_of('packed-multiply'))!r})\n"
        "reference.logits(reference.tokenize('word ' * 1000)[:9])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True
    )
    assert (result.stdout, result.stderr) == ("", "")
