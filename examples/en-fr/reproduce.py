"""A complete distillation, English to French, and the tables of docs/distillation.md; run by `make en-fr`.

One teacher in full precision; then for each seed three students of the same size: (a) direct ternary
fine-tuning, (b) stages 1 and 3, (c) stages 1, 2 and 3. Each is measured in PyTorch and, through I2_S, in C++,
and timed in alternation with the teacher's F16 file. Existing results are reused.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bitexport.bench.measure import BenchTest
from bitexport.bench.worker import Worker
from bitexport.convert import convert
from bitexport.evaluation import evaluate, read_pairs
from bitexport.gguf.reader import read_gguf
from bitexport.train import load_config, train

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "en-fr"
PAGE = ROOT / "docs" / "distillation.md"
MARKS = (
    "<!-- made by examples/en-fr/reproduce.py -->",
    "<!-- end of what examples/en-fr/reproduce.py makes -->",
)

#: Changes to student.toml for each kind of student.
VARIANTS: dict[str, dict[str, Any]] = {
    "a": {"sub_norms": False, "stage2_tokens": 0, "logits_weight": 0.0, "relation_weight": 0.0},
    "b": {"stage2_tokens": 0},
    "c": {},
}
NAMES = {
    "teacher": "teacher, full precision",
    "a": "(a) direct ternary fine-tuning",
    "b": "(b) stages 1 and 3",
    "c": "(c) stages 1, 2 and 3",
}
PAIRS = 1000
ROUNDS = 7
TESTS = (BenchTest("pp", 64), BenchTest("tg", 64))
QUALITY_HEADER = [
    "model",
    "seed",
    "BLEU",
    "in C++",
    "chrF",
    "in C++",
    "perplexity",
    "in C++",
    "BLEU kept",
    "chrF kept",
]
COST_HEADER = ["model", "seed", "tokens", "minutes", "file", "matrices", "prefill", "decode"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "en-fr", help="folder of all runs")
    parser.add_argument("--seeds", default="0,1", help="separated by commas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="students trained in parallel")
    parser.add_argument("--one", help="train only this model: teacher, a-0, ...; for the processes of --jobs")
    options = parser.parse_args()
    out: Path = options.out.resolve()  # a run must be resumed with the paths it was started with
    if options.one:
        train_one(out, options.one)
        return
    names = [f"{variant}-{seed}" for seed in options.seeds.split(",") for variant in "cba"]  # longest first
    command = [sys.executable, __file__, "--out", str(out), "--one"]
    subprocess.run([*command, "teacher"], check=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda name: subprocess.run([*command, name], check=True), names))
    results = {name: measure(out, name) for name in ["teacher", *sorted(names)]}
    text = table(results)
    print(text)
    write_page(text)


def train_one(out: Path, name: str) -> None:
    """Train one model, or continue where it stopped."""
    if name == "teacher":
        config = load_config(EXAMPLE / "teacher.toml", run_dir=str(out / name))
        train(config, "pretrain", resume=True, say=print_to_stderr)
        return
    variant, seed = name.split("-")
    teacher = str(model_of(out, "teacher"))
    changes = {"run_dir": str(out / name), "teacher": teacher, "seed": int(seed), **VARIANTS[variant]}
    train(load_config(EXAMPLE / "student.toml", **changes), "all", resume=True, say=print_to_stderr)


def print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def model_of(out: Path, name: str) -> Path:
    return out / name / ("pretrain" if name == "teacher" else "stage3") / "model"


def measure(out: Path, name: str) -> dict[str, Any]:
    """Quality on both sides, size and speed; saved in the run's folder, and read from there if it exists."""
    saved = out / name / "measured.json"
    if saved.exists():
        result: dict[str, Any] = json.loads(saved.read_text())
        return result
    gguf = out / f"{name}.gguf"
    model = model_of(out, name)
    convert(model, gguf, embed_type="f16", all_float=name == "teacher", force=True)
    pairs = read_pairs(out / "teacher" / "held_out.jsonl", PAIRS)
    report = evaluate(model, student_gguf=gguf, pairs=pairs, max_tokens=96)
    seconds, tokens = training_cost(out / name)
    result = {
        "columns": [column.to_json() for column in report.columns],
        "pairs": report.pairs,
        "file_bytes": gguf.stat().st_size,
        "matrix_bytes": matrix_bytes(gguf),
        "seconds": seconds,
        "tokens": tokens,
    }
    if name != "teacher":
        result["speed"] = speed(out / "teacher.gguf", gguf)
    saved.write_text(json.dumps(result, indent=2) + "\n")
    return result


