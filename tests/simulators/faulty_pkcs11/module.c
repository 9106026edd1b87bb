/* A PKCS#11 module that is another one, with the faults that a script asks for. faulty_hsm.py says which there are. */
#include <dlfcn.h>
#include <stdio.h>

#include "effects.h"

#define S CK_SESSION_HANDLE session
#define BYTES(name) CK_BYTE *name, CK_ULONG name##_size
#define OUTPUT(name) CK_BYTE *name, CK_ULONG *name##_size
#define TEMPLATE CK_ATTRIBUTE *attributes, CK_ULONG count
#define IN(handle) handle_in(session, handle)

#define FORWARD(name, parameters, arguments) \
    static CK_RV faulty_##name parameters {  \
        Call call;                           \
        if (call_begin(&call, #name, false)) \
            call.rv = real->name arguments;  \
        return call_end(&call);              \
    }

/* For functions that give an object's handle. */
#define GIVING(name, parameters, arguments, handle) \
    static CK_RV faulty_##name parameters {         \
        Call call;                                  \
        if (call_begin(&call, #name, false)) {      \
            call.rv = real->name arguments;         \
            if (call.rv == CKR_OK)                  \
                *handle = handle_out(*handle);      \
        }                                           \
        return call_end(&call);                     \
    }

FORWARD(C_GetSlotInfo, (CK_SLOT_ID slot, CK_SLOT_INFO *info), (slot, info))
FORWARD(C_WaitForSlotEvent, (CK_FLAGS flags, CK_SLOT_ID *slot, void *reserved), (flags, slot, reserved))
FORWARD(C_InitToken, (CK_SLOT_ID slot, BYTES(pin), CK_UTF8CHAR *label), (slot, pin, pin_size, label))
FORWARD(C_InitPIN, (S, BYTES(pin)), (session, pin, pin_size))
FORWARD(C_SetPIN, (S, BYTES(old), BYTES(new)), (session, old, old_size, new, new_size))
FORWARD(C_GetSessionInfo, (S, CK_SESSION_INFO *info), (session, info))
FORWARD(C_GetOperationState, (S, OUTPUT(state)), (session, state, state_size))
FORWARD(C_SetOperationState, (S, BYTES(state), CK_OBJECT_HANDLE encryption, CK_OBJECT_HANDLE authentication),
        (session, state, state_size, IN(encryption), IN(authentication)))
FORWARD(C_Login, (S, CK_USER_TYPE user, BYTES(pin)), (session, user, pin, pin_size))
FORWARD(C_Logout, (S), (session))
GIVING(C_CreateObject, (S, TEMPLATE, CK_OBJECT_HANDLE *object), (session, attributes, count, object), object)
GIVING(C_CopyObject, (S, CK_OBJECT_HANDLE from, TEMPLATE, CK_OBJECT_HANDLE *object),
       (session, IN(from), attributes, count, object), object)
FORWARD(C_DestroyObject, (S, CK_OBJECT_HANDLE object), (session, IN(object)))
FORWARD(C_GetObjectSize, (S, CK_OBJECT_HANDLE object, CK_ULONG *size), (session, IN(object), size))
FORWARD(C_SetAttributeValue, (S, CK_OBJECT_HANDLE object, TEMPLATE), (session, IN(object), attributes, count))
FORWARD(C_FindObjectsInit, (S, TEMPLATE), (session, attributes, count))
FORWARD(C_EncryptInit, (S, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key), (session, mechanism, IN(key)))
FORWARD(C_Encrypt, (S, BYTES(data), OUTPUT(out)), (session, data, data_size, out, out_size))
FORWARD(C_EncryptUpdate, (S, BYTES(data), OUTPUT(out)), (session, data, data_size, out, out_size))
FORWARD(C_EncryptFinal, (S, OUTPUT(out)), (session, out, out_size))
FORWARD(C_DecryptInit, (S, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key), (session, mechanism, IN(key)))
FORWARD(C_Decrypt, (S, BYTES(data), OUTPUT(out)), (session, data, data_size, out, out_size))
FORWARD(C_DecryptUpdate, (S, BYTES(data), OUTPUT(out)), (session, data, data_size, out, out_size))
FORWARD(C_DecryptFinal, (S, OUTPUT(out)), (session, out, out_size))
FORWARD(C_DigestInit, (S, CK_MECHANISM *mechanism), (session, mechanism))
FORWARD(C_Digest, (S, BYTES(data), OUTPUT(out)), (session, data, data_size, out, out_size))
FORWARD(C_DigestUpdate, (S, BYTES(data)), (session, data, data_size))
FORWARD(C_DigestKey, (S, CK_OBJECT_HANDLE key), (session, IN(key)))
FORWARD(C_DigestFinal, (S, OUTPUT(out)), (session, out, out_size))
FORWARD(C_SignUpdate, (S, BYTES(data)), (session, data, data_size))
FORWARD(C_SignFinal, (S, OUTPUT(out)), (session, out, out_size))
FORWARD(C_SignRecoverInit, (S, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key), (session, mechanism, IN(key)))
FORWARD(C_SignRecover, (S, BYTES(data), OUTPUT(out)), (session, data, data_size, out, out_size))
FORWARD(C_VerifyInit, (S, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key), (session, mechanism, IN(key)))
FORWARD(C_Verify, (S, BYTES(data), BYTES(signature)), (session, data, data_size, signature, signature_size))
FORWARD(C_VerifyUpdate, (S, BYTES(data)), (session, data, data_size))
FORWARD(C_VerifyFinal, (S, BYTES(signature)), (session, signature, signature_size))
FORWARD(C_VerifyRecoverInit, (S, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key), (session, mechanism, IN(key)))
FORWARD(C_VerifyRecover, (S, BYTES(signature), OUTPUT(out)), (session, signature, signature_size, out, out_size))
FORWARD(C_DigestEncryptUpdate, (S, BYTES(data), OUTPUT(out)), (session, data, data_size, out, out_size))
FORWARD(C_DecryptDigestUpdate, (S, BYTES(data), OUTPUT(out)), (session, data, data_size, out, out_size))
FORWARD(C_SignEncryptUpdate, (S, BYTES(data), OUTPUT(out)), (session, data, data_size, out, out_size))
FORWARD(C_DecryptVerifyUpdate, (S, BYTES(data), OUTPUT(out)), (session, data, data_size, out, out_size))
GIVING(C_GenerateKey, (S, CK_MECHANISM *mechanism, TEMPLATE, CK_OBJECT_HANDLE *key),
       (session, mechanism, attributes, count, key), key)
FORWARD(C_WrapKey, (S, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE wrapping, CK_OBJECT_HANDLE key, OUTPUT(out)),
        (session, mechanism, IN(wrapping), IN(key), out, out_size))
GIVING(C_UnwrapKey, (S, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE by, BYTES(wrapped), TEMPLATE, CK_OBJECT_HANDLE *key),
       (session, mechanism, IN(by), wrapped, wrapped_size, attributes, count, key), key)
GIVING(C_DeriveKey, (S, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE base, TEMPLATE, CK_OBJECT_HANDLE *key),
       (session, mechanism, IN(base), attributes, count, key), key)
FORWARD(C_SeedRandom, (S, BYTES(seed)), (session, seed, seed_size))
FORWARD(C_GenerateRandom, (S, BYTES(random)), (session, random, random_size))
FORWARD(C_GetFunctionStatus, (S), (session))
FORWARD(C_CancelFunction, (S), (session))

static CK_RV faulty_C_Initialize(void *arguments) {
    Call call;
    script_open();
    if (call_begin(&call, "C_Initialize", false)) {
        CK_C_INITIALIZE_ARGS *wanted = arguments;
        bool locking = wanted != NULL && ((wanted->flags & CKF_OS_LOCKING_OK) != 0 || wanted->CreateMutex != NULL);
        if (locking && script_fault(&call, "unlockable", false) != NULL)
            call.rv = CKR_CANT_LOCK;
        else
            call.rv = real->C_Initialize(arguments);
    }
    return call_end(&call);
}

static CK_RV faulty_C_Finalize(void *reserved) {
    Call call;
    if (call_begin(&call, "C_Finalize", false)) {
        call.rv = real->C_Finalize(reserved);
        script_no_sessions();
    }
    return call_end(&call);
}

static CK_RV faulty_C_GetInfo(CK_INFO *info) {
    Call call;
    if (call_begin(&call, "C_GetInfo", false)) {
        call.rv = real->C_GetInfo(info);
        alter_text(&call, "manufacturer", info->manufacturerID, sizeof info->manufacturerID);
        alter_text(&call, "description", info->libraryDescription, sizeof info->libraryDescription);
    }
    return call_end(&call);
}

static CK_RV faulty_C_GetSlotList(CK_BBOOL present, CK_SLOT_ID *slots, CK_ULONG *count) {
    Call call;
    if (call_begin(&call, "C_GetSlotList", false)) {
        if (present && script_fault(&call, "empty", true) != NULL)
            *count = 0;
        else
            call.rv = real->C_GetSlotList(present, slots, count);
    }
    return call_end(&call);
}

static CK_RV faulty_C_GetTokenInfo(CK_SLOT_ID slot, CK_TOKEN_INFO *info) {
    Call call;
    if (call_begin(&call, "C_GetTokenInfo", false)) {
        call.rv = real->C_GetTokenInfo(slot, info);
        alter_text(&call, "manufacturer", info->manufacturerID, sizeof info->manufacturerID);
        alter_text(&call, "model", info->model, sizeof info->model);
        const char *limit = script_fault(&call, "limit", true);
        if (limit != NULL) {
            sscanf(limit, "%lu %lu", &info->ulMaxSessionCount, &info->ulMaxRwSessionCount);
            script_count_sessions(&info->ulSessionCount, &info->ulRwSessionCount);
        }
    }
    return call_end(&call);
}

static CK_RV faulty_C_GetMechanismList(CK_SLOT_ID slot, CK_MECHANISM_TYPE *mechanisms, CK_ULONG *count) {
    Call call;
    if (call_begin(&call, "C_GetMechanismList", mechanisms == NULL)) {
        call.rv = real->C_GetMechanismList(slot, mechanisms, count);
        if (call.rv == CKR_OK && mechanisms != NULL) {
            CK_ULONG kept = 0;
            for (CK_ULONG index = 0; index < *count; index++)
                if (!mechanism_lacking(&call, mechanisms[index]))
                    mechanisms[kept++] = mechanisms[index];
            *count = kept;
        }
    }
    return call_end(&call);
}

static CK_RV faulty_C_GetMechanismInfo(CK_SLOT_ID slot, CK_MECHANISM_TYPE mechanism, CK_MECHANISM_INFO *info) {
    Call call;
    if (call_begin(&call, "C_GetMechanismInfo", false))
        call.rv = mechanism_lacking(&call, mechanism) ? CKR_MECHANISM_INVALID
                                                            : real->C_GetMechanismInfo(slot, mechanism, info);
    return call_end(&call);
}

static CK_RV faulty_C_OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify,
                                  CK_SESSION_HANDLE *session) {
    Call call;
    if (call_begin(&call, "C_OpenSession", false)) {
        bool read_write = (flags & CKF_RW_SESSION) != 0;
        unsigned long most = 0, most_rw = 0, all = 0, rw = 0;
        const char *limit = script_fault(&call, "limit", true);
        if (limit != NULL) {
            sscanf(limit, "%lu %lu", &most, &most_rw);
            script_count_sessions(&all, &rw);
        }
        if ((most > 0 && all >= most) || (most_rw > 0 && read_write && rw >= most_rw))
            call.rv = CKR_SESSION_COUNT;
        else
            call.rv = real->C_OpenSession(slot, flags, application, notify, session);
        if (call.rv == CKR_OK)
            script_session(*session, read_write, true);
    }
    return call_end(&call);
}

