// What the PTX instructions mean that generated code uses, with the fragment layouts of the PTX ISA
// ("Matrix Fragments for mma.m16n8k16", ".m16n8k8", and "Sparse ... mma.sp.m16n8k32").
#include "ptx.h"

#include <cstring>
#include <vector>

#include "half.h"

namespace emu {
namespace {

// Section: asynchronous copies

// One list for a thread; a copy belongs to the group that the thread commits next.
std::vector<AsyncCopy> pending[kMaxThreads];

void perform(const AsyncCopy& copy) {
    memcpy(copy.to, copy.from, copy.source_bytes);
    memset(copy.to + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

void land(const AsyncCopy& copy) {
    copy_lands(copy.to, copy.bytes, current->thread);
    if (order != EMU_WARPS_BACKWARDS) perform(copy);
}

// Section: matrix instructions

template <int A, int B>
struct Mma {
    uint32_t a[A], b[B], metadata;
    float c[4], d[4];
};

float half_at(const uint32_t* registers, int index) {
    __half h;
    h.bits = registers[index / 2] >> (index % 2 * 16);
    return float(h);
}

float bfloat_at(const uint32_t* registers, int index) {
    return float_of_bits((registers[index / 2] >> (index % 2 * 16)) << 16);
}

// The tensor core looks at the upper 19 bits.
float tf32_at(const uint32_t* registers, int index) { return float_of_bits(registers[index] & 0xffffe000u); }

using At = float (*)(const uint32_t*, int);

// D = A B + C for all lanes, summed in double: no order of additions is better than another.
// Lane 4 g + t holds rows g and g + 8 of A and D, column g of B, columns 2 t and 2 t + 1 of D.
template <int ARegs, int BRegs, class RowOfA, class ColumnOfB>
void multiply(void** packs, int k, RowOfA a, ColumnOfB b) {
    using Pack = Mma<ARegs, BRegs>;
    Pack** lanes = reinterpret_cast<Pack**>(packs);
    double rows[16][32], columns[8][32];
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < k; ++j) rows[i][j] = a(lanes, i, j);
    for (int n = 0; n < 8; ++n)
        for (int j = 0; j < k; ++j) columns[n][j] = b(lanes, n, j);
    for (int lane = 0; lane < kWarp; ++lane)
        for (int i = 0; i < 4; ++i) {
            int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            double sum = lanes[lane]->c[i];
            for (int j = 0; j < k; ++j) sum += rows[row][j] * columns[column][j];
            lanes[lane]->d[i] = float(sum);
        }
}

// 16-bit A of 16 x 16: registers are (row half, column half) = (0,0), (1,0), (0,1), (1,1), of two columns each.
template <At at, int BRegs>
double a16(Mma<4, BRegs>** lanes, int row, int column) {
    const uint32_t* a = lanes[row % 8 * 4 + column % 8 / 2]->a;
    return at(a, (column / 8 * 2 + row / 8) * 2 + column % 2);
}

// 16-bit B of k x 8: register k / 8.
template <At at, int BRegs>
double b16(Mma<4, BRegs>** lanes, int column, int k) {
    return at(lanes[column * 4 + k % 8 / 2]->b, k / 8 * 2 + k % 2);
}

template <At at>
void mma_k16(void** packs, unsigned) {
    multiply<4, 2>(packs, 16, a16<at, 2>, b16<at, 2>);
}

// A of 16 x 32 is stored as 16 x 16; where an element belongs in its group of four is in the metadata: lane
// 4 g + t, t < 2 (selector 0) or t >= 2 (selector 1), has columns 8 (t % 2) and on of row g in bits 0 to 15 and of
// row g + 8 in bits 16 to 31, two bits for each.
template <At at, int selector>
void mma_sp_k32(void** packs, unsigned) {
    auto index = [](Mma<4, 4>** lanes, int row, int column) {
        uint32_t word = lanes[row % 8 * 4 + selector * 2 + column / 8]->metadata;
        return int(word >> (row / 8 * 16 + column % 8 * 2) & 3);
    };
    auto a = [&](Mma<4, 4>** lanes, int row, int k) {
        double value = 0;
        for (int column = k / 4 * 2; column < k / 4 * 2 + 2; ++column)
            if (index(lanes, row, column) == k % 4) value += a16<at, 4>(lanes, row, column);
        return value;
    };
    Mma<4, 4>** lanes = reinterpret_cast<Mma<4, 4>**>(packs);
    for (int row = 0; row < 16; ++row)
        for (int column = 0; column < 16; column += 2)
            if (index(lanes, row, column) >= index(lanes, row, column + 1))
                fail("mma.sp::ordered_metadata: row %d, columns %d and %d: indices %d, %d do not ascend", row,
                     column, column + 1, index(lanes, row, column), index(lanes, row, column + 1));
    multiply<4, 4>(packs, 32, a, b16<at, 4>);
}

void mma_tf32_k8(void** packs, unsigned) {
    multiply<4, 2>(
        packs, 8,
        [](Mma<4, 2>** lanes, int row, int k) { return tf32_at(lanes[row % 8 * 4 + k % 4]->a, k / 4 * 2 + row / 8); },
        [](Mma<4, 2>** lanes, int column, int k) { return tf32_at(lanes[column * 4 + k % 4]->b, k / 4); });
}

// Section: ldmatrix

struct Load {
    const char* row;
    int matrices;
    bool transposed;
    uint32_t r[4];
};

void load_matrices(void** packs, unsigned) {
    Load** lanes = reinterpret_cast<Load**>(packs);
    int first = current->warp * kWarp;
    for (int m = 0; m < lanes[0]->matrices; ++m) {
        uint16_t matrix[8][8];
        for (int row = 0; row < 8; ++row) {
            const Load& from = *lanes[m * 8 + row];
            access(from.row, 16, kRead, first + m * 8 + row);
            memcpy(matrix[row], from.row, 16);
        }
        for (int lane = 0; lane < kWarp; ++lane) {
            int i = lane / 4, j = lane % 4 * 2;
            bool t = lanes[lane]->transposed;
            uint32_t low = t ? matrix[j][i] : matrix[i][j], high = t ? matrix[j + 1][i] : matrix[i][j + 1];
            lanes[lane]->r[m] = low | high << 16;
        }
    }
}

}  // namespace

void forget_copies() {
    for (auto& list : pending) list.clear();
}

char* shared_at(uint32_t address) { return shared_base + address; }

void cp_async(uint32_t to, const void* from, unsigned bytes, unsigned source_bytes) {
    if (to % bytes || reinterpret_cast<uintptr_t>(from) % bytes)
        fail("cp.async: %u bytes to shared byte %u from %p: a misaligned address", bytes, to, from);
    if (source_bytes > bytes) fail("cp.async: %u bytes of source for a copy of %u", source_bytes, bytes);
    if (to + bytes > kMaxShared) fail("cp.async: to byte %u of shared memory", to);
    if (source_bytes) access(from, source_bytes, kRead, current->thread);
    copy_starts(shared_at(to), bytes, current->thread);
    AsyncCopy copy{shared_at(to), static_cast<const char*>(from), bytes, source_bytes, current->groups_committed};
    if (order == EMU_WARPS_BACKWARDS) perform(copy);
    pending[current->thread].push_back(copy);
}

void cp_async_commit() { ++current->groups_committed; }

void cp_async_wait(unsigned groups_left) {
    std::vector<AsyncCopy>& list = pending[current->thread];
    size_t landed = 0;
    while (landed < list.size() && list[landed].group + groups_left < current->groups_committed) land(list[landed++]);
    list.erase(list.begin(), list.begin() + landed);
}

float load_shared(uint32_t address) {
    float value;
    access(shared_at(address), sizeof value, kRead, current->thread);
    memcpy(&value, shared_at(address), sizeof value);
    return value;
}

void store_shared(uint32_t address, float value) {
    access(shared_at(address), sizeof value, kWrite, current->thread);
    memcpy(shared_at(address), &value, sizeof value);
}

void ldmatrix(uint32_t* r, int matrices, bool transposed, uint32_t address) {
    if (current->lane < matrices * 8 && (address % 16 || address + 16 > kMaxShared))
        fail("ldmatrix: a row at shared byte %u: not a multiple of 16 within shared memory", address);
    Load pack{shared_at(address), matrices, transposed, {}};
    meet(~0u, "ldmatrix", &pack, load_matrices);
    memcpy(r, pack.r, matrices * sizeof *r);
}

void mma(const char* what, Act act, float* const d[4], const uint32_t* a, const uint32_t (&b)[2], const float* c) {
    Mma<4, 2> pack{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, 0, {c[0], c[1], c[2], c[3]}, {}};
    meet(~0u, what, &pack, act);
    for (int i = 0; i < 4; ++i) *d[i] = pack.d[i];
}

void mma(const char* what, Act act, float* const d[4], const uint32_t* a, const uint32_t (&b)[4], const float* c,
         uint32_t metadata) {
    Mma<4, 4> pack{{a[0], a[1], a[2], a[3]}, {b[0], b[1], b[2], b[3]}, metadata, {c[0], c[1], c[2], c[3]}, {}};
    meet(~0u, what, &pack, act);
    for (int i = 0; i < 4; ++i) *d[i] = pack.d[i];
}

const Act kMmaF16 = mma_k16<half_at>;
const Act kMmaBf16 = mma_k16<bfloat_at>;
const Act kMmaTf32 = mma_tf32_k8;
const Act kMmaSpF16[2] = {mma_sp_k32<half_at, 0>, mma_sp_k32<half_at, 1>};
const Act kMmaSpBf16[2] = {mma_sp_k32<bfloat_at, 0>, mma_sp_k32<bfloat_at, 1>};

}  // namespace emu
