"""How every process of the project is set up: logging, descriptors, memory, systemd."""
