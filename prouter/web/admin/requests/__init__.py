"""What a request says: its context, query string, body, origin and host, checked."""
