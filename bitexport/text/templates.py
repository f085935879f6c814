"""From records to token ids: templates turn a record into prompt and answer; only the answer has a loss."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bitexport.errors import UsageError
from bitexport.text.sources import Chat, Document, Pair, Record, texts_of
from bitexport.tokenizer.chat import TemplateError, render_template

# English and Chinese names, as in the documentation of HY-MT1.5.
LANGUAGES = """
zh Chinese 中文, en English 英语, fr French 法语, pt Portuguese 葡萄牙语, es Spanish 西班牙语,
ja Japanese 日语, tr Turkish 土耳其语, ru Russian 俄语, ar Arabic 阿拉伯语, ko Korean 韩语, th Thai 泰语,
it Italian 意大利语, de German 德语, vi Vietnamese 越南语, ms Malay 马来语, id Indonesian 印尼语,
tl Filipino 菲律宾语, hi Hindi 印地语, pl Polish 波兰语, zh-Hant Traditional_Chinese 繁体中文,
cs Czech 捷克语, nl Dutch 荷兰语, km Khmer 高棉语, my Burmese 缅甸语, fa Persian 波斯语,
gu Gujarati 古吉拉特语, ur Urdu 乌尔都语, te Telugu 泰卢固语, mr Marathi 马拉地语, he Hebrew 希伯来语,
bn Bengali 孟加拉语, ta Tamil 泰米尔语, uk Ukrainian 乌克兰语, bo Tibetan 藏语, kk Kazakh 哈萨克语,
mn Mongolian 蒙古语, ug Uyghur 维吾尔语, yue Cantonese 粤语"""
LANGUAGE_NAMES = {
    code: (english.replace("_", " "), chinese)
    for code, english, chinese in map(str.split, LANGUAGES.split(","))
}
_ANSWER = "\x00answer\x00"
#: Templates that use the tokenizer's chat template.
NEEDS_CHAT_TEMPLATE = ("chat", "hy-mt1.5")


@dataclass(frozen=True)
class Template:
    """How a record becomes a prompt and an answer.

    Attributes:
        name: one of TEMPLATES.
        source_language, target_language: codes such as "en" and "fr"; for tags and hy-mt1.5.
        instruction: for chat: put before the source, or around it if it contains {source}.

    Raises:
        UsageError: the name is unknown, or hy-mt1.5 does not know the language.
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
            if self.name == "hy-mt1.5" and code not in LANGUAGE_NAMES:
                raise UsageError(
                    f"template {self.name}: language {code!r}; expected one of {', '.join(LANGUAGE_NAMES)}"
                )


@dataclass(frozen=True)
class Encoded:
    """Token ids of prompt, answer and end token; ``labels`` are the same, but -100 on the prompt."""

    input_ids: list[int]
    labels: list[int]


def special_tokens_of(template: Template) -> list[str]:
    """The special tokens that the template needs in the tokenizer, in addition to the usual ones."""
    languages = (template.source_language, template.target_language) if template.name == "tags" else ()
    return [f"<|{language}|>" for language in languages]


def render(record: Record, template: Template, tokenizer: Any = None) -> tuple[str, str]:
    """(prompt, answer); only the tokenizer's chat template is used.

    Raises:
        UsageError: the template does not take this kind of record, or there is no usable chat template.
    """
    function, kinds = TEMPLATES[template.name]
    if not isinstance(record, kinds):
        names = " or ".join(kind.__name__.lower() for kind in kinds)
        found = f"template {template.name}: a {type(record).__name__.lower()} in the data"
        raise UsageError(f"{found}; expected a {names}; choose another template")
    return function(record, template, tokenizer)


def check_tokenizer(tokenizer: Any, template: Template) -> None:
    """Raise UsageError if the tokenizer lacks a special token of the template, or the end token."""
    for token in special_tokens_of(template):
        if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
            expected = f"template {template.name} expects it; add it as a special token"
            raise UsageError(f"tokenizer: no token {token}; {expected}")
    if tokenizer.eos_token_id is None:
        raise UsageError("tokenizer: no end token; expected eos_token, which ends every answer; set it")


