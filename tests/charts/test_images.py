"""The images, as far as no container engine is needed: lint, sources, packages, entry points."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from localcluster.cri.images import DEFAULT_UID, parse_images
from sheaf_e2e.checkout import image_table

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
IMAGES = ("operator", "runtime")
# gcr.io/distroless/python3-debian12, uncompressed; the image workflow measures the whole.
DISTROLESS_MB = 53


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str
    stage: str  # that it belongs to, as named or its number


@cache
def instructions(image: str) -> list[Instruction]:
    """The Dockerfile's instructions: comments dropped, continued lines joined."""
    lines = (ROOT / image / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#")).replace("\\\n", " ")
    found: list[Instruction] = []
    stage, number = "", -1
    for line in filter(None, (line.strip() for line in text.splitlines())):
        name, rest = line.split(maxsplit=1)
        if name == "FROM":
            number += 1
            stage = rest.split(" AS ")[1] if " AS " in rest else str(number)
        found.append(Instruction(name, " ".join(rest.split()), stage))
    return found


def of(image: str, name: str) -> list[Instruction]:
    return [i for i in instructions(image) if i.name == name]


def final(image: str, name: str) -> list[Instruction]:
    last = instructions(image)[-1].stage
    return [i for i in of(image, name) if i.stage == last]


def copies(image: str) -> list[tuple[str | None, list[str], str]]:
    """(stage or image copied from, sources, destination) of each COPY."""
    result = []
    for instruction in of(image, "COPY"):
        words = shlex.split(instruction.text)
        origin = next((w.removeprefix("--from=") for w in words if w.startswith("--from=")), None)
        *sources, destination = [w for w in words if not w.startswith("--")]
        result.append((origin, sources, destination))
    return result


def commands(image: str, program: str) -> list[list[str]]:
    """The calls of a program in RUN instructions."""
    calls = []
    for instruction in of(image, "RUN"):
        for part in instruction.text.split("&&"):
            words = [w for w in shlex.split(part) if not w.startswith("--mount=")]
            if words[0] == program:
                calls.append(words)
    return calls


def uv(arguments: list[str], cwd: Path = ROOT) -> str:
    """Run uv, from its cache where that suffices; returns what it says."""
    env = {**os.environ, "UV_SYSTEM_CERTS": "1", "NO_COLOR": "1"}
    for mode in (["--offline"], []):
        done = subprocess.run(
            [BIN / "uv", *arguments, *mode], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
        )
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def install_command(image: str, **replaced: str) -> list[str]:
    """The RUN line that installs the image's packages, with options such as `target` replaced or added."""
    command = next(c for c in commands(image, "uv") if "--extra" in c)[1:]
    for name, value in replaced.items():
        option = f"--{name}"
        if option in command:
            command[command.index(option) + 1] = value
        else:
            command += [option, value]
    return command


def final_python() -> str:
    """Debian 12's own Python, as in the operator's final stage, where this machine has it."""
    debian = "/usr/bin/python3"
    if Path(debian).exists():
        said = subprocess.run([debian, "--version"], capture_output=True, text=True).stdout
        if said.startswith("Python 3.11."):
            return debian
    return sys.executable


def pins() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("image", IMAGES)
def test_hadolint(image: str) -> None:
    done = subprocess.run(
        [BIN / "hadolint", "--format", "json", ROOT / image / "Dockerfile"], capture_output=True, text=True
    )
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("image", IMAGES)
def test_sources_exist_and_reach_the_builder(image: str) -> None:
    ignore = (ROOT / ".dockerignore").read_text().split()
    shown = [line[1:] for line in ignore if line.startswith("!")]
    stages = {i.stage for i in of(image, "FROM")}
    for origin, sources, _ in copies(image):
        if origin is not None:
            assert origin in stages
            continue
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(fnmatch.fnmatch(source, pattern) for pattern in shown), f".dockerignore hides {source}"


def test_the_context_holds_nothing_else() -> None:
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignore[0] == "*"
    wanted = {
        source for image in IMAGES for origin, sources, _ in copies(image) if not origin for source in sources
    }
    assert {line[1:] for line in ignore if line.startswith("!")} == wanted


@pytest.mark.parametrize("image", IMAGES)
def test_entry_point_user_and_environment_are_those_of_the_local_cluster(image: str) -> None:
    local = parse_images(image_table()).find(f"ghcr.io/sheaf-dev/sheaf/{image}:0.1.0")
    assert local
    (entry,) = final(image, "ENTRYPOINT")
    program, *arguments = json.loads(entry.text)
    local_program, *local_arguments = local.entrypoint
    assert Path(local_program).is_file()
    assert arguments == local_arguments
    assert Path(program).name.rstrip("0123456789.") == Path(local_program).name.rstrip("0123456789.")
    assert not final(image, "CMD")

    (user,) = final(image, "USER")
    uid, gid = user.text.split(":")
    assert int(uid) == int(gid) == local.uid == DEFAULT_UID
    assert final(image, "WORKDIR")[-1].text == local.working_dir

    environment = dict(pair.split("=", 1) for i in final(image, "ENV") for pair in shlex.split(i.text))
    # PATH differs by nature, and the operator has nothing to do with the Hub.
    apart = {"PATH"} if image == "runtime" else {"PATH", "HF_HUB_OFFLINE"}
    assert {name: environment.get(name) for name in local.env.keys() - apart} == {
        name: value for name, value in local.env.items() if name not in apart
    }


@pytest.mark.parametrize("image", IMAGES)
def test_packages_resolve_to_the_pins(image: str, tmp_path: Path) -> None:
    # uv makes the target's folder even in a dry run.
    command = install_command(image, python=sys.executable, target=str(tmp_path / "packages"))
    said = uv([*command, "--dry-run"])
    packages = dict(re.findall(r"^ \+ ([a-z0-9-]+)==(\S+)", said, re.MULTILINE))
    assert packages.items() <= pins().items()
    assert "--require-hashes" in command
    wanted = {"operator": {"kopf", "kubernetes"}, "runtime": {"torch", "triton", "transformers", "fastapi"}}
    assert wanted[image] <= packages.keys()
    if image == "operator":
        assert not {p for p in packages if p in ("torch", "triton") or p.startswith("nvidia")}


def test_the_operators_packages_suffice_and_stay_small(tmp_path: Path) -> None:
    """Install them as the image does, and import the operator from there alone."""
    folder = tmp_path / "opt"
    command = install_command("operator", python=sys.executable, target=str(folder))
    command[command.index("--link-mode") + 1] = "hardlink"
    uv(command)
    ((_, (source,), destination),) = [c for c in copies("operator") if c[1] == ["operator/sheaf_operator"]]
    shutil.copytree(
        ROOT / source, folder / Path(destination).name, ignore=shutil.ignore_patterns("__pycache__")
    )
    (compile_all,) = commands("operator", "python")
    subprocess.run([sys.executable, *compile_all[1:-1], str(folder)], check=True)
    program = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); "
        "import sheaf_operator.main, pydantic; print(pydantic.__file__)"
    )
    done = subprocess.run([final_python(), "-I", "-S", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(folder))
    megabytes = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6
    assert DISTROLESS_MB + megabytes < 200


def test_the_runtimes_wheel_is_built_from_what_is_copied(tmp_path: Path) -> None:
    for origin, sources, destination in copies("runtime"):
        if origin is None:
            for source in sources:
                target = tmp_path / destination
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, target)
                else:
                    shutil.copy(ROOT / source, target)
    (build,) = [c[1:] for c in commands("runtime", "uv") if c[1] == "build"]
    build[build.index("--out-dir") + 1] = str(tmp_path / "wheel")
    uv(build, cwd=tmp_path)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (scripts,) = [archive.read(n).decode() for n in names if n.endswith("entry_points.txt")]
    assert "sheaf = sheaf_runtime.cli:main" in scripts
    for package in ("sheaf_runtime/server/run.py", "sheaf_kernels/__init__.py"):
        assert package in names


@pytest.mark.skipif(not shutil.which("apt-cache"), reason="not Debian: no package list at hand")
def test_debian_packages_exist() -> None:
    wanted = [
        w for call in commands("runtime", "apt-get") if "install" in call for w in call[2:] if w[0] != "-"
    ]
    assert wanted
    for package in wanted:
        if subprocess.run(["apt-cache", "show", "bash"], capture_output=True).returncode != 0:
            pytest.skip("apt has no package list")
        assert subprocess.run(["apt-cache", "show", package], capture_output=True).returncode == 0, package


def test_one_base_for_building_and_running() -> None:
    """Packages with compiled parts and bytecode fit one minor version of Python and one Debian."""
    for image in IMAGES:
        bases = [i.text.split()[0] for i in of(image, "FROM")]
        assert "python:3.11-slim-bookworm" in bases
        assert bases[-1] in ("python:3.11-slim-bookworm", "gcr.io/distroless/python3-debian12:nonroot")
    uvs = {i.text.split()[0] for image in IMAGES for i in of(image, "FROM") if "/uv:" in i.text}
    (version,) = {u.rsplit(":", 1)[1] for u in uvs}
    assert f"uv=={version}" in (ROOT / ".ci" / "setup-env").read_text()
