"""Build the distributions and prove them: same bytes twice, and each works where nothing else is.

The clean environments get torch and networkx from the package index, some gigabytes each; with
`--no-deps` they borrow these from the environment that runs this.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
TRIAL = """
import fxreduce, torch
assert "site-packages" in fxreduce.__file__, fxreduce.__file__
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
reduced = fxreduce.apply(model, [torch.randn(8, 4) for _ in range(6)], budget=1)
report = fxreduce.report(reduced)
assert report.operators_after == 1 and report.summary() in report.to_html()
print(f"fxreduce {fxreduce.__version__} works: {report.summary()}")
"""


def build(folder: Path) -> list[Path]:
    """An sdist, and a wheel from it, both dated by the last commit."""
    seconds = subprocess.check_output(["git", "log", "-1", "--format=%ct"], cwd=ROOT, text=True)
    environment = os.environ | {"SOURCE_DATE_EPOCH": seconds.strip()}
    # From a copy of what is committed, so that nothing else gets in.
    with TemporaryDirectory() as copied:
        subprocess.run(["git", "clone", "-q", str(ROOT), copied], check=True)
        subprocess.run(
            [sys.executable, "-m", "build", "-o", str(folder), copied],
            env=environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )
    for sdist in folder.glob("*.tar.gz"):
        _settle(sdist, int(seconds))
    return sorted(folder.iterdir())


def _settle(sdist: Path, seconds: int) -> None:
    """Write an sdist anew without what setuptools takes from the clock and the user."""
    settled = sdist.with_suffix(".new")
    with (
        tarfile.open(sdist) as old,
        settled.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=seconds) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            member.mtime, member.uid, member.gid = seconds, 0, 0
            member.uname = member.gname = ""
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isreg() else None)
    settled.replace(sdist)


def prove(file: Path, *, borrow: bool) -> None:
    """Install a distribution in a fresh environment and reduce a model there."""
    with TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = Path(folder, "bin", "python")
        options = []
        if borrow:
            options = ["--no-deps"]
            (site,) = Path(folder, "lib").glob("python*/site-packages")
            site.joinpath("borrowed.pth").write_text(sysconfig.get_path("purelib"))
        subprocess.run([python, "-m", "pip", "install", "-q", *options, str(file)], check=True)
        subprocess.run([python, "-I", "-c", TRIAL], cwd=folder, check=True)


def main() -> None:
    """Build twice, compare, install."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-deps", action="store_true", help="borrow torch and networkx")
    borrow = parser.parse_args().no_deps
    shutil.rmtree(DIST, ignore_errors=True)
    files = build(DIST)
    with TemporaryDirectory() as again:
        for first, second in zip(files, build(Path(again)), strict=True):
            digests = {sha256(each.read_bytes()).hexdigest() for each in (first, second)}
            if len(digests) != 1:
                sys.exit(f"{first.name} has other bytes when it is built again")
            print(f"{first.name}  sha256 {digests.pop()}")
    for file in files:
        prove(file, borrow=borrow)


if __name__ == "__main__":
    main()
