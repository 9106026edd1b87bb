/* What faults do to a call, beside failing it. */
#ifndef EFFECTS_H
#define EFFECTS_H

#include <p11-kit/pkcs11.h>

#include "script.h"

extern CK_FUNCTION_LIST *real;

/* Begin a call; false when a fault ended it already, with its code in call->rv. Until call_end, no other thread makes
 * the module forget. */
bool call_begin(Call *call, const char *function, bool query);
CK_RV call_end(Call *call);

/* Handles carry in their upper bits how often the module forgot. One from before names another private key. */
CK_OBJECT_HANDLE handle_in(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE handle);
CK_OBJECT_HANDLE handle_out(CK_OBJECT_HANDLE handle);
CK_OBJECT_HANDLE another_key(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE handle);

/* Whether a template lacks what "require" names, or has what "refuse" names; the code to return is in call->rv. */
bool template_refused(Call *call, const CK_ATTRIBUTE *attributes, CK_ULONG count);

/* C_GetAttributeValue with the values that "attribute" and "point" ask for. */
CK_RV altered_attributes(const Call *call, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *attributes,
                         CK_ULONG count);

/* C_Sign with what "wrong", "truncated", "empty", "repeated" and "der" make of the signature. */
CK_RV altered_signature(const Call *call, CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG size, CK_BYTE *signature,
                        CK_ULONG *length);

/* A failed C_Sign ends the operation (PKCS#11 2.40, 5.11). */
void signature_discarded(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG size);

/* A fixed-width text of CK_INFO and CK_TOKEN_INFO. */
void alter_text(const Call *call, const char *action, CK_UTF8CHAR *text, size_t width);

/* Whether "lack" names the mechanism. */
bool mechanism_lacking(const Call *call, CK_MECHANISM_TYPE mechanism);

#endif
