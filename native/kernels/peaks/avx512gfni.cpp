// Peaks of the avx512gfni tier: those of avx512vnni, whose multiply-adds and loads it uses.
#include "loops.h"

namespace peaks {

int64_t avx512gfni_multiply_adds(int64_t iterations) { return avx512vnni_multiply_adds(iterations); }
uint64_t avx512gfni_read(const uint8_t * data, int64_t bytes) { return avx512vnni_read(data, bytes); }

}  // namespace peaks
