"""Finding and reaching a job's server: ports, sockets, presets, probes."""
