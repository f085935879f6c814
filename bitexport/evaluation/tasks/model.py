"""A GGUF file as a model of lm-evaluation-harness: ``--model bitexport --model_args file=FILE.gguf``.

What is asked, and what is answered, is that of the harness's ``hf`` backend on the checkpoint: the same
tokens, the same cuts of long texts, the same windows; only the numbers are computed by llama.cpp.
"""

from __future__ import annotations

import difflib
import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from bitexport.errors import BitexportWarning, UsageError
from bitexport.evaluation.tasks.chat import ChatTemplates
from bitexport.evaluation.tasks.encoding import Encoder
from bitexport.evaluation.tasks.progress import bar
from bitexport.gguf.embedding_settings import check_generates
from bitexport.gguf.reader import read_gguf
from bitexport.progress import Progress
from bitexport.runtime.limits import SHORT_CONTEXT
from bitexport.runtime.prefix_tree import Query
from bitexport.runtime.shared_prefix import SharedPrefixSession

#: Tokens of an answer, unless the task says how many; that of the hf backend.
_ANSWER_TOKENS = 256

#: What a task may ask of the generation; without sampling, the last five do nothing.
_GENERATION = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p"}


@register_model("bitexport")
class BitexportLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A GGUF file on our llama.cpp.

    Args:
        file: the GGUF file.
        max_length: longest text in tokens, longer ones lose their beginning; None for the context that the
            model was trained with.
        threads: number of threads; 0 for one per core.
        exact: compute with a float32 cache and plain attention, closest to PyTorch; otherwise as the file
            runs for its users.
        add_bos_token: whether texts begin with the begin-of-text token; None for what the file says.
        prefix_token_id: the token before a text without context; None for the begin-of-text token, or the
            end-of-text token of a file without one.
        batch_size, max_batch_size, device: ignored; requests are batched by what they begin with, on the CPU.
        progress: called as requests are answered; None shows bars on stderr as the harness does.
        share: False computes what requests have in common for each of them.
        slots: requests that are computed together; None chooses.

    Raises:
        GGUFError: the file cannot be run, or is for embeddings.
        UsageError: an argument is unknown or out of range.
    """

    def __init__(
        self,
        file: str,
        *,
        max_length: int | None = None,
        threads: int = 0,
        exact: bool = True,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        batch_size: int | str | None = None,  # noqa: ARG002
        max_batch_size: int | None = None,  # noqa: ARG002
        device: str | None = None,  # noqa: ARG002
        progress: Progress | None = None,
        share: bool = True,
        slots: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        _check_arguments(unknown)
        opened = read_gguf(file)
        check_generates(opened)
        self.path = str(file)
        self._max_length = _checked_length(max_length, _trained_context(opened.metadata))
        self._progress = progress
        options = {} if slots is None else {"slots": slots}
        self.session = SharedPrefixSession(file, n_threads=threads, exact=exact, share=share, **options)
        self._encoder = Encoder(self.session, add_bos=add_bos_token, prefix=prefix_token_id)
        special = {"bos_token": self._encoder.bos, "eos_token": self._encoder.eos}
        texts = {
            name: self._encoder.text([token], special=True)
            for name, token in special.items()
            if token is not None
        }
        self._templates = ChatTemplates(self.path, opened.metadata, texts)
        self._ends = frozenset(self.session.end_tokens())
        self._warned: set[str] = set()

    def close(self) -> None:
        """Free the model. Closing twice does nothing."""
        self.session.close()

    # -- what the harness asks about the model --

    @property
    def max_length(self) -> int:
        """Longest text in tokens."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """Tokens of an answer, unless the task says how many."""
        return _ANSWER_TOKENS

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token.

        Raises:
            UsageError: the file has none.
        """
        if self._encoder.eos is None:
            raise UsageError(f"{self.path} has no end-of-text token; convert it again with its tokenizer")
        return self._encoder.eos

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context.

        Raises:
            UsageError: the file has neither a begin-of-text nor an end-of-text token.
        """
        if self._encoder.prefix is None:
            raise UsageError(
                f"{self.path} has neither a begin-of-text nor an end-of-text token to put before a text "
                "without context; with lm_eval's own command, give prefix_token_id=N in --model_args "
                "(docs/tasks.md)"
            )
        return self._encoder.prefix

    @property
    def tokenizer_name(self) -> str:
        """A name for caches of prompts: equal names mean equal prompts."""
        template = hashlib.sha256(self.chat_template(True).encode("utf-8")).hexdigest()
        return f"bitexport__{self.path.replace('/', '__')}__{template[:12]}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template, by name or the default one; empty for False."""
        if chat_template is False or chat_template is None:
            return ""
        return self._templates.choose(chat_template if isinstance(chat_template, str) else None)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation; see :meth:`ChatTemplates.render`."""
        return self._templates.render(chat_history, answer_next=add_generation_prompt)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results."""
        return {
            "model_num_parameters": self.session.parameters,
            "model_dtype": self.session.description,
            "model_revision": "",
            "model_sha": "",
        }

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        **others: Any,  # noqa: ARG002
    ) -> list[int]:
        """Token ids of a text; see :meth:`Encoder.ids`."""
        return self._encoder.ids(string, add_special_tokens)

    # -- what it asks of the model --

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is what the model would say."""
        if any(request.args[0] == "" for request in requests):
            self._warn_of_prefix()
        found: list[tuple[float, bool]] = super().loglikelihood(
            requests, disable_tqdm=disable_tqdm or self._progress is not None
        )
        return found

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **others: Any,  # noqa: ARG002
    ) -> list[tuple[float, bool]]:
        queries = [self._query(*request) for request in requests]
        self._warn_of_cuts(
            sum(
                len(context) + len(continuation) > self.max_length + 1
                for _, context, continuation in requests
            ),
            len(requests),
        )
        with bar(self._progress, len(queries), "loglikelihood", disable_tqdm) as progress:
            answers = self.session.answer(queries, progress)
        found = [(float(answer.logprobs.sum()), answer.greedy) for answer in answers]
        for (text, _, _), answer in zip(requests, found, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return found

    def _query(
        self, text: tuple[str, str] | None, context: Sequence[int], continuation: Sequence[int]
    ) -> Query:
        if not context or not continuation:
            what = "context" if not context else "continuation"
            raise UsageError(
                f"the {what} of the request {text!r} has no tokens of its own; correct the task: a "
                "continuation begins with the space that separates it"
            )
        if len(continuation) > self.max_length:
            raise UsageError(
                f"a continuation has {len(continuation)} tokens, but the model takes {self.max_length}; "
                "choose a task with shorter ones, or a model with a longer context"
            )
        ids = (*context, *continuation)[-(self.max_length + 1) :]
        return Query(ids, len(ids) - len(continuation))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in windows of the longest length."""
        self._warn_of_prefix()
        queries: list[Query] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, windows):
                queries.append(self._query(None, context, continuation))
                owners.append(owner)
        with bar(self._progress, len(queries), "loglikelihood_rolling", disable_tqdm) as progress:
            answers = self.session.answer(queries, progress)
        found = [0.0] * len(requests)
        for owner, answer in zip(owners, answers, strict=True):
            found[owner] += float(answer.logprobs.sum())
        for request, total in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The most likely text after each prompt, up to a stop text, an end of text or the limit."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(index)
        found = [""] * len(requests)
        with bar(self._progress, len(requests), "generate_until", disable_tqdm) as progress:
            done = 0
            for indices in groups.values():
                asked = [requests[index] for index in indices]
                for index, text in zip(indices, self._generate(asked, progress.after(done)), strict=True):
                    found[index] = text
                    self.cache_hook.add_partial("generate_until", requests[index].args, text)
                done += len(indices)
        return found

    def _generate(self, requests: Sequence[Instance], progress: Progress) -> list[str]:
        """The answers to requests with the same settings."""
        settings = normalize_gen_kwargs(requests[0].args[1], self.max_gen_toks)
        _check_generation(settings)
        stops = handle_stop_sequences(
            settings["until"], eos=self._encoder.text([self.eot_token_id], special=True)
        )
        limit = settings["max_gen_toks"]
        room = self.max_length - limit
        if room < 1:
            raise UsageError(
                f"the task generates {limit} tokens, but the model takes {self.max_length} in all; "
                "raise --ctx if the model has more, or give --gen_kwargs max_gen_toks=N to lm_eval's own "
                "command (docs/tasks.md)"
            )
        prompts = [self.tok_encode(request.args[0]) or [self.prefix_token_id] for request in requests]
        self._warn_of_cuts(sum(len(prompt) > room for prompt in prompts), len(prompts))

        def ended(ids: list[int]) -> bool:
            if ids[-1] in self._ends:
                return True
            text = self._encoder.text(ids, special=True)
            return any(stop in text for stop in stops if stop)

        answers = self.session.continue_greedily(
            [prompt[-room:] for prompt in prompts], limit, ended, progress
        )
        return [
            postprocess_generated_text(self._encoder.text(ids, special=False), stops, None) for ids in answers
        ]

    # -- warnings, each once --

    def _warn_of_cuts(self, cut: int, total: int) -> None:
        if cut and "cut" not in self._warned:
            self._warned.add("cut")
            warnings.warn(
                f"{cut} of {total} requests are longer than the model's {self.max_length} tokens and lose "
                "their beginning, as with the hf backend",
                BitexportWarning,
                stacklevel=2,
            )

    def _warn_of_prefix(self) -> None:
        if self._encoder.prefix_is_assumed and "prefix" not in self._warned:
            self._warned.add("prefix")
            prefix, end = self.prefix_token_id, self.eot_token_id
            prefix_text, end_text = (self._encoder.text([token], special=True) for token in (prefix, end))
            warnings.warn(
                f"texts without context are given token {prefix} ({prefix_text}) as context; if the "
                f"checkpoint's tokenizer has no bos_token, which the file does not say, the hf backend gives "
                f"them {end} ({end_text}): to do the same, give prefix_token_id={end} in --model_args "
                "of lm_eval's own command (docs/tasks.md)",
                BitexportWarning,
                stacklevel=2,
            )


