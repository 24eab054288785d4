"""Who besides root can change what root's dtun runs on a Mac, and what to do about it."""

import grp
import os
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

PYTHON_ORG = "/Library/Frameworks/Python.framework/Versions/3.12/bin/python3.12"

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def python_files() -> list[Path]:
    """The interpreter, its shared library if it has one, and its standard library."""
    directory, name = (sysconfig.get_config_var(key) for key in ("LIBDIR", "LDLIBRARY"))
    if sysconfig.get_config_var("PYTHONFRAMEWORK"):
        # LDLIBRARY is Python.framework/Versions/3.12/Python there.
        directory = sysconfig.get_config_var("PYTHONFRAMEWORKPREFIX")
    library = Path(str(directory), str(name))
    found = [Path(sys.executable), library, Path(sysconfig.get_path("stdlib"))]
    return [path for path in found if path.exists()]


def warnings(paths: Iterable[Path]) -> list[str]:
    """A warning for each place among these files and directories, and above them, that others than root can change."""
    places: dict[Path, os.stat_result] = {}
    for path in paths:
        for place in map(Path.resolve, _changeable(path)):
            if not any(place.is_relative_to(known) for known in places):
                places[place] = place.stat()
    return [_warning(place, status) for place, status in places.items()]


def _changeable(path: Path) -> Iterator[Path]:
    """The highest directory that others can change, above `path` or a link on the way to it.

    Else `path` itself, or the first file or directory of that kind below it.
    """
    *links, real = _on_the_way(path.absolute())
    above = [place for link in links for place in reversed(link.parents)]
    for place in (*above, *reversed(real.parents), real):
        if _others_can_change(place):
            yield place
            return
    for directory, names, files in os.walk(real):
        # dtun's own environment does not use the packages of that Python.
        names[:] = [name for name in names if name != "site-packages"]
        for name in (*names, *files):
            place = Path(directory, name)
            if not place.is_symlink() and _others_can_change(place):
                yield place
                return


def _on_the_way(path: Path) -> Iterator[Path]:
    """`path`, what it links to if it is a link, and so on, and at last the real file or directory."""
    yield path
    while path.is_symlink():
        path = path.parent / path.readlink()
        yield path
    yield path.resolve()


def _others_can_change(place: Path) -> bool:
    status = place.stat()
    if status.st_uid != 0:
        return True
    # In a sticky directory, like /tmp, they can only change what is their own.
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    return bool(status.st_mode & _OTHERS) and not sticky


def _warning(place: Path, status: os.stat_result) -> str:
    if status.st_uid != 0:
        return (
            f"{place} belongs to {place.owner()}, and so does every program of root's that runs on it, dtun as well; "
            f"take the Python of python.org: make install PYTHON={PYTHON_ORG}"
        )
    who = "everybody" if status.st_mode & stat.S_IWOTH else f"the group {_group(status.st_gid)}"
    return (
        f"{place} can be changed by {who}, and with it every program of root's that runs on it, dtun as well; "
        f"mend it, also after each update of that Python: sudo chmod -R go-w {place}"
    )


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
