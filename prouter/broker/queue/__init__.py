"""Queue of jobs that wait for an agent: its decisions without I/O, and the module that carries them out."""
