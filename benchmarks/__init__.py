"""What the client costs, measured: `python -m benchmarks` (extra `bench`)."""
