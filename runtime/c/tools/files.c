// files.c - reading files whole, and saying what failed

#include <errno.h>
#include <stdlib.h>

#include "device.h"

int complain(const char *who, const char *why) {
    fprintf(stderr, "%s: %s\n", who, why);
    return 1;
}

span read_file(const char *path, const char **why) {
    FILE *file = fopen(path, "rb");
    uint8_t *data = 0;
    size_t used = 0, room = 0;
    while (file && !ferror(file) && !feof(file)) {
        if (room - used < 2) {
            uint8_t *larger = realloc(data, room = 2 * room + 4096);
            if (!larger) break;
            data = larger;
        }
        used += fread(data + used, 1, room - used - 1, file);
    }
    bool whole = file && feof(file) && !ferror(file);
    *why = strerror(errno);
    if (file) fclose(file);
    if (whole) return data[used] = 0, (span){data, used};
    free(data);
    return (span){0};
}
