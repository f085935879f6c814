"""A distillation from start to end, and its table: English to French, by `make en-fr`.

One teacher in full precision; then for each seed three students of the same size: (a) direct ternary
fine-tuning, (b) stages 1 and 3, (c) stages 1, 2 and 3. Each is measured in PyTorch and, through I2_S, in C++,
and timed in turns with the teacher's F16 file. What is there already is not made again. The table goes into
docs/distillation.md.
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
from bitexport.train.config import load_config
from bitexport.train.stages import train

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "en-fr"
PAGE = ROOT / "docs" / "distillation.md"
MARKS = (
    "<!-- made by examples/en-fr/reproduce.py -->",
    "<!-- end of what examples/en-fr/reproduce.py makes -->",
)

#: What each student's configuration changes in student.toml.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "en-fr")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="students trained side by side")
    parser.add_argument("--one", help="train only this model: teacher, a-0, ...; for the processes of --jobs")
    options = parser.parse_args()
    out: Path = options.out.resolve()  # a run is resumed with the very paths it was begun with
    if options.one:
        train_one(out, options.one)
        return
    names = [f"{variant}-{seed}" for seed in options.seeds.split(",") for variant in "cba"]
    command = [sys.executable, __file__, "--out", str(out), "--one"]
    subprocess.run([*command, "teacher"], check=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda name: subprocess.run([*command, name], check=True), names))
    results = {name: measured(out, name) for name in ["teacher", *sorted(names)]}
    text = table(results)
    print(text)
    write_page(text)


def train_one(out: Path, name: str) -> None:
    """Train one model, or go on with it where it stopped."""
    if name == "teacher":
        config = load_config(EXAMPLE / "teacher.toml", run_dir=str(out / name))
        train(config, "pretrain", resume=True, say=tell)
        return
    variant, seed = name.split("-")
    teacher = str(model_of(out, "teacher"))
    changes = {"run_dir": str(out / name), "teacher": teacher, "seed": int(seed), **VARIANTS[variant]}
    train(load_config(EXAMPLE / "student.toml", **changes), "all", resume=True, say=tell)


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def model_of(out: Path, name: str) -> Path:
    return out / name / ("pretrain" if name == "teacher" else "stage3") / "model"


def measured(out: Path, name: str) -> dict[str, Any]:
    """Quality on both sides, size and speed; kept in a file beside the model."""
    kept = out / name / "measured.json"
    if kept.exists():
        result: dict[str, Any] = json.loads(kept.read_text())
        return result
    gguf, model = out / f"{name}.gguf", model_of(out, name)
    convert(model, gguf, embed_type="f16", all_float=name == "teacher", force=True)
    pairs = read_pairs(out / "teacher" / "held_out.jsonl", PAIRS)
    report = evaluate(model, student_gguf=gguf, pairs=pairs, max_tokens=96)
    result = {"columns": [column.to_json() for column in report.columns], "pairs": report.pairs}
    tensors = read_gguf(str(gguf)).tensors
    layers = [tensor for tensor in tensors if tensor.name.startswith("blk.") and len(tensor.shape) == 2]
    result |= {"file_bytes": gguf.stat().st_size, "matrix_bytes": sum(tensor.nbytes for tensor in layers)}
    result["seconds"], result["tokens"] = spent(out / name)
    if name != "teacher":
        result["speed"] = speed(out / "teacher.gguf", gguf)
    kept.write_text(json.dumps(result, indent=2) + "\n")
    return result


def spent(run: Path) -> tuple[float, int]:
    """Seconds of training and tokens seen, over all stages."""
    results = [json.loads(path.read_text()) for path in run.glob("*/result.json")]
    return sum(result["seconds"] for result in results), sum(result["tokens"] for result in results)


def speed(teacher: Path, student: Path) -> dict[str, Any]:
    """Tokens a second of both files at one thread, in turns: medians, and the ratio's median and range."""
    found: dict[str, Any] = {}
    with Worker(teacher, 128, {}) as slow, Worker(student, 128, {}) as fast:
        for test in TESTS:
            seconds = [(slow.seconds(test, 1), fast.seconds(test, 1)) for _ in range(ROUNDS + 1)][1:]
            ratios = [before / after for before, after in seconds]
            found[test.name] = {
                "teacher": test.tokens / statistics.median(before for before, _ in seconds),
                "student": test.tokens / statistics.median(after for _, after in seconds),
                "ratio": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
            }
    return found


def table(results: dict[str, dict[str, Any]]) -> str:
    """Two Markdown tables: quality, then cost."""
    base = results["teacher"]["columns"][0]["translation"]
    rows = [
        [
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
    ]
    cost = [["model", "seed", "tokens", "minutes", "file", "matrices", "prefill", "decode"]]
    for name, result in results.items():
        variant, _, seed = name.partition("-")
        python, cpp = result["columns"]
        row = [NAMES[variant], seed]
        for number in ("bleu", "chrf"):
            row += [f"{column['translation'][number]:.2f}" for column in (python, cpp)]
        row += [f"{column['pairs']['perplexity']:.3f}" for column in (python, cpp)]
        row += [f"{100 * cpp['translation'][number] / base[number]:.1f}%" for number in ("bleu", "chrf")]
        rows.append(row)
        cost.append(
            [
                *(NAMES[variant], seed, f"{result['tokens']:,}", f"{result['seconds'] / 60:.0f}"),
                *(f"{result[key] / 1e6:.2f} MB" for key in ("file_bytes", "matrix_bytes")),
                *(speeds(row) for row in result.get("speed", {"": None, " ": None}).values()),
            ]
        )
    return f"{results['teacher']['pairs']:,} held-out pairs.\n\n{markdown(rows)}\n\n{markdown(cost)}"


def speeds(row: dict[str, Any] | None) -> str:
    """Tokens a second, and how many times the teacher's."""
    if row is None:
        return ""
    low, high = row["range"]
    return f"{row['student']:,.0f}/s, {row['ratio']:.2f} ({low:.2f} to {high:.2f})"


def markdown(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def write_page(text: str) -> None:
    """Put the tables between the marks of the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
