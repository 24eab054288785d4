"""`make install` and `make uninstall` as on a Mac, in a directory instead of its root.

python make_install.py ROOT install|uninstall [OPTION ...]
"""

import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
platform.system = lambda: "Darwin"

from tools import install, launchd, layout, uninstall  # noqa: E402 - only after platform.system is replaced

if __name__ == "__main__":
    root, command, *options = sys.argv[1:]

    def below(path: object) -> Path:
        return Path(f"{root}{path}")

    for module, names in (
        (install, ("PREFIX", "COMMAND", "CONFIG", "KEYS", "DIRECTORIES")),
        (launchd, ("DAEMONS", "LOGS")),
    ):
        for name in names:
            setattr(module, name, below(getattr(module, name)))
    uninstall.STATE = tuple(map(below, uninstall.STATE))
    uninstall.RUNTIME = tuple(map(below, uninstall.RUNTIME))
    files = layout.darwin
    layout.darwin = lambda: {str(below(path)): text for path, text in files().items()}
    (install if command == "install" else uninstall).main(options)
