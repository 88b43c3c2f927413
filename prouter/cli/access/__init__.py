"""Commands about who may use what."""
