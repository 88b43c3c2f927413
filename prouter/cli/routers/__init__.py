"""Commands about routers and agents."""
