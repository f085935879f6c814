"""A byte-level BPE tokenizer, trained on the corpus.

Text is split into words by GPT-2's regular expression, without adding a space in front: exactly the
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
    """Learn ``vocab_size`` tokens from ``texts``. Every text can be encoded and is decoded unchanged.

    Args:
        max_length: the context length that the tokenizer reports for the model, in tokens.
        special: special tokens in addition to ``<|endoftext|>``, for instance a template's.
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
    """:func:`train_tokenizer` on all texts of ``records``, saved as ``folder``, completely or not at all.

    Raises:
        UsageError: the texts yield fewer tokens than ``vocab_size``.
        OutputError: ``folder`` cannot be written.
    """
    texts = (text for record in records for text in texts_of(record))
    tokenizer = train_tokenizer(texts, vocab_size, max_length, special)
    if len(tokenizer) != vocab_size:
        found = f"config: vocab_size = {vocab_size}, but the text yields only {len(tokenizer)} tokens"
        raise UsageError(f"{found}; lower vocab_size or give more text")
    with whole_folder(folder, "make room, then start again"):
        tokenizer.save_pretrained(folder)
