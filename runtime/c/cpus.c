// cpus.c - how many CPUs this process may use: affinity mask and cgroup quota

#include "cpus.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int affinity(void) {
    unsigned char mask[8192]; // 65,536 CPUs: the mask must not be smaller than the kernel's
    memset(mask, 0, sizeof mask);
    if (sched_getaffinity(0, sizeof mask, (cpu_set_t *)mask)) return 1;
    int count = 0;
    for (size_t i = 0; i < sizeof mask; i++) count += __builtin_popcount(mask[i]);
    return count ? count : 1;
}

// The beginning of a file as a string, empty if it cannot be read.  No stdio: it would allocate.
static const char *head_of(const char *path, char *text, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t count = fd < 0 ? 0 : read(fd, text, size - 1);
    if (fd >= 0) close(fd);
    text[count > 0 ? count : 0] = 0;
    return text;
}

// The CPUs that `quota` of every `period` microseconds are, rounded up; `limit` if they do not limit.
static int rounded(long long quota, long long period, int limit) {
    if (quota <= 0 || period <= 0) return limit;
    long long cpus = quota / period + (quota % period != 0);
    return cpus < limit ? (int)cpus : limit;
}

// cgroup v2: "quota period" or "max period".
static int quota_v2(const char *folder, int limit) {
    char path[4200], text[64], *end;
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", folder);
    long long quota = strtoll(head_of(path, text, sizeof text), &end, 10);
    return rounded(quota, strtoll(end, 0, 10), limit);
}

static long long number_in(const char *path) {
    char text[32];
    return strtoll(head_of(path, text, sizeof text), 0, 10);
}

int usable_cpus(void) {
    int limit = affinity();
    char text[4096], *folder = 0;
    // One group a line; that of cgroup v2 begins with "0::".
    head_of("/proc/self/cgroup", text, sizeof text);
    for (char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (!strncmp(line, "0::/", 4)) {
            folder = line + 3;
            folder[strcspn(folder, "\n")] = 0;
            break;
        }
    }
    // Every group up to the root may have a quota; the smallest counts.
    while (folder && *folder) {
        limit = quota_v2(folder, limit);
        char *slash = strrchr(folder, '/');
        *slash = 0;
    }
    limit = quota_v2("", limit); // inside a container the group often is the visible root
    return rounded(number_in("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
                   number_in("/sys/fs/cgroup/cpu/cpu.cfs_period_us"), limit);
}
