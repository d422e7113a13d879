import subprocess
import sys

import pytest

from nnunet_deconver import __version__, cli
from nnunet_deconver.errors import InputError

SUBCOMMANDS = (
    "register",
    "unregister",
    "status",
    "trainer-path",
    "list",
    "plan",
    "splits",
    "summary",
    "upgrade-checkpoint",
    "evaluate",
    "compare",
    "figures",
    "export-submission",
    "demo",
)


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"nnunet-deconver {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["trian"], ["register", "--forse"]], ids=["none", "subcommand", "option"])
def test_unknown_arguments_exit_with_2_and_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert "usage: nnunet-deconver" in capsys.readouterr().err


def test_help_names_every_subcommand(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")}
    assert set(SUBCOMMANDS) <= listed


def test_every_subcommand_explains_itself(capsys):
    for subcommand in SUBCOMMANDS:
        with pytest.raises(SystemExit) as exit_:
            cli.main([subcommand, "--help"])
        assert exit_.value.code == 0
        assert f"usage: nnunet-deconver {subcommand}" in capsys.readouterr().out


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("run", "code", "message"),
    [
        (lambda args: None, 0, ""),
        (lambda args: 1, 1, ""),
        (lambda args: _raise(InputError("mend it")), 2, "nnunet-deconver: error: mend it\n"),
        (lambda args: _raise(KeyboardInterrupt()), 130, ""),
    ],
    ids=["None", "1", "InputError", "interrupt"],
)
def test_exit_codes(run, code, message, monkeypatch, capsys):
    monkeypatch.setattr(cli.trainer_path, "run", run)
    assert cli.main(["trainer-path"]) == code
    assert capsys.readouterr().err == message


def test_other_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(cli.trainer_path, "run", lambda args: _raise(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["trainer-path"])


@pytest.mark.parametrize("argument", ["--help", "trainer-path"])
def test_no_heavy_import(argument):
    script = (
        "import sys\n"
        "from nnunet_deconver.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "sys.exit(', '.join({'torch', 'numpy', 'nnunetv2', 'SimpleITK', 'scipy'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", script, argument], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert done.stdout


def test_what_is_written_twice_for_a_quick_start_is_the_same():
    """The command repeats what lies in modules that import numpy."""
    from nnunet_deconver.cli import evaluation_options
    from nnunet_deconver.cli import figures as command
    from nnunet_deconver.figures import cases
    from nnunet_deconver.metrics import comparison

    assert tuple(cases.PLANES) == command.PLANES
    assert evaluation_options.EVALUATIONS == comparison.EVALUATIONS
