"""Old names, until http/openai and the Ingress import the new ones."""
from serve_app.http.responses import ErrorResponse, StageWarning as WarningOut, answer, progress_response, warnings_out  # noqa
