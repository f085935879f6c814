// Peaks of the avx512gfni tier: the multiply-adds of avx512vnni, whose instructions it uses, and a reading loop of its own.
//
// Four streams, each fetched ahead: one alone reads a fifth less on the CPUs of this tier (benchmarks/kernels.md).
#include "loops.h"

#include <immintrin.h>

namespace peaks {
namespace {

constexpr int streams = 4;
constexpr int64_t stream_bytes = 64 << 10;
constexpr int64_t ahead_bytes = 2048;

}  // namespace

int64_t avx512gfni_multiply_adds(int64_t iterations) { return avx512vnni_multiply_adds(iterations); }

uint64_t avx512gfni_read(const uint8_t * data, int64_t bytes) {
    __m512i sums[streams] = {};
    const int64_t begin = bytes / (streams * stream_bytes) * streams * stream_bytes;
    for (const uint8_t * block = data; block < data + begin; block += streams * stream_bytes) {
        for (int64_t i = 0; i < stream_bytes; i += 64) {
            PEAKS_UNROLL
            for (int s = 0; s < streams; ++s) {
                const uint8_t * at = block + s * stream_bytes + i;
                __builtin_prefetch(at + ahead_bytes);
                sums[s] = _mm512_xor_si512(sums[s], _mm512_loadu_si512(at));
            }
        }
    }
    const __m512i all = _mm512_xor_si512(_mm512_xor_si512(sums[0], sums[1]), _mm512_xor_si512(sums[2], sums[3]));
    return static_cast<uint64_t>(_mm512_reduce_add_epi64(all)) ^ avx512vnni_read(data + begin, bytes - begin);
}

}  // namespace peaks
