"""The bundle on this machine: where its programs are, what they are told, and what the machine is."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile

NVIDIA_SMI = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit",
              "temperature.gpu")


class BundleError(Exception):
    """The bundle cannot be used here."""


def digest(path):
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else \
            hashlib.sha256(file.read()).hexdigest()


class Place:
    """An unpacked bundle."""

    def __init__(self, bundle, work):
        self.bundle, self.work = bundle, work
        try:
            self.manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BundleError(f"{bundle} is no bundle of tests/gpu/bundle: {error}") from error
        self.check_system()
        self.root = work / f"bundle-{self.manifest['payload_sha256'][:16]}"
        self.unpack()
        self.python = os.environ.get("SYNFIRE_PYTHON") or shutil.which("python3") or sys.executable
        self.plain = dict(os.environ)
        self.environment = self.with_libraries()
        self.torch = self.version_of_torch()

    def check_system(self):
        """The C library must be as new as what the programs were linked to."""
        here = os.confstr("CS_GNU_LIBC_VERSION") or "glibc 0"
        wanted = self.manifest["glibc"]
        number = lambda text: [int(part) for part in re.findall(r"\d+", text)[:2]]
        if os.uname().machine != self.manifest["machine"]:
            raise BundleError(f"the bundle is for {self.manifest['machine']}, this machine is {os.uname().machine}")
        if number(here) < number(wanted):
            raise BundleError(f"this machine has {here}, the programs need glibc {wanted}: build the bundle on an "
                              "older system, such as Debian 12 or a manylinux_2_28 container")

    def unpack(self):
        """Once per machine; half of one is none."""
        if (self.root / "complete").exists():
            return
        payload = self.bundle / self.manifest["payload"]
        try:
            found = digest(payload)
        except OSError as error:
            raise BundleError(f"{payload}: {error}") from error
        if found != self.manifest["payload_sha256"]:
            raise BundleError(f"{payload} is damaged: its SHA-256 is {found}, the manifest has "
                              f"{self.manifest['payload_sha256']}")
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        with tarfile.open(payload) as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extractall(self.root, filter="data")
            else:
                archive.extractall(self.root)
        for entry in self.manifest["files"]:
            if digest(self.root / entry["path"]) != entry["sha256"]:
                raise BundleError(f"{entry['path']} of the bundle is damaged")
        (self.root / "complete").touch()

    def with_libraries(self):
        """The environment of synfire. The program finds CUDA's libraries itself; but these look for each other
        by name (cuDNN for cuBLAS), for which the loader has to know the folders of Python's packages."""
        environment = dict(os.environ)
        find = ("import importlib.util, pathlib\n"
                "s = importlib.util.find_spec('nvidia')\n"
                "for p in (s.submodule_search_locations if s else []):\n"
                "    for l in sorted(pathlib.Path(p).glob('*/lib')): print(l)\n")
        try:
            found = subprocess.run([self.python, "-c", find], capture_output=True, text=True, timeout=60)
            folders = found.stdout.split("\n")[:-1] if found.returncode == 0 else []
        except (OSError, subprocess.TimeoutExpired):
            folders = []
        known = [folder for folder in environment.get("LD_LIBRARY_PATH", "").split(":") if folder]
        environment["LD_LIBRARY_PATH"] = ":".join(known + folders)
        environment.setdefault("SYNFIRE_CACHE", str(self.work / "kernels"))
        environment["SYNFIRE_GOLDEN"] = str(self.root / "golden")
        return environment

    def version_of_torch(self):
        """PyTorch's version, if there is one."""
        command = [self.python, "-c", "import torch; print(torch.__version__)"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=90)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return said.stdout.strip() if said.returncode == 0 else None

    def path(self, *names):
        """A file of the bundle."""
        return self.root.joinpath(*names)

    @property
    def synfire(self):
        return self.path("bin", "synfire")

    def test(self, name):
        """A packed suite of tests, or nothing."""
        path = self.path("bin", f"test-{name}")
        return path if path.exists() else None


def machine(attempt, place):
    """What numbers have to stand with."""
    said = attempt.run([place.synfire, "doctor", "--json"], 60, place.environment)
    try:
        doctor = json.loads(said.out)
    except ValueError:
        doctor = None
    query = ["nvidia-smi", f"--query-gpu={','.join(NVIDIA_SMI)}", "--format=csv,noheader"]
    smi = attempt.run(query, 20)
    gpus = [dict(zip(NVIDIA_SMI, line.split(", "))) for line in smi.out.splitlines()] if smi.code == 0 else None
    libraries = (doctor or {}).get("libraries", [])
    return {
        "doctor": doctor,
        "gpus_before": gpus,
        "versions": {item["library"]: item["version"] for item in libraries},
        "torch": place.torch,
        "python": sys.version.split()[0],
        "system": " ".join(os.uname()[:3]),
        "glibc": os.confstr("CS_GNU_LIBC_VERSION"),
    }
