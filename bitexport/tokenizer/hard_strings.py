"""Texts on which tokenizers differ, for the check in ``convert`` and for ``parity --tokenizer-only``.

All are in NFC, because some tokenizers normalize to it and llama.cpp does not.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

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

#: Control characters, all kinds of line ends, zero-width characters, and near misses of special tokens.
STRANGE_STRINGS = (
    "\x00",
    "a\x00b \x01\x02\x03 \x07bell \x08back \x1b[31mred\x1b[0m \x7f",
    "\x80\x81\x9f\xa0\xad soft",
    "a\rb\r\rc\r\n\r\nd\n\re\x0bf\x0cg\x85h\u2028i\u2029j",
    "\u200d\u200c\u200b\u2060\ufeff \ufe0f\ufe0e",
    "\u202aabc\u202c \u2066\u202edef\u2069",
    "\ufffd\ufffc\ufff9 \ue000 \U000f0000 \U0010ffff",
    "𝕏𝓗𝔢 𐍈 𒀀 😀",
    "👨‍👩‍👧‍👦👨🏿‍🚀🧑🏽‍🤝‍🧑🏻🏴󠁧󠁢󠁳󠁣󠁴󠁿🇺🇳🇦🇶 ❤️‍🔥 1️⃣#️⃣",
    "<|endoftext|> <s></s><unk><pad> [INST] [/INST] <|im_start|>user<|im_end|>",
    "<| endoftext |> <|endoftext <s ></ s>",
    "▁ ▁▁ a▁b Ġ ĠĠ Ċ <0x0A> <0x> <0xFF>",
    "’s ’t ‘re 's'S'lL'VE 'sx 'x 's's ''s s'",
    "\t\tif x:\n\t\t\treturn {'a': [1, 2.5e-3, 0x1F, None]}  \n\n    \n",
    '{"k": "\\u00e9\\n", "n": -0.5}\n',
    "٣٫١٤ १२३ ๑๒๓ Ⅻ ½ ⁴₂ 千二百 12km 3rd v1.2.3 10:30 2024-01-02",
    "ǅ ǆ ﬁ ﬀ ß ẞ İ ı Å Ω",
)

#: Lengths of repetitions: near powers of two, where buffers end, and one of a page.
_REPETITIONS = (2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 64, 127, 129, 1000)
_REPEATED = (" ", "\n", "\t", "a", "A", "1", ".", "=", "-", "é", "中", "👍", " a", "\r\n", "ab1 ", "٣")

_FRAGMENTS = (
    *"aZéß中あ한ش1٣½²$+=<|^~`'\"_.,!?;:#()[]{}/\\ \t\n",
    *(
        "'s",
        "'RE",
        "the",
        "Word",
        "  ",
        "   ",
        "\r\n",
        "\n\n",
        "123",
        "4567",
        "👍🏽",
        "👩‍💻",
        "🇩🇪",
        "\u00a0",
        "\u3000",
    ),
)


def strings(special: Iterable[str]) -> list[str]:
    """All hard strings: the texts above, repetitions, 200 random mixtures, and texts with special tokens.

    The result is always the same for the same ``special``, the texts of the special tokens.
    """
    texts = [*HARD_STRINGS, *STRANGE_STRINGS]
    texts += [text * count for text in _REPEATED for count in _REPETITIONS]
    texts += [f"x{' ' * count}y" for count in _REPETITIONS]
    source = random.Random(0)
    texts += ["".join(source.choices(_FRAGMENTS, k=source.randint(2, 40))) for _ in range(200)]
    for token in special:
        texts += [token, f"text {token} and text", f"a{token}b", f"{token}{token}\n{token} "]
    return texts
