"""``bitexport chat``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitexport.cli import options
from bitexport.cli.chat_input import FENCE, Entry, Reader
from bitexport.cli.hub import Revision, local_path
from bitexport.cli.interrupt import Terminated
from bitexport.cli.output import Output, counted, shortened
from bitexport.errors import BitexportError, UsageError, WorkerError

if TYPE_CHECKING:
    from bitexport.chat import Answer, Conversation

HELP = f"""\
/clear      forget the conversation, but not the system message
/regen      answer the last message again, with the next seed
/save FILE  write the conversation as JSON
/stats      show the figures of the last answer
/help       show this
/quit       end, as Ctrl-D does
A backslash at the end of a line continues the message on the next one. A line of
{FENCE} begins and ends a message of several lines, which may begin with a slash.
Ctrl-C ends an answer."""


def chat(
    gguf: options.Gguf,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="The system message.", show_default=False),
    ] = None,
    no_template: Annotated[
        bool,
        typer.Option(
            "--no-template",
            help="Do not use the file's chat template: messages and answers are one running text.",
        ),
    ] = False,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens",
            "--n-predict",
            "-n",
            min=0,
            help="Maximum number of tokens of an answer; 0: as many as the context has room for.",
        ),
    ] = 0,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 40,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = 0.0,
    repeat_penalty: options.RepeatPenalty = 1.0,
    seed: options.Seed = 0,
    stop: options.Stop = None,
    json_schema: options.JsonSchema = None,
    grammar: options.Grammar = None,
    ctx: options.Context = 0,
    threads: options.Threads = 0,
    draft: options.Draft = None,
    draft_tokens: options.DraftTokens = 15,
    workers: options.Workers = "",
    layers: options.Layers = "",
    stats: Annotated[bool, typer.Option("--stats", help="Show figures after each answer.")] = False,
    revision: Revision = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Talk with a model, by its chat template.

    Type a message; /help lists the commands. If stdin is not a terminal, each line is a message. With --json,
    the conversation is printed at its end.
    """
    from bitexport.chat import Conversation

    out = Output(json=json, quiet=quiet)
    sampling = options.sampling(temperature, top_k, top_p, min_p, repeat_penalty, seed, json_schema, grammar)
    gguf = local_path(out, gguf, "gguf", revision)
    conversation = Conversation(
        gguf,
        system=system,
        template=not no_template,
        sampling=sampling,
        max_tokens=max_tokens,
        n_ctx=ctx,
        threads=threads,
        stop=stop or (),
        workers=workers,
        layers=options.layers(layers),
        draft=options.draft(out, draft),
        draft_tokens=draft_tokens,
    )
    with conversation:
        chatting = _Chat(out, conversation, Reader(), stats, greedy=temperature == 0)
        chatting.run()
        out.result({**conversation.to_json(), "answers": chatting.figures})


class _Chat:
    """Reads messages and prints answers until the end of the input."""

    def __init__(
        self, out: Output, conversation: Conversation, reader: Reader, stats: bool, greedy: bool
    ) -> None:
        self.out = out
        self.conversation = conversation
        self.reader = reader
        self.stats = stats
        self.greedy = greedy
        self.figures: list[dict[str, Any]] = []  # of each answer
        self.commands: dict[str, Callable[[str], None]] = {
            "/clear": self._clear,
            "/regen": self._regenerate,
            "/save": self._save,
            "/stats": self._statistics,
            "/help": lambda _: out.reply(HELP),
        }

    def run(self) -> None:
        """Until the end of the input or /quit.

        Raises:
            KeyboardInterrupt: Ctrl-C at the prompt, for the second time in a row if somebody types.
            BitexportError: of a message, if nobody types; a terminal shows it and goes on.
        """
        if self.reader.interactive:
            self.out.info(
                f"{self.conversation.path.name}: a context of {self.conversation.n_ctx} tokens; /help lists "
                "the commands, Ctrl-D ends"
            )
        interrupted = False
        while True:
            try:
                entry = self.reader.read()
                if entry is None or (entry.is_command and entry.text == "/quit"):
                    return
                interrupted = False
                self._obey(entry)
            except Terminated:
                raise
            except KeyboardInterrupt:
                if interrupted or not self.reader.interactive:
                    raise
                interrupted = True
                self.out.reply("\ninterrupted; Ctrl-C again or Ctrl-D ends the chat")
            except BitexportError as error:
                if isinstance(error, WorkerError) or not self.reader.interactive:
                    raise  # without its workers, the model answers no more
                self.out.reply(f"error: {shortened(str(error))}")

    def _obey(self, entry: Entry) -> None:
        if not entry.is_command:
            self._print(self.conversation.say(entry.text))
            return
        name, argument = entry.command
        if name not in self.commands:
            raise UsageError(
                f"there is no command {name}; /help lists them, and a message that begins with a slash goes "
                f"between two lines of {FENCE}"
            )
        self.commands[name](argument)

    def _print(self, answer: Answer) -> None:
        """Stream an answer; Ctrl-C ends it."""
        try:
            with closing(iter(answer)) as pieces:
                for piece in pieces:
                    self.out.stream(piece)
        finally:
            self.out.stream("\n")
            self.figures.append(answer.statistics)
        if answer.finish_reason == "length":
            self.out.warn(
                f"the answer was cut after {answer.statistics['tokens']} tokens, the limit of --max-tokens "
                "or of the context"
            )
        if self.stats:
            self._statistics("")
        if self.reader.interactive:
            self.out.stream("\n")

    def _clear(self, _: str) -> None:
        self.conversation.clear()
        self.out.info("the conversation is empty")

    def _regenerate(self, _: str) -> None:
        if self.greedy:
            self.out.warn("with --temperature 0 an answer is always the same")
        self._print(self.conversation.regenerate())

    def _save(self, argument: str) -> None:
        if not argument:
            raise UsageError("/save needs the name of a file, for example /save chat.json")
        self.conversation.save(argument)
        self.out.info(f"wrote {argument}: {counted(len(self.conversation.messages), 'message')}")

    def _statistics(self, _: str) -> None:
        if not self.figures:
            raise UsageError("there are no figures before the first answer; type a message")
        found = self.figures[-1]
        used = found["prompt_tokens"] + found["tokens"]
        self.out.reply(
            f"{counted(found['prompt_tokens'] - found['reused_tokens'], 'new prompt token')} in "
            f"{found['prompt_seconds']:.2f} s ({found['reused_tokens']} reused), {found['tokens']} generated "
            f"at {found['tokens_per_second']:.1f} t/s; context {used} of {found['context']}"
        )
