"""How a job's server is found and reached: ports, sockets, presets, probes."""
