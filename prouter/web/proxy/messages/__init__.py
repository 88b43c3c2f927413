"""HTTP/1.1 messages as bytes, without I/O: heads, chunks, where bodies end."""
