"""The command line as a user meets it: what works, and what is refused with one sentence and exit code 2."""

import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlopt import cli

ROOT = Path(__file__).parent.parent
QUICK = ("--only", "method=adamw", "--only", "stage=tune", "--set", "steps=4")


@dataclasses.dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def dlopt(*arguments, cwd=None, **env):
    """The command in this process, which has torch already; `shell` starts a new one."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dlopt", *map(str, arguments)])
        patch.setenv("COLUMNS", "200")
        for name, value in env.items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as stop:
                code = stop.code or 0
    return Done(code, out.getvalue(), err.getvalue())


def shell(*arguments, **env):
    return subprocess.run(
        [sys.executable, "-m", "dlopt", *map(str, arguments)], capture_output=True, text=True,
        env=os.environ | {"COLUMNS": "200"} | env, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Five tiny runs of the demonstration."""
    folder = tmp_path_factory.mktemp("results")
    done = dlopt("run", "demo", "--results", folder, *QUICK)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("list", "adamm"), "no topic is called 'adamm' (did you mean adam"),
        (("run", "nothing"), "no experiment is called 'nothing'"),
        (("run", "demo", "--scale", "huge"), "demo has no scale 'huge'; it has smoke"),
        (("run", "demo", "--only", "method=adamm"), "no method is called 'adamm' (did you mean"),
        (("run", "demo", "--only", "colour=red"), "demo has no such setting"),
        (("run", "demo", "--only", "adamw"), "--only takes setting=value, not 'adamw'"),
        (("run", "demo", "--set", "stepz=3"), "no setting 'stepz' (did you mean steps"),
        (("run", "demo", "--set", "steps=many"), "steps takes an int, not 'many'"),
        (("run", "demo", "--set", "steps=0"), "steps must be at least 1, got 0"),
        (("run", "demo", "--set", "task=moon"), "no task is called 'moon'"),
        (("run", "demo", "--set", "params.speed=3"), "has no hyper-parameter 'speed'"),
        (("run", "demo", "--only", "method=adamw", "--set", "params.lr=-1"), "Invalid learning rate: -1"),
        (("run", "demo", "--only", "method=mezo", "--set", "params.eps=0"), "eps"),
        (("run", "demo", "--only", "method=adamw", "--set", "params.betas=[0.9]"), "adamw refuses its settings"),
        (("run", "demo", "--set", "seed=-1"), "seed must be between 0 and 4294967295, got -1"),
        (("run", "demo", "--only", "method=mezo", "--set", "params.seed=0"), "set seed, not params.seed"),
        (("run", "demo", "--set", "batch=5000"), "batch must be at most 1298, the training examples of digits"),
        (("run", "demo", "--only", "stage=tunee"), "no run of demo at scale smoke has stage=tunee"),
        (("run", "demo", "--device", "tpu"), "--device takes cpu or cuda, not 'tpu'"),
        (("run", "demo", "--engine", "cloud"), "no engine is called 'cloud'"),
        (("run", "demo", "--results", "/proc/nowhere"), "cannot write in /proc"),
        (("run", "demo", "--results", "pyproject.toml/x"), "pyproject.toml is not a folder"),
        (("report", "moon"), "no topic with a report is called 'moon'"),
        (("report", "demo", "--scale", "smoke"), "lacks 32 runs"),
        (("bundle", "moon"), "moon"),
        (("show", "ffffffff"), "there is no topic or record called 'ffffffff'"),
        (("reproduce", "ffffffff"), "there is no topic or record called 'ffffffff'"),
        (("data", "get", "moon"), "no data set is called 'moon'"),
        (("data", "get", "cifar10-jpeg"), "cifar10-jpeg"),
        (("plan", "resnet99"), "no model is called 'resnet99' (did you mean resnet"),
        (("plan", "mlp", "--set", "depth=3"), "mlp has no option 'depth'"),
        (("dashboard",), "there are no records"),
    ],
)
def test_bad_input_gets_one_sentence_and_writes_nothing(tmp_path, arguments, sentence):
    (tmp_path / "pyproject.toml").write_text("")
    done = dlopt(*arguments, cwd=tmp_path, DLOPT_CACHE=str(tmp_path / "cache"), DLOPT_DATA="")
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert sentence in lines[0]
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["pyproject.toml"]


