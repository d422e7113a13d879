"""`nnunet-deconver study`: many trainings, evaluated and compared."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_deconver.cli.tables import table
from nnunet_deconver.errors import ArgumentError, InputError
from nnunet_deconver.integration.installation import require_nnunetv2

if TYPE_CHECKING:
    from nnunet_deconver.studies.study import Study
    from nnunet_deconver.studies.tasks import Workspace

ENGINES = ("local", "slurm", "print")
# Options that are fields of a study of the same name.
FIELDS = ("datasets", "trainers", "plans", "configurations", "folds", "seeds", "equal", "metrics")
NUMBERS = ("epochs", "iterations", "num_gpus")
WORDS = ("reference", "device", "like")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand `study`."""
    parser = subparsers.add_parser(
        "study",
        help="train, evaluate and compare: trainers x datasets x folds x seeds",
        description="Runs a study: trains each trainer on each dataset, fold and seed, predicts, evaluates, compares. "
        "What is done is recognised on the disk: the same command goes on where an earlier one ended. `study status "
        "STUDY` shows where it stands, `study report STUDY` compares what is done. STUDY is a TOML file (see "
        "docs/studies.md), or the folder of a study that was begun; without it, options say what it is.",
    )
    parser.add_argument("words", nargs="*", metavar="[status|report] STUDY", help="a TOML file, or a study's folder")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="OUT", help="folder of the study; default: the file's name without .toml"
    )
    parser.add_argument("--engine", choices=ENGINES, default="local", help="default: local, on this machine")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="tasks at a time, engine local; default: one per GPU, or 1 on a CPU",
    )
    parser.add_argument("--task", nargs="+", metavar="NAME", help="do only these, one after the other")
    described = parser.add_argument_group("instead of a file")
    for name, what in zip(
        FIELDS,
        ("D", "TRAINER", "PLANS", "CONFIGURATION", "FOLD", "SEED", "iterations,time", "METRIC"),
        strict=True,
    ):
        described.add_argument(f"--{name}", nargs="+", metavar=what)
    for name in NUMBERS:
        described.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N")
    for name in WORDS:
        described.add_argument(f"--{name}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs a study, or shows where it stands, or reports on it."""
    require_nnunetv2()
    action, study, out = _chosen(args)
    from nnunet_deconver.studies.checks import check_study
    from nnunet_deconver.studies.study import keep_study
    from nnunet_deconver.studies.tasks import Workspace

    workspace = Workspace.of(study, out)
    if action == "status":
        return _status(workspace)
    if action == "report":
        return _report(workspace)
    if args.task:
        return _tasks(workspace, args.task)
    # An engine first looks for what it takes, so that nothing is noted of a study that cannot run here.
    start = {"local": _local, "slurm": _slurm, "print": _print}[args.engine](workspace, args)
    check_study(workspace)
    keep_study(study, out)
    return start()


def _chosen(args: argparse.Namespace) -> "tuple[str, Study, Path]":
    from nnunet_deconver.studies.study import make_study, read_study

    words = list(args.words)
    action = words.pop(0) if words and words[0] in ("status", "report") else "run"
    if len(words) > 1:
        raise InputError(f"name one study, got {' '.join(words)}")
    fields = {name: getattr(args, name) for name in (*FIELDS, *NUMBERS, *WORDS) if getattr(args, name) is not None}
    if words:
        if fields:
            raise InputError(f"--{next(iter(fields)).replace('_', '-')} goes without a file; write it into {words[0]}")
        path = Path(words[0])
        out = args.out or (path if path.is_dir() else path.with_suffix(""))
        return action, read_study(path), out
    if not fields:
        raise InputError("name a study: a TOML file, or the folder of one that was begun, or --datasets and --trainers")
    if args.out is None:
        raise InputError("a study of options takes a folder: -o OUT")
    for name in ("folds", "seeds"):
        if name in fields:
            fields[name] = [_number(name, text) for text in fields[name]]
    return action, make_study(fields, "the options"), args.out


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentError(name, text, "must be whole numbers") from None


def _local(workspace: "Workspace", args: argparse.Namespace) -> Callable[[], int]:
    from nnunet_deconver.studies.local import LocalRun, find_slots

    slots = find_slots(workspace.study, args.workers)

    def start() -> int:
        print(f"{len(workspace.tasks)} tasks, {len(slots)} at a time ({'; '.join(slot.name for slot in slots)})")
        with _bar(workspace) as show:
            problems = LocalRun(workspace, slots, show).run()
        return _end(workspace, problems)

    return start


def _slurm(workspace: "Workspace", args: argparse.Namespace) -> Callable[[], int]:
    from nnunet_deconver.studies.slurm import SlurmRun, check_cluster

    check_cluster()

    def start() -> int:
        with _bar(workspace) as show:
            run = SlurmRun(workspace, show)
            run.submit()
            print("submitted; the jobs go on without this command, which can be ended and run again", flush=True)
            problems = run.watch()
        return _end(workspace, problems)

    return start


def _print(workspace: "Workspace", args: argparse.Namespace) -> Callable[[], int]:
    from nnunet_deconver.studies.printed import write_commands

    def start() -> int:
        for path in write_commands(workspace):
            print(f"wrote {path}: {len(path.read_text().splitlines())} commands")
        print("the lines of a file can run at the same time, in any order, once those of the files before are done")
        return 0

    return start


@contextmanager
def _bar(workspace: "Workspace") -> Iterator[Callable[[list[str]], None]]:
    """A progress bar over all tasks, and the function that moves it on, given the names of those that run."""
    from tqdm import tqdm

    with tqdm(total=len(workspace.tasks), unit="task", desc="study") as bar:

        def show(running: list[str]) -> None:
            bar.n = sum(map(workspace.is_done, workspace.tasks.values()))
            bar.set_postfix_str(f"{len(running)} running")

        yield show
        show([])


def _tasks(workspace: "Workspace", names: list[str]) -> int:
    from nnunet_deconver.studies.running import run_task

    unknown = [name for name in names if name not in workspace.tasks]
    if unknown:
        problem = f"is not one of this study; they are: nnunet-deconver study status {workspace.out}"
        raise ArgumentError("task", unknown[0], problem)
    for name in names:
        run_task(workspace, workspace.tasks[name])
    return 0


def _status(workspace: "Workspace") -> int:
    from nnunet_deconver.studies.running import describe_failure
    from nnunet_deconver.studies.status import FAILED, status_rows, study_status

    statuses = study_status(workspace)
    print(table(status_rows(statuses), left=2))
    counts = Counter(status.state for status in statuses)
    print(f"\n{len(statuses)} tasks: {', '.join(f'{number} {state}' for state, number in counts.items())}")
    for status in statuses:
        if status.state == FAILED:
            print(f"\n{describe_failure(workspace, status.task)}")
    return 0


def _report(workspace: "Workspace") -> int:
    from nnunet_deconver.studies.reporting import report_study

    for path in report_study(workspace):
        print(f"wrote {path}")
    return 0


def _end(workspace: "Workspace", problems: dict[str, str]) -> int:
    for problem in problems.values():
        print(f"\n{problem}", file=sys.stderr)
    left = [task.name for task in workspace.tasks.values() if not workspace.is_done(task)]
    if left:
        count = f"{len(left)} of {len(workspace.tasks)} tasks"
        print(f"\n{count} are not done; the same command tries again", file=sys.stderr)
        return 1
    print(f"\nall done; the report: {workspace.out / 'report.html'}")
    return 0