static CK_RV faulty_C_CloseSession(CK_SESSION_HANDLE session) {
    Call call;
    if (call_begin(&call, "C_CloseSession", false)) {
        call.rv = real->C_CloseSession(session);
        script_session(session, false, false);
    }
    return call_end(&call);
}

static CK_RV faulty_C_CloseAllSessions(CK_SLOT_ID slot) {
    Call call;
    if (call_begin(&call, "C_CloseAllSessions", false)) {
        call.rv = real->C_CloseAllSessions(slot);
        script_no_sessions();
    }
    return call_end(&call);
}

static CK_RV faulty_C_GetAttributeValue(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *attributes,
                                        CK_ULONG count) {
    Call call;
    if (call_begin(&call, "C_GetAttributeValue", false))
        call.rv = altered_attributes(&call, session, IN(object), attributes, count);
    return call_end(&call);
}

static CK_RV faulty_C_FindObjects(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *objects, CK_ULONG most,
                                  CK_ULONG *count) {
    Call call;
    if (call_begin(&call, "C_FindObjects", false)) {
        call.rv = real->C_FindObjects(session, objects, most, count);
        if (call.rv == CKR_OK) {
            if (script_fault(&call, "empty", true) != NULL)
                *count = 0;
            if (script_fault(&call, "twice", true) != NULL && *count == 1 && most > 1)
                objects[(*count)++] = objects[0];
            for (CK_ULONG index = 0; index < *count; index++)
                objects[index] = handle_out(objects[index]);
        }
    }
    return call_end(&call);
}

