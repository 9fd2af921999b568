"""The HTTP surface: routes, bodies, keys, answers. The only package with FastAPI in it."""
