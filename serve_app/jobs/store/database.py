"""One database for all nodes: connections, transactions, the clock, and the errors of a busy store."""

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from serve_app.errors import StoreBusy

READERS = 4  # connections; SQLite has one writer at a time, so one more is for writes
CONNECTIONS = 8  # to PostgreSQL, of one process
COMMAND_TIMEOUT_S = 60.0  # of one statement; else one would wait for hours for a host that has gone

PAUSE = wait_random_exponential(multiplier=0.5, max=5.0)  # seconds, while the store fails

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}

# SQLite: busy, locked, I/O error, full, cannot be opened.
PASSING_SQLITE_CODES = {5, 6, 10, 13, 14}
# PostgreSQL: connection lost, no resources, deadlock, row locked, shutting down or starting, transaction idle
# for too long, read-only (a primary that was demoted), statement too slow.
PASSING_STATES = ("08", "53", "40", "55P03", "57P", "25P03", "25006", "57014")


P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D", bound="Database")


def to_the_end(
    method: Callable[Concatenate[D, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[D, P], Coroutine[Any, Any, T]]:
    """Lets a method of Database run to its end although its caller is cancelled.

    aiosqlite leaves a connection that was cancelled while it began a transaction open, with its lock.
    """

    @wraps(method)
    async def run(self: D, /, *args: P.args, **kwargs: P.kwargs) -> T:
        # In its own context: Serve cancels the tasks of a request's context when the client leaves.
        task = asyncio.create_task(method(self, *args, **kwargs), context=contextvars.Context())
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return await asyncio.shield(task)

    return run


async def until_stored(write: Callable[[], Awaitable[T]]) -> T:
    """The result of a write that must not be lost, once the store answers."""
    return await AsyncRetrying(retry=retry_if_exception_type(StoreBusy), wait=PAUSE, reraise=True)(write)


def parsed_url(url: str) -> sa.URL:
    """The URL with the driver that is used here. Raises ValueError."""
    try:
        parsed = sa.make_url(url)
        backend = parsed.get_backend_name()
    except (sa.exc.ArgumentError, ValueError):  # their texts may show a password
        backend = ""
    is_relative = backend == "sqlite" and not Path(parsed.database or "").is_absolute()
    if backend not in DRIVERS or is_relative:
        raise ValueError(
            "Write the job store as sqlite:////a/file or postgresql+asyncpg://user@host/database."
        )
    return parsed.set(drivername=DRIVERS[backend])


def sqlite_file(url: str) -> Path | None:
    """Where SQLite keeps the database; None for PostgreSQL. Raises ValueError."""
    parsed = parsed_url(url)
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


class Database:
    """Connections to the job store, and one clock: leases of one node are judged by all others.

    `clock` is for tests; without it PostgreSQL's is the clock, or with SQLite this process's.
    """

    def __init__(
        self, url: str, *, busy_timeout_s: float = 10.0, clock: Callable[[], float] | None = None
    ) -> None:
        parsed = parsed_url(url)
        self.running: set[asyncio.Task[Any]] = set()
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self._clock = clock or (time.time if self.is_sqlite else None)
        if self.is_sqlite:
            # Writers of this process wait for one another in the pool, in order, and not by SQLite's polling.
            self._writer = _sqlite_engine(parsed, "BEGIN IMMEDIATE", 1, busy_timeout_s)
            self._reader = _sqlite_engine(parsed, "BEGIN", READERS, busy_timeout_s)
        else:
            timeout_ms = str(int(busy_timeout_s * 1000))
            # A process that hangs in a transaction must not keep its locks.
            limits = {"lock_timeout": timeout_ms, "idle_in_transaction_session_timeout": timeout_ms}
            self._writer = self._reader = create_async_engine(
                parsed,
                hide_parameters=True,  # in errors and logs: they hold what clients sent
                pool_size=CONNECTIONS,
                max_overflow=0,
                pool_timeout=busy_timeout_s,
                connect_args={
                    "server_settings": limits,
                    "timeout": busy_timeout_s,
                    "command_timeout": COMMAND_TIMEOUT_S,
                },
            )

    def now(self) -> sa.ColumnElement[float]:
        """The time, as an expression of SQL."""
        if self._clock is not None:
            return sa.literal(self._clock(), sa.Double)
        # The clock of clock_timestamp(), but the same in all of one statement, so that indexes serve it.
        return sa.cast(sa.extract("epoch", sa.func.statement_timestamp()), sa.Double)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection that takes no lock. Raises StoreBusy."""
        with _typed_errors():
            async with self._reader.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is committed on leaving. Raises StoreBusy."""
        with _typed_errors():
            async with self._writer.begin() as connection:
                yield connection

    async def close(self) -> None:
        """Closes all connections, once the methods that run have ended."""
        await asyncio.gather(*self.running, return_exceptions=True)
        await self._reader.dispose()
        await self._writer.dispose()


def _sqlite_engine(url: sa.URL, begin: str, connections: int, busy_timeout_s: float) -> AsyncEngine:
    engine = create_async_engine(
        url, hide_parameters=True, pool_size=connections, max_overflow=0, pool_timeout=busy_timeout_s
    )
    pragmas = (
        f"busy_timeout={int(busy_timeout_s * 1000)}",
        "journal_mode=WAL",
        "synchronous=FULL",  # what was answered with 201 survives a power cut
        "foreign_keys=ON",
        "secure_delete=ON",  # what was deleted does not stay in the file
    )

    @sa.event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # else the driver decides when a transaction begins
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine.sync_engine, "begin")
    def begin_transaction(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


@contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.TimeoutError, OSError) as error:
        if isinstance(error, sa.exc.DBAPIError) and not _passes(error):
            raise
        raise StoreBusy("The job store cannot be reached or is busy; try again later.") from error


def _passes(error: sa.exc.DBAPIError) -> bool:
    """Whether the same statement may succeed later."""
    sqlite_code = getattr(error.orig, "sqlite_errorcode", None)
    state = getattr(error.orig, "sqlstate", None)
    return (
        error.connection_invalidated
        or (sqlite_code is not None and sqlite_code & 0xFF in PASSING_SQLITE_CODES)
        or (state is not None and state.startswith(PASSING_STATES))
    )
