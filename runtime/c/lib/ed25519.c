// ed25519.c - checking Ed25519 signatures (RFC 8032, section 5.1.7)
//
// Everything here is public, so nothing has to take the same time for all values.  What is accepted is
// exactly one encoding of everything: S below the group's order, R as the point is encoded, a key whose
// coordinates are below p.  Keys of small order are refused, since any message has a signature under
// them.  The group equation is the one without the cofactor, as OpenSSL has it.

#include "lib.h"

// Section: integers modulo p = 2^255 - 19, of any size below 2^256, lowest word first

typedef struct field {
    uint32_t w[8];
} field;

static const field zero, one = {{1}};
static const field prime = {{0xffffffed, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x7fffffff}};
// The curve's d = -121665 / 121666, and a square root of -1.
static const field curve_d = {
    {0x135978a3, 0x75eb4dca, 0x4141d8ab, 0x00700a4d, 0x7779e898, 0x8cc74079, 0x2b6ffe73, 0x52036cee}};
static const field root_of_minus_1 = {
    {0x4a0ea0b0, 0xc4ee1b27, 0xad2fe478, 0x2f431806, 0x3dfbd7a7, 0x2b4d0099, 0x4fc1df0b, 0x2b832480}};

static bool below(const field *a, const field *b) {
    for (int i = 8; i--;)
        if (a->w[i] != b->w[i]) return a->w[i] < b->w[i];
    return false;
}

// a - b; 1 if it is negative, then 2^256 has been added.
static uint32_t subtract(field *r, const field *a, const field *b) {
    uint32_t borrow = 0;
    for (int i = 0; i < 8; i++) {
        uint64_t t = (uint64_t)a->w[i] - b->w[i] - borrow;
        r->w[i] = (uint32_t)t;
        borrow = (uint32_t)(t >> 63);
    }
    return borrow;
}

// r + carry * 2^256, which is r + carry * 38 modulo p.
static void fold(field *r, uint64_t carry) {
    while (carry) {
        carry *= 38;
        for (int i = 0; i < 8; i++) {
            carry += r->w[i];
            r->w[i] = (uint32_t)carry;
            carry >>= 32;
        }
    }
}

static field add(field a, field b) {
    uint64_t carry = 0;
    for (int i = 0; i < 8; i++) {
        carry += (uint64_t)a.w[i] + b.w[i];
        a.w[i] = (uint32_t)carry;
        carry >>= 32;
    }
    fold(&a, carry);
    return a;
}

static field sub(field a, field b) {
    static const field thirty_eight = {{38}};
    uint32_t borrow = subtract(&a, &a, &b);
    while (borrow) borrow = subtract(&a, &a, &thirty_eight);
    return a;
}

static field mul(field a, field b) {
    uint32_t t[16] = {0};
    for (int i = 0; i < 8; i++) {
        uint64_t carry = 0;
        for (int k = 0; k < 8; k++) {
            carry += (uint64_t)a.w[i] * b.w[k] + t[i + k];
            t[i + k] = (uint32_t)carry;
            carry >>= 32;
        }
        t[i + 8] = (uint32_t)carry;
    }
    uint64_t carry = 0;
    field r;
    for (int i = 0; i < 8; i++) {
        carry += (uint64_t)t[i + 8] * 38 + t[i];
        r.w[i] = (uint32_t)carry;
        carry >>= 32;
    }
    fold(&r, carry);
    return r;
}

// a^e for an exponent of `bits` bits that are all set above the lowest eight, which are `low`.
static field power(field a, int bits, unsigned low) {
    field r = one;
    while (bits--) {
        r = mul(r, r);
        if (bits >= 8 || low >> bits & 1) r = mul(r, a);
    }
    return r;
}

static field inverse(field a) { return power(a, 255, 0xeb); } // a^(p - 2)

// The one number below p that is equal to a.
static field reduced(field a) {
    while (!below(&a, &prime)) subtract(&a, &a, &prime);
    return a;
}

static bool equal(field a, field b) {
    a = reduced(sub(a, b));
    return !memcmp(&a, &zero, sizeof a);
}

static field from_bytes(const uint8_t bytes[32]) {
    field r;
    for (int i = 0; i < 8; i++, bytes += 4)
        r.w[i] = bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
    return r;
}

// Section: points of -x^2 + y^2 = 1 + d x^2 y^2 as (x, y, z, t): x / z, y / z, t = x y / z

