"""Records to token ids: templates that make a prompt and an answer of a record; loss on the answer only."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bitexport.errors import UsageError
from train.data import Example
from train.sources import Chat, Document, Pair, Record

# English and Chinese names as the documentation of HY-MT1.5 spells them.
LANGUAGES = """
zh Chinese 中文, en English 英语, fr French 法语, pt Portuguese 葡萄牙语, es Spanish 西班牙语,
ja Japanese 日语, tr Turkish 土耳其语, ru Russian 俄语, ar Arabic 阿拉伯语, ko Korean 韩语, th Thai 泰语,
it Italian 意大利语, de German 德语, vi Vietnamese 越南语, ms Malay 马来语, id Indonesian 印尼语,
tl Filipino 菲律宾语, hi Hindi 印地语, pl Polish 波兰语, zh-Hant Traditional_Chinese 繁体中文,
cs Czech 捷克语, nl Dutch 荷兰语, km Khmer 高棉语, my Burmese 缅甸语, fa Persian 波斯语,
gu Gujarati 古吉拉特语, ur Urdu 乌尔都语, te Telugu 泰卢固语, mr Marathi 马拉地语, he Hebrew 希伯来语,
bn Bengali 孟加拉语, ta Tamil 泰米尔语, uk Ukrainian 乌克兰语, bo Tibetan 藏语, kk Kazakh 哈萨克语,
mn Mongolian 蒙古语, ug Uyghur 维吾尔语, yue Cantonese 粤语"""
NAMES = {
    code: (english.replace("_", " "), chinese)
    for code, english, chinese in map(str.split, LANGUAGES.split(","))
}
_ANSWER = "\x00answer\x00"


@dataclass(frozen=True)
class Template:
    """How a record becomes prompt and answer.

    Attributes:
        name: one of TEMPLATES.
        source_language, target_language: codes, as in "en" and "fr"; for tags and hy-mt1.5.
        instruction: for chat: stands above the source, or around it where it says {source}.

    Raises:
        UsageError: an unknown name, or a language that hy-mt1.5 does not know.
    """

    name: str
    source_language: str = "en"
    target_language: str = "fr"
    instruction: str = ""

    def __post_init__(self) -> None:
        if self.name not in TEMPLATES:
            near = difflib.get_close_matches(self.name, TEMPLATES, n=1)
            advice = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"template {self.name!r}; expected one of {', '.join(TEMPLATES)}{advice}")
        for code in (self.source_language, self.target_language):
            if self.name == "hy-mt1.5" and code not in NAMES:
                raise UsageError(
                    f"template {self.name}: language {code!r}; expected one of {', '.join(NAMES)}"
                )


@dataclass(frozen=True)
class Encoded:
    """Token ids of prompt, answer and end; ``labels`` equals them where counted, -100 on the prompt."""

    input_ids: list[int]
    labels: list[int]


def special_tokens_of(template: Template) -> list[str]:
    """The tokens that the tokenizer must know as one token each, beside its own."""
    if template.name != "tags":
        return []
    return [f"<|{template.source_language}|>", f"<|{template.target_language}|>"]


def render(record: Record, template: Template, tokenizer: Any = None) -> tuple[str, str]:
    """(prompt, answer); the tokenizer is asked for its chat template only.

    Raises:
        UsageError: the template has no place for this kind of record; the tokenizer has no chat template.
    """
    return TEMPLATES[template.name](record, template, tokenizer)


def encode(record: Record, tokenizer: Any, template: Template, max_length: int) -> Encoded | None:
    """Ids of the prompt, of the answer and the end token; None if they are more than ``max_length``.

    Prompt and answer are tokenized apart, as at inference, where the prompt stands alone.

    Raises:
        UsageError: as :func:`render`; a special token is missing from the tokenizer, or its end token.
    """
    for token in special_tokens_of(template):
        if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
            raise UsageError(
                f"tokenizer: no token {token}; template {template.name} expects it; add it as a special one"
            )
    if tokenizer.eos_token_id is None:
        raise UsageError("tokenizer: no end token; expected eos_token, which ends every answer; set it")
    prompt, answer = (
        tokenizer.encode(text, add_special_tokens=False) for text in render(record, template, tokenizer)
    )
    counted = [*answer, tokenizer.eos_token_id]
    if len(prompt) + len(counted) > max_length:
        return None
    return Encoded(prompt + counted, [-100] * len(prompt) + counted)


def _plain(record: Record, template: Template, _: Any) -> tuple[str, str]:
    match record:
        case Document(text):
            return "", text
        case Pair(source, target):
            return "", f"{source}\n{target}"
    raise _no_place(record, template, "a document or a pair")


def _tags(record: Record, template: Template, _: Any) -> tuple[str, str]:
    if not isinstance(record, Pair):
        raise _no_place(record, template, "a pair")
    source, target = special_tokens_of(template)
    return f"{source}{record.source}{target}", record.target


def _chat(record: Record, template: Template, tokenizer: Any) -> tuple[str, str]:
    if isinstance(record, Document):
        raise _no_place(record, template, "a pair or a chat")
    messages = record.messages if isinstance(record, Chat) else _asked(record, template.instruction)
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            f"template {template.name}: the tokenizer has no chat template; use the teacher's, or tags"
        )
    *before, (role, answer) = messages
    # The whole conversation, then the cut: what precedes the answer is the same with every chat template,
    # while add_generation_prompt means something else in some.
    whole = [{"role": role, "content": content} for role, content in [*before, (role, _ANSWER)]]
    prompt, found, _ = tokenizer.apply_chat_template(whole, tokenize=False).rpartition(_ANSWER)
    if not found:
        raise UsageError(
            f"template {template.name}: the chat template does not show the last message; mend it"
        )
    return prompt, answer


def _asked(pair: Pair, instruction: str) -> tuple[tuple[str, str], ...]:
    if "{source}" not in instruction:
        instruction = f"{instruction}\n\n{{source}}" if instruction else "{source}"
    return ("user", instruction.replace("{source}", pair.source)), ("assistant", pair.target)


def _hy_mt(record: Record, template: Template, tokenizer: Any) -> tuple[str, str]:
    """HY-MT1.5's documented prompts: in Chinese where either language is Chinese, else in English."""
    if not isinstance(record, Pair):
        raise _no_place(record, template, "a pair")
    english, chinese = NAMES[template.target_language]
    instruction = (
        f"Translate the following segment into {english}, without additional explanation.\n\n{{source}}"
    )
    if any(code.startswith("zh") for code in (template.source_language, template.target_language)):
        instruction = f"将以下文本翻译为{chinese}，注意只需要输出翻译后的结果，不要额外解释：\n\n{{source}}"
    return _chat(Chat(_asked(record, instruction)), template, tokenizer)


