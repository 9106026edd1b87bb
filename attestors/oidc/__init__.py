"""Workloads by the OpenID Connect token that they hold: where it is, who issued it, what it says, whose it is."""
