"""What workloads can be served while the server is away, kept over restarts, encrypted."""
