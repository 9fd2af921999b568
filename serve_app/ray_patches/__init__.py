"""Optional patches of Ray Serve; nothing in the service needs them, see docs/reliability.md."""
