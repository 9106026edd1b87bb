"""Compiles transport/gnutls.c against the system's GnuTLS: `python -m transport.build_gnutls`.

Makes transport/_gnutls*.so in place.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

DECLARATIONS = """
typedef struct { unsigned char *data; unsigned int size; } gnutls_datum_t;
typedef struct gnutls_session_int *gnutls_session_t;
typedef struct gnutls_certificate_credentials_st *gnutls_certificate_credentials_t;
typedef struct { void *handle; int rsa; int bits; } tls_key;

static const int GNUTLS_E_AGAIN, GNUTLS_E_INTERRUPTED, GNUTLS_E_PREMATURE_TERMINATION, GNUTLS_E_PK_SIGN_FAILED;
static const int GNUTLS_SIGN_RSA_SHA256, GNUTLS_SIGN_RSA_SHA384, GNUTLS_SIGN_RSA_SHA512;
static const int GNUTLS_SIGN_RSA_PSS_RSAE_SHA256, GNUTLS_SIGN_RSA_PSS_RSAE_SHA384, GNUTLS_SIGN_RSA_PSS_RSAE_SHA512;
static const int GNUTLS_SIGN_ECDSA_SHA256, GNUTLS_SIGN_ECDSA_SHA384, GNUTLS_SIGN_ECDSA_SHA512;
static const int GNUTLS_SIGN_ECDSA_SECP256R1_SHA256, GNUTLS_SIGN_ECDSA_SECP384R1_SHA384;

int gnutls_handshake(gnutls_session_t);
int gnutls_record_get_direction(gnutls_session_t);
ssize_t gnutls_record_recv(gnutls_session_t, void *, size_t);
ssize_t gnutls_record_send(gnutls_session_t, const void *, size_t);
int gnutls_bye(gnutls_session_t, int how);
const gnutls_datum_t *gnutls_certificate_get_peers(gnutls_session_t, unsigned int *);
int gnutls_protocol_get_version(gnutls_session_t);
const char *gnutls_protocol_get_name(int);
int gnutls_group_get(gnutls_session_t);
const char *gnutls_group_get_name(int);
int gnutls_error_is_fatal(int);
const char *gnutls_strerror(int);
void gnutls_deinit(gnutls_session_t);
void gnutls_certificate_free_credentials(gnutls_certificate_credentials_t);

static int tls_set(gnutls_datum_t *, const void *, size_t);
static int tls_credentials(gnutls_certificate_credentials_t *, const gnutls_datum_t *, int, tls_key *);
static int tls_client(gnutls_session_t *, gnutls_certificate_credentials_t, int);
static int tls_speaks_h2(gnutls_session_t);
extern "Python" int tls_sign(void *, int, const void *, size_t, int, gnutls_datum_t *);
extern "Python" int tls_knows(void *, int);
"""


def build() -> str:
    """Compiles the extension module and returns its path; see build_nghttp2 for why in a folder of its own."""
    ffi = FFI()
    ffi.cdef(DECLARATIONS)
    ffi.set_source(
        "_gnutls",
        (HERE / "gnutls.c").read_text(),
        libraries=["gnutls"],
        extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-unused-function", "-Wno-unused-parameter"],
    )
    with tempfile.TemporaryDirectory(dir=HERE, prefix="build") as scratch, contextlib.chdir(scratch):
        made = Path(str(ffi.compile(tmpdir=scratch)))
        return str(made.replace(HERE / made.name))


if __name__ == "__main__":
    print(build())
