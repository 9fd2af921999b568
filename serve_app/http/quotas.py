"""Old name, until the Ingress imports the new one."""
from serve_app.http.auth import charge  # noqa
