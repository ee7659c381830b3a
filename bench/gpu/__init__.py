"""Everything that needs an NVIDIA GPU: build, tests, sanitizers, times, peers."""
