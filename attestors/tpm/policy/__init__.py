"""Boot policies: what a machine may have booted, as its operator writes it down, and how evidence is judged by it."""
