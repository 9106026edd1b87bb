/* SoftHSM whose C_Sign takes as long as a network HSM's: SLOW_PKCS11_US microseconds of sleep before each signature. */
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

#include <p11-kit/pkcs11.h>

static CK_FUNCTION_LIST functions;
static CK_FUNCTION_LIST *real;
static struct timespec pause_before;

static CK_RV slow_sign(CK_SESSION_HANDLE session, unsigned char *data, unsigned long data_length,
                       unsigned char *signature, unsigned long *signature_length) {
    if (signature != NULL) /* else the caller asks for the length only */
        nanosleep(&pause_before, NULL);
    return real->C_Sign(session, data, data_length, signature, signature_length);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list) {
    if (real == NULL) {
        void *library = dlopen(SOFTHSM, RTLD_NOW | RTLD_LOCAL);
        CK_C_GetFunctionList get = library == NULL ? NULL : (CK_C_GetFunctionList)dlsym(library, "C_GetFunctionList");
        const char *microseconds = getenv("SLOW_PKCS11_US");
        if (get == NULL || get(&real) != CKR_OK)
            return CKR_GENERAL_ERROR;
        pause_before.tv_nsec = (microseconds == NULL ? 1000 : atol(microseconds)) * 1000;
        functions = *real;
        functions.C_Sign = slow_sign;
    }
    *list = &functions;
    return CKR_OK;
}
