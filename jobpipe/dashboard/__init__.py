"""The dashboard: pages over the same calls that the API makes. No SQL, no rules of its own."""

from jobpipe.dashboard.app import Dashboard

__all__ = ["Dashboard"]
