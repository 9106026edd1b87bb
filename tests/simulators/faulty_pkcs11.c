/* SoftHSM with faults on demand. FAULTY_PKCS11 names a folder:
 *   hang     is renamed to hanging by the next C_Sign, which then does not return until hanging is gone;
 *   fail     holds a CKR code in hex, is renamed to failed by the next C_Sign, which returns that code;
 *   logins   gets a line for each C_Login, with its result.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <p11-kit/pkcs11.h>

static CK_FUNCTION_LIST functions;
static CK_FUNCTION_LIST *real;

static const char *in_folder(char *path, size_t size, const char *name) {
    snprintf(path, size, "%s/%s", getenv("FAULTY_PKCS11"), name);
    return path;
}

static CK_RV faulty_sign(CK_SESSION_HANDLE session, unsigned char *data, unsigned long data_length,
                         unsigned char *signature, unsigned long *signature_length) {
    char from[4096], to[4096];
    if (rename(in_folder(from, sizeof from, "hang"), in_folder(to, sizeof to, "hanging")) == 0) {
        while (access(to, F_OK) == 0)
            usleep(10000);
    }
    if (rename(in_folder(from, sizeof from, "fail"), in_folder(to, sizeof to, "failed")) == 0) {
        unsigned long code = CKR_GENERAL_ERROR;
        FILE *file = fopen(to, "r");
        if (file != NULL) {
            if (fscanf(file, "%lx", &code) != 1)
                code = CKR_GENERAL_ERROR;
            fclose(file);
        }
        return code;
    }
    return real->C_Sign(session, data, data_length, signature, signature_length);
}

static CK_RV counted_login(CK_SESSION_HANDLE session, CK_USER_TYPE user, unsigned char *pin, unsigned long length) {
    char path[4096];
    CK_RV result = real->C_Login(session, user, pin, length);
    FILE *file = fopen(in_folder(path, sizeof path, "logins"), "a");
    if (file != NULL) {
        fprintf(file, "%#lx\n", result);
        fclose(file);
    }
    return result;
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list) {
    if (real == NULL) {
        void *library = dlopen(SOFTHSM, RTLD_NOW | RTLD_LOCAL);
        CK_C_GetFunctionList get = library == NULL ? NULL : (CK_C_GetFunctionList)dlsym(library, "C_GetFunctionList");
        if (get == NULL || get(&real) != CKR_OK)
            return CKR_GENERAL_ERROR;
        functions = *real;
        functions.C_Sign = faulty_sign;
        functions.C_Login = counted_login;
    }
    *list = &functions;
    return CKR_OK;
}
