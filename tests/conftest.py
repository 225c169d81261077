"""What several files of tests need: certificates, and a Ctrl-C that is what it is at a terminal."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

# A shell starts what runs in its background (``pytest &``) with SIGINT ignored.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the processes of tests inherit none that is ignored


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ca.pem, and with cert.pem and key.pem of 127.0.0.1."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl command to make certificates with")
    place = tmp_path_factory.mktemp("tls")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    ca = ["-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem", "-addext", "keyUsage=critical,keyCertSign"]
    leaf = ["-subj", "/CN=s", "-keyout", "key.pem", "-out", "cert.pem", "-CA", "ca.pem", "-CAkey", "ca.key"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    for args in (ca, [*leaf, *names]):
        made = subprocess.run([openssl, "req", "-x509", *key, *args], cwd=place, capture_output=True, check=False)
        if made.returncode:
            pytest.skip("this openssl makes no certificates: " + made.stderr.decode()[-200:])
    return place
