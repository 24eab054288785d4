"""The part of launchctl(1) that `make install` uses.

The directory FAKE_LAUNCHD has the loaded and the enabled jobs, and all calls in `calls`. A job takes a moment to end.
"""

import os
import plistlib
import sys
from pathlib import Path

STATE = Path(os.environ["FAKE_LAUNCHD"])
LOADED, ENDING, OVERRIDES = STATE / "loaded", STATE / "ending", STATE / "overrides"
NOT_FOUND, IN_PROGRESS, FAILED, BAD_OWNERSHIP, NO_SUCH_PROCESS = 113, 36, 5, 122, 3


def main(command: str, *arguments: str) -> int | str:
    for directory in (LOADED, ENDING, OVERRIDES):
        directory.mkdir(exist_ok=True)
    with (STATE / "calls").open("a") as calls:
        calls.write(" ".join((command, *arguments)) + "\n")
    match command, arguments:
        case "bootstrap", ("system", path):
            return bootstrap(Path(path))
        case (("enable" | "disable"), (target,)):
            (OVERRIDES / label(target)).write_text(command)
            return 0
        case "print", (target,):
            return look(label(target))
        case "bootout", (target,):
            if not (LOADED / label(target)).exists():
                return NO_SUCH_PROCESS
            # The process still runs for a moment.
            (ENDING / label(target)).write_text("2")
            return IN_PROGRESS
    return f"Unrecognized subcommand: {command}"


def label(target: str) -> str:
    domain, _, name = target.partition("/")
    assert domain == "system"
    return name


def bootstrap(path: Path) -> int | str:
    job = plistlib.loads(path.read_bytes())
    status = path.stat()
    if (status.st_uid, status.st_gid, status.st_mode & 0o777) != (0, 0, 0o644):
        return f"Bootstrap failed: {BAD_OWNERSHIP}: Path had bad ownership/permissions"
    override = OVERRIDES / job["Label"]
    enabled = override.read_text() == "enable" if override.exists() else not job.get("Disabled", False)
    if not enabled or (LOADED / job["Label"]).exists():
        return f"Bootstrap failed: {FAILED}: Input/output error"
    (LOADED / job["Label"]).write_bytes(path.read_bytes())
    return 0


def look(name: str) -> int:
    ending = ENDING / name
    if ending.exists():
        left = int(ending.read_text()) - 1
        if left:
            ending.write_text(str(left))
        else:
            ending.unlink()
            (LOADED / name).unlink()
    return 0 if (LOADED / name).exists() else NOT_FOUND


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
