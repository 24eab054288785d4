"""Settings for all tests, and which tests may be skipped in CI."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

HERE = Path(__file__).parent
CI = bool(os.environ.get("CI"))

# No limit depends on the clock: a busy machine fails no test. Examples of one test share its fixtures on purpose.
settings.register_profile(
    "dtun",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize=CI,
    print_blob=True,
)
settings.load_profile("dtun")

# Reasons that no installation of a package can remove. Any other skip is a failure in CI: it would hide that something
# was not tested.
SKIPS_IN_CI = ("Linux only: ", "little-endian machines only: ", "this host has no IPv6", "this kernel ")

# Long tests run first, so that many short ones keep all workers busy until the end. Those with systemd wait until what
# they start from is built.
ORDER = ("netns", "interop", "darwin", "systemd", "fuzz", "hostile", "unit")

# Fixtures of several tests that take long to make: their tests run in one worker.
SHARED = ("installed", "container", "wheels")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ORDER.index(item.path.relative_to(HERE).parts[0]))
    for item in items:
        for name in set(SHARED).intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(name))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = skip_reason(report.longrepr)
        if not reason.startswith(SKIPS_IN_CI):
            report.outcome = "failed"
            report.longrepr = f"skipped, which CI does not allow: {reason}"
    return report


def skip_reason(longrepr: Any) -> str:
    _path, _line, reason = longrepr
    return str(reason).removeprefix("Skipped: ")