/* A search ends even where its end fails. */
static CK_RV faulty_C_FindObjectsFinal(CK_SESSION_HANDLE session) {
    Call call;
    bool reached = call_begin(&call, "C_FindObjectsFinal", false);
    CK_RV rv = real->C_FindObjectsFinal(session);
    if (reached)
        call.rv = rv;
    return call_end(&call);
}

static CK_RV faulty_C_SignInit(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key) {
    Call call;
    if (call_begin(&call, "C_SignInit", false)) {
        CK_OBJECT_HANDLE used = IN(key);
        if (script_fault(&call, "swap", false) != NULL)
            used = another_key(session, used);
        if (mechanism_lacking(&call, mechanism->mechanism))
            call.rv = CKR_MECHANISM_INVALID;
        else
            call.rv = real->C_SignInit(session, mechanism, used);
    }
    return call_end(&call);
}

static CK_RV faulty_C_Sign(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG size, CK_BYTE *signature,
                           CK_ULONG *length) {
    Call call;
    if (call_begin(&call, "C_Sign", signature == NULL))
        call.rv = altered_signature(&call, session, data, size, signature, length);
    else
        signature_discarded(session, data, size);
    return call_end(&call);
}

static CK_RV faulty_C_GenerateKeyPair(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *public_template,
                                      CK_ULONG public_count, CK_ATTRIBUTE *private_template, CK_ULONG private_count,
                                      CK_OBJECT_HANDLE *public_key, CK_OBJECT_HANDLE *private_key) {
    Call call;
    if (call_begin(&call, "C_GenerateKeyPair", false)) {
        if (!template_refused(&call, private_template, private_count))
            call.rv = real->C_GenerateKeyPair(session, mechanism, public_template, public_count, private_template,
                                              private_count, public_key, private_key);
        if (call.rv == CKR_OK) {
            *public_key = handle_out(*public_key);
            *private_key = handle_out(*private_key);
        }
    }
    return call_end(&call);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list);

