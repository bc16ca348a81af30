"""Nodes over PostgreSQL, beside the least that the same work can cost and other queues: `just bench-postgres`."""
