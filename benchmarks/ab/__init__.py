"""Compares two versions of jobpipe: `just bench-ab REV`."""
