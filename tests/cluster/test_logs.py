"""What the graph on a real local Ray writes to its logs: not what a caller keeps secret."""

from pathlib import Path

import httpx
import pytest
from fakes import recording
from loopback import Files
from ray import serve
from ray._private.worker import global_worker
from sounds import wav

SECRET = "hunter2"

pytestmark = pytest.mark.usefixtures("app")


def test_no_log_has_a_url_s_query_or_a_header(files: Files) -> None:
    """Requests that succeed and fail, over HTTP and handles, leave no query, password or header there."""
    good = files.url("/logged.wav", wav(recording(1, 2)))
    handle = serve.get_app_handle("whisperx")
    urls = [
        f"{good}?token={SECRET}#{SECRET}",
        f"http://{files.host}/lost.wav?token={SECRET}",
        f"http://127.0.0.1/blocked.wav?token={SECRET}",
        f"http://{SECRET}:{SECRET}@{files.host}/logged.wav",
    ]
    files.content[f"/logged.wav?token={SECRET}"] = files.content["/logged.wav"]
    headers = {"Authorization": f"Bearer {SECRET}"}
    statuses = []
    for url in urls:
        answer = httpx.post(
            "http://127.0.0.1:18000/predict", json={"audio_file": url, "headers": headers}, timeout=60
        )
        assert SECRET not in answer.text
        statuses.append(answer.status_code)
    assert statuses == [200, 424, 424, 400]
    with pytest.raises(Exception, match=r"lost\.wav answered 404") as raised:
        handle.transcribe.remote(urls[1], headers=headers).result(timeout_s=60)
    assert SECRET not in str(raised.value)

    assert global_worker.node is not None
    logs = [file for file in Path(global_worker.node.get_logs_dir_path()).rglob("*") if file.is_file()]
    texts = {file: file.read_text(errors="replace") for file in logs}
    assert any("lost.wav answered 404" in text for text in texts.values())  # failures are logged, and here
    assert [
        str(file) for file, text in texts.items() if "errors.SourceUnavailable" in text
    ] == []  # no traceback
    assert [str(file) for file, text in texts.items() if SECRET in text] == []
