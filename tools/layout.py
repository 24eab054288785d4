"""The files that `make install` and the Debian package install besides the program, and where."""

import platform
from dataclasses import dataclass
from pathlib import Path

from tools import completions, manual

ROOT = Path(__file__).resolve().parent.parent
PACKAGING = ROOT / "packaging"
UNITS = ("dtun-server.service", "dtun-server.socket", "dtun-client.service", "dtun-client@.service")


# 69: something is missing, see `dtun --help`.
LAUNCH = """\
try:
    from dtun.cli import main
except ModuleNotFoundError as error:
    sys.stderr.write(f"dtun: {error}; it was not installed for this Python, {version}: install it again\\n")
    sys.exit(69)

sys.exit(main())
"""


@dataclass(frozen=True)
class Directories:
    """The directories of a package, or of files outside packages."""

    units: str
    sysusers: str
    tmpfiles: str
    polkit: str
    networkd: str
    network_manager: str
    share: str
    zsh: str
    example: str


LOCAL = Directories(
    units="/etc/systemd/system",
    sysusers="/etc/sysusers.d",
    tmpfiles="/etc/tmpfiles.d",
    polkit="/etc/polkit-1/rules.d",
    networkd="/etc/systemd",
    network_manager="/etc/NetworkManager/conf.d",
    share="/usr/local/share",
    zsh="/usr/local/share/zsh/site-functions",
    example="/etc",  # beside the file that it is an example of
)
PACKAGE = Directories(
    units="/usr/lib/systemd/system",
    sysusers="/usr/lib/sysusers.d",
    tmpfiles="/usr/lib/tmpfiles.d",
    polkit="/usr/share/polkit-1/rules.d",
    networkd="/usr/lib/systemd",
    network_manager="/usr/lib/NetworkManager/conf.d",
    share="/usr/share",
    zsh="/usr/share/zsh/vendor-completions",
    example="/usr/share/dtun",
)


def linux(where: Directories) -> dict[str, str]:
    """Path and text of each file on Linux with systemd. All have mode 0644."""
    files = {f"{where.units}/{name}": _packaged(f"systemd/{name}") for name in UNITS}
    files |= {
        f"{where.sysusers}/dtun.conf": _packaged("sysusers/dtun.conf"),
        f"{where.tmpfiles}/dtun.conf": _packaged("tmpfiles/dtun.conf"),
        f"{where.polkit}/50-dtun.rules": _packaged("polkit/dtun.rules"),
        f"{where.networkd}/networkd.conf.d/dtun.conf": _packaged("networkd/dtun.conf"),
        f"{where.networkd}/network/05-dtun.network": _packaged("networkd/05-dtun.network"),
        f"{where.network_manager}/dtun.conf": _packaged("NetworkManager/dtun.conf"),
        f"{where.example}/dtun.yaml.example": example(),
        f"{where.share}/bash-completion/completions/dtun": completions.bash(),
        f"{where.zsh}/_dtun": completions.zsh(),
        f"{where.share}/fish/vendor_completions.d/dtun.fish": completions.fish(),
    }
    return files | _manual(where.share)


def darwin() -> dict[str, str]:
    """The same on macOS with launchd; root:wheel."""
    files = {
        f"/Library/LaunchDaemons/{name}": _packaged(f"launchd/{name}")
        for name in ("org.dtun.client.plist", "org.dtun.server.plist")
    }
    files["/etc/newsyslog.d/dtun.conf"] = _packaged("launchd/newsyslog.conf")
    files["/etc/dtun.yaml.example"] = example()
    files["/usr/local/share/zsh/site-functions/_dtun"] = completions.zsh()
    return files | _manual("/usr/local/share")


def here() -> dict[str, str]:
    """The same on this machine, if dtun is installed outside its packages."""
    return darwin() if platform.system() == "Darwin" else linux(LOCAL)


def launcher(python: str, *paths: str) -> str:
    """The command `dtun` for a Python. `paths` come first in sys.path; "{version}" in them is Python's, as in 3.11."""
    assert " " not in python  # noqa: S101 - a "#!" line has no quotes
    lines = [f"#!{python} -I", "import sys", "", 'version = "{}.{}".format(*sys.version_info)']
    if paths:
        lines += [f"sys.path[:0] = [path.format(version=version) for path in {list(paths)!r}]"]
    return "\n".join([*lines, LAUNCH])


def _manual(share: str) -> dict[str, str]:
    return {
        f"{share}/man/man8/dtun.8": manual.dtun_8(),
        f"{share}/man/man5/dtun.yaml.5": manual.dtun_yaml_5(),
    }


def _packaged(name: str) -> str:
    return (PACKAGING / name).read_text()


def example() -> str:
    """dtun.yaml.example"""
    return manual.EXAMPLE.read_text()