def _no_place(record: Record, template: Template, expected: str) -> UsageError:
    kind = type(record).__name__.lower()
    return UsageError(
        f"template {template.name}: a {kind} in the data; expected {expected}; choose another template"
    )


TEMPLATES: dict[str, Callable[[Record, Template, Any], tuple[str, str]]] = {
    "plain": _plain,
    "tags": _tags,
    "chat": _chat,
    "hy-mt1.5": _hy_mt,
}


class PairCollator:
    """Encoded examples to one batch: int64 tensors [B, T], padded on the right to a multiple of 8.

    ``labels`` is -100 and ``attention_mask`` 0 on the padding.
    """

    def __init__(self, pad_id: int, multiple: int = 8) -> None:
        self.pad_id, self.multiple = pad_id, multiple

    def __call__(self, batch: Sequence[Encoded]) -> Example:
        longest = max(len(example.input_ids) for example in batch)
        length = -(-longest // self.multiple) * self.multiple
        values: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for example in batch:
            used = len(example.input_ids)
            rest = length - used
            values["input_ids"].append(example.input_ids + [self.pad_id] * rest)
            values["attention_mask"].append([1] * used + [0] * rest)
            values["labels"].append(example.labels + [-100] * rest)
        return {name: torch.tensor(rows, dtype=torch.int64) for name, rows in values.items()}


def pack(documents: Iterable[Sequence[int]], end: int, length: int) -> tuple[list[Encoded], int]:
    """Documents one after the other, ``end`` after each, cut into windows of ``length``, all counted.

    Returns:
        The windows, and how many tokens at the very end did not fill one and are dropped.
    """
    ids = [token for document in documents for token in (*document, end)]
    whole = len(ids) // length
    windows = [ids[i * length : (i + 1) * length] for i in range(whole)]
    return [Encoded(window, list(window)) for window in windows], len(ids) - whole * length
