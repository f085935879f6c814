"""A conversation with a model: the function behind ``bitexport chat``."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Generator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from bitexport.chat.template import ChatTemplate, Message, NoTemplate
from bitexport.errors import OutputError, UsageError
from bitexport.gguf.embedding_settings import check_generates
from bitexport.gguf.reader import GGUFFile, read_gguf
from bitexport.runtime.drafts import DEFAULT_DRAFT_TOKENS
from bitexport.runtime.drafts.opening import check_drafts, open_drafts
from bitexport.runtime.generation import Generation
from bitexport.runtime.library import api
from bitexport.runtime.limits import check_text, check_threads, checked_context, warn_of_long_context
from bitexport.runtime.loading import load
from bitexport.runtime.pieces import piece
from bitexport.runtime.sampling import DEFAULT_SAMPLING, MAX_SEED, Sampling
from bitexport.runtime.threads import default_threads
from bitexport.system.files import write_atomically
from bitexport.tokenizer.chat import DEFAULT_KEY


class Answer:
    """An answer of the model: iterate over it, once, to get the text in pieces.

    When the iteration ends or is left, the conversation has the question and the answer, or what there is of
    it. If there is nothing yet, the conversation is as before the question.

    Attributes:
        prompt_tokens: tokens of the conversation before the answer.
    """

    def __init__(
        self, conversation: Conversation, messages: list[Message], text: str, generation: Generation
    ) -> None:
        self._conversation = conversation
        self._messages = messages
        self._rendered = text
        self._generation = generation
        self.prompt_tokens = len(generation.prompt)

    def __iter__(self) -> Generator[str, None, None]:
        try:
            yield from self._generation
        finally:
            if self._generation.ids or self.finish_reason:
                self._conversation._take(self._messages, self._rendered, self._generation)

    @property
    def text(self) -> str:
        """The text so far."""
        return self._generation.text

    @property
    def finish_reason(self) -> str | None:
        """``"stop"`` where the model ended the answer, ``"length"`` at the limit; None if it was left."""
        return self._generation.finish_reason

    @property
    def statistics(self) -> dict[str, Any]:
        """Token counts, seconds, and tokens per second of the answer; final when the iteration has ended."""
        found = self._generation
        seconds = max(found.seconds - found.prompt_seconds, 1e-9)
        return {
            "prompt_tokens": self.prompt_tokens,
            "reused_tokens": found.reused,
            "prompt_seconds": found.prompt_seconds,
            "tokens": len(found.ids),
            "seconds": found.seconds,
            "tokens_per_second": len(found.ids) / seconds if found.ids else 0.0,
            "finish_reason": found.finish_reason,
            "context": self._conversation.n_ctx,
            "passes": found.drafts.passes,
            "drafted": found.drafts.drafted,
            "accepted": found.drafts.accepted,
        }


class Conversation:
    """What a user and a model said. Only what is new in a turn is evaluated.

    Args:
        path: the GGUF file.
        system: a system message, for the whole conversation.
        template: use the file's chat template; otherwise everything is one running text.
        sampling: how to choose tokens; :meth:`regenerate` counts its seed up.
        max_tokens: the most tokens of an answer; 0 for as many as the context has room for.
        n_ctx: the context, for the whole conversation; 0 for the model's own, up to 4096.
        threads: the number of threads; 0 for one per core.
        stop: texts before which an answer ends, besides the template's.
        workers, layers: see :func:`bitexport.load`.
        draft, draft_tokens: see :class:`bitexport.runtime.completion.Completion`.

    Attributes:
        messages: the conversation so far, without the system message.
        n_ctx: the context in tokens.

    Raises:
        UsageError: the file has no chat template, or one that refuses the system message; it is for
            embeddings; or a number is out of range.
        GGUFError: the model cannot be loaded, or its chat template cannot be used.
        NativeLibraryError: our libllama is missing.
        WorkerError: a worker cannot be used. Also raised by an answer, when one is lost.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        system: str | None = None,
        template: bool = True,
        sampling: Sampling = DEFAULT_SAMPLING,
        max_tokens: int = 0,
        n_ctx: int = 0,
        threads: int = 0,
        stop: Sequence[str] = (),
        workers: str | Sequence[str] = (),
        layers: Sequence[int] = (),
        draft: str | os.PathLike[str] | None = None,
        draft_tokens: int = DEFAULT_DRAFT_TOKENS,
    ) -> None:
        if max_tokens < 0:
            raise UsageError(f"max tokens is {max_tokens}; expected 0 or more")
        for option, text in (("the system message", system or ""), *(("a stop text", each) for each in stop)):
            check_text(option, text)
        file = read_gguf(os.fspath(path))
        check_generates(file)
        check_drafts(path, draft, draft_tokens, workers)
        found = _template(file) if template else NoTemplate()
        context = checked_context(path, n_ctx)
        warn_of_long_context(path, n_ctx)
        threads = threads or default_threads()
        check_threads(threads)
        self.path = Path(path)
        # with the whole of a sliding window kept, the memory can forget the end of any conversation; and with
        # a format chosen, nobody is warned of the file's template, which is rendered here or not at all
        self._llama: Any = load(
            path, n_ctx=context, n_threads=threads, n_threads_batch=threads, swa_full=True,
            chat_format="chatml", workers=workers, layers=layers,
        )  # fmt: skip
        self._drafts = open_drafts(self._llama, draft, threads=threads)
        self._draft_tokens = draft_tokens
        self.n_ctx = int(self._llama.n_ctx())
        self._api = api()
        self._vocab: Any = self._api.llama_model_get_vocab(self._llama.model)
        if isinstance(found, ChatTemplate):
            found = replace(found, bos_token=self._special("bos"), eos_token=self._special("eos"))
        self._template = found
        self._system = [Message("system", system)] if system else []
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._attempts = 0
        self.messages: list[Message] = []
        self._known: list[tuple[str, list[int]]] = []  # beginnings of the conversation, with their tokens
        ends, stops = self._ends()
        self._end_tokens, self._stop = ends, (*stop, *stops)
        if self._system:
            self._template.render([*self._system, Message("user", "a")])  # fail now rather than later

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the model. Closing twice does nothing."""
        if self._drafts is not None:
            self._drafts.close()
        self._llama.close()

    def say(self, text: str) -> Answer:
        """Ask something; iterate over the answer to get it.

        Raises:
            UsageError: the text is empty or not UTF-8, the template refuses it, or the conversation does not
                fit the context any more; the conversation is as before.
            GGUFError: the chat template needs more memory or time than it may; likewise.
        """
        check_text("the message", text)
        if not text:
            raise UsageError("the message is empty; give some text")
        self._attempts = 0
        return self._ask([*self.messages, Message("user", text)])

    def regenerate(self) -> Answer:
        """Answer the last message again, with the next seed.

        Raises:
            UsageError: there is no answer yet.
        """
        if not self.messages:
            raise UsageError("there is no answer to replace; ask something first")
        self._attempts += 1
        return self._ask(self.messages[:-1])

    def clear(self) -> None:
        """Forget everything that was said, except the system message."""
        self.messages = []
        self._llama.reset()  # what is computed anew differs in the last bits from what was kept

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation as JSON: ``model``, and ``messages`` with ``role`` and ``content``.

        Raises:
            OutputError: the file exists or cannot be written.
        """
        target = Path(path)
        if target.exists():
            raise OutputError(f"{target} exists; give another name")
        content = json.dumps({"schema": 1, **self.to_json()}, ensure_ascii=False, indent=2) + "\n"
        write_atomically(target, content.encode("utf-8"))

    def to_json(self) -> dict[str, Any]:
        """The model's path and all messages, as :meth:`save` writes them."""
        messages = [asdict(message) for message in (*self._system, *self.messages)]
        return {"model": str(self.path), "messages": messages}

    def _ask(self, messages: list[Message]) -> Answer:
        """The answer to a conversation that ends with a user's message."""
        text = self._template.render([*self._system, *messages])
        prompt = self._tokens(text)
        room = self.n_ctx - len(prompt)
        if room < 1:
            raise UsageError(
                f"the conversation would have {len(prompt)} tokens, and the context has {self.n_ctx}; your "
                "message was taken back: shorten it, start over with /clear, or use a larger --ctx"
            )
        seed = (self._sampling.seed + self._attempts) % (MAX_SEED + 1)
        generation = Generation(
            self._llama,
            prompt,
            sampling=replace(self._sampling, seed=seed),
            max_tokens=min(self._max_tokens or room, room),
            stop=self._stop,
            ends=self._end_tokens,
            drafts=self._drafts,
            draft_tokens=self._draft_tokens,
        )
        return Answer(self, messages, text, generation)

    def _take(self, messages: list[Message], text: str, generation: Generation) -> None:
        """Make the conversation these messages, whose rendered text is given, and the answer to them."""
        self.messages = [*messages, Message("assistant", generation.text)]
        self._known.append((text, generation.prompt))
        # after part of a character or a stop text, the tokens are not those of the text
        if b"".join(piece(self._vocab, token) for token in generation.ids) == generation.text.encode():
            self._known.append((text + generation.text, generation.prompt + generation.ids))

    def _tokens(self, text: str) -> list[int]:
        """The tokens of a rendered conversation, with those of earlier answers as the model chose them.

        A text has more than one tokenization; another one would have to be evaluated again.
        """
        self._known = [(known, ids) for known, ids in self._known if text.startswith(known)]
        for known, ids in reversed(self._known):
            rest = self._tokenize(text[len(known) :])
            # a control token divides a text, so that both sides are tokenized independently
            if not rest or self._api.llama_vocab_is_control(self._vocab, rest[0]):
                return ids + rest
        found = self._tokenize(text)
        begin = int(self._api.llama_vocab_bos(self._vocab))
        if self._api.llama_vocab_get_add_bos(self._vocab) and found[:1] != [begin]:
            return [begin, *found]
        return found

    def _tokenize(self, text: str) -> list[int]:
        return list(self._llama.tokenize(text.encode("utf-8"), add_bos=False, special=True))

    def _special(self, name: str) -> str:
        token = int(getattr(self._api, f"llama_vocab_{name}")(self._vocab))
        return piece(self._vocab, token).decode("utf-8", errors="replace") if token >= 0 else ""

    def _ends(self) -> tuple[list[int], list[str]]:
        """What ends an answer in the template: a token, or texts if there is no such token."""
        after = self._template.after_answer()
        control = [
            token for token in self._tokenize(after) if self._api.llama_vocab_is_control(self._vocab, token)
        ]
        if control:
            return control[:1], []
        return [], list(dict.fromkeys((after.rstrip(), after.strip()))) if after.strip() else []


def _template(file: GGUFFile) -> ChatTemplate | NoTemplate:
    """The file's chat template, without the texts of tokens, which only the model knows."""
    source = file.metadata.get(DEFAULT_KEY)
    if source is not None and str(source).strip():
        template = ChatTemplate(source, path=str(file.path))
        template.check()
        return template
    name = shlex.quote(str(file.path))
    raise UsageError(
        f"{file.path} has no chat template, so it is probably not a chat model; continue text with: "
        f"bitexport run {name} --prompt TEXT, or chat without a template: bitexport chat {name} --no-template"
    )
