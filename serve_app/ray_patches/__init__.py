"""Optional patches of Ray Serve, one a file; the service works without them (docs/deploy.md)."""
