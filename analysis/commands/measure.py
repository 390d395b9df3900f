"""The commands that open checkpoints and measure: cka, similarity, probe, geometry, study."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.commands.options import (
    add_cka_options,
    add_feature_options,
    add_geometry_options,
    add_image_options,
    add_name_option,
    add_probe_options,
    add_reference_options,
    add_similarity_options,
    file_choices,
    names,
    request_options,
)
from analysis.commands.shared import (
    DONE,
    INTERRUPTED,
    PROGRAM,
    STUDY_SUFFIX,
    check_out,
    progress_bar,
)
from analysis.errors import InputError
from analysis.request import MEASURES
from analysis.similarity import MEASURES as SIMILARITY_MEASURES
from analysis.study import Study, pair_record, save_study, study_record
from analysis.tables import cka_table, geometry_table, heading, probe_table, similarity_table
from analysis.tables import study_tables as all_tables

if TYPE_CHECKING:
    from analysis.features import ImageSample
    from analysis.models import Model


def add_measures(commands: Any) -> None:
    """Add the commands to the parser."""
    cka = commands.add_parser(
        "cka",
        help="similarity of all pairs of layers of two checkpoints",
        description="CKA of all pairs of layers of A and B.",
    )
    cka.set_defaults(command=run_cka)
    cka.add_argument("checkpoints", type=Path, nargs=2, metavar="CHECKPOINT", help="A and B")
    similarity = commands.add_parser(
        "similarity",
        help="the same by other measures: " + ", ".join(SIMILARITY_MEASURES),
        description="All pairs of layers of A and B by other measures than CKA.",
    )
    similarity.set_defaults(command=run_similarity)
    similarity.add_argument("checkpoints", type=Path, nargs=2, metavar="CHECKPOINT", help="A and B")
    similarity.add_argument(
        "--measures",
        type=names,
        default=("procrustes",),
        metavar="NAME,...",
        help=f"of {', '.join(SIMILARITY_MEASURES)} (default: procrustes)",
    )
    probe = commands.add_parser(
        "probe",
        help="what a linear classifier reads off every layer",
        description="Accuracy of a linear probe on every layer of each checkpoint.",
    )
    probe.set_defaults(command=run_probe)
    geometry = commands.add_parser(
        "geometry",
        help="dimension, collapse, sparsity of every layer",
        description="Geometry of every layer of each checkpoint.",
    )
    geometry.set_defaults(command=run_geometry)
    study = commands.add_parser(
        "study",
        help="several measures, kept in a file that the app opens",
        description="Any measures of any number of checkpoints, kept in a file. Ctrl-C keeps what "
        "there is of CKA.",
    )
    study.set_defaults(command=run_and_save)
    for command in (probe, geometry, study):
        command.add_argument(
            "checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="A, B, ..."
        )
    add_study_options(study, measures=("cka", "probe"))
    _add_options(cka, similarity, probe, geometry)


def add_study_options(study: argparse.ArgumentParser, measures: tuple[str, ...]) -> None:
    """Options of a command that keeps a study: all there are."""
    study.add_argument("--out", type=Path, required=True, help=f"file to write, *{STUDY_SUFFIX}")
    study.add_argument("--title", help="of the study (default: made of the checkpoints' names)")
    study.add_argument(
        "--measures",
        type=names,
        default=measures,
        metavar="NAME,...",
        help=f"of {', '.join(MEASURES)} (default: {','.join(measures)})",
    )
    for add in (
        add_image_options,
        add_name_option,
        add_cka_options,
        add_reference_options,
        add_feature_options,
        add_similarity_options,
        add_probe_options,
        add_geometry_options,
    ):
        add(study)


def _add_options(
    cka: argparse.ArgumentParser,
    similarity: argparse.ArgumentParser,
    probe: argparse.ArgumentParser,
    geometry: argparse.ArgumentParser,
) -> None:
    for add, parsers in (
        (add_image_options, (cka, similarity, probe, geometry)),
        (add_name_option, (cka, similarity, probe, geometry)),
        (add_cka_options, (cka,)),
        (add_feature_options, (similarity, probe, geometry)),
        (add_similarity_options, (similarity,)),
        (add_probe_options, (probe,)),
        (add_geometry_options, (geometry,)),
    ):
        for parser in parsers:
            add(parser)


def run_cka(options: argparse.Namespace) -> None:
    """Compare two checkpoints and print A against B."""
    study = _run(options, ["cka"])
    if study is None:
        return
    assert study.cka is not None
    pair = study.cka.pair(*study.cka.models)
    if options.json:
        print(json.dumps(pair_record(study, pair), allow_nan=False))
    else:
        print(f"{heading(study)}\n\n{cka_table(pair)}")


def run_similarity(options: argparse.Namespace) -> None:
    """Compare two checkpoints by other measures and print A against B."""
    unknown = [name for name in options.measures if name not in SIMILARITY_MEASURES]
    if unknown or not options.measures:
        raise InputError(
            f"There is no measure {', '.join(unknown) or '(none was named)'}; choose of "
            f"{', '.join(SIMILARITY_MEASURES)}."
        )
    study = _run(options, options.measures)
    if study is not None:
        _print_part(
            study, "similarity", [similarity_table(pair) for pair in study.similarity], options
        )


def run_probe(options: argparse.Namespace) -> None:
    """Probe checkpoints and print the accuracies."""
    study = _run(options, ["probe"])
    if study is not None:
        _print_part(study, "probes", [probe_table(study.probes)], options)


def run_geometry(options: argparse.Namespace) -> None:
    """Measure the geometry of checkpoints and print it."""
    study = _run(options, ["geometry"])
    if study is not None:
        tables = [geometry_table(result) for result in study.geometry]
        _print_part(study, "geometry", tables, options)


def _print_part(
    study: Study, name: str, tables: Sequence[str], options: argparse.Namespace
) -> None:
    """Print one kind of answers as their document or their tables."""
    if options.json:
        record = study_record(study)
        document = {name: record["answers"][name]}
        document |= {part: record[part] for part in ("question", "provenance")}
        print(json.dumps(document, allow_nan=False))
    else:
        print("\n\n".join([heading(study), *tables]))


def run_and_save(options: argparse.Namespace) -> int:
    """Run every measure asked for, keep the study in a file, and print it; the exit status."""
    study = run_and_keep(options)
    if study is None:
        return DONE
    _print_study(study, options)
    if not options.json:
        print(f"\nstudy  {options.out}")
    if study.provenance.stopped is None:
        return DONE
    print(
        f"{PROGRAM}: {study.provenance.stopped}; {options.out} holds the CKA of these, and nothing "
        "of other measures.",
        file=sys.stderr,
    )
    return INTERRUPTED


def run_and_keep(options: argparse.Namespace) -> Study | None:
    """Run every measure asked for, and keep the study in --out; None on ranks but the first."""
    check_out(options.out)
    with _stop_requests() as stop_requests:
        study = _run(
            options,
            options.measures,
            title=options.title,
            out=str(options.out),
            cancelled=lambda: bool(stop_requests),
            keep_partial=True,
        )
    if study is not None:
        keep_study(study, options)
    return study


def keep_study(study: Study, options: argparse.Namespace) -> None:
    """Write a study to --out; print it where that fails."""
    try:
        save_study(study, options.out)
    except OSError as error:
        _print_study(study, options)  # the disk may be full, but the work is done
        raise OSError(error.errno, error.strerror, str(options.out)) from error


def _print_study(study: Study, options: argparse.Namespace) -> None:
    """Print a study as its document or its tables."""
    if options.json:
        print(json.dumps(study_record(study), allow_nan=False))
    else:
        print(all_tables(study))


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Let the first Ctrl-C ask for a stop; the second one interrupts."""
    requests: list[int] = []

    def ask(number: int, frame: object) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)
        print("Stopping after this batch; Ctrl-C again stops at once.", file=sys.stderr)

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread
        yield requests
        return
    try:
        yield requests
    finally:
        signal.signal(signal.SIGINT, before)


