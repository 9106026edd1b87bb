/* What the script in the folder FAULTY_PKCS11 says about one call. The Python side, faulty_hsm.py, describes its files.
 *
 *   faults/<function>   one fault a line: id, skip, times, "before" or "after", action, the action's arguments
 *   hits/<id>           there as long as the fault is; a byte is added whenever the function is called
 *   begun/<function>    a byte for each call
 *   ended/<function>    a line for each call that returned: its CKR code in eight hex digits
 *   overlaps            a byte for each call that began while another one was in the module
 *   sessions/           a file for each open session: <pid>.<handle>.<rw|ro>
 *
 * Bytes are added with O_APPEND, and the offset after it is the number of the call: threads and processes share a
 * count without a lock.
 */
#ifndef SCRIPT_H
#define SCRIPT_H

#include <stdbool.h>
#include <stddef.h>

#define MOST_FAULTS 8
#define LONGEST 256

typedef struct {
    bool after;
    char id[32], action[32], arguments[LONGEST];
} Fault;

typedef struct {
    const char *function;
    unsigned long rv;
    bool query, entered;
    int count;
    Fault faults[MOST_FAULTS];
} Call;

/* Take the folder from the environment, anew. */
void script_open(void);

/* Read the faults that apply to this call; `query` asks for a length only, and is no call. */
void script_begin(Call *call, const char *function, bool query);

/* Note that the call returned. */
void script_end(const Call *call);

/* The arguments of the call's fault with that action, or NULL. */
const char *script_fault(const Call *call, const char *action, bool after);

/* Wait until the fault is lifted, two minutes at most. */
void script_wait(const Fault *fault);

/* End a fault. */
void script_lift(const char *id);

void script_overlap(void);
void script_session(unsigned long handle, bool read_write, bool open);
void script_no_sessions(void);

/* The sessions that living processes have open. */
void script_count_sessions(unsigned long *all, unsigned long *read_write);

#endif
