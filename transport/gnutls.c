/* What transport/external_key.py needs of GnuTLS beside its own functions: callbacks that lead into Python, and
 * memory that GnuTLS may free. */
#include <errno.h>
#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>
#include <string.h>

/* Defined by cffi; each returns a negative code when the Python behind it raises, so that a handshake fails closed. */
static int tls_sign(void *key, int algorithm, const void *data, size_t length, int hashed, gnutls_datum_t *signature);
static int tls_knows(void *key, int algorithm);

typedef struct {
    void *handle;  /* of the Python object that signs */
    int rsa;
    int bits;
} tls_key;

static int sign_data(gnutls_privkey_t key, gnutls_sign_algorithm_t algorithm, void *user, unsigned int flags,
                     const gnutls_datum_t *data, gnutls_datum_t *signature) {
    return tls_sign(((tls_key *)user)->handle, algorithm, data->data, data->size, 0, signature);
}

static int sign_hash(gnutls_privkey_t key, gnutls_sign_algorithm_t algorithm, void *user, unsigned int flags,
                     const gnutls_datum_t *hash, gnutls_datum_t *signature) {
    return tls_sign(((tls_key *)user)->handle, algorithm, hash->data, hash->size, 1, signature);
}

static int info(gnutls_privkey_t key, unsigned int flags, void *user) {
    tls_key *self = user;
    if (flags & GNUTLS_PRIVKEY_INFO_PK_ALGO)
        return self->rsa ? GNUTLS_PK_RSA : GNUTLS_PK_ECDSA;
    if (flags & GNUTLS_PRIVKEY_INFO_PK_ALGO_BITS)
        return self->bits;
    if (flags & GNUTLS_PRIVKEY_INFO_HAVE_SIGN_ALGO)
        return tls_knows(self->handle, GNUTLS_FLAGS_TO_SIGN_ALGO(flags)) == 1;
    if (flags & GNUTLS_PRIVKEY_INFO_SIGN_ALGO)
        return 0;
    return -1;
}

/* Copies a signature into memory that GnuTLS frees. */
static int tls_set(gnutls_datum_t *datum, const void *data, size_t length) {
    datum->data = gnutls_malloc(length);
    if (datum->data == NULL)
        return GNUTLS_E_MEMORY_ERROR;
    memcpy(datum->data, data, length);
    datum->size = (unsigned int)length;
    return 0;
}

/* Credentials with one certificate chain (DER, leaf first) whose key is `key`, which must outlive them. */
static int tls_credentials(gnutls_certificate_credentials_t *made, const gnutls_datum_t *chain, int count,
                           tls_key *key) {
    gnutls_certificate_credentials_t credentials = NULL;
    gnutls_privkey_t private_key = NULL;
    gnutls_pcert_st *certificates = gnutls_calloc((size_t)count, sizeof *certificates);
    int loaded = 0;
    int code = certificates == NULL ? GNUTLS_E_MEMORY_ERROR : gnutls_certificate_allocate_credentials(&credentials);
    for (; code >= 0 && loaded < count; loaded++) {
        code = gnutls_pcert_import_x509_raw(&certificates[loaded], &chain[loaded], GNUTLS_X509_FMT_DER, 0);
        if (code < 0)
            break;
    }
    if (code >= 0)
        code = gnutls_privkey_init(&private_key);
    if (code >= 0)
        code = gnutls_privkey_import_ext4(private_key, key, sign_data, sign_hash, NULL, NULL, info, 0);
    if (code >= 0) {
        /* The check would sign something here and now; external_key.py compares the public keys instead. */
        gnutls_certificate_set_flags(credentials, GNUTLS_CERTIFICATE_SKIP_KEY_CERT_MATCH);
        code = gnutls_certificate_set_key(credentials, NULL, 0, certificates, count, private_key);
    }
    if (code >= 0) {
        /* The credentials own the certificates' content and the key now, but not the array. */
        gnutls_free(certificates);
        *made = credentials;
        return 0;
    }
    while (loaded-- > 0)
        gnutls_pcert_deinit(&certificates[loaded]);
    gnutls_free(certificates);
    if (private_key != NULL)
        gnutls_privkey_deinit(private_key);
    if (credentials != NULL)
        gnutls_certificate_free_credentials(credentials);
    return code;
}

/* A client session on a non-blocking socket: TLS 1.2 or 1.3, ALPN h2 or nothing, no resumption. */
static int tls_client(gnutls_session_t *made, gnutls_certificate_credentials_t credentials, int descriptor) {
    static const gnutls_datum_t h2 = {(unsigned char *)"h2", 2};
    gnutls_session_t session = NULL;
    int code = gnutls_init(&session, GNUTLS_CLIENT | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS |
                                         GNUTLS_FORCE_CLIENT_CERT);
    if (code >= 0)
        code = gnutls_priority_set_direct(
            session, "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-KX-ALL:+ECDHE-ECDSA:+ECDHE-RSA:-SIGN-RSA-SHA1", NULL);
    if (code >= 0)
        code = gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials);
    if (code >= 0)
        code = gnutls_alpn_set_protocols(session, &h2, 1, GNUTLS_ALPN_MANDATORY);
    if (code < 0) {
        if (session != NULL)
            gnutls_deinit(session);
        return code;
    }
    gnutls_transport_set_int(session, descriptor);
    gnutls_handshake_set_timeout(session, 0);
    *made = session;
    return 0;
}

static int tls_speaks_h2(gnutls_session_t session) {
    gnutls_datum_t chosen;
    return gnutls_alpn_get_selected_protocol(session, &chosen) == 0 && chosen.size == 2 &&
           memcmp(chosen.data, "h2", 2) == 0;
}
