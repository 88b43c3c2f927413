"""Job servers: small scripts that run as jobs in tests and benchmarks; each file works alone, without this package."""
