"""Compares what the command `nnunet-deconver` does in two installations: exit codes, output and files.

    python tools/compare_commands.py OLD/bin NEW/bin --wanted tools/compare_commands_wanted.txt

For changes that must not change what people see. OLD/bin and NEW/bin are folders with `nnunet-deconver` in them, those
of two virtual environments with a revision each (git worktree add, pip install -e). Both have to run the same nnU-Net
and PyTorch. This script runs with the Python of one of them, in which pytest is installed, too.

Each line of tools/compare_commands_cases.txt is run in bash by both, one after the other, in a fresh copy of the same
data at the same path; paths, times and progress bars are cut out of what is compared. Of files that were written,
text is compared as it is, pictures pixel by pixel, checkpoints tensor by tensor, wheels by their members' names.

A file of wanted differences has lines `# reason` and below each regular expressions, which are searched in
`GROUP: PART: LINE`, with a changed line of the diff, such as `plan: stderr: -nnunet-deconver: error: ...`. Exits with 1
if there are differences that are not wanted; their files stay in the folder --work.
"""

import argparse
import difflib
import gzip
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tools"
END_TO_END = ROOT / "tests" / "end_to_end"
DATASETS = ("raw", "preprocessed", "results")
TIMEOUT_S = 1800
LONGEST = 60  # lines of a diff that are printed
TEXT = {".csv", ".def", ".html", ".json", ".jsonl", ".md", ".py", ".sh", ".svg", ".toml", ".txt", ".yml", "", ".log"}

# What differs from run to run, and what to compare in its place.
NOISE = (
    (re.compile(r"[^\n]*\r(?=[^\n])"), ""),  # progress bars: what the terminal shows last
    (re.compile(r"\x1b\[[0-9;]*[A-Za-z]"), ""),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(\+\d\d:?\d\d)?"), "<time>"),
    (re.compile(r"20\d\d(_\d\d){5}"), "<time>"),  # in names of nnU-Net's logs
    (re.compile(r"\b1\d{18}\b"), "<time>"),  # of files, in nanoseconds
    (re.compile(r"\d+:\d\d<[^\]]*\]"), "<progress>"),
    (re.compile(r"/tmp/[\w.-]+"), "<temporary>"),
    (re.compile(r":\d+: (\w*Warning)"), r":<line>: \1"),
    (re.compile(r"0x[0-9a-f]{8,}"), "<address>"),
    (re.compile(r"\b(image|[mpc])[0-9a-f]{10}\b"), "<id>"),  # matplotlib's, in SVG
    (re.compile(r"(\.mlp\.[02]\.\w+: .*) [0-9a-f]{16}\b"), r"\1 <random>"),  # what a NeRD head starts from
)


@dataclass(frozen=True)
class Case:
    """A line of the table of cases.

    Attributes:
        group: the command it is about.
        script: a line of bash.
        preamble: lines of bash that go before it.
    """

    group: str
    script: str
    preamble: str = ""


@dataclass(frozen=True)
class Installation:
    """One of the two.

    Attributes:
        name: "old" or "new".
        folder: the one with the commands.
        shim: what `nnunet-deconver trainer-path` prints there.
    """

    name: str
    folder: Path
    shim: Path

    def environment(self, data: Path) -> dict[str, str]:
        """Variables for a run on a copy of the data."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("nnUNet", "NNUNET"))},
            **{f"nnUNet_{name}": str(data / name) for name in DATASETS},
            "nnUNet_extTrainer": os.pathsep.join((str(self.shim), str(data / "trainers"))),
            "nnUNet_def_n_proc": "1",
            "nnUNet_n_proc_DA": "1",
            "PATH": os.pathsep.join((str(self.folder), os.environ["PATH"])),
            "COLUMNS": "100",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    def plain(self, text: str, data: Path) -> str:
        """Text without what differs from run to run, and from one installation to the other."""
        for path, word in (
            (data.resolve(), "<data>"),
            (self.shim.parents[1], "<source>"),
            (self.folder.resolve().parent, "<environment>"),
        ):
            text = re.sub(re.escape(str(path)) + r"(?![\w.-])", word, text)
        for pattern, word in NOISE:
            text = pattern.sub(word, text)
        return text


@dataclass
class Difference:
    """A case whose outcomes differ: unified diffs of its parts, and the reasons of those that are wanted."""

    case: Case
    diffs: dict[str, list[str]] = field(default_factory=dict)
    unwanted: int = 0
    reasons: Counter = field(default_factory=Counter)

    def text(self, longest: int | None = None) -> str:
        """The case and its diffs, of each `longest` lines at most."""
        lines = [f"$ {self.case.script}"]
        for part, diff in self.diffs.items():
            left_out = len(diff[longest:]) if longest else 0
            lines += [f"--- {part}", *diff[:longest], *([f"... and {left_out} lines"] if left_out else [])]
        return "\n".join([*lines, ""])


def read_cases(path: Path) -> list[Case]:
    """The table of cases: a preamble, lines [GROUP], and below them a script each; # begins a comment."""
    cases, preamble, group = [], [], None
    for line in filter(None, map(str.strip, path.read_text().splitlines())):
        if line.startswith("["):
            group = line.strip("[]")
        elif not line.startswith("#"):
            if group is None:
                preamble.append(line)
            else:
                cases.append(Case(group, line, "\n".join(preamble)))
    return cases


