"""TLS with real certificates, renewed while the server runs."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path

import httpx
import pytest
import trustme
from model_folders import byte_level, write_folder
from serving import Served, serving, wait_for
from sheaf_runtime.server.launch import main
from sheaf_runtime.server.tls import Certificate, CertificateError

BODY = {"prompt": "abc", "max_tokens": 60, "ignore_eos": True, "stream": True}


class Mount:
    """A secret as the kubelet mounts it: files are links into a folder that is swapped as a whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certfile, self.keyfile = str(folder / "tls.crt"), str(folder / "tls.key")
        self._generation = 0

    def write(self, certificate: trustme.LeafCert, *, key: trustme.LeafCert | None = None) -> None:
        self._generation += 1
        data = self.folder / f"..{self._generation}"
        data.mkdir(parents=True)
        (data / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        (data / "tls.key").write_bytes((key or certificate).private_key_pem.bytes())
        link = self.folder / "..new"
        link.symlink_to(data.name)
        link.rename(self.folder / "..data")
        for name in ("tls.crt", "tls.key"):
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--ssl-certfile", self.certfile, "--ssl-keyfile", self.keyfile)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def mount(tmp_path: Path) -> Mount:
    return Mount(tmp_path / "tls")


def trust(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def serial(server: Served, context: ssl.SSLContext) -> int:
    """Of the certificate that a new connection gets."""
    with (
        socket.create_connection(("127.0.0.1", server.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        certificate = secured.getpeercert()
        assert certificate is not None
        return int(str(certificate["serialNumber"]), 16)


def number(certificate: trustme.LeafCert) -> int:
    from cryptography import x509

    return x509.load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes()).serial_number


def test_a_renewed_certificate_is_taken_without_a_restart(
    authority: trustme.CA, mount: Mount, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "model", byte_level())
    old, new = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    mount.write(old)
    context = trust(authority)
    with serving(folder, tmp_path, *mount.flags, fake={"step_seconds": 0.05}) as server:
        url = f"https://localhost:{server.port}"
        wait_for(lambda: "engine ready" in server.output(), "the engine")
        with httpx.Client(verify=context, base_url=url) as client:
            assert serial(server, context) == number(old)
            with client.stream("POST", "/v1/completions", json=BODY) as running:
                lines = running.iter_lines()
                next(lines)
                mount.write(new, key=old)  # half of a renewal
                assert serial(server, context) == number(old)
                assert "no usable pair" in server.output()
                mount.write(new)
                assert serial(server, context) == number(new)
                assert [line for line in lines if line][-1] == "data: [DONE]"  # on the old connection
            assert client.get("/ready").status_code == 200
        server.terminate()
        assert server.wait_exit() == 0
        assert "Traceback" not in server.output()


def test_who_does_not_speak_tls_hurts_nobody(authority: trustme.CA, mount: Mount, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", byte_level())
    mount.write(authority.issue_cert("localhost"))
    with serving(folder, tmp_path, *mount.flags) as server:
        wait_for(lambda: "engine ready" in server.output(), "the engine")
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url + "/health")
        with socket.create_connection(("127.0.0.1", server.port)):  # and one that never says anything
            assert serial(server, trust(authority))
            server.terminate()
            assert server.wait_exit(30) == 0
        assert "Traceback" not in server.output()
        assert "never retrieved" not in server.output()


def test_one_file_can_hold_both(authority: trustme.CA, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(authority.issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
    assert Certificate(str(both)).context() is not None


def test_a_pair_that_cannot_be_served_is_a_configuration_error(
    authority: trustme.CA, mount: Mount, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(write_folder(tmp_path / "model", byte_level()))
    one, other = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    mount.write(one, key=other)
    assert main([folder, *mount.flags]) == 2
    assert "KEY_VALUES_MISMATCH" in capsys.readouterr().err
    assert main([folder, "--ssl-certfile", "nowhere.crt", "--ssl-keyfile", mount.keyfile]) == 2
    assert "nowhere.crt is not a file" in capsys.readouterr().err
    assert main([folder, "--ssl-keyfile", mount.keyfile]) == 2
    assert "--ssl-keyfile needs --ssl-certfile" in capsys.readouterr().err


def test_an_encrypted_key_is_refused_and_no_passphrase_asked_for(
    authority: trustme.CA, tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives import serialization

    leaf = authority.issue_cert("localhost")
    key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    (tmp_path / "tls.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    leaf.cert_chain_pems[0].write_to_path(str(tmp_path / "tls.crt"))
    with pytest.raises(CertificateError, match="without a passphrase"):
        Certificate(str(tmp_path / "tls.crt"), str(tmp_path / "tls.key"))


def test_files_that_vanish_for_a_moment_change_nothing(authority: trustme.CA, mount: Mount) -> None:
    mount.write(authority.issue_cert("localhost"))
    certificate = Certificate(mount.certfile, mount.keyfile)
    before = certificate.context()
    os.rename(mount.folder / "..data", mount.folder / "away")
    assert certificate.context() is before
    os.rename(mount.folder / "away", mount.folder / "..data")
    assert certificate.context() is not None
