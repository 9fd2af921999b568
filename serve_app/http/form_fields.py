"""Old names, until http/openai imports the new ones."""
from serve_app.http.forms import OPTION_ARRAYS, Field, collect_fields as gathered  # noqa
