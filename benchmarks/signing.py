"""Locks by luna_ext and signatures by python-pkcs11 under them, in several processes with several threads
each, with real cryptography: on the stand-in over SoftHSM2. Prints operations per second, errors, and how
often two had one token at a time; exits with 1 if there was any of the two.

python benchmarks/signing.py --backend /usr/lib/softhsm/libsofthsm2.so
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time

import pkcs11

from luna_ext.stub import Cluster

SO_PIN, USER_PIN = "12345678", "87654321"
MODULES = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"]


def prepare(cluster: Cluster, tokens: int) -> None:
    with cluster.library() as luna:
        for number in range(tokens):
            with luna.claim(cluster.cluster_id) as claimed:
                token = claimed.assign(f"signing{number}", so_pin=SO_PIN, user_pin=USER_PIN)
                with token.pkcs11().open(rw=True, user_pin=USER_PIN) as session:
                    session.generate_keypair(pkcs11.KeyType.RSA, 2048, label="key", store=True)


def work(path: str, tokens: int, threads: int, seconds: float, marks: str) -> tuple[int, int, int]:
    counts = [0, 0, 0]  # signatures, errors, tokens that another one had at the same time
    with Cluster(path).library() as luna:
        found = [luna.token(f"signing{number}") for number in range(tokens)]
        end = time.monotonic() + seconds

        def sign() -> None:
            chance = random.Random()
            while time.monotonic() < end:
                token = chance.choice(found)
                try:
                    with token:
                        mark = f"{marks}/{token.slot.slot_id}"
                        try:
                            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
                        except FileExistsError:
                            counts[2] += 1
                        with token.pkcs11().open(user_pin=USER_PIN) as session:
                            key = session.get_key(
                                object_class=pkcs11.ObjectClass.PRIVATE_KEY, label="key"
                            )
                            data = os.urandom(32)
                            signature = key.sign(data, mechanism=pkcs11.Mechanism.SHA256_RSA_PKCS)
                            public = session.get_key(
                                object_class=pkcs11.ObjectClass.PUBLIC_KEY, label="key"
                            )
                            assert public.verify(
                                data, signature, mechanism=pkcs11.Mechanism.SHA256_RSA_PKCS
                            )
                        os.unlink(mark)
                    counts[0] += 1
                except Exception as error:
                    counts[1] += 1
                    print(repr(error), file=sys.stderr)

        running = [threading.Thread(target=sign) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    return counts[0], counts[1], counts[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default=next(filter(os.path.exists, MODULES), MODULES[0]))
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--work", nargs=2, metavar=("STATE", "MARKS"), help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="a moment, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.processes, options.threads, options.tokens, options.seconds = 2, 2, 2, 0.5
    if options.work:
        path, marks = options.work
        print(*work(path, options.tokens, options.threads, options.seconds, marks))
        return 0
    with (
        tempfile.TemporaryDirectory() as marks,
        Cluster(keyrings=options.tokens, backend=options.backend) as cluster,
    ):
        prepare(cluster, options.tokens)
        command = [sys.executable, __file__, "--tokens", str(options.tokens)]
        command += ["--threads", str(options.threads), "--seconds", str(options.seconds)]
        command += ["--backend", options.backend, "--work", cluster.path, marks]
        environment = {**os.environ, "LUNA_STUB_BACKEND": options.backend}
        began = time.monotonic()
        running = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            for _ in range(options.processes)
        ]
        said = [process.communicate()[0].split() for process in running]
        took = time.monotonic() - began
    signatures, errors, doubles = (sum(int(words[index]) for words in said) for index in range(3))
    print(
        f"{options.processes} processes x {options.threads} threads on {options.tokens} tokens: "
        f"{signatures} signatures in {took:.1f} s, {signatures / options.seconds:.0f} per second; "
        f"{errors} errors, {doubles} double holds"
    )
    return 1 if errors or doubles else 0


if __name__ == "__main__":
    raise SystemExit(main())
