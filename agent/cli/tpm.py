"""`spire-agent tpm evidence`."""

from __future__ import annotations

from operations.errors import InvalidArgument
from operations.flags import FlagSet, Run


def evidence(flags: FlagSet) -> Run:
    tcti = flags.string("tcti", "device:/dev/tpmrm0", "The TPM, as a TCTI `string`")
    out = flags.string("out", "", "The `FILE` to write; required")
    bank = flags.string("pcrBank", "sha256", "The `bank` of registers to quote: sha1, sha256, sha384 or sha512")
    kind = flags.string("ek", "auto", "The endorsement key's `kind`: rsa, ecc, or auto for the one that an agent takes")
    event_log = flags.string("eventLogPath", "", "The firmware's event log, where it is not the kernel's `file`")
    ima = flags.string("imaPath", "", "The list of IMA's measurements, where it is not the kernel's `file`")
    owner = flags.string("ownerAuthFile", "", "A `file` of mode 0600 with the owner hierarchy's authorization")
    endorsement = flags.string(
        "endorsementAuthFile", "", "A `file` of mode 0600 with the endorsement hierarchy's authorization"
    )

    def run(_: list[str]) -> int:
        if not out.value:
            raise InvalidArgument("-out is required: the file to write the evidence to")
        # What a usage need not wait for.
        import asyncio

        import msgspec

        from attestors.tpm import collecting
        from attestors.tpm import evidence as files
        from attestors.tpm.agent import Configuration
        from attestors.tpm.pcrs import BANKS
        from operations import logs

        if bank.value not in BANKS:
            raise InvalidArgument(f"-pcrBank: {bank.value!r} is none of {', '.join(BANKS)}")
        given = {
            "tcti": tcti.value,
            "ek": kind.value,
            "event_log_path": event_log.value,
            "ima_path": ima.value,
            "owner_auth_file": owner.value or None,
            "endorsement_auth_file": endorsement.value or None,
        }
        try:
            configuration = msgspec.convert(given, Configuration)
        except msgspec.ValidationError as error:
            raise InvalidArgument(f"-ek: {kind.value!r} is none of auto, rsa and ecc") from error
        taken = asyncio.run(collecting.collect(configuration, bank.value, logs.get()))
        files.write(out.value, taken)
        print(collecting.told(taken, out.value))
        return 0

    return run