#define ENTRY(name) .name = faulty_##name

static CK_FUNCTION_LIST functions = {
    .version = {2, 40},
    .C_GetFunctionList = C_GetFunctionList,
    ENTRY(C_Initialize),
    ENTRY(C_Finalize),
    ENTRY(C_GetInfo),
    ENTRY(C_GetSlotList),
    ENTRY(C_GetSlotInfo),
    ENTRY(C_GetTokenInfo),
    ENTRY(C_GetMechanismList),
    ENTRY(C_GetMechanismInfo),
    ENTRY(C_InitToken),
    ENTRY(C_InitPIN),
    ENTRY(C_SetPIN),
    ENTRY(C_OpenSession),
    ENTRY(C_CloseSession),
    ENTRY(C_CloseAllSessions),
    ENTRY(C_GetSessionInfo),
    ENTRY(C_GetOperationState),
    ENTRY(C_SetOperationState),
    ENTRY(C_Login),
    ENTRY(C_Logout),
    ENTRY(C_CreateObject),
    ENTRY(C_CopyObject),
    ENTRY(C_DestroyObject),
    ENTRY(C_GetObjectSize),
    ENTRY(C_GetAttributeValue),
    ENTRY(C_SetAttributeValue),
    ENTRY(C_FindObjectsInit),
    ENTRY(C_FindObjects),
    ENTRY(C_FindObjectsFinal),
    ENTRY(C_EncryptInit),
    ENTRY(C_Encrypt),
    ENTRY(C_EncryptUpdate),
    ENTRY(C_EncryptFinal),
    ENTRY(C_DecryptInit),
    ENTRY(C_Decrypt),
    ENTRY(C_DecryptUpdate),
    ENTRY(C_DecryptFinal),
    ENTRY(C_DigestInit),
    ENTRY(C_Digest),
    ENTRY(C_DigestUpdate),
    ENTRY(C_DigestKey),
    ENTRY(C_DigestFinal),
    ENTRY(C_SignInit),
    ENTRY(C_Sign),
    ENTRY(C_SignUpdate),
    ENTRY(C_SignFinal),
    ENTRY(C_SignRecoverInit),
    ENTRY(C_SignRecover),
    ENTRY(C_VerifyInit),
    ENTRY(C_Verify),
    ENTRY(C_VerifyUpdate),
    ENTRY(C_VerifyFinal),
    ENTRY(C_VerifyRecoverInit),
    ENTRY(C_VerifyRecover),
    ENTRY(C_DigestEncryptUpdate),
    ENTRY(C_DecryptDigestUpdate),
    ENTRY(C_SignEncryptUpdate),
    ENTRY(C_DecryptVerifyUpdate),
    ENTRY(C_GenerateKey),
    ENTRY(C_GenerateKeyPair),
    ENTRY(C_WrapKey),
    ENTRY(C_UnwrapKey),
    ENTRY(C_DeriveKey),
    ENTRY(C_SeedRandom),
    ENTRY(C_GenerateRandom),
    ENTRY(C_GetFunctionStatus),
    ENTRY(C_CancelFunction),
    ENTRY(C_WaitForSlotEvent),
};

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list) {
    script_open();
    if (real == NULL) {
        void *library = dlopen(REAL_MODULE, RTLD_NOW | RTLD_LOCAL);
        CK_C_GetFunctionList get = library == NULL ? NULL : (CK_C_GetFunctionList)dlsym(library, "C_GetFunctionList");
        if (get == NULL || get(&real) != CKR_OK)
            return CKR_GENERAL_ERROR;
    }
    *list = &functions;
    return CKR_OK;
}
