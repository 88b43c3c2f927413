"""Parts of requests, parsed and checked: context, query string, body, origin and host."""
