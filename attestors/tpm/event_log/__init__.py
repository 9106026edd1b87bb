"""The firmware's event log: parsed, replayed to PCR values, and read for what was booted."""
