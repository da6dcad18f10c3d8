// json.c - JSON (RFC 8259) read in place: one pass that accepts or rejects, then lookups by scanning

#include "lib.h"

typedef struct cursor {
    const uint8_t *at, *end;
} cursor;

static void blanks(cursor *c) {
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\n' || *c->at == '\t' || *c->at == '\r')) c->at++;
}

static bool take(cursor *c, char wanted) {
    if (c->at == c->end || *c->at != (uint8_t)wanted) return false;
    c->at++;
    return true;
}

static bool word(cursor *c, const char *text) {
    size_t n = strlen(text);
    if ((size_t)(c->end - c->at) < n || memcmp(c->at, text, n)) return false;
    c->at += n;
    return true;
}

static bool is_digit(const cursor *c) { return c->at < c->end && *c->at >= '0' && *c->at <= '9'; }

static bool digits(cursor *c) {
    if (!is_digit(c)) return false;
    while (is_digit(c)) c->at++;
    return true;
}

static bool hex4(cursor *c) {
    for (int i = 0; i < 4; i++, c->at++) {
        if (c->at == c->end) return false;
        uint8_t low = *c->at | 0x20;
        if (!is_digit(c) && !(low >= 'a' && low <= 'f')) return false;
    }
    return true;
}

static bool string(cursor *c) {
    if (!take(c, '"')) return false;
    while (c->at < c->end) {
        uint8_t byte = *c->at++;
        if (byte == '"') return true;
        if (byte < 0x20) return false;
        if (byte != '\\') continue;
        if (c->at == c->end) return false;
        uint8_t escape = *c->at++;
        if (escape == 'u' ? !hex4(c) : !escape || !strchr("\"\\/bfnrt", escape)) return false;
    }
    return false;
}

static bool number(cursor *c) {
    take(c, '-');
    if (!take(c, '0') && !digits(c)) return false;
    if (take(c, '.') && !digits(c)) return false;
    if (take(c, 'e') || take(c, 'E')) {
        if (!take(c, '+')) take(c, '-');
        return digits(c);
    }
    return true;
}

static bool value(cursor *c, int depth);

// A list, or with `keys` an object, from the opening bracket on.
static bool sequence(cursor *c, bool keys, int depth) {
    char close = keys ? '}' : ']';
    c->at++;
    blanks(c);
    if (take(c, close)) return true;
    do {
        if (keys) {
            blanks(c);
            if (!string(c)) return false;
            blanks(c);
            if (!take(c, ':')) return false;
        }
        if (!value(c, depth + 1)) return false;
    } while (take(c, ','));
    return take(c, close);
}

// One value with the blanks around it.
static bool value(cursor *c, int depth) {
    blanks(c);
    if (c->at == c->end || depth > JSON_MAX_DEPTH) return false;
    bool ok;
    switch (*c->at) {
    case '{': ok = sequence(c, true, depth); break;
    case '[': ok = sequence(c, false, depth); break;
    case '"': ok = string(c); break;
    case 't': ok = word(c, "true"); break;
    case 'f': ok = word(c, "false"); break;
    case 'n': ok = word(c, "null"); break;
    default: ok = number(c);
    }
    blanks(c);
    return ok;
}

bool json_valid(span text) {
    cursor c = {text.data, text.data + text.size};
    return value(&c, 0) && c.at == c.end;
}

// The next value at the cursor, without blanks.
static span cut(cursor *c) {
    blanks(c);
    const uint8_t *start = c->at;
    value(c, 0);
    const uint8_t *end = c->at;
    while (end > start && (end[-1] == ' ' || end[-1] == '\n' || end[-1] == '\t' || end[-1] == '\r')) end--;
    return (span){start, (size_t)(end - start)};
}

span json_get(span object, const char *key) {
    if (!object.size || object.data[0] != '{') return (span){0};
    cursor c = {object.data + 1, object.data + object.size};
    while (c.at < c.end) {
        blanks(&c);
        if (c.at == c.end || *c.at != '"') break;
        span name = cut(&c);
        take(&c, ':');
        span found = cut(&c);
        if (json_is_text(name, key)) return found;
        take(&c, ',');
    }
    return (span){0};
}

span json_next(span list, size_t *at) {
    if (!list.size || list.data[0] != '[') return (span){0};
    cursor c = {list.data + (*at ? *at : 1), list.data + list.size};
    blanks(&c);
    if (c.at >= c.end || *c.at == ']') return (span){0};
    span found = cut(&c);
    take(&c, ',');
    *at = (size_t)(c.at - list.data);
    return found;
}

span json_text(span value) {
    if (value.size < 2 || value.data[0] != '"') return (span){0};
    return (span){value.data + 1, value.size - 2};
}

bool json_is_text(span value, const char *text) {
    span found = json_text(value);
    return found.data && found.size == strlen(text) && !memcmp(found.data, text, found.size);
}

bool json_number(span value, uint64_t *number) {
    if (!value.size || value.size > 18) return false;
    *number = 0;
    for (size_t i = 0; i < value.size; i++) {
        if (value.data[i] < '0' || value.data[i] > '9') return false;
        *number = *number * 10 + (uint64_t)(value.data[i] - '0');
    }
    return true;
}
