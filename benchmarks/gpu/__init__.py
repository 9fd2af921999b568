"""`make gpu-check`: what somebody with a GPU for ten minutes can find out about this service."""
