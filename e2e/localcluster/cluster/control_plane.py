"""etcd, API server, controller manager and scheduler, with the smallest idle load that keeps them real."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from pathlib import Path

import yaml

from localcluster.cluster import folder_driver
from localcluster.cluster.api import Api
from localcluster.machine.launcher import Launcher
from localcluster.machine.namespace import NODE_IP
from localcluster.setup.binaries import Binaries

API_PORT = 6443
NODE_NAMES = ("sheaf-node", "sheaf-node-2")  # those that may join
SERVICE_NETWORK = "10.96.0.0/16"
_ETCD_PORT = 2379

# Who may talk to the API server: name and groups. The controllers are all-powerful here, the kubelet is not.
_USERS = {
    "admin": ["system:masters"],
    "kube-controller-manager": ["system:masters"],
    "kube-scheduler": ["system:masters"],
    "kserve": ["system:masters"],
    "kube-proxy": ["system:masters"],
    **{f"system:node:{name}": ["system:nodes"] for name in NODE_NAMES},
}

# What the pods, Services, volumes and namespaces of an LLM deployment need; each of the others would watch
# its resources for nothing.
_CONTROLLERS = (
    "serviceaccount-token-controller",
    "serviceaccount-controller",
    "root-ca-certificate-publisher-controller",
    "namespace-controller",
    "garbage-collector-controller",
    "pod-garbage-collector-controller",
    "deployment-controller",
    "replicaset-controller",
    "endpoints-controller",  # for the Service proxy of the API server itself
    "endpointslice-controller",
    "disruption-controller",
    "node-lifecycle-controller",
    "taint-eviction-controller",
    "persistentvolume-attach-detach-controller",
    "persistentvolume-binder-controller",
    "persistentvolumeclaim-protection-controller",
    "persistentvolume-protection-controller",
    "horizontal-pod-autoscaler-controller",
    "clusterrole-aggregation-controller",
)


# What pods ask for: enough to tell which of their rights are used.
AUDIT_LOG = "audit.log"
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}],
}


@dataclass(frozen=True)
class Credentials:
    """Tokens and kubeconfigs of every user, in ``folder``."""

    folder: Path
    tokens: dict[str, str]

    @property
    def ca(self) -> Path:
        """The API server's own certificate, for localhost, its address and its Service; issuer included."""
        return self.folder / "apiserver.crt"

    @property
    def key(self) -> Path:
        return self.folder / "apiserver.key"

    def kubeconfig(self, user: str, server: str = f"https://localhost:{API_PORT}", name: str = "") -> Path:
        """Write (once) and return a kubeconfig for ``user``; needs the API server to have started."""
        path = self.folder / f"{name or user.replace(':', '-')}.kubeconfig"
        if not path.exists():
            authority = base64.b64encode(self.ca.read_bytes()).decode()
            document = {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [
                    {"name": "sheaf", "cluster": {"server": server, "certificate-authority-data": authority}}
                ],
                "users": [{"name": user, "user": {"token": self.tokens[user]}}],
                "contexts": [{"name": "sheaf", "context": {"cluster": "sheaf", "user": user}}],
                "current-context": "sheaf",
            }
            path.write_text(yaml.safe_dump(document))
            path.chmod(0o600)
        return path


