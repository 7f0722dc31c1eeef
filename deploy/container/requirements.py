"""Print what the package needs, one requirement a line, with the extras of an image: for layers that change seldom."""

import tomllib
from pathlib import Path

EXTRAS = ("dask", "redis")

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
print("\n".join(project["dependencies"]))
for extra in EXTRAS:
    print("\n".join(project["optional-dependencies"][extra]))
