"""`asyncio.timeout` on every Python there is: `wait_for` can swallow a cancellation on 3.10 and 3.11."""

import sys

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout  # aiohttp needs it there, too

__all__ = ["timeout"]
