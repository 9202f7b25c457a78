/* A stand-in libnvidia-ml.so.1 that plays the script in the file NVML_SCRIPT; see nvml.py for its lines.

   -DOLD leaves out the symbols that drivers before 510 lack. The script is read again whenever it changes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NO_DRIVER = 9, WRONG_VERSION = 25 };
enum { MOST = 16, VALUES = 64 };
static const unsigned long long MIB = 1ull << 20, NOT_TOLD = ~0ull;

typedef struct { unsigned pid; unsigned long long used; char kind; } Holder;
typedef struct {
    char uuid[96], name[96];
    int parent, total, reserved, used[VALUES], values, major, minor, display, mig, util, temp, power, clock, holders, asked;
    unsigned long long throttle;
    Holder holder[MOST];
} Entry;
typedef struct { char function[64]; int code, from, until, device, hangs; } Fault;
typedef struct { char function[64]; int calls[MOST + 1]; } Count;
typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute; } Process;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;

static Entry entries[MOST];
static Fault faults[MOST];
static Count counts[64];
static int entry_count, fault_count, started, cuda;
static char driver[80];
static struct timespec loaded;

static void number(const char *text, int *target) { *target = atoi(text); }

static void set(Entry *entry, const char *key, char *value) {
    if (!strcmp(key, "uuid")) snprintf(entry->uuid, sizeof entry->uuid, "%s", value);
    else if (!strcmp(key, "name")) {
        snprintf(entry->name, sizeof entry->name, "%s", value);
        for (char *at = entry->name; *at; at++) if (*at == '_') *at = ' ';
    } else if (!strcmp(key, "used")) {
        entry->values = 0;
        for (char *rest = value, *one; (one = strsep(&rest, ",")) && entry->values < VALUES;) entry->used[entry->values++] = atoi(one);
    } else if (!strcmp(key, "cc")) sscanf(value, "%d.%d", &entry->major, &entry->minor);
    else if (!strcmp(key, "throttle")) entry->throttle = strtoull(value, NULL, 0);
    else if (!strcmp(key, "total")) number(value, &entry->total);
    else if (!strcmp(key, "reserved")) number(value, &entry->reserved);
    else if (!strcmp(key, "display")) number(value, &entry->display);
    else if (!strcmp(key, "mig")) number(value, &entry->mig);
    else if (!strcmp(key, "util")) number(value, &entry->util);
    else if (!strcmp(key, "temp")) number(value, &entry->temp);
    else if (!strcmp(key, "power")) number(value, &entry->power);
    else if (!strcmp(key, "clock")) number(value, &entry->clock);
    else abort();
}

static void statement(char *line) {
    static int board;
    char *word = strsep(&line, " ");
    Entry *entry = NULL;
    Holder *holder = NULL;
    Fault *fault = NULL;
    if (!strcmp(word, "device") || !strcmp(word, "instance")) {
        int asked = entries[entry_count].asked;  /* a changed script goes on where the old one was */
        entry = &entries[entry_count];
        memset(entry, 0, sizeof *entry);
        *entry = (Entry){.parent = -1, .mig = -1, .values = 1, .asked = asked};
        if (!strcmp(word, "instance")) entry->parent = board;
        else board = entry_count;
        entry_count++;
    } else if (!strcmp(word, "process")) {
        Entry *last = &entries[entry_count - 1];
        holder = &last->holder[last->holders++];
        holder->kind = 'C';
    } else if (!strcmp(word, "error") || !strcmp(word, "hang")) {
        fault = &faults[fault_count++];
        *fault = (Fault){.from = 1, .until = 1 << 30, .device = -1, .hangs = !strcmp(word, "hang")};
    } else if (!strcmp(word, "driver")) {
        snprintf(driver, sizeof driver, "%s", line);
        return;
    } else if (!strcmp(word, "cuda")) {
        number(line, &cuda);
        return;
    } else abort();
    for (char *pair; (pair = strsep(&line, " "));) {
        char *key = strsep(&pair, "=");
        if (entry) set(entry, key, pair);
        else if (holder && !strcmp(key, "pid")) holder->pid = (unsigned)atoi(pair);
        else if (holder && !strcmp(key, "kind")) holder->kind = *pair;
        else if (holder && !strcmp(key, "used")) holder->used = *pair == '-' ? NOT_TOLD : (unsigned long long)atoi(pair) * MIB;
        else if (fault && !strcmp(key, "fn")) snprintf(fault->function, sizeof fault->function, "%s", pair);
        else if (fault && !strcmp(key, "code")) number(pair, &fault->code);
        else if (fault && !strcmp(key, "from")) number(pair, &fault->from);
        else if (fault && !strcmp(key, "until")) number(pair, &fault->until);
        else if (fault && !strcmp(key, "device")) number(pair, &fault->device);
        else abort();
    }
}

