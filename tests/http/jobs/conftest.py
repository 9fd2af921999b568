"""The stores that routes of jobs are tested on."""

from collections.abc import Iterator

import pytest
from job_api import POSTGRESQL

from benchmarks.private_postgres import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def each_store(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a test twice: the two databases give what they hold in different types."""
    url = ""
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        url = server.emptied_database()
    before = POSTGRESQL.set(url)
    yield
    POSTGRESQL.reset(before)
