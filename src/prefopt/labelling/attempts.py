"""A rate limit that holds over processes: so many attempts within the last so many seconds."""

from __future__ import annotations

import hashlib

import sqlalchemy as sa

from prefopt.labelling.database import Database
from prefopt.labelling.tables import attempts

_KEPT = 86400.0  # seconds, beyond any window: attempts of others are cleared after a day


def attempt(
    database: Database, connection: sa.Connection, who: str, limit: int, window: float, now: float
) -> bool:
    """Count an attempt; False if it is one too many, and then it does not count.

    What is kept of `who` (an address, say) is a digest, and no longer than it is needed.
    """
    digest = _digest(who)
    # Two attempts of one address at the same time must not both be the last that is allowed.
    database.lock(connection, -1 - int.from_bytes(digest[:3], "big"), shared=False)
    connection.execute(
        attempts.delete().where(
            sa.or_(
                sa.and_(attempts.c.who == digest, attempts.c.at <= now - window),
                attempts.c.at <= now - max(window, _KEPT),
            )
        )
    )
    count = connection.scalar(recent(who, window, now))
    if (count or 0) >= limit:
        return False
    connection.execute(attempts.insert().values(who=digest, at=now))
    return True


def recent(who: str, window: float, now: float) -> sa.Select[int]:
    """How many attempts there were in the last `window` seconds; nothing is counted."""
    return (
        sa.select(sa.func.count())
        .select_from(attempts)
        .where(attempts.c.who == _digest(who), attempts.c.at > now - window)
    )


def _digest(who: str) -> bytes:
    return hashlib.blake2b(who.encode("utf-8", "surrogatepass"), digest_size=16).digest()
