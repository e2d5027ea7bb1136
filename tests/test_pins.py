"""What the make targets install: every dependency has a pin in its promised range, every pin has hashes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

tomllib = pytest.importorskip("tomllib")  # Python 3.10 has none

ROOT = Path(__file__).resolve().parent.parent
FILES = ("demo", "dev", "docs")
INSTALLED_APART = {"torch", "align-transformers"}  # the Makefile's TORCH, and this package


def pins(name: str) -> list[tuple[Requirement, int]]:
    """Return the pins of a list and how many hashes each has."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", " ")
    lines = [line.split(" --hash=") for line in text.splitlines() if line and not line.startswith("#")]
    return [(Requirement(line[0].strip()), len(line) - 1) for line in lines]


def promised(*extras: str) -> list[Requirement]:
    """Return what pyproject.toml asks for: the package, the build and the named extras (if none is, all but `docs`)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    optional = project["project"]["optional-dependencies"]
    named = [line for extra in extras or optional.keys() - {"docs"} for line in optional[extra]]
    everything = project["build-system"]["requires"] + project["project"]["dependencies"] + named
    return [Requirement(line) for line in everything]


@pytest.mark.parametrize("name", FILES)
def test_every_pin_is_exact_and_has_hashes(name: str) -> None:
    for pin, hashes in pins(name):
        assert [one.operator for one in pin.specifier] == ["=="], pin
        assert hashes >= 1, pin


@pytest.mark.parametrize("name", FILES)
def test_a_list_names_no_index(name: str) -> None:
    assert not re.search(r"://|--index|--extra-index|--find-links", (ROOT / "requirements" / f"{name}.txt").read_text())


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
@pytest.mark.parametrize(
    ("name", "extras"),
    [("demo", ("tables", "report", "cli", "smollm2")), ("dev", ()), ("docs", ("cli", "docs", "smollm2"))],
)
def test_every_dependency_has_one_pin_in_its_range(name: str, extras: tuple[str, ...], python: str) -> None:
    here = {"python_version": python, "python_full_version": f"{python}.0"}
    found = {}
    for pin, _ in pins(name):
        if pin.marker is None or pin.marker.evaluate(here):
            assert pin.name not in found, f"two pins of {pin.name}"
            found[pin.name] = next(iter(pin.specifier)).version
    for dependency in promised(*extras):
        wanted = dependency.marker is None or dependency.marker.evaluate(here)
        if wanted and dependency.name not in INSTALLED_APART:
            assert dependency.specifier.contains(found[dependency.name]), dependency


def test_the_lists_agree() -> None:
    demo, dev, docs = ({(pin.name, str(pin.specifier)) for pin, _ in pins(name)} for name in FILES)
    assert demo <= dev
    assert demo <= docs
    shared = {name for name, _ in dev}
    assert {pin for pin in docs if pin[0] in shared} <= dev


def test_the_torch_that_is_installed_is_in_the_promised_range() -> None:
    torch = Requirement(re.search(r"^TORCH \?= (.*)$", (ROOT / "Makefile").read_text(), re.M)[1])
    (range_,) = [one.specifier for one in promised() if one.name == "torch"]
    assert range_.contains(next(iter(torch.specifier)).version)


def test_any_shape_is_a_string() -> None:
    """Jaxtyping before 0.3.11, which is promised, refuses `Float[Tensor, ...]`; ruff takes the quotes off `"..."`."""
    wrong = re.compile(r"\b(?!tuple|Callable)\w+\[[\w.]*(Tensor|ndarray), \.\.\.\]")
    for file in (ROOT / "src").rglob("*.py"):
        assert not wrong.search(file.read_text()), f'{file}: write " ..." with the space'
