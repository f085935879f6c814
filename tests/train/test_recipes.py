"""docs/training-recipes.md: its configurations load and fit its launches; its parameter counts are exact."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from bitexport.errors import UsageError
from bitexport.train.config import TrainConfig, load_config
from bitexport.train.data.loading import template_of
from tests.support.repository import REPOSITORY

TEXT = (REPOSITORY / "docs" / "training-recipes.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"^```toml\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


def config_of(recipe: str, folder: Path) -> TrainConfig:
    path = folder / "recipe.toml"
    path.write_text(recipe, encoding="utf-8")
    return load_config(path)


@pytest.mark.parametrize("recipe", RECIPES, ids=["hy-mt", "qwen3"])
def test_a_recipe_loads_and_divides_among_the_processes(recipe: str, tmp_path: Path) -> None:
    config = config_of(recipe, tmp_path)
    template_of(config)  # knows its languages
    promised = re.search(r"# (\d+) micro-batches: ([\d, ]+) or (\d+) processes", recipe)
    assert promised
    micro_batches = config.batch_tokens // config.micro_batch_tokens
    assert micro_batches == int(promised[1])
    assert all(micro_batches % int(world) == 0 for world in [*promised[2].split(", "), promised[3]])
    assert config.stage2_tokens > 0
    assert config.stage3_tokens > 0


def test_a_recipe_with_a_wrong_key_would_be_found(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean relation_heads"):
        config_of(RECIPES[0].replace("relation_heads", "relations_heads"), tmp_path)


def test_parameter_counts_are_those_of_the_models() -> None:
    script = runpy.run_path(str(REPOSITORY / "benchmarks" / "training_memory.py"))
    for name in script["SHAPES"]:
        for count in re.findall(r"[\d,]{9,}", script["parameters"](name)):
            assert f"| {count.rstrip(',')} |" in TEXT