def open_settled(path: Path, options: argparse.Namespace, *, auxiliaries: bool = False) -> Model:
    """Open a checkpoint, and find out what neither the file nor the user says about its images.

    Its preprocessing and the order of its classes are tried on images that it is not compared on,
    where the data set has others; what they tell is printed.
    """
    from analysis.models import open_model
    from analysis.preprocessing import choices_of, evidence_sentence, try_preprocessing

    choices = file_choices(options)
    given = {"auxiliaries": auxiliaries, "max_bytes": options.max_bytes}
    model = open_model(path, options.device, choices=choices, **given)
    if not model.assumed or options.dataset is None:
        return model
    try:
        evidence = try_preprocessing(model, _other_images(options))
    except InputError as error:
        print(f"{model.name}: its preprocessing is assumed. {error}", file=sys.stderr)
        return model
    print(f"{model.name}: {evidence_sentence(evidence)}", file=sys.stderr)
    return open_model(path, options.device, choices=choices_of(evidence, choices), **given)


def _other_images(options: argparse.Namespace) -> ImageSample:
    """Images of the split that is not measured on, where there is one."""
    from analysis.features import sample_images
    from analysis.preprocessing import DEFAULT_SAMPLES

    given: dict[str, Any] = {
        "folder": options.data_folder,
        "image_size": options.image_size,
        "default_samples": DEFAULT_SAMPLES,
        "download": options.download,
    }
    try:
        other = "train" if options.split != "train" else "test"
        return sample_images(options.dataset, other, **given)
    except InputError:
        return sample_images(options.dataset, options.split, **given)


def _named(
    models: Sequence[Model], references: dict[str, Any], names: Sequence[str]
) -> list[Model]:
    """Models by the names that were given, the ceiling after the others."""
    most = len(models) + ("ceiling" in references)
    if names and len(names) not in (len(models), most):
        raise InputError(
            f"--name was given {len(names)} times for {most} checkpoints; give one for each."
        )
    if len(names) > len(models):
        references["ceiling"] = replace(references["ceiling"], name=names[-1])
    named = [replace(model, name=name) for model, name in zip(models, names, strict=False)]
    return named or list(models)


def _run(options: argparse.Namespace, measures: Sequence[str], **given: Any) -> Study | None:
    """Open the checkpoints and run a study of them under a progress bar.

    Returns:
        None in all but the first of the processes that torchrun started.
    """
    from analysis.distributed import leave  # torch: not for --help
    from analysis.models import common_dataset, untrained
    from analysis.run import answers_here, run_study

    models = [
        open_settled(path, options, auxiliaries="probe" in measures) for path in options.checkpoints
    ]
    references: dict[str, Any] = {}
    if getattr(options, "ceiling", None) is not None:
        references["ceiling"] = open_settled(options.ceiling, options)
    if getattr(options, "floor", None) is not None:
        references["floor"] = untrained(models[0], options.floor)
    models = _named(models, references, getattr(options, "names", None) or [])
    try:
        with progress_bar(shown=answers_here()) as show:
            study = run_study(
                models,
                dataset=options.dataset or common_dataset(models),
                measures=tuple(measures),
                progress=show,
                **references,
                **request_options(options),
                **given,
            )
        return study if answers_here() else None
    finally:
        leave()
