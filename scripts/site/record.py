"""Record the pictures of the documentation: real commands on a terminal, their plots, and serve's page.

Usage: record.py [NAME ...]

Each picture is docs/pictures/NAME.svg or NAME.png; without names, all of them are recorded. A terminal is 80
columns wide, as the commands see it; what they print on stderr follows when it comes, without progress bars.
The figures in them are those of one run on whatever machine records: they show what a report looks like.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bitexport.serve import Server  # noqa: E402
from tests.support.browser import Browser, find_browser  # noqa: E402
from tests.support.gguf_files import changed, double_scale  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
WORK = ROOT / "build" / "pictures"
COLUMNS = 80
SECONDS = 600

#: As rich's, but with the reader's own fonts: an SVG must not load one from another host.
SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font: {char_height}px/{line_height}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}}
.{unique_id}-title {{ font: bold 18px system-ui, sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""

# A template that makes a chat of the student's way to ask for a translation.
CHAT_TEMPLATE = "{% for message in messages[-1:] %}<|en|>{{ message.content }}<|fr|>{% endfor %}"
QUESTIONS = ("The file could not be opened.", "Show all files in this folder")
FUNCTION = '    def read(self, size=-1):\n        """Read up to size bytes'


def bitexport(*arguments: str, keys: Sequence[tuple[str, str]] = ()) -> str:
    """What a terminal shows of one command, ANSI colours included, after the line that was typed.

    Args:
        arguments: of the command.
        keys: what to wait for after the keys before, and what to type then.

    Raises:
        SystemExit: the command fails or does not end.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    errors, stderr = os.pipe()
    hidden = ("NO_COLOR", "COLUMNS", "LINES", "INPUTRC")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    process = subprocess.Popen(
        [sys.executable, "-m", "bitexport", *arguments],
        cwd=WORK,
        env={**environment, "TERM": "xterm-256color"},
        stdin=slave,
        stdout=slave,
        stderr=stderr,
    )
    os.close(slave)
    os.close(stderr)
    output = _watch(process, master, errors, list(keys))
    if process.wait() not in (0, 3):
        sys.exit(f"record.py: bitexport {shlex.join(arguments)} failed:\n{output}")
    shown = " ".join(word if re.fullmatch(r"[\w.,/-]+", word) else f"'{word}'" for word in arguments)
    return f"\x1b[1m$ bitexport {shown}\x1b[0m\n{output}"


def _watch(process: subprocess.Popen[bytes], terminal: int, errors: int, keys: list[tuple[str, str]]) -> str:
    received = b""
    seen = 0  # bytes before the last keys
    sources = [errors, terminal]  # what comes at the same time, in this order
    while sources:
        ready, _, _ = select.select(sources, [], [], SECONDS)
        if not ready:
            process.kill()
            sys.exit(f"record.py: {process.args!r} shows nothing for {SECONDS} s; so far {received!r}")
        for source in ready:
            try:
                data = os.read(source, 65536)
            except OSError:  # Linux: the other end of the terminal is closed
                data = b""
            received += data
            if not data:
                sources.remove(source)
                os.close(source)
        if keys and keys[0][0] in _printed(received[seen:]):
            seen = len(received)
            os.write(terminal, keys.pop(0)[1].encode())
    return _printed(received)


def _printed(received: bytes) -> str:
    """Text and colours, without cursor movements."""
    text = received.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\r", "")
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-ln-z]|\x1b[=>]|\x07", "", text)


def picture(name: str, *shown: str, title: str) -> None:
    """Write docs/pictures/NAME.svg of what :func:`bitexport` returned."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for text in "\n".join(shown).rstrip().splitlines():
        console.print(Text.from_ansi(text), soft_wrap=False)
    svg = console.export_svg(title=title, code_format=SVG, unique_id=name)
    (PICTURES / f"{name}.svg").write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE), encoding="utf-8")


def plot(name: str, width: int = 1200) -> None:
    """Move WORK/NAME.png to docs/pictures, in fewer colours and pixels."""
    with Image.open(WORK / f"{name}.png") as drawn:
        image = drawn.convert("RGB")
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    image.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        PICTURES / f"{name}.png", optimize=True
    )


def convert() -> None:
    (WORK / "tiny.gguf").unlink()
    picture("convert", bitexport("convert", "examples/tiny-python", "tiny.gguf"), title="convert")


