"""Whom a prompt shares cached blocks with: those of the same salt. Tenants mean nothing there."""


def tenant_salt(key_salt: str, own: str) -> str:
    """What the salt of an API key and that of a request itself make together; empty where there is neither.

    The only place that decides it: the key's stands in front and with its length, so that no request can
    spell another tenant's.
    """
    return f"{len(key_salt)}:{key_salt}{own}" if key_salt or own else ""
