"""What all parts of the broker share: settings, timers, outgoing messages, loop lag."""
