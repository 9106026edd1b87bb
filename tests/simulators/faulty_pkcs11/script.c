#include "script.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATH 4096

static char folder[PATH - 512];

void script_open(void) {
    const char *named = getenv("FAULTY_PKCS11");
    snprintf(folder, sizeof folder, "%s", named == NULL ? "/nowhere" : named);
}

static void path_of(char path[PATH], const char *kind, const char *name) {
    snprintf(path, PATH, "%s/%s/%s", folder, kind, name);
}

/* Append, and return how much the file holds now; -1 when it is not there and not to be made. */
static long append(const char *kind, const char *name, const void *bytes, size_t size, int creation) {
    char path[PATH];
    path_of(path, kind, name);
    int descriptor = open(path, O_WRONLY | O_APPEND | O_CLOEXEC | creation, 0600);
    if (descriptor < 0)
        return -1;
    ssize_t written = write(descriptor, bytes, size);
    long end = written == (ssize_t)size ? (long)lseek(descriptor, 0, SEEK_CUR) : -1;
    close(descriptor);
    return end;
}

static long holds(const char *kind, const char *name) {
    char path[PATH];
    path_of(path, kind, name);
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return -1;
    long end = (long)lseek(descriptor, 0, SEEK_END);
    close(descriptor);
    return end;
}

void script_begin(Call *call, const char *function, bool query) {
    call->function = function;
    call->rv = 0;
    call->query = query;
    call->entered = false;
    call->count = 0;
    if (!query)
        append("begun", function, ".", 1, O_CREAT);
    char path[PATH], line[LONGEST * 2];
    path_of(path, "faults", function);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return;
    while (call->count < MOST_FAULTS && fgets(line, sizeof line, file) != NULL) {
        Fault *fault = &call->faults[call->count];
        char when[8] = "";
        unsigned long skip, times;
        int rest = 0;
        fault->arguments[0] = '\0';
        if (sscanf(line, "%31s %lu %lu %7s %31s %n", fault->id, &skip, &times, when, fault->action, &rest) < 5)
            continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(fault->arguments, sizeof fault->arguments, "%s", line + rest);
        fault->after = strcmp(when, "after") == 0;
        long number = query ? holds("hits", fault->id) + 1 : append("hits", fault->id, ".", 1, 0);
        if (number > (long)skip && (times == 0 || number <= (long)(skip + times)) && holds("hits", fault->id) >= 0)
            call->count++;
    }
    fclose(file);
}

void script_end(const Call *call) {
    if (call->query)
        return;
    char line[16];
    int size = snprintf(line, sizeof line, "%08lx\n", call->rv);
    append("ended", call->function, line, (size_t)size, O_CREAT);
}

const char *script_fault(const Call *call, const char *action, bool after) {
    for (int index = 0; index < call->count; index++)
        if (call->faults[index].after == after && strcmp(call->faults[index].action, action) == 0)
            return call->faults[index].arguments;
    return NULL;
}

void script_wait(const Fault *fault) {
    char path[PATH];
    path_of(path, "hits", fault->id);
    for (int turn = 0; turn < 24000 && access(path, F_OK) == 0; turn++)
        usleep(5000);
}

void script_lift(const char *id) {
    char from[PATH], to[PATH], name[64];
    path_of(from, "hits", id);
    snprintf(name, sizeof name, "%s.lifted", id);
    path_of(to, "hits", name);
    rename(from, to);
}

void script_overlap(void) { append(".", "overlaps", ".", 1, O_CREAT); }

void script_session(unsigned long handle, bool read_write, bool open) {
    char name[64], path[PATH];
    for (int kind = 0; kind < 2; kind++) {
        snprintf(name, sizeof name, "%ld.%lu.%s", (long)getpid(), handle, kind ? "rw" : "ro");
        if (open && kind == read_write)
            append("sessions", name, "", 0, O_CREAT);
        if (!open) {
            path_of(path, "sessions", name);
            unlink(path);
        }
    }
}

/* Look at each session: with NULL pointers, this process's are forgotten, else those of living processes counted. */
static void each_session(unsigned long *all, unsigned long *read_write) {
    char path[PATH];
    path_of(path, "sessions", "");
    DIR *directory = opendir(path);
    if (directory == NULL)
        return;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        long pid = strtol(entry->d_name, NULL, 10);
        if (pid <= 0)
            continue;
        if (all == NULL) {
            path_of(path, "sessions", entry->d_name);
            if (pid == (long)getpid())
                unlink(path);
        } else if (kill((pid_t)pid, 0) == 0 || errno == EPERM) {
            *all += 1;
            *read_write += strstr(entry->d_name, ".rw") != NULL;
        }
    }
    closedir(directory);
}

void script_no_sessions(void) { each_session(NULL, NULL); }

void script_count_sessions(unsigned long *all, unsigned long *read_write) {
    *all = *read_write = 0;
    each_session(all, read_write);
}
