#include "effects.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define EPOCH_SHIFT 40
#define LARGEST_VALUE 1024
#define LARGEST_SIGNATURE 1024

CK_FUNCTION_LIST *real;

static pthread_rwlock_t quiet = PTHREAD_RWLOCK_INITIALIZER;
static unsigned long epoch;
static int inside;

static void forget(void) {
    CK_SLOT_ID slots[64];
    CK_ULONG count = 64;
    pthread_rwlock_wrlock(&quiet);
    if (real->C_GetSlotList(CK_FALSE, slots, &count) == CKR_OK)
        for (CK_ULONG index = 0; index < count; index++)
            real->C_CloseAllSessions(slots[index]);
    script_no_sessions();
    epoch++;
    pthread_rwlock_unlock(&quiet);
}

static void nap(unsigned long microseconds) {
    struct timespec left = {(time_t)(microseconds / 1000000), (long)(microseconds % 1000000) * 1000};
    while (nanosleep(&left, &left) != 0)
        ;
}

static void crash(const char *how) {
    if (strcmp(how, "exit") == 0)
        _exit(0);
    int number = strcmp(how, "abort") == 0 ? SIGABRT : SIGSEGV;
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    signal(number, SIG_DFL);
    raise(number);
}

/* The faults that any function can have; true when one of them ends the call. */
static bool common(Call *call, bool after) {
    bool ended = false;
    if (call->query)
        return false;
    for (int index = 0; index < call->count; index++) {
        const Fault *fault = &call->faults[index];
        if (fault->after != after)
            continue;
        if (strcmp(fault->action, "hang") == 0)
            script_wait(fault);
        else if (strcmp(fault->action, "sleep") == 0)
            nap(strtoul(fault->arguments, NULL, 10));
        else if (strcmp(fault->action, "crash") == 0)
            crash(fault->arguments);
        else if (strcmp(fault->action, "kill") == 0) {
            kill(strcmp(fault->arguments, "parent") == 0 ? getppid() : getpid(), SIGKILL);
            script_wait(fault);
        } else if (strcmp(fault->action, "forget") == 0)
            forget();
        else if (strcmp(fault->action, "heal") == 0)
            script_lift(fault->arguments);
        else if (strcmp(fault->action, "return") == 0) {
            call->rv = strtoul(fault->arguments, NULL, 16);
            ended = true;
        }
    }
    return ended;
}

bool call_begin(Call *call, const char *function, bool query) {
    script_begin(call, function, query);
    if (common(call, false))
        return false;
    if (__atomic_add_fetch(&inside, 1, __ATOMIC_SEQ_CST) > 1)
        script_overlap();
    pthread_rwlock_rdlock(&quiet);
    call->entered = true;
    return true;
}

CK_RV call_end(Call *call) {
    if (call->entered) {
        pthread_rwlock_unlock(&quiet);
        __atomic_sub_fetch(&inside, 1, __ATOMIC_SEQ_CST);
        common(call, true);
    }
    script_end(call);
    return call->rv;
}

CK_OBJECT_HANDLE handle_out(CK_OBJECT_HANDLE handle) { return handle == 0 ? 0 : handle | epoch << EPOCH_SHIFT; }

CK_OBJECT_HANDLE another_key(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE handle) {
    CK_OBJECT_CLASS class = CKO_PRIVATE_KEY;
    CK_ATTRIBUTE wanted = {CKA_CLASS, &class, sizeof class};
    CK_OBJECT_HANDLE found[64];
    CK_ULONG count = 0;
    if (real->C_FindObjectsInit(session, &wanted, 1) != CKR_OK)
        return handle;
    if (real->C_FindObjects(session, found, 64, &count) != CKR_OK)
        count = 0;
    real->C_FindObjectsFinal(session);
    for (CK_ULONG index = 0; index < count; index++)
        if (found[index] != handle)
            return found[index];
    return handle;
}

CK_OBJECT_HANDLE handle_in(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE handle) {
    CK_OBJECT_HANDLE bare = handle & ((1UL << EPOCH_SHIFT) - 1);
    return handle >> EPOCH_SHIFT == epoch ? bare : another_key(session, bare);
}

static bool stands(const CK_ATTRIBUTE *attributes, CK_ULONG count, CK_ATTRIBUTE_TYPE type, long value) {
    for (CK_ULONG index = 0; index < count; index++)
        if (attributes[index].type == type)
            return value < 0 || (attributes[index].ulValueLen == 1 && *(CK_BYTE *)attributes[index].pValue == value);
    return false;
}

bool template_refused(Call *call, const CK_ATTRIBUTE *attributes, CK_ULONG count) {
    for (int index = 0; index < call->count; index++) {
        const Fault *fault = &call->faults[index];
        unsigned long code, type;
        long value = -1;
        if (sscanf(fault->arguments, "%lx %lx %ld", &code, &type, &value) < 2)
            continue;
        bool present = stands(attributes, count, type, value);
        if ((strcmp(fault->action, "refuse") == 0 && present) || (strcmp(fault->action, "require") == 0 && !present)) {
            call->rv = code;
            return true;
        }
    }
    return false;
}

