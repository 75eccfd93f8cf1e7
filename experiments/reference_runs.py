"""Runs configurations of the reference implementation's scripts, several seeds each.

    python experiments/reference_runs.py --list
    python experiments/reference_runs.py 4 --seeds 3
    python experiments/reference_runs.py 4 10 -- --max_epochs 1 --limit_train_batches 20

`reference_runs.csv` contains a row for each command line of those scripts. Settings that a row does
not have are the reference's defaults; flags of `train_keras.py` after `--` override both. A
finished run is not repeated, and an interrupted run continues. Means and standard deviations over
the seeds of the bound and of the negative log-likelihood on test images are printed, and stored in
`results.csv` in the output folder.
"""

import argparse
import csv
import json
import os
import pathlib
import statistics
import sys
import zlib
from collections.abc import Sequence
from typing import Any

# Hides TensorFlow's start-up messages; TensorFlow reads the variable when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tf_mcvae.files import replacing
from tf_mcvae_commands import train as cli
from tf_mcvae_commands.run_folder import RunFolder

ROWS_FILE = pathlib.Path(__file__).with_suffix(".csv")

# The reference's defaults where they differ from those of this command line.
DEFAULTS = {
    "binarize": "False",
    "batch_size": "32",
    "val_batch_size": "50",
    "hidden_dim": "64",
    "num_samples": "1",
    "act_func": "gelu",
    "net_type": "conv",
}
TRANSITION_DEFAULTS = {
    "K": "3",
    "acceptance_rate_target": "0.95",
    "published_acceptance": "True",
}
# Not a setting of the reference, which scored in training; the default of 31 images is too few.
SCORING = {"score_examples": "1000"}


def read_rows() -> dict[int, dict[str, str]]:
    """Returns the flags of each row by its number, from 1; some rows are equal."""
    with ROWS_FILE.open(newline="") as file:
        return {
            number: {name: value for name, value in list(row.items())[2:] if value}
            for number, row in enumerate(csv.DictReader(file), 1)
        }


def words_of(row: dict[str, str]) -> list[str]:
    """Returns the command line of a row with the reference's defaults."""
    own = TRANSITION_DEFAULTS if "MCVAE" in row["model"] else {}
    flags = {**SCORING, **DEFAULTS, **own, **row}
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


def run_seed(name: str, words: Sequence[str], seed: int, output_dir: str) -> dict[str, float]:
    """Runs a configuration unless it is finished, and returns its bound and NLL in nats.

    Raises:
        SystemExit: If the run fails, is interrupted or has no scores.
    """
    folder = RunFolder(pathlib.Path(output_dir) / f"{name}-seed{seed}")
    new = [*words, "--name", folder.path.name, "--seed", str(seed)]
    if not folder.metrics.exists():
        flags = ["--resume", folder.path.name] if folder.config.exists() else new
        if code := cli.main([*flags, "--output-dir", output_dir]):
            raise SystemExit(code)
    scores = json.loads(folder.metrics.read_text("utf-8"))["scores"]
    if not scores:
        raise SystemExit(f"error: this run has no scores: {folder.path}")
    return {"bound": scores["bound"]["mean"], "nll": -scores["ais"]["mean"]}


def run_row(number: int, seeds: int, extra: Sequence[str], output_dir: str) -> dict[str, Any]:
    """Runs all seeds of a row.

    Returns:
        The row's line of the results.
    """
    rows = read_rows()
    row = rows[number]
    # Equal rows share their runs; additional flags give them another name.
    first = next(other for other in rows if rows[other] == row)
    name = f"row{first}-{row['model']}-{row['dataset']}"
    name += f"-{zlib.crc32(' '.join(extra).encode()):08x}" if extra else ""
    results = [run_seed(name, [*words_of(row), *extra], seed, output_dir) for seed in range(seeds)]
    line: dict[str, Any] = {"run": name, "seeds": seeds}
    for key in ("bound", "nll"):
        values = [result[key] for result in results]
        line[f"{key}_mean"] = f"{statistics.fmean(values):.3f}"
        line[f"{key}_sd"] = f"{statistics.stdev(values):.3f}" if seeds > 1 else ""
    # The later of two equal flags takes effect.
    line["flags"], line["further_flags"] = " ".join(words_of(row)), " ".join(extra)
    return line


def keep(line: dict[str, Any], path: pathlib.Path) -> None:
    """Writes a line to the results, in place of an older line of the same run."""
    lines = []
    if path.exists():
        with path.open(newline="") as file:
            lines = [old for old in csv.DictReader(file) if old["run"] != line["run"]]
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(line), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*lines, line])


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Returns results as text."""
    head = f"{'run':<36}{'seeds':>6}{'bound':>20}{'NLL':>20}"
    return "\n".join([head, *map(_table_line, lines)])


def _table_line(line: dict[str, Any]) -> str:
    cells = "".join(
        f"{line[f'{key}_mean'] + ' ± ' + (line[f'{key}_sd'] or '-'):>20}"
        for key in ("bound", "nll")
    )
    return f"{line['run']:<36}{line['seeds']:>6}{cells}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        usage="%(prog)s ROW [ROW ...] [--seeds N] [-- FLAGS OF train_keras.py]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", type=int, metavar="ROW", help="numbers of rows")
    parser.add_argument("--list", action="store_true", help="print the rows")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0, 1, ... (default: 1)")
    parser.add_argument(
        "--output-dir", default="saved_models/reference", help="default: %(default)s"
    )
    given = parser.parse_intermixed_args(words[:end])
    rows = read_rows()
    if given.list or not given.rows:
        for number, row in rows.items():
            print(f"{number:3d}  {' '.join(f'--{name} {value}' for name, value in row.items())}")
        return 0
    if given.seeds < 1 or not set(given.rows) <= set(rows):
        parser.error(f"rows go from 1 to {len(rows)}, and --seeds must be at least 1")
    lines = []
    for number in given.rows:
        lines.append(run_row(number, given.seeds, words[end + 1 :], given.output_dir))
        keep(lines[-1], pathlib.Path(given.output_dir) / "results.csv")
    print(table(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
