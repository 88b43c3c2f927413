"""What the commands share that read this machine's own configuration."""
