"""A service that gives each tenant a keyring of its own: an application of luna_ext.

    python examples/tenants.py cluster-1 add alice bob
    python examples/tenants.py cluster-1 sign alice

`test_tenants.py`, beside it, tests it on the stand-in by the fixtures that luna_ext brings.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Callable

import luna_ext

PATIENCE = 5.0
"""Seconds to wait while another process works with the tenant's keyring."""


class TenantError(Exception):
    """An error with a message for the operator of the service."""


def add_tenant(luna: luna_ext.Library, cluster_id: str, tenant: str, so_pin: str) -> int:
    """Assign an unassigned keyring to a new tenant; its slot ID."""
    if luna.find(tenant):
        raise TenantError(f"there is a tenant {tenant!r} already")
    try:
        with luna.claim(cluster_id) as token:
            return token.assign(tenant, so_pin=so_pin).slot.slot_id
    except luna_ext.NoUnassignedTokenError:
        raise TenantError(f"no keyring is left for {tenant!r}; the cluster needs more") from None


def with_keyring(
    luna: luna_ext.Library,
    tenant: str,
    work: Callable[[int], object],
    *,
    patience: float = PATIENCE,
) -> object:
    """Call `work` with the slot of the tenant's keyring, while no other process works with it."""
    try:
        with luna.token(tenant).lock(timeout=patience) as token:
            result = work(token.slot.slot_id)
            # The result is only good if the lock was held until now.
            token.ensure_held()
            return result
    except luna_ext.TokenNotFoundError:
        raise TenantError(f"there is no tenant {tenant!r}") from None
    except luna_ext.LockTimeoutError:
        raise TenantError(f"the keyring of {tenant!r} is busy; try again later") from None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cluster_id")
    parser.add_argument("action", choices=["add", "sign"])
    parser.add_argument("tenants", nargs="+")
    options = parser.parse_args(arguments)

    with luna_ext.Library() as luna:
        for tenant in options.tenants:
            try:
                if options.action == "add":
                    so_pin = getpass.getpass(f"security officer's PIN for {tenant}: ")
                    slot_id = add_tenant(luna, options.cluster_id, tenant, so_pin)
                    print(f"{tenant}: slot {slot_id}")
                else:
                    with_keyring(luna, tenant, lambda slot_id: print(f"signing in slot {slot_id}"))
            except TenantError as error:
                print(f"{tenant}: {error}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
