"""The agent: runs jobs on its machine and connects them to routers.

Kept free of imports: the keeper process, which must start fast and stay small, lives below this package.
"""
