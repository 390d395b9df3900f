"""The command line: python -m analysis cka|probe|study."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from tqdm import tqdm

from analysis.cka_result import CKAPair, CKAResult
from analysis.errors import InputError
from analysis.probes import ProbeResult
from analysis.study import Study, pair_record, save_study, study_record

if TYPE_CHECKING:
    from analysis.run import Progress

PROGRAM = "auglocal-analysis"
DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
STUDY_SUFFIX = ".study.json"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments and where help is, then exit with status 2."""
        print(f"{self.prog}: {message}; see {self.prog} --help.", file=sys.stderr)
        raise SystemExit(WRONG_INPUT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed while working, 2 wrong input."""
    options = make_parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except InputError as error:
        return _complain(str(error), WRONG_INPUT)
    except KeyboardInterrupt:
        return _complain("interrupted; nothing was written.", INTERRUPTED)
    except (RuntimeError, MemoryError, OSError) as error:
        return _complain(_failure(error), FAILED)
    return DONE


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(prog=PROGRAM, description="Compare the layers of trained networks.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    cka = commands.add_parser(
        "cka",
        help="similarity of all pairs of layers of two checkpoints",
        description="Linear CKA (unbiased minibatches) of all pairs of layers of A and B.",
    )
    cka.set_defaults(command=run_cka)
    cka.add_argument("checkpoints", type=Path, nargs=2, metavar="CHECKPOINT", help="A and B")
    probe = commands.add_parser(
        "probe",
        help="what a linear classifier reads off every layer",
        description="Accuracy of a linear probe on every layer of each checkpoint.",
    )
    probe.set_defaults(command=run_probe)
    probe.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="A, B, ...")
    study = commands.add_parser(
        "study",
        help="both, kept in a file that the app opens",
        description="CKA of all pairs of checkpoints and probes of each, kept in a file.",
    )
    study.set_defaults(command=run_and_save)
    study.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="A, B, ...")
    study.add_argument("--out", type=Path, required=True, help=f"file to write, *{STUDY_SUFFIX}")
    study.add_argument("--title", help="of the study (default: made of the checkpoints' names)")
    for command in (cka, probe, study):
        _add_image_options(command)
    for command in (probe, study):
        _add_probe_options(command)
    return parser


def _add_image_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset", help="digits, cifar10, ..., imagefolder:PATH (default: the checkpoints' own)"
    )
    parser.add_argument("--split", default="test", help="test, validation or train (default: test)")
    parser.add_argument(
        "--samples", type=int, metavar="N", help="random images of it (default: 1000, or all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which images (default: 0)")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=125,
        metavar="N",
        help="most images a batch, at least 4 (default: 125, so that 1000 images make 8 batches: "
        "intervals come from the differences between batches)",
    )
    parser.add_argument(
        "--data-folder", "--data", default="data", metavar="FOLDER", help="of downloaded data sets"
    )
    parser.add_argument("--download", action="store_true", help="fetch the data set if need be")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="resize the images of a folder"
    )
    parser.add_argument("--dataset-title", metavar="TEXT", help="what to call the data of a folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _add_probe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--train-samples",
        type=int,
        metavar="N",
        help="random training images that probes learn from (default: 5000, or all)",
    )
    parser.add_argument(
        "--penalty",
        type=float,
        default=1.0,
        help="weight of the probes' squared norm, 1 / C in scikit-learn (default: 1)",
    )


# -------------------------------------------------------------------------------------- commands


def run_cka(options: argparse.Namespace) -> None:
    """Compare two checkpoints and print A against B."""
    study = _run(options, ["cka"])
    assert study.cka is not None
    pair = study.cka.pair(*study.cka.models)
    if options.json:
        print(json.dumps(pair_record(study, pair), allow_nan=False))
    else:
        print(f"{_heading(study)}\n\n{cka_table(pair)}")


def run_probe(options: argparse.Namespace) -> None:
    """Probe checkpoints and print the accuracies."""
    study = _run(options, ["probe"])
    if options.json:
        record = study_record(study)
        document = {"probes": record["answers"]["probes"]}
        document |= {name: record[name] for name in ("question", "provenance")}
        print(json.dumps(document, allow_nan=False))
    else:
        print(f"{_heading(study)}\n\n{probe_table(study.probes)}")


def run_and_save(options: argparse.Namespace) -> None:
    """Run every measure, keep the study in a file, and print it."""
    _check_out(options.out)
    study = _run(options, ["cka", "probe"], title=options.title, out=str(options.out))
    try:
        save_study(study, options.out)
    except OSError as error:
        _print_study(study, options)  # the disk may be full, but the work is done
        raise OSError(error.errno, error.strerror, str(options.out)) from error
    _print_study(study, options)
    if not options.json:
        print(f"\nstudy  {options.out}")


def _print_study(study: Study, options: argparse.Namespace) -> None:
    """Print a study as its document or its tables."""
    if options.json:
        print(json.dumps(study_record(study), allow_nan=False))
        return
    assert study.cka is not None
    tables = [cka_table(pair) for pair in _pairs(study.cka)]
    print("\n\n".join([_heading(study), *tables, probe_table(study.probes)]))


def _run(options: argparse.Namespace, measures: Sequence[str], **naming: Any) -> Study:
    """Open the checkpoints and run a study of them under a progress bar."""
    from analysis.models import common_dataset, open_model  # torch: not for --help
    from analysis.run import run_study

    models = [open_model(path, options.device) for path in options.checkpoints]
    given = {
        name: getattr(options, name)
        for name in ("train_samples", "penalty")
        if hasattr(options, name)
    }
    with _progress_bar() as show:
        return run_study(
            models,
            dataset=options.dataset or common_dataset(models),
            split=options.split,
            samples=options.samples,
            seed=options.seed,
            batch_size=options.batch_size,
            measures=measures,
            folder=options.data_folder,
            image_size=options.image_size,
            dataset_title=options.dataset_title,
            download=options.download,
            progress=show,
            **given,
            **naming,
        )


@contextmanager
def _progress_bar() -> Iterator[Callable[[Progress], None]]:
    """Give what shows progress; no bar before the first stage, when the input was checked."""
    bars: list[Any] = []

    def show(progress: Progress) -> None:
        """Move the bar; each stage has its own, and the time left is the bar's own estimate."""
        if progress.done == 0:
            for bar in bars:
                bar.close()
            bars[:] = [
                tqdm(
                    desc=progress.stage,
                    total=progress.total,
                    dynamic_ncols=True,
                    file=sys.stderr,
                    leave=False,
                )
            ]
        bars[0].update(progress.done - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()


def _check_out(path: Path) -> None:
    """Refuse a file that could not be written, before the work."""
    if not path.name.endswith(STUDY_SUFFIX) or path.is_dir():
        raise InputError(
            f"{path} is no name for a study; give --out a file that ends in {STUDY_SUFFIX}."
        )
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent}; make it, or give another --out.")
    try:  # permission bits do not tell: root passes them, and /proc takes no files
        tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent).close()
    except OSError as error:
        raise InputError(
            f"The folder {path.parent} cannot be written to ({error.strerror}); give another --out."
        ) from error


