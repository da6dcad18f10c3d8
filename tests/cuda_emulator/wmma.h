// nvcuda::wmma.  Which lane holds which element is not specified there, so here every lane keeps a whole operand,
// and an even share of the accumulator.
#pragma once
#include "half.h"

namespace nvcuda::wmma {

struct row_major {};
struct col_major {};
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment;
template <int M, int N, int K, class T, class Layout>
struct fragment<matrix_a, M, N, K, T, Layout> {
    static constexpr int rows = M, columns = K;
    T x[M * K];
};
template <int M, int N, int K, class T, class Layout>
struct fragment<matrix_b, M, N, K, T, Layout> {
    static constexpr int rows = K, columns = N;
    T x[K * N];
};
template <int M, int N, int K, class T>
struct fragment<accumulator, M, N, K, T> {
    static constexpr int num_elements = M * N / 32;
    T x[num_elements];
    // Row and column of this lane's element `i`.
    static int row(int i) { return (emu::current->lane * num_elements + i) / N; }
    static int column(int i) { return (emu::current->lane * num_elements + i) % N; }
};

template <int M, int N, int K, class T>
void fill_fragment(fragment<accumulator, M, N, K, T>& f, float value) {
    for (T& element : f.x) element = value;
}

template <class Use, int M, int N, int K, class T, class Layout>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& f, const T* p, unsigned stride) {
    constexpr bool by_rows = std::is_same_v<Layout, row_major>;
    for (int i = 0; i < f.rows; ++i)
        for (int j = 0; j < f.columns; ++j) f.x[i * f.columns + j] = by_rows ? p[i * stride + j] : p[j * stride + i];
    emu::meet(~0u, "load_matrix_sync", nullptr, [](void**, unsigned) {});
}

template <int M, int N, int K, class T, class S, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, M, N, K, T>& d, const fragment<matrix_a, M, N, K, S, LayoutA>& a,
              const fragment<matrix_b, M, N, K, S, LayoutB>& b, const fragment<accumulator, M, N, K, T>& c) {
    for (int i = 0; i < d.num_elements; ++i) {
        double sum = float(c.x[i]);
        for (int k = 0; k < K; ++k) sum += double(float(a.x[d.row(i) * K + k])) * float(b.x[k * N + d.column(i)]);
        d.x[i] = float(sum);
    }
    emu::meet(~0u, "mma_sync", nullptr, [](void**, unsigned) {});
}

template <int M, int N, int K, class T>
void store_matrix_sync(T* p, const fragment<accumulator, M, N, K, T>& f, unsigned stride, layout_t layout) {
    for (int i = 0; i < f.num_elements; ++i)
        p[layout == mem_row_major ? f.row(i) * stride + f.column(i) : f.column(i) * stride + f.row(i)] = f.x[i];
    emu::meet(~0u, "store_matrix_sync", nullptr, [](void**, unsigned) {});
}

}  // namespace nvcuda::wmma
