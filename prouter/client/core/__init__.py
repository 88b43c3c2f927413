"""The client's decisions without I/O: flows, errors and models, which both fronts share."""
