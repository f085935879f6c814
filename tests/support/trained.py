"""Models of 400,000 parameters that learn a tiny language in seconds, with or without quantization."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BitNetConfig, BitNetForCausalLM
from transformers.integrations.bitnet import replace_with_bitnet_linear
from transformers.utils.quantization_config import BitNetQuantConfig

VOCAB = 320
CONTEXT = 96

QUANTIZATION = {
    "quant_method": "bitnet",
    "modules_to_not_convert": ["lm_head"],
    "linear_class": "autobitlinear",
    "quantization_mode": "online",
}

NOUNS = [
    "river",
    "mountain",
    "garden",
    "window",
    "kitchen",
    "bridge",
    "letter",
    "engine",
    "painter",
    "captain",
    "village",
    "winter",
]
VERBS = ["follows", "remembers", "crosses", "paints", "repairs", "forgets", "carries", "watches"]
ADJECTIVES = ["old", "quiet", "green", "heavy", "narrow", "bright", "lonely"]
OTHER_NOUNS = ["zebra", "quartz", "jigsaw", "oxygen", "fjord", "puzzle", "wizard", "banjo", "kayak"]
OTHER_VERBS = ["quizzes", "juggles", "vexes", "zigzags", "hijacks"]


def language(seed: int, sentences: int, *, other: bool = False) -> str:
    """Text from a small grammar; ``other`` uses words that share hardly any pair of letters with it."""
    draw = random.Random(seed)
    nouns, verbs = (OTHER_NOUNS, OTHER_VERBS) if other else (NOUNS, VERBS)
    lines = []
    for _ in range(sentences):
        first, second = draw.choice(nouns), draw.choice(nouns)
        if other:
            lines.append(f"{draw.choice(verbs)} my {first}, your {second}!")
        else:
            lines.append(
                f"The {draw.choice(ADJECTIVES)} {first} {draw.choice(verbs)} the {second}, and the {second} "
                f"{draw.choice(verbs)} the {first}."
            )
    return "\n".join(lines) + "\n"


@functools.cache
def tokenizer(other: bool = False) -> Tokenizer:
    """Byte-level BPE with :data:`VOCAB` tokens, trained on one of the languages."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|end_of_text|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator([language(1, 400, other=other)], trainer)
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    return made


def fresh(*, quantized: bool, hidden: int = 128, layers: int = 2, seed: int = 0) -> BitNetForCausalLM:
    """An untrained model; ``quantized``: its linear layers quantize in the forward pass."""
    torch.manual_seed(seed)
    config = BitNetConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        tie_word_embeddings=True,
    )
    model = BitNetForCausalLM(config)
    if quantized:
        weights = model.state_dict()
        online = BitNetQuantConfig(**{k: v for k, v in QUANTIZATION.items() if k != "quant_method"})
        model = replace_with_bitnet_linear(model, ["lm_head"], online)
        model.load_state_dict(weights, assign=True)
        model.tie_weights()
    return model


def train(model: BitNetForCausalLM, steps: int, seed: int = 0) -> BitNetForCausalLM:
    """Train it on the language."""
    ids = torch.tensor(tokenizer().encode(language(2, 3000)).ids)
    generator = torch.Generator().manual_seed(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with a model this small, more threads only wait for each other
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    with torch.compiler.set_stance("force_eager"):
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 4e-3 * min(1.0, (step + 1) / 20, (steps - step) / (steps / 3))
            starts = torch.randint(len(ids) - 33, (16,), generator=generator)
            batch = torch.stack([ids[start : start + 33] for start in starts])
            optimizer.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    torch.set_num_threads(threads)
    return model.eval()


def save(model: BitNetForCausalLM, folder: Path, *, other_tokenizer: bool = False) -> Path:
    """A checkpoint of master weights that claims to be ternary, however it was trained."""
    folder.mkdir(parents=True)
    tensors = {
        name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"
    }
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = model.config.to_dict()
    config |= {
        "architectures": ["BitNetForCausalLM"],
        "dtype": "float32",
        "quantization_config": QUANTIZATION,
    }
    (folder / "config.json").write_text(json.dumps(config, default=str))
    tokenizer(other_tokenizer).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end_of_text|>"})
    )
    return folder
