/*
 * A stand-in for libnvidia-ml.so.1: it answers the functions that the collector calls through nvidia-ml-py with what
 * the file named by SIMULATED_NVML says, one "key=value" a line. Keys of GPU 0 begin with "0.", of its first MIG
 * instance with "0.mig.0.", of a pair with "0-1.". A value "!15" makes the call return that nvmlReturn_t, "@" makes it
 * wait for ever, and a key that is absent answers NVML_ERROR_NOT_SUPPORTED. With OLD_DRIVER defined, the functions are
 * left out that a driver of the 470 series lacks.
 *
 * Structures are those of nvml.h, as nvidia-ml-py declares them.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_LINES 8192
#define NOT_SUPPORTED 3
#define INVALID_ARGUMENT 2
#define INSUFFICIENT_SIZE 7
#define NOT_FOUND 6

typedef unsigned int uint;
typedef unsigned long long ull;
typedef void *dev; /* 1 + index for a GPU, 1000 * (1 + index) + instance for a MIG instance */

static char *keys[MOST_LINES], *values[MOST_LINES];
static int lines;
static int calls;

__attribute__((constructor)) static void load(void)
{
    const char *path = getenv("SIMULATED_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[4096];
    while (file && lines < MOST_LINES && fgets(line, sizeof line, file)) {
        char *equals = strchr(line, '=');
        line[strcspn(line, "\n")] = 0;
        if (!equals)
            continue;
        *equals = 0;
        keys[lines] = strdup(line);
        values[lines++] = strdup(equals + 1);
    }
    if (file)
        fclose(file);
}

/* 0 and the value, or the error that the file asks for. */
static int look(const char *key, const char **value)
{
    __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < lines; i++) {
        if (strcmp(keys[i], key))
            continue;
        if (values[i][0] == '@')
            for (;;)
                pause();
        if (values[i][0] == '!')
            return atoi(values[i] + 1);
        *value = values[i];
        return 0;
    }
    return NOT_SUPPORTED;
}

static int look_at(dev handle, const char *name, const char **value)
{
    char key[256];
    unsigned long number = (unsigned long)handle;
    if (number >= 1000)
        snprintf(key, sizeof key, "%lu.mig.%lu.%s", number / 1000 - 1, number % 1000, name);
    else
        snprintf(key, sizeof key, "%lu.%s", number - 1, name);
    return look(key, value);
}

static int text(const char *key, char *into, uint size)
{
    const char *value;
    int code = look(key, &value);
    if (!code)
        snprintf(into, size, "%s", value);
    return code;
}

static int text_at(dev handle, const char *name, char *into, uint size)
{
    const char *value;
    int code = look_at(handle, name, &value);
    if (!code)
        snprintf(into, size, "%s", value);
    return code;
}

static int number(dev handle, const char *name, uint *into)
{
    const char *value;
    int code = look_at(handle, name, &value);
    if (!code)
        *into = (uint)strtoul(value, NULL, 10);
    return code;
}

static int start(void)
{
    const char *value;
    int code = look("init", &value);
    return code == NOT_SUPPORTED ? 0 : code;
}

int nvmlInit_v2(void) { return start(); }
int nvmlInitWithFlags(uint flags) { (void)flags; return start(); }

int nvmlShutdown(void)
{
    const char *path = getenv("SIMULATED_NVML_CALLS");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (file) {
        fprintf(file, "%d\n", calls);
        fclose(file);
    }
    return 0;
}

const char *nvmlErrorString(int code)
{
    return code == 18 ? "Driver/library version mismatch" : "an error of the simulated NVML";
}

int nvmlSystemGetDriverVersion(char *into, uint size)
{
    return text("driver", into, size);
}

int nvmlSystemGetNVMLVersion(char *into, uint size)
{
    return text("nvml_version", into, size);
}

int nvmlSystemGetCudaDriverVersion(int *into)
{
    const char *value;
    int code = look("cuda", &value);
    if (!code)
        *into = atoi(value);
    return code;
}

