// cpus.c - how many CPUs this process may use: affinity mask and cgroup quota

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

static int affinity(void) {
    unsigned char mask[8192]; // 65,536 CPUs: the mask must not be smaller than the kernel's
    memset(mask, 0, sizeof mask);
    if (sched_getaffinity(0, sizeof mask, (cpu_set_t *)mask)) return 1;
    int count = 0;
    for (size_t i = 0; i < sizeof mask; i++) count += __builtin_popcount(mask[i]);
    return count ? count : 1;
}

static int rounded(double quota, double period, int limit) {
    if (quota <= 0 || period <= 0) return limit;
    double cpus = quota / period;
    if (cpus < 1) return 1;
    return cpus < limit ? (int)(cpus + 0.999) : limit;
}

// cgroup v2: "quota period" or "max period".
static int quota_v2(const char *folder, int limit) {
    char path[1200];
    double quota, period;
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", folder);
    FILE *file = fopen(path, "re");
    if (!file) return limit;
    if (fscanf(file, "%lf %lf", &quota, &period) == 2) limit = rounded(quota, period, limit);
    fclose(file);
    return limit;
}

static double number_in(const char *path) {
    double value = 0;
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    if (fscanf(file, "%lf", &value) != 1) value = 0;
    fclose(file);
    return value;
}

int usable_cpus(void) {
    int limit = affinity();
    char line[1100], *folder = 0;
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, "0::/", 4)) {
            folder = line + 3;
            folder[strcspn(folder, "\n")] = 0;
            break;
        }
    if (file) fclose(file);
    // Every group up to the root may have a quota; the smallest counts.
    while (folder && *folder) {
        limit = quota_v2(folder, limit);
        char *slash = strrchr(folder, '/');
        if (!slash) break;
        *slash = 0;
    }
    limit = quota_v2("", limit); // inside a container the group often is the visible root
    return rounded(number_in("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
                   number_in("/sys/fs/cgroup/cpu/cpu.cfs_period_us"), limit);
}

int default_threads(int *threads) {
    const char *setting = getenv("SPARSEC_NUM_THREADS");
    if (!setting || !*setting) {
        *threads = usable_cpus();
        if (*threads > MAX_THREADS) *threads = MAX_THREADS;
        return 0;
    }
    char *end;
    long value = strtol(setting, &end, 10);
    if (*end || value < 1 || value > MAX_THREADS) return -1;
    *threads = (int)value;
    return 0;
}
