"""Embedded Redis and PostgreSQL, for a machine that has none."""
