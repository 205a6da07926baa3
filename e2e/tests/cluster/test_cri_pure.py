"""The runtime's pure parts: log entries, images, the launcher's spec, addresses."""

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from localcluster.cri.container_init import Root, Spec
from localcluster.cri.images import DEFAULT_UID, parse_images
from localcluster.cri.logs import MAX_LINE, ContainerLog, format_entries, timestamp
from localcluster.cri.network import AddressPool, link_name
from localcluster.cri.rootfs import Mount
from localcluster.cri.spec import container_env, container_spec, write_pod_files
from localcluster.setup import cri_api

pb, _ = cri_api.load()
T = b"2026-01-02T03:04:05.000000006Z"


def test_timestamps_have_nanoseconds():
    assert timestamp(1767323045_000000006) == T


@pytest.mark.parametrize(
    ("text", "entries", "rest"),
    [
        (b"", [], b""),
        (b"one\ntwo\n", [b"F one", b"F two"], b""),
        (b"\n\n", [b"F ", b"F "], b""),
        (b"whole\nhalf", [b"F whole"], b"half"),
        (b"x" * MAX_LINE + b"\n", [b"F " + b"x" * MAX_LINE], b""),
        (b"x" * MAX_LINE + b"yy\n", [b"P " + b"x" * MAX_LINE, b"F yy"], b""),
        (b"x" * MAX_LINE + b"yy", [b"P " + b"x" * MAX_LINE], b"yy"),
    ],
)
def test_log_entries(text, entries, rest):
    expected = b"".join(T + b" stdout " + entry + b"\n" for entry in entries)
    assert format_entries(text, "stdout", T, final=False) == (expected, rest)


@given(
    st.lists(st.sampled_from([b"a", b"\n", b"z" * (MAX_LINE - 1), b"b" * MAX_LINE, b"line\n"]), max_size=12)
)
def test_log_entries_hold_every_byte_however_it_is_cut(pieces):
    log, rest = b"", b""
    for piece in pieces:
        entries, rest = format_entries(rest + piece, "stderr", T, final=False)
        log += entries
    log += format_entries(rest, "stderr", T, final=True)[0]
    text = b""
    for entry in log.splitlines():
        _, stream, tag, content = entry.split(b" ", 3)
        assert stream == b"stderr"
        assert len(content) <= MAX_LINE
        text += content + (b"\n" if tag == b"F" else b"")
    whole = b"".join(pieces)
    assert text == (whole if whole.endswith(b"\n") or not whole else whole + b"\n")


def test_a_full_disk_costs_log_lines_only(tmp_path, caplog):
    (tmp_path / "0.log").symlink_to("/dev/full")
    log = ContainerLog(tmp_path / "0.log")
    log.write("stdout", b"one\ntwo")
    log.close()
    assert "No space left on device" in caplog.text


def test_images_are_found_by_pattern_and_keep_the_name_they_were_asked_by():
    table = parse_images(
        {"sheaf/runtime:*": {"entrypoint": ["sheaf", "serve"], "env": {"A": 1}}, "*/tools:1": {}}
    )
    image = table.find("sheaf/runtime:0.1")
    assert (image.name, image.entrypoint, image.env) == ("sheaf/runtime:0.1", ("sheaf", "serve"), {"A": "1"})
    assert image.uid == DEFAULT_UID
    assert table.find("docker.io/sheaf/runtime:0.1").entrypoint == ("sheaf", "serve")
    assert table.find("any/tools:1").entrypoint == ()
    assert table.find("any/tools:2") is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "must map image patterns"),
        ({"a": []}, "'a': must be a mapping"),
        ({"a": {"entrypiont": []}}, "unknown \\['entrypiont'\\]; choose from"),
        ({"a": {"entrypoint": "sh -c"}}, "entrypoint must be a list of strings"),
        ({"a": {"uid": "root"}}, "uid must be a number"),
        ({"a": {"env": ["A=1"]}}, "env must map names to values"),
    ],
)
def test_a_wrong_images_file_is_refused_with_the_place(document, message):
    with pytest.raises(ValueError, match=message):
        parse_images(document)


