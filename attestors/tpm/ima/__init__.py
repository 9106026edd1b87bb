"""The kernel's IMA measurement list: parsed, replayed to PCR 10, and its files' signatures checked."""
