"""Programs of other makers that use the stand-in."""

import os
import re
import shutil
import subprocess
from urllib.parse import unquote

import pytest

SECONDS = 30
MANUFACTURER = "luna_ext stand-in, not an HSM"
SO_PIN, USER_PIN = "officer-1", "user-pin-1"
DEVICE_ERROR = 0x30


class Program:
    """A command line client, in an environment without anything of its user's configuration."""

    def __init__(self, *command, **environment):
        self.command = command
        self.environment = environment

    def run(self, *arguments):
        configuring = ("P11_KIT_", "GNUTLS_", "OPENSC_", "XDG_", "LC_")
        kept = {key: os.environ[key] for key in os.environ if not key.startswith(configuring)}
        return subprocess.run(
            [*self.command, *arguments],
            env={**kept, "LC_ALL": "C.UTF-8", **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def __call__(self, *arguments):
        """What it prints when it succeeds."""
        finished = self.run(*arguments)
        assert finished.returncode == 0, finished
        return finished.stdout

    def refusal(self, *arguments):
        """What it prints when it fails, of its own accord and not by a signal."""
        finished = self.run(*arguments)
        assert finished.returncode > 0, finished
        return finished.stdout + finished.stderr


def installed(program, package):
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (Debian: {package})")
    return path


def described_slots(output):
    """What pkcs11-tool says about each slot, by slot ID."""
    slots = {}
    for line in output.splitlines():
        if heading := re.match(r"Slot \d+ \((0x[0-9a-f]+)\): (.*)", line):
            fields = slots[int(heading[1], 16)] = {"description": heading[2]}
        elif slots:
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
    return slots


def tokens_of_urls(output):
    """Label and serial number of each token whose URL is printed, in order."""
    urls = re.findall(r"pkcs11:(\S+)", output)
    attributes = [dict(part.split("=", 1) for part in url.split(";")) for url in urls]
    return [(unquote(each["token"]), unquote(each["serial"])) for each in attributes]


def labels_and_serials(luna):
    return [(token.label, token.info.serial_number) for token in luna.tokens()]
