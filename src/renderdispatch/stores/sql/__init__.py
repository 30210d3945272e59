"""How are jobs kept in a SQL database that several processes share?

`SqlJobStore`, on SQLite and on PostgreSQL. Which rows there are: `tables`; how the database is opened: `connections`.
"""

from renderdispatch.stores.sql.store import SqlJobStore

__all__ = ["SqlJobStore"]
