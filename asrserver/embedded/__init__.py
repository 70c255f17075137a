"""The Redis and the PostgreSQL of a machine that has none."""