def _complain(sentence: str, status: int) -> int:
    print(f"{PROGRAM}: {sentence}", file=sys.stderr)
    return status


def _failure(error: Exception) -> str:
    """Say in one sentence what failed while working, and what to do next."""
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if isinstance(error, MemoryError) or "out of memory" in first_line.lower():
        return f"Memory ran out ({first_line}); give a smaller --batch-size or --device cpu."
    if isinstance(error, OSError):
        reason = error.strerror or first_line
        name = error.filename or "A file"
        return f"{name} could not be read or written ({reason}); nothing was saved, so try again."
    return f"The analysis failed ({first_line}); nothing was saved."


# ---------------------------------------------------------------------------------------- tables


def _heading(study: Study) -> str:
    """Say in a line what was measured on what."""
    question = study.question
    return (
        f"{' and '.join(checkpoint.name for checkpoint in question.checkpoints)}: "
        f"{question.dataset_title}, {question.split} split, n = {question.samples:,}"
    )


def _pairs(result: CKAResult) -> list[CKAPair]:
    """Every two different models, or the only one with itself."""
    models = result.models
    chosen = [(a, b) for index, a in enumerate(models) for b in models[index + 1 :]]
    return [result.pair(a, b) for a, b in chosen or [(models[0], models[0])]]


def cka_table(pair: CKAPair) -> str:
    """Lay out, for each layer of A, its CKA at the same depth of B and with its best match."""
    rows = [
        (
            f"layer of {pair.model_a}",
            "same depth",
            "CKA",
            "95% interval",
            f"best match in {pair.model_b}",
            "CKA",
            "95% interval",
        )
    ]
    matches = zip(pair.rows, pair.same_depth(), pair.best_match(), strict=True)
    for row, (name, same, best) in enumerate(matches):
        rows.append((name, *_cell(pair, row, int(same)), *_cell(pair, row, int(best))))
    lines = [f"linear CKA, {pair.model_a} and {pair.model_b}", _aligned(rows)]
    lines += [f"undefined: {key}, because {reason}" for key, reason in pair.undefined.items()]
    lines += [f"note: {pair.interval_note}"] if pair.interval_note else []
    return "\n".join(lines)


def _cell(pair: CKAPair, row: int, column: int) -> tuple[str, str, str]:
    """Name, value and interval of one pair of layers."""
    if column < 0:
        return "-", "-", "-"
    value, low, high = (part[row, column] for part in (pair.values, pair.low, pair.high))
    interval = "-" if np.isnan(low) else f"{low:.3f} to {high:.3f}"
    return pair.columns[column], "-" if np.isnan(value) else f"{value:.3f}", interval


def probe_table(results: Sequence[ProbeResult]) -> str:
    """Lay out accuracies, a row a layer and a column a checkpoint."""
    # The deepest network first, so that the layers of the others fall into its order.
    by_depth = sorted(results, key=lambda result: -len(result.layers))
    layers = list(dict.fromkeys(layer for result in by_depth for layer in result.layers))
    rows = [("layer", *(result.model for result in results))]
    for layer in layers:
        rows.append((layer, *(_accuracy(result, layer) for result in results)))
    classifiers = [
        _fraction(result.classifier_accuracy, result.classifier_low, result.classifier_high)
        for result in results
    ]
    rows += [("classifier", *classifiers), ("chance", *(f"{r.chance:.3f}" for r in results))]
    count = results[0].train_samples
    title = f"linear probes, accuracy with 95% interval, from {count:,} training images"
    lines = [title, _aligned(rows)]
    for result in results:
        for key, reason in result.undefined.items():
            lines.append(f"undefined: {result.model}/{key}, because {reason}")
    return "\n".join(lines)


def _accuracy(result: ProbeResult, layer: str) -> str:
    """Accuracy of one layer; empty where the model has no such layer."""
    if layer not in result.layers:
        return ""
    index = result.layers.index(layer)
    return _fraction(result.accuracy[index], result.low[index], result.high[index])


def _fraction(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None or np.isnan(value):
        return "-"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Put texts into columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
