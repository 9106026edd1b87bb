"""SVIDStore "disk": SVIDs as PEM files, for programs that know nothing of SPIFFE."""
