// libc.c - what static programs take in the libc's place: functions that cost it kilobytes in what nobody here uses

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

// Section: vsnprintf - %s, %.Ns, %d, %u, %llu and %0Nu, and nothing else: no floating point (7 kB)

// Where the text goes: what does not fit is counted only.
typedef struct sink {
    char *text;
    size_t size, length;
} sink;

static void put(sink *to, const char *text, size_t size) {
    for (size_t i = 0; i < size; i++, to->length++)
        if (to->length + 1 < to->size) to->text[to->length] = text[i];
}

static void put_number(sink *to, unsigned long long value, size_t width) {
    char digits[24];
    size_t at = sizeof digits;
    do digits[--at] = (char)('0' + value % 10);
    while (value /= 10);
    while (sizeof digits - at < width) digits[--at] = '0';
    put(to, digits + at, sizeof digits - at);
}

static size_t read_number(const char **at) {
    size_t value = 0;
    while (**at >= '0' && **at <= '9') value = 10 * value + (size_t)(*(*at)++ - '0');
    return value;
}

int vsnprintf(char *restrict text, size_t size, const char *restrict format, va_list args) {
    sink to = {text, size, 0};
    for (const char *at = format; *at;) {
        size_t plain = strcspn(at, "%");
        put(&to, at, plain);
        at += plain;
        if (!*at) break;
        at++;
        size_t width = *at == '0' ? read_number(&at) : 0, precision = (size_t)-1;
        if (*at == '.') at++, precision = read_number(&at);
        if (*at == 's') {
            const char *word = va_arg(args, const char *);
            put(&to, word, strnlen(word, precision));
        } else if (*at == 'd') {
            int value = va_arg(args, int);
            if (value < 0) put(&to, "-", 1);
            put_number(&to, value < 0 ? 0u - (unsigned)value : (unsigned)value, width);
        } else if (*at == 'u') {
            put_number(&to, va_arg(args, unsigned), width);
        } else if (!strncmp(at, "llu", 3)) {
            put_number(&to, va_arg(args, unsigned long long), width);
            at += 2;
        } else {
            break; // not one of ours: there is no telling what its argument is
        }
        at++;
    }
    if (size) text[to.length < size ? to.length : size - 1] = 0;
    return (int)to.length;
}

// Section: strerror - what happens to files; the numbers of all else (2 kB)

char *strerror(int code) {
    static const struct {
        int code;
        char text[28];
    } known[] = {
        {EACCES, "Permission denied"},
        {EFBIG, "File too large"},
        {EIO, "I/O error"},
        {EISDIR, "Is a directory"},
        {ENAMETOOLONG, "Filename too long"},
        {ENOENT, "No such file or directory"},
        {ENOMEM, "Out of memory"},
        {ENOSPC, "No space left on device"},
        {ENOTDIR, "Not a directory"},
        {EPERM, "Operation not permitted"},
        {EROFS, "Read-only file system"},
    };
    static char text[40];
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].code == code) return memcpy(text, known[i].text, sizeof known[i].text);
    snprintf(text, sizeof text, "system error %d", code);
    return text;
}

// Section: clock_gettime - without the vDSO, whose symbols take 1 kB to find; 32-bit systems have several calls

#if __SIZEOF_LONG__ == 8
int clock_gettime(clockid_t clock, struct timespec *time) { return (int)syscall(SYS_clock_gettime, clock, time); }
#endif
