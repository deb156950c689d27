"""Statements that PostgreSQL reads once: prepared on a connection at their first use there.

pg8000 has every statement parsed, described and planned anew, in three round trips. The labelling
room says some thirty different statements, over and over, so each connection keeps them by their
text, and one round trip is left.
"""

from __future__ import annotations

from typing import Any

#: statements kept by a connection; lists of changing lengths are many texts
MOST = 200


class Prepared:
    """Takes the place of a connection's `execute_unnamed`.

    Args:
        connection: of pg8000.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._once = connection.execute_unnamed
        self._known: dict[str, Any] = {}

    def __call__(self, statement: str, vals: Any = (), oids: Any = (), stream: Any = None) -> Any:
        known = self._known.get(statement)
        if known is None:
            if stream is not None or oids or len(self._known) >= MOST:
                return self._once(statement, vals=vals, oids=oids, stream=stream)
            known = self._known[statement] = self._connection.prepare_statement(statement, ())
        name, columns, input_funcs = known
        from pg8000.converters import make_params

        params = make_params(self._connection.py_types, vals)
        return self._connection.execute_named(name, params, columns, input_funcs, statement)


def keep_statements(connection: Any, _: Any) -> None:
    """Have a new connection keep what it is told; listens to `connect`."""
    from pg8000 import legacy

    if not isinstance(legacy.convert_paramstyle, Converted):
        legacy.convert_paramstyle = Converted(legacy.convert_paramstyle)
    connection.execute_unnamed = Prepared(connection)


class Converted:
    """pg8000's search for parameters, letter by letter, once for each text.

    What it gives for the style that SQLAlchemy writes depends on the text alone.
    """

    def __init__(self, convert: Any) -> None:
        self._convert = convert
        self._known: dict[str, str] = {}

    def __call__(self, style: str, query: str, args: Any) -> tuple[str, Any]:
        if style != "format":
            found: tuple[str, Any] = self._convert(style, query, args)
            return found
        text = self._known.get(query)
        if text is None:
            text, _ = self._convert(style, query, args)
            if len(self._known) < MOST:
                self._known[query] = text
        return text, args
