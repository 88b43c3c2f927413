"""What `prouter doctor` looks at."""
