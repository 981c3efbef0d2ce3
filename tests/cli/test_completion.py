"""Shells complete what the command line takes, and the command line says what it is."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

import fxreduce
from fxreduce.cli.completion import SHELLS
from fxreduce.cli.main import main


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_knows_commands_options_and_choices(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("analyze", "reduce", "--report", "--budget", "sensitivity", "latency"):
        assert word in script, word


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash is installed")
def test_bash_completes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    main(["completion", "bash"])
    script = capsys.readouterr().out + (
        "\nCOMP_WORDS=(fxreduce an) COMP_CWORD=1\n_shtab_fxreduce\necho ${COMPREPLY[@]}\n"
    )
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["analyze"]


def test_without_shtab_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'fxreduce[completion]'" in capsys.readouterr().err


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"fxreduce {fxreduce.__version__}\n"