def matrix_bytes(gguf: Path) -> int:
    """Bytes of the matrices in the layers."""
    tensors = read_gguf(str(gguf)).tensors
    return sum(t.nbytes for t in tensors if t.name.startswith("blk.") and len(t.shape) == 2)


def training_cost(run: Path) -> tuple[float, int]:
    """Seconds of training and tokens seen, over all stages."""
    results = [json.loads(path.read_text()) for path in run.glob("*/result.json")]
    return sum(result["seconds"] for result in results), sum(result["tokens"] for result in results)


def speed(teacher: Path, student: Path) -> dict[str, Any]:
    """Tokens per second of both files with one thread, alternating, and the ratio of the two."""
    result: dict[str, Any] = {}
    with Worker(teacher, 128, {}) as teacher_worker, Worker(student, 128, {}) as student_worker:
        for test in TESTS:
            teacher_seconds = []
            student_seconds = []
            for _ in range(ROUNDS + 1):
                teacher_seconds.append(teacher_worker.seconds(test, 1))
                student_seconds.append(student_worker.seconds(test, 1))
            del teacher_seconds[0], student_seconds[0]  # warm-up
            ratios = [a / b for a, b in zip(teacher_seconds, student_seconds, strict=True)]
            result[test.name] = {
                "teacher": test.tokens / statistics.median(teacher_seconds),
                "student": test.tokens / statistics.median(student_seconds),
                "ratio": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
            }
    return result


def table(results: dict[str, dict[str, Any]]) -> str:
    """Two Markdown tables: quality, then cost."""
    teacher_scores = results["teacher"]["columns"][0]["translation"]
    quality = [QUALITY_HEADER]
    cost = [COST_HEADER]
    for name, result in results.items():
        variant, _, seed = name.partition("-")
        quality.append([NAMES[variant], seed, *quality_cells(result, teacher_scores)])
        cost.append([NAMES[variant], seed, *cost_cells(result)])
    return f"{results['teacher']['pairs']:,} held-out pairs.\n\n{markdown(quality)}\n\n{markdown(cost)}"


def quality_cells(result: dict[str, Any], teacher_scores: dict[str, float]) -> list[str]:
    """BLEU, chrF and perplexity in Python and C++, and how much of the teacher's scores C++ keeps."""
    python, cpp = result["columns"]
    cells = []
    for score in ("bleu", "chrf"):
        cells += [f"{python['translation'][score]:.2f}", f"{cpp['translation'][score]:.2f}"]
    cells += [f"{python['pairs']['perplexity']:.3f}", f"{cpp['pairs']['perplexity']:.3f}"]
    for score in ("bleu", "chrf"):
        cells.append(f"{100 * cpp['translation'][score] / teacher_scores[score]:.1f}%")
    return cells


def cost_cells(result: dict[str, Any]) -> list[str]:
    """Tokens and minutes of training, sizes, and speeds, which are empty for the teacher."""
    cells = [f"{result['tokens']:,}", f"{result['seconds'] / 60:.0f}"]
    cells += [f"{result['file_bytes'] / 1e6:.2f} MB", f"{result['matrix_bytes'] / 1e6:.2f} MB"]
    if "speed" not in result:
        return [*cells, "", ""]
    return cells + [speed_cell(row) for row in result["speed"].values()]


def speed_cell(row: dict[str, Any]) -> str:
    """Tokens per second, and the ratio to the teacher's."""
    low, high = row["range"]
    return f"{row['student']:,.0f}/s, {row['ratio']:.2f} ({low:.2f} to {high:.2f})"


def markdown(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def write_page(text: str) -> None:
    """Replace the tables between the marks of the page."""
    page = PAGE.read_text(encoding="utf-8")
    if page.count(MARKS[0]) != 1 or page.count(MARKS[1]) != 1:
        sys.exit(f"{PAGE}: expected each of these marks once: {MARKS[0]} and {MARKS[1]}")
    before, _, rest = page.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
