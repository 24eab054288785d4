"""Write requirements/*.txt, exact pins with hashes, from pyproject.toml. Run by `make lock`.

Resolved with the oldest Python that dtun supports, so that the pins work with later ones, too. The resolver has a
virtual environment of its own, as the tests do not need it.
"""

import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Written by `make lock` from pyproject.toml: {what}. Do not edit.\n"


def main() -> int:
    if sys.version_info[:2] != (3, 11):
        sys.stderr.write(
            "make lock needs Python 3.11, the oldest one supported: make lock PYTHON=python3.11\n"
        )
        return 1
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    build = project["build-system"]["requires"]
    runtime = project["project"]["dependencies"]
    development = project["dependency-groups"]["dev"]
    compiling = project["dependency-groups"]["compile"]
    site = project["dependency-groups"]["docs"]

    requirements = ROOT / "requirements"
    everything = requirements / "dev.txt"
    with tempfile.TemporaryDirectory() as directory:
        venv.create(directory, with_pip=True)
        python = Path(directory, "bin", "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "pip-tools"], check=True)

        _compile(
            python, [*build, *runtime, *development], everything, "what `make test` and `make lint` need"
        )
        # The smaller sets have the versions of the whole.
        _compile(python, runtime, requirements / "runtime.txt", "what the service needs", same_as=everything)
        for wanted, name, what in (
            (build, "build.txt", "what building the package needs"),
            ([*build, *compiling], "compile.txt", "what compiling python-mbedtls needs"),
        ):
            _compile(python, wanted, requirements / name, what, same_as=everything)
        # In an environment of its own.
        _compile(python, site, requirements / "docs.txt", "what `make docs` needs")
    return 0


def _compile(
    python: Path, wanted: Iterable[str], output: Path, what: str, *, same_as: Path | None = None
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "requirements.in")
        source.write_text("".join(f"{requirement}\n" for requirement in wanted))
        result = Path(directory, "requirements.txt")
        command = [
            *(python, "-m", "piptools", "compile", "--quiet"),
            *("--generate-hashes", "--allow-unsafe", "--strip-extras", "--no-header", "--no-annotate"),
            *("--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host", "--no-emit-options"),
            *(("--constraint", same_as) if same_as else ()),
            *("--output-file", result, source),
        ]
        subprocess.run(command, check=True, cwd=directory)
        pins = [line for line in result.read_text().splitlines() if line and not line.startswith("#")]
        output.write_text(HEADER.format(what=what) + "\n".join(pins) + "\n")


if __name__ == "__main__":
    sys.exit(main())
