// files.c - lines of text, and files read and written whole; by system calls alone, which keeps stdio out of programs

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "device.h"

#define ROOM (1u << 16) // of a file at first

static bool write_all(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t written = write(fd, data, size);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return false;
        data += written;
        size -= (size_t)written;
    }
    return true;
}

void say(int fd, const char *format, ...) {
    char line[8192];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if ((size_t)length >= sizeof line) line[(length = sizeof line - 1) - 1] = '\n'; // names may be that long
    write_all(fd, line, (size_t)length);
}

int complain(const char *who, const char *why) {
    say(STDERR_FILENO, "%s: %s\n", who, why);
    return 1;
}

void *new_memory(size_t bytes) {
    void *map = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return map == MAP_FAILED ? 0 : map;
}

void drop_file(span file) { munmap((void *)file.data, file.size + 1); }

// `data` with other room; gives it back, and returns NULL, if there is none.
static uint8_t *resize(uint8_t *data, size_t room, size_t wanted) {
    void *map = mremap(data, room, wanted, MREMAP_MAYMOVE);
    if (map != MAP_FAILED) return map;
    munmap(data, room);
    return 0;
}

span read_file(const char *path, const char **why) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t used = 0, room = ROOM;
    uint8_t *data = fd < 0 ? 0 : new_memory(room);
    while (data) {
        ssize_t got = read(fd, data + used, room - used - 1);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            munmap(data, room);
            data = 0;
        } else if (!got) {
            data = resize(data, room, used + 1); // the rest is zeros
            break;
        } else if ((used += (size_t)got) == room - 1) {
            data = resize(data, room, 2 * room);
            room *= 2;
        }
    }
    *why = strerror(errno);
    if (fd >= 0) close(fd);
    return data ? (span){data, used} : (span){0};
}

int write_file(const char *path, const void *data, size_t bytes) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    bool written = fd >= 0 && write_all(fd, data, bytes);
    if (written && !close(fd)) return 0;
    return complain(path, strerror(errno));
}