int nvmlDeviceGetCount_v2(uint *into)
{
    const char *value;
    int code = look("count", &value);
    if (!code)
        *into = (uint)atoi(value);
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(uint index, dev *into)
{
    const char *value;
    int code = look_at((dev)(1UL + index), "handle", &value);
    *into = (dev)(1UL + index);
    return code == NOT_SUPPORTED ? 0 : code;
}

int nvmlDeviceGetName(dev handle, char *into, uint size)
{
    return text_at(handle, "name", into, size);
}

int nvmlDeviceGetUUID(dev handle, char *into, uint size)
{
    return text_at(handle, "uuid", into, size);
}

typedef struct { ull total, free, used; } memory_v1;
typedef struct { uint version; ull total, reserved, free, used; } memory_v2;

/* "memory" holds total, reserve and use in bytes. */
static int memory(dev handle, ull *three)
{
    const char *value;
    int code = look_at(handle, "memory", &value);
    if (!code && sscanf(value, "%llu %llu %llu", three, three + 1, three + 2) != 3)
        return INVALID_ARGUMENT;
    return code;
}

int nvmlDeviceGetMemoryInfo(dev handle, memory_v1 *into)
{
    ull three[3];
    int code = memory(handle, three);
    if (!code) {
        into->total = three[0];
        into->used = three[2];
#ifndef OLD_DRIVER
        into->used += three[1];
#endif
        into->free = into->total - into->used;
    }
    return code;
}

int nvmlDeviceGetCudaComputeCapability(dev handle, int *major, int *minor)
{
    const char *value;
    int code = look_at(handle, "compute_capability", &value);
    if (!code && sscanf(value, "%d %d", major, minor) != 2)
        return INVALID_ARGUMENT;
    return code;
}

typedef struct { char legacy[16]; uint domain, bus, device, id, subsystem; char bus_id[32]; } pci;

int nvmlDeviceGetPciInfo_v3(dev handle, pci *into)
{
    return text_at(handle, "pci", into->bus_id, sizeof into->bus_id);
}

int nvmlDeviceGetMigMode(dev handle, uint *current, uint *pending)
{
    int code = number(handle, "mig_mode", current);
    *pending = *current;
    return code;
}

int nvmlDeviceGetMaxMigDeviceCount(dev handle, uint *into) { return number(handle, "mig_most", into); }

int nvmlDeviceGetMigDeviceHandleByIndex(dev handle, uint index, dev *into)
{
    const char *value;
    *into = (dev)(1000UL * (unsigned long)handle + index);
    return look_at(*into, "uuid", &value) ? NOT_FOUND : 0;
}

int nvmlDeviceGetComputeMode(dev handle, uint *into) { return number(handle, "compute_mode", into); }

typedef struct { uint gpu, memory; } utilization;

int nvmlDeviceGetUtilizationRates(dev handle, utilization *into) { return number(handle, "utilization", &into->gpu); }

int nvmlDeviceGetTemperature(dev handle, uint sensor, uint *into)
{
    return sensor ? INVALID_ARGUMENT : number(handle, "temperature", into);
}

int nvmlDeviceGetTotalEccErrors(dev handle, uint kind, uint counter, ull *into)
{
    uint found = 0;
    int code = kind == 1 && counter == 0 ? number(handle, "ecc", &found) : INVALID_ARGUMENT;
    *into = found;
    return code;
}

int nvmlDeviceGetRetiredPagesPendingStatus(dev handle, uint *into) { return number(handle, "pages_pending", into); }

int nvmlDeviceGetCurrentClocksThrottleReasons(dev handle, ull *into)
{
    uint found = 0;
    int code = number(handle, "clock_events", &found);
    *into = found;
    return code;
}

int nvmlDeviceGetCurrPcieLinkGeneration(dev handle, uint *into) { return number(handle, "pcie_generation", into); }
int nvmlDeviceGetMaxPcieLinkGeneration(dev handle, uint *into) { return number(handle, "pcie_generation_max", into); }
int nvmlDeviceGetCurrPcieLinkWidth(dev handle, uint *into) { return number(handle, "pcie_width", into); }
int nvmlDeviceGetMaxPcieLinkWidth(dev handle, uint *into) { return number(handle, "pcie_width_max", into); }

/* "nvlink.0" holds whether it is up, the type of the other end (0 GPU, 2 switch) and its address. */
static int nvlink(dev handle, uint link, uint *up, uint *type, char *address)
{
    char name[32];
    const char *value;
    int code;
    snprintf(name, sizeof name, "nvlink.%u", link);
    code = look_at(handle, name, &value);
    if (!code && sscanf(value, "%u %u %31s", up, type, address) != 3)
        return INVALID_ARGUMENT;
    return code == NOT_SUPPORTED && link ? INVALID_ARGUMENT : code;
}

int nvmlDeviceGetNvLinkCapability(dev handle, uint link, uint capability, uint *into)
{
    uint type;
    char address[32];
    (void)capability;
    return nvlink(handle, link, into, &type, address);
}

int nvmlDeviceGetNvLinkState(dev handle, uint link, uint *into)
{
    uint type;
    char address[32];
    return nvlink(handle, link, into, &type, address);
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(dev handle, uint link, pci *into)
{
    uint up, type;
    return nvlink(handle, link, &up, &type, into->bus_id);
}

typedef struct {
    uint field, scope;
    long long stamp, latency;
    uint type;
    int code;
    union { uint number; ull wide; } value;
} field;

/* The only field that is known is NVML_FI_DEV_NVLINK_GET_STATE. */
int nvmlDeviceGetFieldValues(dev handle, int count, field *fields)
{
    for (int i = 0; i < count; i++) {
        uint type;
        char address[32];
        fields[i].code = fields[i].field == 165
            ? nvlink(handle, fields[i].scope, &fields[i].value.number, &type, address)
            : NOT_SUPPORTED;
    }
    /* One question, however many fields. */
    __atomic_sub_fetch(&calls, count - 1, __ATOMIC_RELAXED);
    return 0;
}

typedef struct { uint pid; ull used; uint gpu_instance, compute_instance; } process;

/* "compute" and "graphics" hold "pid:bytes" for each process, "pid:-" where the memory is not told. */
static int processes(dev handle, const char *name, uint *count, process *into)
{
    const char *value;
    uint found = 0, room = *count;
    int code = look_at(handle, name, &value);
    if (code)
        return code;
    for (char *part = strtok(strdup(value), " "); part; part = strtok(NULL, " "), found++) {
        const char *used = strchr(part, ':') + 1;
        if (!into || found >= room)
            continue;
        memset(into + found, 0xff, sizeof *into);
        into[found].pid = (uint)strtoul(part, NULL, 10);
        into[found].used = *used == '-' ? ~0ULL : strtoull(used, NULL, 10);
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : 0;
}

int nvmlDeviceGetComputeRunningProcesses_v2(dev handle, uint *count, process *into)
{
    return processes(handle, "compute", count, into);
}

int nvmlDeviceGetGraphicsRunningProcesses_v2(dev handle, uint *count, process *into)
{
    return processes(handle, "graphics", count, into);
}

static int pair(dev first, dev second, const char *name, uint *into)
{
    char key[64];
    const char *value;
    int code;
    snprintf(key, sizeof key, "%lu-%lu.%s", (unsigned long)first - 1, (unsigned long)second - 1, name);
    code = look(key, &value);
    if (!code)
        *into = (uint)strtoul(value, NULL, 10);
    return code;
}

int nvmlDeviceGetTopologyCommonAncestor(dev first, dev second, uint *into)
{
    return pair(first, second, "ancestor", into);
}

int nvmlDeviceGetP2PStatus(dev first, dev second, uint index, uint *into)
{
    return index ? INVALID_ARGUMENT : pair(first, second, "peer", into);
}

#ifndef OLD_DRIVER

int nvmlDeviceGetMemoryInfo_v2(dev handle, memory_v2 *into)
{
    ull three[3];
    int code = memory(handle, three);
    if (into->version != 0x02000028)
        return 25;
    if (!code) {
        into->total = three[0];
        into->reserved = three[1];
        into->used = three[2];
        into->free = three[0] - three[1] - three[2];
    }
    return code;
}

typedef struct { uint processors, engines[5], instance_slices, compute_slices; ull megabytes; } attributes;

/* "shape" holds the slices and the memory in MiB. */
int nvmlDeviceGetAttributes_v2(dev handle, attributes *into)
{
    const char *value;
    int code = look_at(handle, "shape", &value);
    if (!code && sscanf(value, "%u %llu", &into->instance_slices, &into->megabytes) != 2)
        return INVALID_ARGUMENT;
    return code;
}

int nvmlDeviceGetRemappedRows(dev handle, uint *correctable, uint *uncorrectable, uint *pending, uint *failed)
{
    const char *value;
    int code = look_at(handle, "remapped", &value);
    *correctable = *uncorrectable = 0;
    if (!code && sscanf(value, "%u %u", pending, failed) != 2)
        return INVALID_ARGUMENT;
    return code;
}

int nvmlDeviceGetCurrentClocksEventReasons(dev handle, ull *into)
{
    return nvmlDeviceGetCurrentClocksThrottleReasons(handle, into);
}

int nvmlDeviceGetNvLinkRemoteDeviceType(dev handle, uint link, uint *into)
{
    uint up;
    char address[32];
    return nvlink(handle, link, &up, into, address);
}

typedef struct { uint version; unsigned char cluster[16]; int status; uint clique, state, mask; } fabric;

/* "fabric" holds the state and the status. */
int nvmlDeviceGetGpuFabricInfoV(dev handle, fabric *into)
{
    const char *value;
    int code = look_at(handle, "fabric", &value);
    if (!code && sscanf(value, "%u %d", &into->state, &into->status) != 2)
        return INVALID_ARGUMENT;
    return code;
}

typedef struct { unsigned char cluster[16]; int status; uint clique, state; } fabric_v1;

int nvmlDeviceGetGpuFabricInfo(dev handle, fabric_v1 *into)
{
    fabric found;
    int code = nvmlDeviceGetGpuFabricInfoV(handle, &found);
    into->state = found.state;
    into->status = found.status;
    return code;
}

int nvmlDeviceGetComputeRunningProcesses_v3(dev handle, uint *count, process *into)
{
    return processes(handle, "compute", count, into);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(dev handle, uint *count, process *into)
{
    return processes(handle, "graphics", count, into);
}

#endif