static void load(void) {
    const char *path = getenv("NVML_SCRIPT");
    struct stat about;
    if (!path || stat(path, &about)) abort();
    if (about.st_mtim.tv_sec == loaded.tv_sec && about.st_mtim.tv_nsec == loaded.tv_nsec) return;
    loaded = about.st_mtim;
    entry_count = fault_count = 0;
    FILE *file = fopen(path, "r");
    char line[512];
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (*line) statement(line);
    }
    fclose(file);
}

/* Return when the script has changed. */
static void hang(void) {
    const char *path = getenv("NVML_SCRIPT");
    struct stat about;
    while (stat(path, &about) || (about.st_mtim.tv_sec == loaded.tv_sec && about.st_mtim.tv_nsec == loaded.tv_nsec)) usleep(5000);
}

/* Count the call and return the code that the script has for it. */
static int call(const char *function, const Entry *entry) {
    load();
    int device = entry ? (int)(entry - entries) : MOST, calls = 0;
    for (Count *count = counts; count < counts + 64; count++) {
        if (!*count->function) snprintf(count->function, sizeof count->function, "%s", function);
        if (strcmp(count->function, function)) continue;
        calls = ++count->calls[device];
        break;
    }
    if (!started && strcmp(function, "nvmlInitWithFlags")) return UNINITIALIZED;
    for (Fault *fault = faults; fault < faults + fault_count; fault++)
        if (!strcmp(fault->function, function) && (fault->device < 0 || fault->device == device) && calls >= fault->from && calls <= fault->until)
            {
                if (fault->hangs) {
                    hang();
                    return call(function, entry);
                }
                return fault->code;
            }
    return SUCCESS;
}

#define ASKED(entry) do { int code = call(__func__, entry); if (code) return code; } while (0)
#define TELLS(function, type, value, known) \
    int function(Entry *entry, type *out) { ASKED(entry); if (!(known)) return NOT_SUPPORTED; *out = (type)(value); return SUCCESS; }

static int used(Entry *entry) {
    int at = entry->asked < entry->values ? entry->asked++ : entry->values - 1;
    return entry->used[at];
}

static int processes(const Entry *entry, char kind, unsigned *room, Process *out) {
    unsigned found = 0;
    for (int at = 0; at < entry->holders; at++) found += entry->holder[at].kind == kind;
    unsigned fits = *room;
    *room = found;
    if (found > fits) return TOO_SMALL;
    for (int at = 0; at < entry->holders; at++)
        if (entry->holder[at].kind == kind) *out++ = (Process){entry->holder[at].pid, entry->holder[at].used, ~0u, ~0u};
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    ASKED(NULL);
    started = 1;
    return SUCCESS;
}

int nvmlShutdown(void) {
    ASKED(NULL);
    started = 0;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    (void)code;
    return "A code that this version does not know";
}

int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    ASKED(NULL);
    snprintf(out, size, "%s", driver);
    return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion(int *out) { ASKED(NULL); *out = cuda; return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned *out) {
    ASKED(NULL);
    *out = 0;
    for (int at = 0; at < entry_count; at++) *out += entries[at].parent < 0;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Entry **out) {
    load();
    for (int at = 0; at < entry_count; at++)
        if (entries[at].parent < 0 && !index--) {
            ASKED(&entries[at]);
            *out = &entries[at];
            return SUCCESS;
        }
    return INVALID;
}

