"""A byte-level BPE tokenizer, trained on the corpus.

The split into words is GPT-2's regular expression, without a space put in front of the text: exactly the
pre-tokenizer that llama.cpp calls "gpt-2".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bitexport.errors import UsageError
from bitexport.system.files import whole_folder
from bitexport.text.sources import Record, texts_of

END_OF_TEXT = "<|endoftext|>"  # begins and ends a document; id 0


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, max_length: int, special: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Learn ``vocab_size`` tokens from ``texts``. Any text at all can be encoded and comes back unchanged.

    Args:
        max_length: what the tokenizer reports as the model's context, in tokens.
        special: tokens of their own beside ``<|endoftext|>``, a template's for instance.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(
    folder: Path, records: Iterable[Record], vocab_size: int, max_length: int, special: Sequence[str]
) -> None:
    """:func:`train_tokenizer` on all texts of ``records``, saved as ``folder``, whole or not at all.

    Raises:
        UsageError: the texts yield fewer tokens.
    """
    texts = (text for record in records for text in texts_of(record))
    tokenizer = train_tokenizer(texts, vocab_size, max_length, special)
    if len(tokenizer) != vocab_size:
        raise UsageError(f"config: vocab_size = {vocab_size}, but the text yields only {len(tokenizer)}")
    with whole_folder(folder, "make room, then begin again"):
        tokenizer.save_pretrained(folder)
