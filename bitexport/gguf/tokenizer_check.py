"""The last check before a converted file gets its name: llama.cpp must tokenize as the checkpoint does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from bitexport.errors import GGUFError, NativeLibraryError, TokenizerError
from bitexport.gguf.tokenizer import Vocabulary

if TYPE_CHECKING:
    from llama_cpp import Llama

#: Strings on which pre-tokenizers differ. All are in NFC, which some tokenizers apply and llama.cpp does not.
HARD_STRINGS = (
    "a",
    "Hello, world!",
    " leading and  double   spaces \t tabs\t\tand trailing ",
    "\n\nlines\r\nof\n \n  every kind\n",
    "0 12 345 6789 12345678901234567890 3.14159 1,000,000 1e-5 0xFF",
    "I've they're we'll you'd he's I'M YOU'RE don't DON'T 'tis",
    'def f(x: int) -> str:\n    return f"{x!r:>8}"  # comment\n\n\nclass A_b(C):\n\t__slots__ = ()\n',
    "if (a && b || !c) { x += y << 3; } // http://example.org/?q=1&r=%20#frag",
    "The naïve café façade — “quoted”, ‘single’, … and so on™",
    "Съешь ещё этих мягких французских булок, да выпей чаю 2024",
    "Ελληνικά και άλλα· ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "敏捷的棕色狐狸跳过懒狗。我想在2024年去北京!",
    "いろはにほへと ちりぬるを カタカナ テスト",
    "다람쥐 헌 쳇바퀴에 타고파",
    "האם זה עובד? שלום עולם",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣",
    "नमस्ते दुनिया हिन्दी",
    "สวัสดีชาวโลก",
    "👩‍👩‍👧‍👦 🏳️‍🌈 😶‍🌫️ 🇩🇪 👍🏽 ✅",
    "x² + y³ ≠ ½ ∑∞ ⅓ Ⅳ ①",
    "=====-----*****_____ ...!!!??? ((())) [[[]]] {{{}}} <<>> \\\\ // ``` ''' \"\"\"",
    "CamelCase snake_case kebab-case SCREAMING_CASE mixed123Case",
    "\u00a0no-break\u3000wide\u200bzero\ufeffbom",
    "z",
)


def check_tokenizer(gguf_path: Path, folder: Path, vocabulary: Vocabulary) -> list[str]:
    """Compare both sides where our libllama is built.

    Returns:
        Warnings: that the check could not be made.

    Raises:
        TokenizerError: see :func:`verify_tokenizer`.
    """
    try:
        verify_tokenizer(gguf_path, folder, vocabulary)
    except NativeLibraryError as error:
        return [f"the tokenizer was not checked against llama.cpp: {error}"]
    return []


def verify_tokenizer(gguf_path: Path, folder: Path, vocabulary: Vocabulary) -> None:
    """Encode hard strings, and every special token, with libllama and with tokenizer.json.

    Raises:
        TokenizerError: libllama cannot load the vocabulary, or a string's ids differ; names the first such
            string.
        NativeLibraryError: there is no libllama of ours.
    """
    from bitexport.runtime.model import load

    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.no_truncation()
    reference.no_padding()
    try:
        model = load(gguf_path, vocab_only=True)
    except GGUFError as error:
        # the message names the temporary file, of which the user knows nothing
        why = str(error).replace(str(gguf_path), "it").removeprefix("it cannot be loaded: ")
        raise TokenizerError(
            f"llama.cpp refuses the vocabulary (pre-tokenizer '{vocabulary.pre}'): {why}; "
            "check --pre-tokenizer"
        ) from error
    try:
        for text in (*HARD_STRINGS, *_special_strings(reference)):
            expected = reference.encode(text, add_special_tokens=False).ids
            _compare(text, expected, _encode(model, text, False), vocabulary)
        _compare_ends(reference, model)
    finally:
        model.close()


def _compare_ends(reference: Tokenizer, model: Llama) -> None:
    """What goes around a text, by what tokenizer.json does and not by what was written."""
    text = HARD_STRINGS[0]
    expected = reference.encode(text, add_special_tokens=True).ids
    got = _encode(model, text, True)
    if expected != got:
        raise TokenizerError(
            f"llama.cpp puts other tokens around a text: {got} for {text!r}, tokenizer.json gives {expected};"
            " check its post_processor and the special tokens in tokenizer_config.json"
        )


def _special_strings(reference: Tokenizer) -> list[str]:
    added = reference.get_added_tokens_decoder()
    return [f"text {added[number].content} and text" for number in sorted(added)[:64]]


def _encode(model: Llama, text: str, add_special: bool) -> list[int]:
    return list(model.tokenize(text.encode("utf-8"), add_bos=add_special, special=True))


def _compare(text: str, expected: list[int], got: list[int], vocabulary: Vocabulary) -> None:
    if expected == got:
        return
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b),
        min(len(expected), len(got)),
    )
    raise TokenizerError(
        f"llama.cpp tokenizes {text!r} differently from token {at} on: {got[at : at + 6]}, tokenizer.json "
        "gives "
        f"{expected[at : at + 6]}; pre-tokenizer '{vocabulary.pre}' is not this model's: give another with "
        "--pre-tokenizer"
    )