def parity() -> None:
    prompts = ("--prompt", "def main():", "--prompt", "import os, sys", "--prompt", "class Stack(list):")
    picture("parity", bitexport("parity", "examples/tiny-python", "tiny.gguf", *prompts), title="parity")


def depth() -> None:
    prompts = ("--prompt", "def read_lines(path):")
    bitexport("parity", "examples/tiny-python", "tiny.gguf", *prompts, "--plot", "depth.png")
    plot("depth")
    changed(WORK / "tiny.gguf", WORK / "bad.gguf", "blk.3.attn_k.weight", double_scale)
    bitexport("parity", "examples/tiny-python", "bad.gguf", *prompts, "--plot", "depth-damaged.png")
    plot("depth-damaged")


def bench() -> None:
    tests = ("--prompt-tokens", "128", "-n", "32", "-r", "3", "-t", "1,2")
    picture("bench", bitexport("bench", "tiny.gguf", *tests, "--plot", "bench-plot.png"), title="bench")
    plot("bench-plot", 1000)


def run() -> None:
    sampling = ("-n", "64", "--temp", "0.5", "--top-k", "20", "--seed", "3")
    picture("run", bitexport("run", "tiny.gguf", "-p", FUNCTION, *sampling, "--echo"), title="run")


def chat() -> None:
    keys = [("> ", f"{text}\n") for text in (*QUESTIONS, "/quit")]
    picture("chat", bitexport("chat", "en-fr.gguf", "--temperature", "0", keys=keys), title="chat")


def doctor() -> None:
    picture("doctor", bitexport("doctor", "examples/tiny-python", "tiny.gguf"), title="doctor")


def serve() -> None:
    _serve("serve", width=1100, height=620, dark=False)
    _serve("serve-phone", width=390, height=720, dark=True)


def _serve(name: str, *, width: int, height: int, dark: bool) -> None:
    program = find_browser()
    if program is None:
        sys.exit("record.py: the picture of serve's page needs Chromium; install it, or name other pictures")
    done = "document.querySelector('.message.model:last-child footer') && !document.querySelector('.busy')"
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        Server(WORK / "en-fr.gguf", port=0, slots=1) as server,
        Browser(program, Path(profile), width=width, height=height, dark=dark) as browser,
    ):
        browser.visit(server.url)
        browser.wait_for("document.getElementById('state')?.textContent == 'Ready'")
        browser.run("localStorage.clear()")
        browser.run(
            "(() => { const t = document.getElementById('temperature'); t.value = 0;"
            "t.dispatchEvent(new Event('input', { bubbles: true })); })()"
        )
        for number, question in enumerate(QUESTIONS, 1):
            browser.run("document.getElementById('text').focus()")
            browser.write(question)
            browser.press("Enter")
            browser.wait_for(f"document.querySelectorAll('.message').length == {2 * number} && {done}")
        browser.picture(WORK / f"{name}.png")
    plot(name)


RECORDINGS: tuple[Callable[[], None], ...] = (convert, parity, depth, bench, run, chat, doctor, serve)


def prepare() -> None:
    """The shipped checkpoints and their files, in a folder of their own."""
    WORK.mkdir(parents=True, exist_ok=True)
    PICTURES.mkdir(exist_ok=True)
    (WORK / "examples").unlink(missing_ok=True)
    (WORK / "examples").symlink_to(ROOT / "examples")
    student = WORK / "en-fr"
    shutil.copytree(ROOT / "examples" / "en-fr", student, dirs_exist_ok=True)
    (student / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    for checkpoint, file in (("examples/tiny-python", "tiny.gguf"), ("en-fr", "en-fr.gguf")):
        bitexport("convert", checkpoint, file, "--force")


def main() -> None:
    """Record the pictures that were named, or all."""
    known = {recording.__name__: recording for recording in RECORDINGS}
    unknown = sys.argv[1:] and [name for name in sys.argv[1:] if name not in known]
    if unknown:
        sys.exit(f"record.py: unknown picture {unknown[0]!r}; expected some of {', '.join(known)}")
    prepare()
    for name in sys.argv[1:] or known:
        print(name, flush=True)
        known[name]()


if __name__ == "__main__":
    main()