int nvmlDeviceGetUUID(Entry *entry, char *out, unsigned size) { ASKED(entry); snprintf(out, size, "%s", entry->uuid); return SUCCESS; }
int nvmlDeviceGetName(Entry *entry, char *out, unsigned size) { ASKED(entry); snprintf(out, size, "%s", entry->name); return SUCCESS; }

int nvmlDeviceGetMemoryInfo(Entry *entry, Memory *out) {
    ASKED(entry);
    unsigned long long mine = (unsigned long long)(used(entry) + entry->reserved) * MIB, total = (unsigned long long)entry->total * MIB;
    *out = (Memory){total, total - mine, mine};
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(Entry *entry, int *major, int *minor) {
    ASKED(entry);
    *major = entry->major;
    *minor = entry->minor;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v2(Entry *entry, unsigned *room, Process *out) {
    ASKED(entry);
    return processes(entry, 'C', room, out);
}

int nvmlDeviceGetGraphicsRunningProcesses_v2(Entry *entry, unsigned *room, Process *out) {
    ASKED(entry);
    return processes(entry, 'G', room, out);
}

int nvmlDeviceGetUtilizationRates(Entry *entry, unsigned *out) {
    ASKED(entry);
    if (entry->parent >= 0) return NOT_SUPPORTED;
    out[0] = (unsigned)entry->util;
    out[1] = 0;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(Entry *entry, unsigned sensor, unsigned *out) {
    ASKED(entry);
    if (sensor || entry->parent >= 0) return NOT_SUPPORTED;
    *out = (unsigned)entry->temp;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(Entry *entry, unsigned type, unsigned *out) {
    ASKED(entry);
    if (type != 1 || entry->parent >= 0) return NOT_SUPPORTED;
    *out = (unsigned)entry->clock;
    return SUCCESS;
}

TELLS(nvmlDeviceGetDisplayActive, unsigned, entry->display, 1)
TELLS(nvmlDeviceGetPowerUsage, unsigned, entry->power, entry->parent < 0)
TELLS(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, entry->throttle, entry->parent < 0)

#ifndef OLD
int nvmlSystemGetCudaDriverVersion_v2(int *out) { ASKED(NULL); *out = cuda; return SUCCESS; }

int nvmlDeviceGetMemoryInfo_v2(Entry *entry, Memory2 *out) {
    ASKED(entry);
    if (out->version != (2u << 24 | sizeof *out)) return WRONG_VERSION;
    unsigned long long mine = (unsigned long long)used(entry) * MIB, kept = (unsigned long long)entry->reserved * MIB,
                       total = (unsigned long long)entry->total * MIB;
    *out = (Memory2){out->version, total, kept, total - kept - mine, mine};
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Entry *entry, unsigned *room, Process *out) {
    ASKED(entry);
    return processes(entry, 'C', room, out);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(Entry *entry, unsigned *room, Process *out) {
    ASKED(entry);
    return processes(entry, 'G', room, out);
}

TELLS(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, entry->throttle, entry->parent < 0)

int nvmlDeviceGetMigMode(Entry *entry, unsigned *now, unsigned *pending) {
    ASKED(entry);
    if (entry->mig < 0) return NOT_SUPPORTED;
    *now = *pending = (unsigned)entry->mig;
    return SUCCESS;
}

TELLS(nvmlDeviceGetMaxMigDeviceCount, unsigned, 7, 1)

int nvmlDeviceGetMigDeviceHandleByIndex(Entry *entry, unsigned index, Entry **out) {
    ASKED(entry);
    for (int at = 0; at < entry_count; at++)
        if (entries[at].parent == entry - entries && !index--) {
            *out = &entries[at];
            return SUCCESS;
        }
    return NOT_FOUND;
}
#endif