/* Replace the value by what a fault says; false when none speaks of the attribute. */
static bool altered_value(const Call *call, CK_ATTRIBUTE_TYPE type, CK_BYTE *value, CK_ULONG *length) {
    const char *form = type == CKA_EC_POINT ? script_fault(call, "point", true) : NULL;
    if (form != NULL && *length > 2 && value[0] == 0x04) {
        /* From the OCTET STRING, whose length takes one byte up to P-384. */
        if (strcmp(form, "raw") == 0) {
            memmove(value, value + 2, *length -= 2);
        } else {
            memmove(value + 3, value + 2, *length - 2);
            *length += 1;
            value[0] = 0x03, value[1] += 1, value[2] = 0;
        }
        return true;
    }
    for (int index = 0; index < call->count; index++) {
        unsigned long named;
        int rest = 0;
        if (strcmp(call->faults[index].action, "attribute") != 0 ||
            sscanf(call->faults[index].arguments, "%lx %n", &named, &rest) < 1 || named != type)
            continue;
        const char *hex = call->faults[index].arguments + rest;
        for (*length = 0; sscanf(hex, "%2hhx", &value[*length]) == 1; hex += 2)
            *length += 1;
        return true;
    }
    return false;
}

CK_RV altered_attributes(const Call *call, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *attributes,
                         CK_ULONG count) {
    CK_RV rv = real->C_GetAttributeValue(session, object, attributes, count);
    if (call->count == 0)
        return rv;
    for (CK_ULONG index = 0; index < count; index++) {
        CK_BYTE value[LARGEST_VALUE];
        CK_ATTRIBUTE one = {attributes[index].type, value, sizeof value - 1};
        if (real->C_GetAttributeValue(session, object, &one, 1) != CKR_OK ||
            !altered_value(call, one.type, value, &one.ulValueLen))
            continue;
        if (attributes[index].pValue != NULL)
            memcpy(attributes[index].pValue, value, one.ulValueLen);
        attributes[index].ulValueLen = one.ulValueLen;
        rv = CKR_OK;
    }
    return rv;
}

static CK_ULONG der_integer(CK_BYTE *out, const CK_BYTE *number, CK_ULONG size) {
    while (size > 1 && *number == 0)
        number++, size--;
    CK_ULONG padding = *number >> 7;
    out[0] = 0x02, out[1] = (CK_BYTE)(size + padding), out[2] = 0;
    memcpy(out + 2 + padding, number, size);
    return 2 + padding + size;
}

static CK_ULONG der_signature(CK_BYTE *out, const CK_BYTE *signature, CK_ULONG size) {
    CK_BYTE body[256];
    CK_ULONG length = der_integer(body, signature, size / 2);
    length += der_integer(body + length, signature + size / 2, size / 2);
    CK_ULONG head = length < 0x80 ? 2 : 3;
    out[0] = 0x30, out[1] = 0x81, out[head - 1] = (CK_BYTE)length;
    memcpy(out + head, body, length);
    return head + length;
}

CK_RV altered_signature(const Call *call, CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG size, CK_BYTE *signature,
                        CK_ULONG *length) {
    static CK_BYTE first[LARGEST_SIGNATURE];
    static CK_ULONG first_length;
    CK_BYTE given[LARGEST_SIGNATURE];
    CK_ULONG given_length = sizeof given;
    bool der = script_fault(call, "der", true) != NULL;
    if (signature == NULL || call->count == 0) {
        CK_RV rv = real->C_Sign(session, data, size, signature, length);
        *length += signature == NULL && der ? 9 : 0;
        return rv;
    }
    CK_RV rv = real->C_Sign(session, data, size, given, &given_length);
    if (rv != CKR_OK)
        return rv;
    if (script_fault(call, "repeated", true) != NULL) {
        if (first_length == given_length)
            memcpy(given, first, given_length);
        else
            memcpy(first, given, first_length = given_length);
    }
    if (script_fault(call, "wrong", true) != NULL)
        given[given_length - 1] ^= 1;
    if (script_fault(call, "truncated", true) != NULL)
        given_length -= 1;
    if (script_fault(call, "empty", true) != NULL)
        given_length = 0;
    if (der) {
        CK_BYTE encoded[LARGEST_SIGNATURE];
        given_length = der_signature(encoded, given, given_length);
        memcpy(given, encoded, given_length);
    }
    if (*length < given_length)
        return CKR_BUFFER_TOO_SMALL;
    memcpy(signature, given, *length = given_length);
    return CKR_OK;
}

void signature_discarded(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG size) {
    CK_BYTE nobody[LARGEST_SIGNATURE];
    CK_ULONG length = sizeof nobody;
    real->C_Sign(session, data, size, nobody, &length);
}

void alter_text(const Call *call, const char *action, CK_UTF8CHAR *text, size_t width) {
    const char *wanted = script_fault(call, action, true);
    if (wanted == NULL)
        return;
    size_t length = strlen(wanted) < width ? strlen(wanted) : width;
    memset(text, ' ', width);
    memcpy(text, wanted, length);
}

bool mechanism_lacking(const Call *call, CK_MECHANISM_TYPE mechanism) {
    for (int index = 0; index < call->count; index++)
        if (strcmp(call->faults[index].action, "lack") == 0 &&
            strtoul(call->faults[index].arguments, NULL, 16) == mechanism)
            return true;
    return false;
}
