from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.bitnet import AutoBitLinear, WeightQuant

from bitexport.errors import CheckpointError, OutputError
from bitexport.train.stages import train
from bitexport.train.student.pack import export_packed, pack, quantize_as_forward
from tests.train.conftest import tiny_config


def unpack_slowly(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Bits 2k+1..2k of byte (r, c), minus 1, belong to row k * (out / 4) + r: one value at a time."""
    quarter, columns = packed.shape
    trits = np.empty((4 * quarter, columns), dtype=np.int8)
    for r in range(quarter):
        for c in range(columns):
            for k in range(4):
                trits[k * quarter + r, c] = (int(packed[r, c]) >> (2 * k) & 3) - 1
    return trits


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """Compiled, transformers' quantizers may differ from themselves in the last bit."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(tmp_path_factory.mktemp("run"), architecture="bitnet", ternary=True)
    return train(config, "pretrain", say=lambda _: None).rename(Path(config.run_dir) / "master").parent


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "packed"
    export_packed(finished_run / "master", output)
    return output


def test_the_byte_layout() -> None:
    trits = np.array([[-1, 0], [1, -1], [0, 1], [1, 1], [-1, -1], [0, 0], [1, 0], [0, -1]], dtype=np.int8)
    packed = pack(trits)
    # rows 0, 2, 4, 6 share the first byte of a column, lowest bits first; codes are trit + 1
    assert packed.tolist()[0] == [0 | 1 << 2 | 0 << 4 | 2 << 6, 1 | 2 << 2 | 0 << 4 | 1 << 6]
    assert packed.tolist()[1] == [2 | 2 << 2 | 1 << 4 | 1 << 6, 0 | 2 << 2 | 1 << 4 | 0 << 6]
    assert (unpack_slowly(packed) == trits).all()


def test_rows_that_do_not_fill_bytes() -> None:
    with pytest.raises(CheckpointError, match="6 rows; expected a multiple of 4"):
        pack(np.zeros((6, 4), dtype=np.int8))


@pytest.mark.parametrize("standard_deviation", [1e-7, 0.02, 3.0])
def test_trits_and_scale_are_those_of_the_forward_pass(standard_deviation: float) -> None:
    """Compared with the output of the layer: a one-hot input selects a column."""
    torch.manual_seed(1)
    layer = AutoBitLinear(16, 12, bias=False, online_quant=True)
    torch.nn.init.normal_(layer.weight, std=standard_deviation)
    layer.weight.data[0, 0] = 1e-3  # otherwise all trits of the tiniest are zero
    with torch.no_grad():
        columns = layer(127 * torch.eye(16)) / 127
    ternary = quantize_as_forward(layer.weight, "w")
    assert torch.equal(torch.from_numpy(ternary.dequantize()).T, columns)


def test_master_weights_round_half_to_even() -> None:
    weight = torch.tensor([[0.5, -0.5, 1.5, -1.5], [1.0, 1.0, 1.0, 1.0]])  # mean of absolutes is 1
    ternary = quantize_as_forward(weight, "w")
    assert ternary.scale == 1.0
    assert ternary.trits.tolist() == [[0, 0, 1, -1], [1, 1, 1, 1]]


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_diverged_weights_are_refused(value: float) -> None:
    weight = torch.zeros(4, 4)
    weight[0, 0] = value
    with pytest.raises(CheckpointError, match=r"^w: quantizes to scale .* diverged"):
        quantize_as_forward(weight, "w")


def test_every_layer_is_stored_as_it_was_computed(finished_run: Path, exported: Path) -> None:
    master, packed = (
        load_file(finished_run / "master" / "model.safetensors"),
        load_file(exported / "model.safetensors"),
    )
    ternary = [name for name in master if name.endswith("_proj.weight")]
    assert len(ternary) == 2 * 7
    for name in ternary:
        scale = packed.pop(name + "_scale")
        assert scale.dtype == torch.float32
        assert scale.shape == (1,)
        trits = torch.from_numpy(unpack_slowly(packed.pop(name).numpy()))
        assert torch.equal(trits * scale, WeightQuant.apply(master[name]))
    embeddings = packed.pop("model.embed_tokens.weight")
    assert torch.equal(embeddings, master["model.embed_tokens.weight"].half().float())
    assert {tensor.dtype for tensor in packed.values()} == {torch.float32}  # transformers would not convert
    for name, norm in packed.items():
        assert name.endswith("norm.weight")
        assert torch.equal(norm, master[name])


def test_transformers_computes_the_same_from_both(finished_run: Path, exported: Path) -> None:
    online = AutoModelForCausalLM.from_pretrained(finished_run / "master", dtype=torch.float32).eval()
    embeddings = online.model.embed_tokens.weight.data
    embeddings.copy_(embeddings.half().float())  # the export rounds them
    offline = AutoModelForCausalLM.from_pretrained(exported).eval()
    assert offline.dtype == torch.float32  # without asking for it
    layer = offline.model.layers[0].mlp.down_proj
    assert isinstance(layer, AutoBitLinear)
    assert not layer.online_quant
    ids = torch.randint(300, (2, 32), generator=torch.manual_seed(0))
    with torch.no_grad():
        difference = (offline(ids).logits - online(ids).logits).abs().amax(dim=-1)  # (B, T)
    # The scale multiplies before the sum in one and after it in the other, which rounds differently: a value
    # between two int8 steps may be rounded the other way, and later positions attend to it.
    assert difference[:, 0].max() < 1e-4
    assert difference.median() < 1e-4
    assert difference.max() < 0.05


def test_the_tokenizer_is_copied(finished_run: Path, exported: Path) -> None:
    text = "def add_1(first, second):\n    return 'ü'\n"
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (finished_run / "master", exported))
    assert after.encode(text) == before.encode(text)
    assert after.eos_token == after.bos_token == "<|endoftext|>"
    settings = json.loads((exported / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_generation_stops_where_a_text_ends(exported: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert model.generation_config.eos_token_id == 0
    assert model.config.use_cache


def test_an_existing_model_is_kept_unless_forced(finished_run: Path, exported: Path) -> None:
    before = (exported / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="add --force"):
        export_packed(finished_run / "master", exported)
    export_packed(finished_run / "master", exported, force=True)
    assert (exported / "model.safetensors").read_bytes() == before
    assert not list(exported.glob("*.tmp"))


def test_a_packed_model_is_not_accepted_as_master(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'offline'.*expected autobitlinear and online"):
        export_packed(exported, tmp_path / "again")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_incomplete_masters(finished_run: Path, tmp_path: Path, name: str) -> None:
    master = tmp_path / "master"
    shutil.copytree(finished_run / "master", master)
    (master / name).unlink()
    with pytest.raises(CheckpointError, match=f"no {name}; give"):
        export_packed(master, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_when_a_layer_is_bad(finished_run: Path, tmp_path: Path) -> None:
    master = tmp_path / "master"
    shutil.copytree(finished_run / "master", master)
    tensors = load_file(master / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"].fill_(float("nan"))
    save_file(tensors, master / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        export_packed(master, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(OutputError, match="give another folder"):
        export_packed(finished_run / "master", tmp_path / "file")


def test_a_master_in_shards_and_with_a_chat_template(
    finished_run: Path, exported: Path, tmp_path: Path
) -> None:
    master = tmp_path / "master"
    shutil.copytree(finished_run / "master", master)
    (master / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(finished_run / "master", dtype=torch.float32)
    model.save_pretrained(master, max_shard_size="200KB")
    assert len(list(master.glob("model-*.safetensors"))) > 1
    (master / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    export_packed(master, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        exported / "model.safetensors"
    ).read_bytes()
    assert (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8") == "{{ messages }}"
    next(master.glob("model-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="model-0"):
        export_packed(master, tmp_path / "again")