def read_wanted(path: Path) -> dict[re.Pattern, str]:
    """Reasons by pattern."""
    wanted, reason = {}, ""
    for line in filter(None, map(str.strip, path.read_text().splitlines())):
        if line.startswith("#"):
            reason = line.lstrip("# ")
        else:
            wanted[re.compile(line)] = reason
    return wanted


def find_installation(name: str, folder: Path) -> Installation:
    """Asks an installation where it is."""
    folder = folder.absolute()
    shim = subprocess.run([folder / "nnunet-deconver", "trainer-path"], capture_output=True, text=True, check=True)
    return Installation(name, folder, Path(shim.stdout.strip()))


def run(installation: Installation, case: Case, template: Path, data: Path, kept: Path) -> dict[str, list[str]]:
    """Runs a case on a fresh copy of the data.

    Args:
        installation: whose command.
        case: the case.
        template: the data.
        data: where its copy is put, and removed again.
        kept: folder to be made, of the files that the case wrote.

    Returns:
        Lines by part: "exit code", "stdout", "stderr", "files" and each file.
    """
    shutil.copytree(template, data, symlinks=True)
    before = stamps(data)
    process = subprocess.Popen(
        ["bash", "-c", f"{case.preamble}\n{case.script}"],
        cwd=data,
        env=installation.environment(data),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
        code = str(process.returncode)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        code = f"none after {TIMEOUT_S} s"
    after = stamps(data)
    written = [path for path in after if after[path] != before.get(path)]
    parts = {
        "exit code": [code],
        "stdout": installation.plain(stdout.decode(), data).splitlines(),
        "stderr": installation.plain(stderr.decode(), data).splitlines(),
        "files": [
            *(f"{'changed' if path in before else 'wrote'} {path}" for path in written),
            *(f"removed {path}" for path in before if path not in after),
        ],
    }
    for path in written:
        if (data / path).is_file():
            try:
                lines = describe(data / path)
            except Exception:  # cases break files on purpose
                lines = [digest((data / path).read_bytes())]
            parts[f"file {path}"] = installation.plain("\n".join(lines), data).splitlines()
            (kept / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(data / path, kept / path)
    shutil.rmtree(data)
    return parts


def stamps(folder: Path) -> dict[str, tuple | None]:
    """What tells whether a file was written, by path, and None for folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" in path.parts:
            continue
        status = path.lstat()
        found[str(path.relative_to(folder))] = None if path.is_dir() else (status.st_mtime_ns, status.st_size)
    return found


def describe(path: Path) -> list[str]:
    """What is compared of a file."""
    suffixes = "".join(path.suffixes[-2:])
    if path.suffix in TEXT:
        return path.read_text(errors="replace").splitlines()
    if path.suffix == ".png":
        from skimage.io import imread

        picture = imread(path)
        return [f"{picture.shape} pixels {digest(picture.tobytes())}"]
    if path.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(path) as archive:
            return sorted(archive.namelist())
    if suffixes.endswith((".tar.gz", ".tar")):
        with tarfile.open(path) as archive:
            files = {member: archive.extractfile(member) for member in archive}
            return sorted(f"{m.name} {m.mode:o} {digest(file.read()) if file else ''}" for m, file in files.items())
    if path.suffix == ".pth":
        import torch

        return [*items(torch.load(path, map_location="cpu", weights_only=False))]
    content = path.read_bytes()
    return [digest(gzip.decompress(content) if path.suffix == ".gz" else content)]


def items(value: Any, name: str = "") -> Iterator[str]:
    """A line for each leaf of nested dicts and lists, of tensors a digest."""
    if hasattr(value, "items"):
        for key, each in value.items():
            yield from items(each, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        yield f"{name}: {type(value).__name__} of {len(value)}"
        for number, each in enumerate(value):
            yield from items(each, f"{name}.{number}")
    elif hasattr(value, "numpy"):
        yield f"{name}: {tuple(value.shape)} {value.dtype} {digest(value.numpy().tobytes())}"
    else:
        yield f"{name}: {value!r}"


def digest(content: bytes) -> str:
    """A short hash."""
    return hashlib.sha256(content).hexdigest()[:16]


def compare(case: Case, old: dict, new: dict, wanted: dict[re.Pattern, str]) -> Difference | None:
    """Compares two outcomes of a case; None if they are the same."""
    difference = Difference(case)
    for part in dict.fromkeys((*old, *new)):
        if part not in old or part not in new or old[part] == new[part]:
            continue  # a file that only one has is among "files"
        difference.diffs[part] = list(difflib.unified_diff(old[part], new[part], "old", "new", n=1, lineterm=""))[2:]
        for line in difference.diffs[part]:
            if line[0] in "+-":
                text = f"{case.group}: {part}: {line}"
                patterns = [pattern for pattern in wanted if pattern.search(text)]
                difference.reasons.update(patterns[:1])
                difference.unwanted += not patterns
    return difference if difference.diffs else None


def compare_all(
    old: Installation,
    new: Installation,
    cases: list[Case],
    template: Path,
    work: Path,
    wanted: dict[re.Pattern, str],
    jobs: int,
) -> list[Difference]:
    """Runs all cases with both, says on the way which differ, and returns the differences in the order of the cases."""
    slots = Queue()
    for number in range(jobs):
        slots.put(work / f"run{number}")

    def both(numbered: tuple[int, Case]) -> Difference | None:
        number, case = numbered
        kept, slot = work / f"case{number:03d}", slots.get()
        try:
            before, after = (run(each, case, template, slot, kept / each.name) for each in (old, new))
        finally:
            slots.put(slot)
        difference = compare(case, before, after, wanted)
        if difference is None or not difference.unwanted:
            shutil.rmtree(kept, ignore_errors=True)
        else:
            kept.mkdir(exist_ok=True)
            (kept / "difference.diff").write_text(difference.text())
        crashed = [each.name for each, parts in zip((old, new), (before, after), strict=True) if has_traceback(parts)]
        word = "same" if difference is None else "DIFFERS" if difference.unwanted else "differs as wanted"
        code = f"exit code {after['exit code'][0]}"
        notes = [code] + ([f"TRACEBACK in {' and '.join(crashed)}"] if crashed else [])
        print(f"{number:3d} {word}, {', '.join(notes)}: {case.script}", file=sys.stderr, flush=True)
        return difference

    with ThreadPoolExecutor(jobs) as pool:
        return [difference for difference in pool.map(both, enumerate(cases)) if difference is not None]


def has_traceback(parts: dict[str, list[str]]) -> bool:
    """Whether Python's traceback was printed."""
    return any("Traceback (most recent call last)" in line for line in parts["stdout"] + parts["stderr"])


def make_data(folder: Path) -> None:
    """Makes tiny datasets, plans, models and predictions with nnU-Net's own commands; some minutes on two cores."""
    specification = importlib.util.spec_from_file_location("end_to_end", END_TO_END / "conftest.py")
    assert specification is not None and specification.loader is not None  # the file is there
    tests = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tests)
    import nnunetv2
    import SimpleITK as sitk

    nnunet = tests.NnUNet(folder)
    for number in tests.LABELS:
        tests.write_dataset(nnunet.raw, number)
    nnunet.run("nnUNetv2_extract_fingerprint", "-d", 903, "-np", 1)
    for number, configurations in ((901, ("2d", "3d_fullres")), (902, ("3d_fullres",))):
        nnunet.run("nnUNetv2_plan_and_preprocess", "-d", number, "-c", *configurations, "-npfp", 1, "-np", 1)
        plans = tests.shrink(json.loads(nnunet.plans(number, "nnUNetPlans").read_text()))
        nnunet.plans(number, "tinyPlans").write_text(json.dumps(plans))
    shutil.copytree(END_TO_END / "tiny_trainers", folder / "trainers", ignore=shutil.ignore_patterns("__pycache__"))
    tiny = {"nnUNet_extTrainer": os.pathsep.join((tests.SHIM, str(folder / "trainers")))}
    # Of 250 iterations, which find something; and of few.
    for name, trainer in (("stock", "nnUNetTrainer_1epoch"), ("ours", "nnUNetTrainerDeconverDTCNeRDc_1epoch")):
        _, model = nnunet.train(901, trainer, **tiny)
        out = folder / "predictions" / name
        files = ["-i", nnunet.raw / "Dataset901_Tiny" / "imagesTr", "-o", out, "-m", model]
        nnunet.run("nnUNetv2_predict_from_modelfolder", *files, "-f", 0, "-device", "cpu", **tiny)
    nnunet.train(902, "nnUNetTrainerTiny", **tiny)
    nnunet.train(901, "nnUNetTrainerTiny", configuration="2d", **tiny)
    # Predictions that do not fit: another spacing, another shape.
    image = sitk.ReadImage(str(folder / "predictions" / "stock" / "case_0.nii.gz"))
    cropped, spaced = image[:18], sitk.Image(image)
    spaced.SetSpacing((1.0, 1.0, 1.0))
    for name, changed in (("cropped", cropped), ("spaced", spaced)):
        shutil.copytree(folder / "predictions" / "stock", folder / "predictions" / name)
        sitk.WriteImage(changed, str(folder / "predictions" / name / "case_0.nii.gz"))
    # Where a case may register.
    shutil.copytree(nnunetv2.__path__[0], folder / "site" / "nnunetv2")


def report(differences: list[Difference], wanted: dict[re.Pattern, str], all_of_them: bool) -> str:
    """The differences as unified diffs, grouped by command."""
    out = io.StringIO()
    group = None
    for difference in differences:
        if not difference.unwanted and not all_of_them:
            continue
        if difference.case.group != group:
            group = difference.case.group
            print(f"\n{'=' * 20} {group}", file=out)
        print(f"\n{difference.text(LONGEST)}", file=out)
    used = Counter()
    for difference in differences:
        used.update(difference.reasons)
    print(file=out)
    for pattern, reason in wanted.items():
        print(f"{used[pattern]:4d} lines wanted: {reason} ({pattern.pattern})", file=out)
    return out.getvalue()


def main() -> int:
    """Compares, prints, and returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old", type=Path, metavar="OLD/bin", help="folder of commands, to compare with")
    parser.add_argument("new", type=Path, metavar="NEW/bin", help="folder of commands, to be compared")
    parser.add_argument("--cases", type=Path, default=TOOLS / "compare_commands_cases.txt", metavar="FILE")
    parser.add_argument("--wanted", type=Path, metavar="FILE", help="differences that are wanted; default: none")
    parser.add_argument(
        "--work", type=Path, default=Path("compare_commands"), metavar="FOLDER", help="default: ./%(default)s"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="made if it is missing; default: WORK/data")
    parser.add_argument("--only", metavar="TEXT", help="cases with this in their group or script alone")
    parser.add_argument("--all", action="store_true", help="print wanted differences, too")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="cases at a time; default: 2")
    args = parser.parse_args()
    work = args.work.resolve()
    for path in [*work.glob("run*"), *work.glob("case*")]:
        shutil.rmtree(path)
    data = args.data.resolve() if args.data else work / "data"
    if not data.is_dir():
        making = work / "making"
        shutil.rmtree(making, ignore_errors=True)
        make_data(making)
        making.rename(data)
    cases = [case for case in read_cases(args.cases) if not args.only or args.only in f"{case.group} {case.script}"]
    wanted = read_wanted(args.wanted) if args.wanted else {}
    old, new = find_installation("old", args.old), find_installation("new", args.new)
    differences = compare_all(old, new, cases, data, work, wanted, args.jobs)
    unwanted = sum(difference.unwanted > 0 for difference in differences)
    print(report(differences, wanted, args.all))
    print(f"{len(cases)} cases, {len(differences)} differ, {unwanted} of them not as wanted")
    return 1 if unwanted else 0


if __name__ == "__main__":
    sys.exit(main())
