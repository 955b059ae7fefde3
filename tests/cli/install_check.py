#!/usr/bin/env python3
"""Installs into a temporary folder and lets systemd read what it will be given: the unit, the group, the folders.

usage: install_check.py BUILD_FOLDER      exits 77 (skipped) where systemd's tools are missing
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

FILES = """
bin/modelstore bin/modelstored bin/modelstore-moments
lib/systemd/system/modelstored.service lib/sysusers.d/modelstore.conf lib/tmpfiles.d/modelstore.conf
share/man/man1/modelstore.1 share/man/man8/modelstored.8 share/bash-completion/completions/modelstore
share/zsh/site-functions/_modelstore share/fish/vendor_completions.d/modelstore.fish
share/doc/modelstore/LICENSE share/doc/modelstore/THIRD_PARTY.md share/doc/modelstore/config.toml
share/doc/modelstore/install.md share/doc/modelstore/README.md share/doc/modelstore/moments.md
""".split()

# Each of these gives a service its own mount namespace: what it mounts, nobody else sees (systemd.exec(5)).
HIDE_THE_MOUNT = """
PrivateTmp PrivateDevices PrivateMounts PrivateIPC PrivateNetwork PrivateUsers ProtectSystem ProtectHome ProtectProc
ProcSubset ProtectKernelTunables ProtectKernelModules ProtectKernelLogs ProtectControlGroups ProtectHostname ReadOnlyPaths
ReadWritePaths InaccessiblePaths ExecPaths NoExecPaths BindPaths BindReadOnlyPaths TemporaryFileSystem RootDirectory
RootImage MountImages ExtensionImages ExtensionDirectories MountFlags MountAPIVFS DynamicUser LoadCredential SetCredential
LogNamespace
""".split()


def run(*command, **options):
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    return done.returncode, done.stdout


def check(build, prefix):
    code, said = run("cmake", "--install", build, "--prefix", str(prefix))
    if code:
        yield f"cmake --install failed:\n{said}"
        return
    yield from (f"{name} is not installed" for name in FILES if not (prefix / name).is_file())

    unit = prefix / "lib/systemd/system/modelstored.service"
    # It looks for the manual pages too.
    man = shutil.which("man") is not None
    code, said = run("systemd-analyze", "verify", f"--man={'yes' if man else 'no'}", str(unit),
                     env=os.environ | {"MANPATH": str(prefix / "share/man")})
    if code or said:
        yield f"systemd-analyze verify, exit code {code}:\n{said}"
    settings = re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.M)
    yield from (f"{key} makes the mount invisible on the host" for key, _ in settings if key in HIDE_THE_MOUNT)
    if ("ExecStart", f"{prefix}/bin/modelstored") not in settings:
        yield "the unit does not start the installed program"

    # In a root of its own, which needs nothing but these files.
    root = prefix / "root"
    for kind in ("sysusers", "tmpfiles"):
        folder = root / f"usr/lib/{kind}.d"
        folder.mkdir(parents=True)
        shutil.copy(prefix / f"lib/{kind}.d/modelstore.conf", folder)
    (root / "etc").mkdir()
    if os.geteuid() == 0:  # they give the files to root
        (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\n")
        code, said = run("systemd-sysusers", f"--root={root}", "modelstore.conf")
        if code or "modelstore:" not in (root / "etc/group").read_text():
            yield f"systemd-sysusers, exit code {code}: no group modelstore\n{said}"
        code, said = run("systemd-tmpfiles", "--create", f"--root={root}", "modelstore.conf")
        modes = {name: (root / name).stat().st_mode & 0o7777 for name in ("run/modelstore", "var/lib/modelstore", "models")
                 if (root / name).is_dir()}
        if code or modes != {"run/modelstore": 0o755, "var/lib/modelstore": 0o700, "models": 0o755}:
            yield f"systemd-tmpfiles, exit code {code}: {modes}\n{said}"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if not shutil.which("systemd-analyze"):
        print("skipped: systemd-analyze is missing (Debian package systemd)")
        sys.exit(77)
    with tempfile.TemporaryDirectory(prefix="modelstore-install.") as folder:
        findings = list(check(sys.argv[1], pathlib.Path(folder).resolve()))
    print("\n".join(findings) or "ok")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
