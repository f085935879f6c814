"""Convert float checkpoints to float32 GGUF files with llama.cpp's own converter, and extract recipes.

Usage: upstream_reference.py JOBS.json, with llama.cpp's packages first on the path
JOBS.json is a list of {"float": folder, "reference": file, "ternary": folder, "recipe": folder}; float and
reference may be missing

One process for all models, because it imports PyTorch and transformers. First all conversions, by the
converter as it is, except that it does not know the tests' tokenizers: it is told that their pre-tokenizer
is "gpt-2" and that there is no tokenizer.model, and where it cannot convert a tokenizer at all, the file has
none. Then the recipes, by the program that `bitexport convert` runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import torch
from conversion import get_model_class
from conversion.base import ModelBase, ModelType, TextModel, get_model_architecture

from bitexport.upstream.extract import write_recipe


def missing(model: Any) -> Any:  # noqa: ARG001
    raise FileNotFoundError("tokenizer.model")


def convert(folder: Path, output: Path) -> None:
    hparams = ModelBase.load_hparams(folder, False)
    chosen: Any = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
    # transformers saves no layers that predict further tokens
    chosen.no_mtp = chosen.supports_mtp_export
    model = chosen(folder, gguf.LlamaFileType.ALL_F32, output, hparams=hparams)
    set_vocab = model.set_vocab

    def lenient() -> None:
        before = [dict(part) for part in model.gguf_writer.kv_data]
        try:
            set_vocab()
        except Exception:  # it needs sentencepiece, tokenizer.model or special tokens of that model's own
            model.gguf_writer.kv_data = before

    model.set_vocab = lenient
    model.write()


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    original = TextModel.get_vocab_base_pre
    TextModel._create_vocab_sentencepiece = missing
    TextModel.get_vocab_base_pre = lambda model, tokenizer: "gpt-2"  # noqa: ARG005
    failed = {}
    with torch.inference_mode():
        for job in jobs:
            if "float" not in job:
                continue
            try:
                convert(Path(job["float"]), Path(job["reference"]))
            except Exception as error:
                failed[job["reference"]] = repr(error)
    TextModel.get_vocab_base_pre = original
    for job in jobs:
        write_recipe(Path(job["ternary"]), Path(job["recipe"]))
    print(json.dumps(failed))


if __name__ == "__main__":
    main()
