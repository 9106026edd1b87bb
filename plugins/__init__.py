"""One Protocol per plugin type, and the catalogue that configures what a program's `plugins` block names."""
