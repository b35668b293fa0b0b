"""Print a pin for every package that our extras need, transitively, as installed here.

Run as `make constraints`, which writes constraints.txt: names and versions only, so that any index
and any build of a version (torch's CPU and CUDA ones) will do.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def requirements() -> list[Requirement]:
    """Everything that pyproject.toml asks for, all extras and the build system included."""
    document = tomllib.loads(PYPROJECT.read_text())
    project = document["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(line for extra in extras for line in extra)]
    return [Requirement(line) for line in wanted]


def pins() -> dict[str, str]:
    """Name → version of the transitive closure, without local version parts such as `+cpu`."""
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = requirements()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        found[name] = package.version.partition("+")[0]
        for line in package.requires or ():
            child = Requirement(line)
            extras = requirement.extras or {""}
            if child.marker is None or any(child.marker.evaluate({"extra": x}) for x in extras):
                queue.append(child)
    return dict(sorted(found.items()))


def main() -> None:
    """Print the file."""
    print("# Made by `make constraints` from a venv that passed the tests; do not edit by hand.")
    for name, version in pins().items():
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
