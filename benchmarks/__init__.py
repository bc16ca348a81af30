"""What jobpipe costs, beside the least that the same work can cost: `python -m benchmarks`, or `just bench`."""
