"""Settings for all tests."""

import os

from hypothesis import HealthCheck, settings

# No limit depends on the clock: a busy machine fails no test. Examples of one test share its fixtures on purpose.
settings.register_profile(
    "dtun",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
)
settings.load_profile("dtun")