def start(launcher: Launcher, binaries: Binaries) -> tuple[Credentials, Api]:
    """Start all four and return once the API server is ready and reachable from out here."""
    folder = launcher.folder / "control-plane"
    folder.mkdir(mode=0o700)
    credentials = Credentials(folder, {user: secrets.token_hex(16) for user in _USERS})
    (folder / "tokens.csv").write_text(
        "".join(
            f'{token},{user},{user},"{",".join(_USERS[user])}"\n'
            for user, token in credentials.tokens.items()
        )
    )
    (folder / "service-account.key").write_text(_signing_key())
    folder_driver.install(volume_plugins(launcher))
    (folder / "audit-policy.yaml").write_text(yaml.safe_dump(_AUDIT_POLICY))
    _start_etcd(launcher, binaries)
    _start_api_server(launcher, binaries, folder)
    port = launcher.forward("127.0.0.1", API_PORT)
    launcher.wait_ready("kube-apiserver", lambda: credentials.ca.exists() and credentials.key.exists(), 60)
    server = f"https://localhost:{port}"
    credentials.kubeconfig("admin", server)
    api = Api(server, token=credentials.tokens["admin"], ca=str(credentials.ca))
    _start_controllers(launcher, binaries, credentials)
    launcher.wait_ready("kube-apiserver", api.healthy, 60)
    return credentials, api


def volume_plugins(launcher: Launcher) -> Path:
    """Where controllers and kubelets find volume drivers of the kind that is an executable."""
    return launcher.folder / "volume-plugins"


def _signing_key() -> str:
    """A private key on the curve P-256, in PEM (SEC 1): a random number and the format around it."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    number = (secrets.randbelow(order - 1) + 1).to_bytes(32, "big")
    curve = bytes.fromhex("a00a06082a8648ce3d030107")  # [0] OBJECT IDENTIFIER prime256v1
    content = b"\x02\x01\x01" + b"\x04\x20" + number + curve
    encoded = base64.b64encode(b"\x30" + bytes([len(content)]) + content).decode()
    return f"-----BEGIN EC PRIVATE KEY-----\n{encoded}\n-----END EC PRIVATE KEY-----\n"


def _start_etcd(launcher: Launcher, binaries: Binaries) -> None:
    url, peer_url = f"http://127.0.0.1:{_ETCD_PORT}", "http://127.0.0.1:2380"
    launcher.start(
        "etcd",
        [
            binaries["etcd"],
            f"--data-dir={launcher.folder / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--unsafe-no-fsync",
            "--heartbeat-interval=500",  # nobody to send one to; each costs a wake-up
            "--election-timeout=5000",
            "--log-level=warn",
        ],
    )


def _start_api_server(launcher: Launcher, binaries: Binaries, folder: Path) -> None:
    launcher.start(
        "kube-apiserver",
        [
            binaries["kube-apiserver"],
            f"--etcd-servers=http://127.0.0.1:{_ETCD_PORT}",
            f"--secure-port={API_PORT}",
            "--bind-address=0.0.0.0",
            f"--advertise-address={NODE_IP}",
            f"--cert-dir={folder}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            f"--audit-policy-file={folder / 'audit-policy.yaml'}",
            f"--audit-log-path={folder / AUDIT_LOG}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder / 'service-account.key'}",
            f"--service-account-signing-key-file={folder / 'service-account.key'}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged=true",
            "--profiling=false",
            "--etcd-count-metric-poll-period=0",
            "--etcd-db-metric-poll-interval=0",
            "--feature-gates=APIServerIdentity=false,UnknownVersionInteroperabilityProxy=false",
            "--shutdown-delay-duration=0s",
            "--v=0",
        ],
    )


def _start_controllers(launcher: Launcher, binaries: Binaries, credentials: Credentials) -> None:
    for name in ("kube-controller-manager", "kube-scheduler"):
        kubeconfig = credentials.kubeconfig(name)
        arguments = [
            binaries[name],
            f"--kubeconfig={kubeconfig}",
            "--authentication-skip-lookup=true",  # nobody but us reads their health
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--profiling=false",
            "--v=0",
        ]
        if name == "kube-controller-manager":
            arguments += [
                f"--service-account-private-key-file={credentials.folder / 'service-account.key'}",
                f"--root-ca-file={credentials.ca}",
                f"--controllers={','.join(_CONTROLLERS)}",
                "--node-monitor-period=5s",
                f"--flex-volume-plugin-dir={volume_plugins(launcher)}",
            ]
        launcher.start(name, arguments)