typedef struct point {
    field x, y, z, t;
} point;

static const point neutral = {.y = {{1}}, .z = {{1}}};

// RFC 8032, section 5.1.4; complete, so it doubles, too.
static point point_add(const point *p, const point *q) {
    field a = mul(sub(p->y, p->x), sub(q->y, q->x)), b = mul(add(p->y, p->x), add(q->y, q->x));
    field c = mul(mul(p->t, q->t), add(curve_d, curve_d)), d = mul(p->z, add(q->z, q->z));
    field e = sub(b, a), f = sub(d, c), g = add(d, c), h = add(b, a);
    return (point){mul(e, f), mul(g, h), mul(f, g), mul(e, h)};
}

static void point_encode(const point *p, uint8_t bytes[32]) {
    field i = inverse(p->z), x = reduced(mul(p->x, i)), y = reduced(mul(p->y, i));
    y.w[7] |= x.w[0] << 31;
    for (int k = 0; k < 32; k++) bytes[k] = (uint8_t)(y.w[k / 4] >> 8 * (k % 4));
}

// RFC 8032, section 5.1.3; false where the bytes are no point's one encoding.
static bool point_decode(const uint8_t bytes[32], point *p) {
    field y = from_bytes(bytes);
    uint32_t sign = y.w[7] >> 31;
    y.w[7] &= 0x7fffffff;
    if (!below(&y, &prime)) return false;
    field yy = mul(y, y), u = sub(yy, one), v = add(mul(yy, curve_d), one);
    field v3 = mul(mul(v, v), v), uv7 = mul(mul(u, v), mul(v3, v3));
    field x = mul(mul(u, v3), power(uv7, 252, 0xfd)); // u v^3 (u v^7)^((p - 5) / 8)
    field vxx = mul(v, mul(x, x));
    if (equal(vxx, sub(zero, u)))
        x = mul(x, root_of_minus_1);
    else if (!equal(vxx, u))
        return false;
    x = reduced(x);
    if (sign && equal(x, zero)) return false;
    if ((x.w[0] & 1) != sign) x = sub(zero, x);
    *p = (point){x, y, one, mul(x, y)};
    return true;
}

static bool has_small_order(point p) {
    for (int i = 0; i < 3; i++) p = point_add(&p, &p);
    return equal(p.x, zero) && equal(p.y, p.z);
}

// [s] p + [k] q
static point combination(const field *s, const point *p, const field *k, const point *q) {
    point both = point_add(p, q), r = neutral;
    const point *choices[] = {&neutral, p, q, &both};
    for (int i = 256; i--;) {
        r = point_add(&r, &r);
        uint32_t choice = (s->w[i / 32] >> i % 32 & 1) | (k->w[i / 32] >> i % 32 & 1) << 1;
        if (choice) r = point_add(&r, choices[choice]);
    }
    return r;
}

// Section: scalars modulo the order of the base point

static const field order = {{0x5cf5d3ed, 0x5812631a, 0xa2f79cd6, 0x14def9de, 0, 0, 0, 0x10000000}};

// 64 bytes, lowest first, modulo the order.
static field scalar_from(const uint8_t bytes[64]) {
    field r = zero;
    for (int i = 512; i--;) {
        for (int k = 8; --k;) r.w[k] = r.w[k] << 1 | r.w[k - 1] >> 31;
        r.w[0] = r.w[0] << 1 | (bytes[i / 8] >> i % 8 & 1u);
        if (!below(&r, &order)) subtract(&r, &r, &order);
    }
    return r;
}

bool ed25519_verify(const uint8_t key[32], const uint8_t signature[64], span message) {
    static const uint8_t base_point[32] = {0x58, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
                                           0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
                                           0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66};
    point a, b;
    field s = from_bytes(signature + 32);
    if (!below(&s, &order) || !point_decode(key, &a) || has_small_order(a) || !point_decode(base_point, &b))
        return false;
    uint8_t digest[64], r[32];
    span parts[] = {{signature, 32}, {key, 32}, message};
    sha512(parts, 3, digest);
    field k = scalar_from(digest);
    a.x = sub(zero, a.x); // -a, since R = [s] b - [k] a
    a.t = sub(zero, a.t);
    point expected = combination(&s, &b, &k, &a);
    point_encode(&expected, r);
    return !memcmp(r, signature, 32);
}