def test_missing_data_is_found_before_anything_is_written(tmp_path, monkeypatch):
    from dlopt.tasks import classification

    task = classification.Classification("mnist-test", "mnist", "lenet", target=0.9)
    monkeypatch.setitem(classification.TASKS, "mnist-test", task)
    options = ("run", "demo", "--set", "task=mnist-test", "--results", tmp_path / "r")
    done = dlopt(*options, DLOPT_DATA=str(tmp_path), DLOPT_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 2
    assert "dlopt data get mnist" in done.stderr
    assert not (tmp_path / "r").exists()


def test_the_same_in_a_new_process():
    done = shell("run", "nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("dlopt: no experiment is called 'nothing'")


@pytest.mark.parametrize("arguments", [("--help",), ("list",), ("run", "--help")])
def test_light_commands_import_nothing_heavy(arguments):
    code = (
        "import sys; sys.argv = ['dlopt', *sys.argv[1:]]\nfrom dlopt.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "loaded = {m.split('.')[0] for m in sys.modules}\n"
        "heavy = loaded & {'torch', 'pandas', 'numpy', 'scipy', 'matplotlib', 'sklearn'}\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_dry_run_prints_the_table_and_writes_nothing(tmp_path):
    done = dlopt("run", "demo", "--dry-run", "--results", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert "tune" in done.stdout
    assert "12 runs get their hyper-parameters from an earlier stage" in done.stdout
    assert "estimated" in done.stdout
    assert not (tmp_path / "r").exists()


def test_plain_lines_when_not_a_terminal_and_nothing_again_the_second_time(tmp_path):
    first = dlopt("run", "demo", "--results", tmp_path, *QUICK)
    lines = first.stderr.splitlines()
    assert lines[0].startswith("tune: 5 Sobol trials")
    assert lines[1].startswith("[1/5] adamw lr=")
    assert "about" in lines[1]
    assert "\x1b" not in first.stderr
    assert "tune: 5 done" in first.stdout
    assert "report:" not in first.stdout  # a stage that --only left out is not said to lack records
    again = dlopt("run", "demo", "--results", tmp_path, *QUICK)
    assert again.stderr == ""
    assert again.returncode == 0


def test_show_filters_sorts_and_exports(recorded):
    table = dlopt("show", "demo", "--results", recorded)
    assert table.stdout.count("adamw") == 5
    rows = json.loads(dlopt("show", "demo", "--results", recorded, "--format", "json").stdout)
    assert {row["config.method"] for row in rows} == {"adamw"}
    chosen = ("--columns", "key,params.lr", "--sort", "params.lr", "--format", "csv")
    csv = dlopt("show", "--results", recorded, *chosen).stdout.split()
    rates = [float(line.split(",")[1]) for line in csv[1:]]
    assert len(rates) == 5
    assert rates == sorted(rates)
    none = dlopt("show", "demo", "--results", recorded, "--only", "seed=3", "--format", "json")
    assert json.loads(none.stdout) == []
    wrong = dlopt("show", "demo", "--results", recorded, "--columns", "colour")
    assert (wrong.returncode, "no record has the column 'colour'" in wrong.stderr) == (2, True)
    whole = dlopt("show", rows[0]["key"][:6], "--results", recorded)
    assert f'key: "{rows[0]["key"]}"' in whole.stdout


def test_reproduce_repeats_a_record_and_says_what_differs(recorded, tmp_path):
    path = next(recorded.glob("demo/*.json"))
    done = dlopt("reproduce", path.stem[:8], "--results", recorded)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal in config, status, summary, bytes and curve" in done.stdout
    from dlopt.lab import record

    other = record.load(path)
    other.summary["val_loss"] = 1.0
    other.save(tmp_path / "demo")
    done = dlopt("reproduce", path.stem, "--results", tmp_path)
    assert done.returncode == 1
    assert "summary.val_loss: 1 was recorded" in done.stdout


def test_broken_records_are_named_by_show_and_status_and_left_in_place(recorded, tmp_path):
    good = next(recorded.glob("demo/*.json"))
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / good.name).write_text(good.read_text())
    (tmp_path / "demo" / "0123456789abcdef.json").write_text("{half")
    for command in ("show", "status"):
        done = dlopt(command, "--results", tmp_path)
        assert done.returncode == 0, done.stderr
        assert "0123456789abcdef.json is not a whole JSON file" in done.stdout + done.stderr
    assert (tmp_path / "demo" / "0123456789abcdef.json").read_text() == "{half"


def test_status_tells_what_is_left(recorded):
    done = dlopt("status", "demo", "--results", recorded)
    assert done.returncode == 0
    assert "estimated" in done.stdout


def test_minutes_stops_at_a_checkpoint_and_the_same_command_goes_on(tmp_path):
    options = ("run", "demo", "--results", tmp_path, *QUICK)
    done = dlopt(*options, "--minutes", "0")
    assert done.returncode == 0, done.stderr
    assert "paused" in done.stderr
    assert "5 left" in done.stdout
    done = dlopt(*options)
    assert "tune: 5 done" in done.stdout


def test_an_interrupt_says_how_to_go_on(tmp_path):
    options = ["run", "demo", "--results", str(tmp_path), "--only", "method=mezo"]
    running = subprocess.Popen(
        [sys.executable, "-m", "dlopt", *options], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"DLOPT_CHECKPOINT_SECONDS": "0"},
        # a shell's background jobs ignore SIGINT, and so would their children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("demo/.work/*/checkpoint.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert told.rstrip().endswith("the same command goes on from the last checkpoint")


def test_the_dashboard_is_one_file(recorded, tmp_path):
    done = dlopt("dashboard", "--results", recorded, "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").read_text().startswith("<!")


def test_plan_predicts_bytes_and_doctor_reports():
    done = dlopt("plan", "resnet18", "--topic", "adam")
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if " adamw " in line)
    assert "85.3 MiB" in row  # 2 x 11,173,962 parameters and 62 step counters, 4 bytes each
    done = dlopt("doctor")
    assert "torch 2." in done.stdout


def test_thousand_records_are_shown(recorded, tmp_path):
    from dlopt.lab import record

    one = record.load(next(recorded.glob("demo/*.json")))
    for seed in range(1000):
        changed = one.overrides | {"seed": 10_000 + seed}
        key = record.make_key(one.experiment, one.version, changed, one.identity, one.device)
        config = one.config | {"seed": 10_000 + seed}
        dataclasses.replace(one, key=key, overrides=changed, config=config).save(tmp_path / "demo")
    done = dlopt("show", "demo", "--results", tmp_path)
    assert done.returncode == 0
    assert "1000 records" in done.stdout


def test_a_checkpoint_interval_that_is_no_number_is_refused(tmp_path):
    done = dlopt("run", "demo", "--results", tmp_path / "r", *QUICK, DLOPT_CHECKPOINT_SECONDS="often")
    assert done.returncode == 2
    assert done.stderr == "dlopt: DLOPT_CHECKPOINT_SECONDS takes a number of seconds, not 'often'\n"
    assert not (tmp_path / "r").exists()


def test_folders_that_cannot_be_reached_are_refused(tmp_path):
    from dlopt.lab.tables import Unwritable, writable

    (tmp_path / "link").symlink_to(tmp_path / "unmounted")
    done = dlopt("run", "demo", "--results", tmp_path / "link", *QUICK)
    assert (done.returncode, "link is not a folder" in done.stderr) == (2, True), done.stderr
    (tmp_path / "closed" / "results").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    me = os.geteuid()
    if me == 0:  # root may go anywhere
        os.seteuid(65534)
    try:
        with pytest.raises(Unwritable, match=r"cannot write in .*: Permission denied"):
            writable(Path(tmp_path / "closed" / "results" / "demo"))
    finally:
        os.seteuid(me)
        (tmp_path / "closed").chmod(0o700)


def test_only_given_twice_takes_both():
    from dlopt import commands

    assert commands.pairs(["seed=1", "seed=2,3", "method=sgd"], "--only", many=True) == {
        "seed": [1, 2, 3],
        "method": ["sgd"],
    }


def test_show_sorts_a_column_of_mixed_values(tmp_path):
    from dlopt.lab.record import Record, make_key

    for rate in ("auto", None, 0.5, [1], 0.25):
        overrides = {"params": {"lr": rate}}
        key = make_key("toy", 1, overrides, {}, "cpu")
        Record(key, "toy", 1, {"method": "sgd"} | overrides, overrides, {}, "cpu", "done").save(tmp_path / "toy")
    options = ("--sort", "params.lr", "--columns", "params.lr", "--format", "csv")
    done = dlopt("show", "--results", tmp_path, *options)
    assert done.stdout.split() == ["params.lr", "0.25", "0.5", "[1]", "auto", '""'], done.stderr


def test_a_small_difference_is_shown_with_all_its_digits(capsys):
    from dlopt.lab.compare import compare
    from dlopt.lab.record import Record

    curve = {"step": [0, 1, 2], "loss": [2.0, 0.125, 0.5]}
    old = Record("k", "toy", 1, {}, {}, {}, "cpu", "done", summary={"loss": 0.5}, curve=curve)
    new = dataclasses.replace(old, summary={"loss": 0.5000000001}, curve=curve | {"loss": [2.0, 0.25, 0.5]})
    assert not compare(old, new)
    told = capsys.readouterr().out
    assert "summary.loss: 0.5 was recorded, 0.5000000001 now" in told
    assert "curve.loss[1]: 0.125 was recorded, 0.25 now" in told


def test_a_record_of_a_gpu_is_not_repeated_without_one(recorded, tmp_path):
    from dlopt.lab import record

    old = record.load(next(recorded.glob("demo/*.json")))
    key = record.make_key(old.experiment, old.version, old.overrides, old.identity, "cuda")
    dataclasses.replace(old, key=key, device="cuda").save(tmp_path / "demo")
    done = dlopt("reproduce", key, "--results", tmp_path)
    assert (done.returncode, "torch sees no CUDA device" in done.stderr) == (2, True), done.stderr


def test_plan_names_a_method_without_a_formula(monkeypatch):
    from dlopt import catalog

    class Formless:
        pass

    usual = catalog.Method.load
    monkeypatch.setattr(catalog.Method, "load", lambda self: Formless if self.name == "sgd" else usual(self))
    done = dlopt("plan", "mlp", "--topic", "adam")
    assert done.returncode == 0, done.stderr
    assert " adamw " in done.stdout
    assert "left out: sgd (from dlopt) has no memory formula" in done.stderr


def test_intervals_are_printed_for_people(capsys):
    import pandas as pd

    from dlopt.lab import tables
    from dlopt.lab.stats import mean_interval

    tables.frame(pd.DataFrame({"method": ["sgd"], "accuracy": [mean_interval([0.9, 0.92, 0.94])]}))
    assert "0.92 ± 0.05" in capsys.readouterr().out