IMAGE = parse_images(
    {"i": {"entrypoint": ["run", "it"], "env": {"A": "image", "B": "image"}, "uid": 7}}
).find("i")


@pytest.mark.parametrize(
    ("command", "args", "argv"),
    [
        ([], [], ["run", "it"]),
        ([], ["x"], ["run", "it", "x"]),
        (["other"], [], ["other"]),
        (["other"], ["x"], ["other", "x"]),
    ],
)
def test_command_replaces_the_entrypoint_and_args_follow(tmp_path, command, args, argv):
    config = pb.ContainerConfig(command=command, args=args)
    assert container_spec(config, IMAGE, tmp_path, "/scratch", []).argv == argv


def test_no_command_at_all_is_refused(tmp_path):
    image = parse_images({"i": {}}).find("i")
    with pytest.raises(ValueError, match="no command"):
        container_spec(pb.ContainerConfig(), image, tmp_path, "/scratch", [])


def test_environment_of_the_pod_wins_and_bytes_survive():
    config = pb.ContainerConfig(
        envs=[pb.KeyValue(key="B", value=b"pod"), pb.KeyValue(key="C", value=b"\xff")]
    )
    env = container_env(config, IMAGE)
    assert (env["A"], env["B"], env["C"], env["HOME"]) == ("image", "pod", "\udcff", "/tmp")
    spec = Spec(argv=["a"], env=env, cwd="/", uid=1, gid=2, namespaces=[])
    assert Spec.from_json(spec.to_json()).env == env


def test_user_comes_from_the_pod_or_else_the_image(tmp_path):
    def ids(**security):
        linux = pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**security))
        spec = container_spec(pb.ContainerConfig(linux=linux), IMAGE, tmp_path, "/scratch", [])
        return spec.uid, spec.gid

    assert ids() == (7, 0)
    assert ids(run_as_user=pb.Int64Value(value=0)) == (0, 0)
    assert ids(run_as_user=pb.Int64Value(value=5), run_as_group=pb.Int64Value(value=6)) == (5, 6)


def test_pod_files_yield_to_the_mounts_of_the_kubelet(tmp_path):
    dns = pb.DNSConfig(servers=["10.0.0.10"], searches=["a.local", "local"], options=["ndots:5"])
    write_pod_files(pb.PodSandboxConfig(hostname="web-0", dns_config=dns), tmp_path / "pod")
    assert (tmp_path / "pod/hostname").read_text() == "web-0\n"
    text = (tmp_path / "pod/resolv.conf").read_text()
    assert text == "nameserver 10.0.0.10\nsearch a.local local\noptions ndots:5\n"
    config = pb.ContainerConfig(
        mounts=[pb.Mount(container_path="/etc/resolv.conf", host_path="/own", readonly=True)]
    )
    root = container_spec(config, IMAGE, tmp_path / "pod", "/scratch", []).root
    assert isinstance(root, Root)
    mounts = {mount.target: mount for mount in root.mounts}
    assert mounts["/etc/resolv.conf"] == Mount("/own", "/etc/resolv.conf", True)
    assert mounts["/etc/hostname"].source == str(tmp_path / "pod/hostname")


def test_addresses_are_reused_only_after_release_and_the_oldest_first():
    pool = AddressPool(IPv4Network("10.244.0.0/29"))
    taken = [pool.take() for _ in range(5)]
    assert len(set(taken)) == 5
    with pytest.raises(RuntimeError, match="all 5 pod addresses are in use"):
        pool.take()
    pool.release(taken[3])
    pool.release(taken[0])
    assert [pool.take(), pool.take()] == [taken[3], taken[0]]


def test_link_names_fit_the_kernels_limit():
    for address in IPv4Network("10.244.0.0/29"):
        assert len(link_name(address)) <= 15
