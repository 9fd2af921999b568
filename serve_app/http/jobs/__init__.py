"""The routes of jobs: our own, and those of other vendors' APIs."""
