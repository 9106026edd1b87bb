"""What every program shares: configuration files, logs, command lines, output, readiness."""
