from __future__ import annotations

from pathlib import Path

import pytest

from bitexport.errors import UsageError
from bitexport.train.config import TrainConfig, load_config
from tests.support.repository import TINY_PYTHON
from tests.train.conftest import tiny_config

SHIPPED = TINY_PYTHON / "train.toml"


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_saved_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path, run_dir='a "quoted" \\ folder \x7f é', learning_rate=3e-4, compile="layers"
    )
    assert load_config(write(tmp_path, config.to_toml())) == config


def test_shipped_configuration_suits_the_kernels() -> None:
    config = load_config(SHIPPED)
    assert config.hidden_size % 256 == 0
    assert config.intermediate_size % 256 == 0


def test_an_override_wins_and_none_does_not(tmp_path: Path) -> None:
    path = write(tmp_path, tiny_config(tmp_path).to_toml())
    assert load_config(path, run_dir="elsewhere").run_dir == "elsewhere"
    assert load_config(path, run_dir=None).run_dir == str(tmp_path / "run")


def test_an_integer_is_accepted_for_a_number(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, learning_rate=1)
    assert isinstance(config.learning_rate, float)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learnig_rate = 0.1", "unknown key learnig_rate; did you mean learning_rate?"),
        ("zzz = 1", "unknown key zzz; known keys: activation_checkpointing"),
        ("threads = 2.5", "threads = 2.5 has type float; expected int"),
        ("seed = true", "seed = True has type bool; expected int"),
        ('tie_word_embeddings = "yes"', "tie_word_embeddings = 'yes' has type str; expected bool"),
        ("seed = -1", "seed = -1; expected 0 or more"),
        ("weight_decay = nan", "weight_decay = nan; expected a finite number"),
        ("rope_theta = inf", "rope_theta = inf; expected a finite number"),
        ("rope_theta = 0.0", "rope_theta = 0.0; expected a number above 0"),
        ('precision = "fp16"', 'precision = \'fp16\'; expected "float32" or "bfloat16"'),
        ('hidden_act = "gelu"', "hidden_act = 'gelu'; expected"),
        ("= 3", "not TOML"),
    ],
)
def test_a_bad_line_is_explained(tmp_path: Path, line: str, message: str) -> None:
    name = line.split(" = ")[0]
    rest = [
        kept for kept in tiny_config(tmp_path).to_toml().splitlines() if not kept.startswith(f"{name} = ")
    ]
    with pytest.raises(UsageError) as caught:
        load_config(write(tmp_path, "\n".join([*rest, line])))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"vocab_size": 256}, "vocab_size"),
        ({"held_out_percent": 0}, "held_out_percent"),
        ({"micro_batch_tokens": 300}, "micro_batch_tokens"),
        ({"batch_tokens": 0}, "batch_tokens"),
        ({"sequence_length": 300}, "micro_batch_tokens"),
        ({"warmup_ratio": 0.6, "decay_ratio": 0.6}, "decay_ratio"),
        ({"lambda_warmup_ratio": 1.5}, "lambda_warmup_ratio"),
        ({"relation_form": "dot"}, "relation_form"),
        ({"logits_temperature": 0}, "logits_temperature"),
        ({"run_dir": ""}, "run_dir"),
        ({"adam_beta2": 1.0}, "adam_beta2"),
    ],
)
def test_settings_that_do_not_fit_each_other(tmp_path: Path, changes: dict[str, object], key: str) -> None:
    with pytest.raises(UsageError, match=f"^config: {key} = .*; expected "):
        tiny_config(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"pretrain_tokens": 0}, "pretrain_tokens"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"sequence_length": 65}, "sequence_length"),
    ],
)
def test_a_model_from_scratch_needs_a_shape(tmp_path: Path, changes: dict[str, object], key: str) -> None:
    with pytest.raises(UsageError, match=f"^config: {key} = .*; expected "):
        tiny_config(tmp_path, **changes).check_shape()


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="missing run_dir; add it to the file"):
        load_config(write(tmp_path, "seed = 1"))


def test_sources_are_a_list_of_strings(tmp_path: Path) -> None:
    for value in ('"stdlib"', "[1]"):
        with pytest.raises(UsageError, match=r"config: data = .*; expected a list of strings"):
            load_config(write(tmp_path, f'run_dir = "x"\ndata = {value}'))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_config(tmp_path / "none.toml")


def test_a_configuration_is_a_value() -> None:
    assert TrainConfig.__dataclass_params__.frozen  # type: ignore[attr-defined]
