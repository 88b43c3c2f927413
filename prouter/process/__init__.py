"""Set-up of every process: logging, descriptors, memory, systemd."""
