"""/openapi.json describes what the server does: schemathesis makes requests of it, and compares the responses."""

import json
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.support.servers import request

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
CHECKS += ",response_headers_conformance,negative_data_rejection,unsupported_method"


def described(server):
    return json.loads(server.ask_raw(request("/openapi.json")).partition(b"\r\n\r\n")[2])


def test_errors_and_streams_are_described(server):
    for path, methods in described(server)["paths"].items():
        for operation in methods.values():
            assert set(operation["responses"]) == {"200", "4XX", "5XX"}, path
    responses = described(server)["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}


@pytest.mark.long
def test_the_description_holds(server, tmp_path):
    """Without the check that the schema allows no wrong request: no schema tells how fields belong together."""
    tool = Path(sysconfig.get_path("scripts"), "schemathesis")
    command = [tool, "run", f"{server.url}/openapi.json", "-n", "150", "--checks", CHECKS, "--seed", "1"]
    command += ["--continue-on-failure", "--phases", "examples,coverage,fuzzing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    assert server.counts.failed == 0
