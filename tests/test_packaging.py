"""What is stated about the package is stated once, and true."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jax_qgemm import compat, version

ROOT = Path(__file__).parents[1]


def test_version_has_one_source():
    assert importlib.metadata.version("jax-qgemm") == version.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project and "version" in project["dynamic"]


def test_changelog_knows_this_version():
    assert f"\n## {version.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("package", ["jax", "jaxlib"])
def test_required_jax_is_the_one_that_compat_checks(package):
    oldest = ".".join(map(str, compat.MINIMUM_JAX))
    assert f"{package}>={oldest}" in importlib.metadata.requires("jax-qgemm")


def test_stated_window_of_jax_is_the_one_that_compat_checks():
    oldest, newest = (".".join(map(str, v)) for v in (compat.MINIMUM_JAX, compat.NEWEST_JAX))
    assert f"jax {oldest} to {newest}" in (ROOT / "README.md").read_text()


def test_every_cpp_source_is_built():
    """CMake lists sources one by one: a file that is missing there would silently not exist."""
    folder = ROOT / "xla_ffi"
    listed = re.findall(r"^\s+([\w/]+\.cc)\b", (folder / "CMakeLists.txt").read_text(), re.M)
    present = [path.relative_to(folder).as_posix() for path in folder.rglob("*.cc")]
    assert sorted(listed) == sorted(present)


def test_info_prints_what_a_bug_report_needs():
    command = [sys.executable, "-m", "jax_qgemm.info"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in text.splitlines())
    assert lines["jax-qgemm"] == version.__version__
    assert lines.keys() >= {"jax", "jaxlib", "python", "cpu", "threads"}
    assert lines.keys() >= {"isa available", "isa selected", "ffi targets"}


def test_import_adds_little_to_that_of_jax():
    """A bound against accidents (a heavy import at module level), generous for busy machines."""
    code = "import jax; from time import time as t; a = t(); import jax_qgemm; print(t() - a)"
    command = [sys.executable, "-c", code]
    best = min(
        float(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
        for _ in range(3)
    )
    assert best < 1.0
