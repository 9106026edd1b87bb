"""Selectors of processes in containers of Docker and Podman, asked of the engines themselves."""