def _check_arguments(unknown: dict[str, Any]) -> None:
    for name in unknown:
        known = ["file", "max_length", "threads", "exact", "add_bos_token", "prefix_token_id"]
        near = difflib.get_close_matches(name, known, 1)
        raise UsageError(
            f"model_args has no {name}; "
            + (f"did you mean {near[0]}?" if near else f"expected {', '.join(known)}")
        )


def _trained_context(metadata: Any) -> int:
    trained = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return trained if isinstance(trained, int) and trained > 0 else SHORT_CONTEXT


def _checked_length(given: int | None, trained: int) -> int:
    if given is None:
        return trained
    if not isinstance(given, int) or not 2 <= given <= max(trained, SHORT_CONTEXT):
        raise UsageError(
            f"the context, --ctx or max_length, is {given}; expected 2 to {max(trained, SHORT_CONTEXT)} "
            "tokens for this model"
        )
    return given


def _check_generation(settings: dict[str, Any]) -> None:
    """Refuse what would change the most likely text."""
    if settings.get("do_sample"):
        raise UsageError(
            "the task samples its answers (do_sample), but this model class gives the most likely one; give "
            "--gen_kwargs do_sample=False,temperature=0 to lm_eval's own command (docs/tasks.md)"
        )
    others = sorted(name for name, value in settings.items() if name not in _GENERATION and value is not None)
    if others:
        raise UsageError(
            f"the task asks the generation for {', '.join(others)}, which this model class does not have; "
            "expected until, max_gen_toks and greedy answers"
        )