def encode_record(record: Record, tokenizer: Any, template: Template, max_length: int) -> Encoded | None:
    """Token ids of prompt, answer and end token; None if there are more than ``max_length``.

    Prompt and answer are tokenized separately, because at inference the prompt comes alone.

    Raises:
        UsageError: as in :func:`render`; or the tokenizer lacks a special token or the end token.
    """
    check_tokenizer(tokenizer, template)
    texts = render(record, template, tokenizer)
    prompt, answer = (tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts)
    target = [*answer, tokenizer.eos_token_id]
    if len(prompt) + len(target) > max_length:
        return None
    return Encoded(prompt + target, [-100] * len(prompt) + target)


def _plain(record: Any, _: Template, __: Any) -> tuple[str, str]:
    """No prompt: everything is the answer."""
    return "", "\n".join(texts_of(record))


def _tags(pair: Any, template: Template, _: Any) -> tuple[str, str]:
    before_source, before_target = special_tokens_of(template)
    return f"{before_source}{pair.source}{before_target}", pair.target


def _chat(record: Any, template: Template, tokenizer: Any) -> tuple[str, str]:
    if isinstance(record, Pair):
        form = template.instruction
        if "{source}" not in form:
            form = f"{form}\n\n{{source}}" if form else "{source}"
        return _converse([("user", form.replace("{source}", record.source))], record.target, tokenizer)
    return _converse(record.messages[:-1], record.messages[-1][1], tokenizer)


def _hy_mt(pair: Any, template: Template, tokenizer: Any) -> tuple[str, str]:
    """HY-MT1.5's documented prompts: in Chinese if either language is Chinese, otherwise in English."""
    english, chinese = LANGUAGE_NAMES[template.target_language]
    prompt = (
        f"Translate the following segment into {english}, without additional explanation.\n\n{pair.source}"
    )
    if any(code.startswith("zh") for code in (template.source_language, template.target_language)):
        prompt = f"将以下文本翻译为{chinese}，注意只需要输出翻译后的结果，不要额外解释：\n\n{pair.source}"
    return _converse([("user", prompt)], pair.target, tokenizer)


def _converse(before: Iterable[tuple[str, str]], answer: str, tokenizer: Any) -> tuple[str, str]:
    """The conversation up to the beginning of the answer, and the answer.

    The chat template renders the complete conversation, which is then cut before the answer. That is right
    for every chat template, while add_generation_prompt means different things in some.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "tokenizer: no chat template; expected one for this template; use the teacher's, or tags"
        )
    messages = [{"role": role, "content": content} for role, content in [*before, ("assistant", _ANSWER)]]
    prompt, found, _ = _render_chat(tokenizer, messages).rpartition(_ANSWER)
    if not found:
        raise UsageError(
            "tokenizer: its chat template leaves out the answer; expected every message; correct the template"
        )
    return prompt, answer


def _render_chat(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """What ``tokenizer.apply_chat_template(messages, tokenize=False)`` gives, within limits."""
    variables = {
        **tokenizer.special_tokens_map,
        "messages": messages,
        "tools": None,
        "documents": None,
        "add_generation_prompt": False,
    }
    try:
        return render_template(tokenizer.get_chat_template(), variables)
    except TemplateError as error:
        raise UsageError(f"tokenizer: its chat template {error}; correct it, or use tags") from error
    except Exception as error:  # whatever the template makes of the messages
        raise UsageError(
            f"tokenizer: its chat template does not render a conversation of "
            f"{', '.join(message['role'] for message in messages)} ({error}); correct it, or use tags"
        ) from error


TEMPLATES: dict[str, tuple[Callable[[Any, Template, Any], tuple[str, str]], tuple[type, ...]]] = {
    "plain": (_plain, (Document, Pair, Chat)),
    "tags": (_tags, (Pair,)),
    "chat": (_chat, (Pair, Chat)),
    "hy-mt1.5": (_hy_mt, (Pair,)),
}
