"""`spire-agent tpm devid provision`."""

from __future__ import annotations

from operations.errors import InvalidArgument
from operations.flags import FlagSet, Run


def provision(flags: FlagSet) -> Run:
    tcti = flags.string(
        "tcti", "", "The TPM, as a TCTI `string` such as device:/dev/tpmrm0; the machine's one if unset"
    )
    out = flags.string("out", "", "The `folder` for the key's blobs and the request")
    key_type = flags.string("keyType", "ec-p256", "The key's `type`: ec-p256 or rsa-2048")
    subject = flags.string("subject", "", "The request's subject, as in CN=node-1,O=Example; the host's name if unset")
    serial = flags.string(
        "serialNumber", "", "The machine's serial `number`, for the subject and as the TCG's hardware module name"
    )
    password = flags.string("passwordFile", "", "A `file` of mode 0600 with the password that the key is to have")
    owner = flags.string("ownerPasswordFile", "", "A `file` of mode 0600 with the owner hierarchy's password")

    def run(args: list[str]) -> int:
        flags.parse(args)
        if not out.value:
            raise InvalidArgument("-out is required: a folder for the key's blobs and the request")
        # The libraries that this needs are heavy, and a usage need not wait for them.
        import os
        import socket
        from pathlib import Path

        from attestors.tpm_devid import devices, provisioning
        from attestors.tpm_devid.jobs import Access
        from operations.files import read_secret

        # The library would say on standard error what the errors say.
        os.environ.setdefault("TSS2_LOG", "all+NONE")
        wanted = provisioning.Wanted(
            folder=Path(out.value),
            key_type=key_type.value,
            subject=subject.value or f"CN={socket.gethostname()}",
            serial_number=serial.value,
        )
        access = Access(
            tcti=devices.named(tcti.value),
            devid_auth=read_secret(password.value, "password").encode() if password.value else b"",
            owner_auth=read_secret(owner.value, "password").encode() if owner.value else b"",
        )
        print(provisioning.provision(wanted, access), end="")
        return 0

    return run
