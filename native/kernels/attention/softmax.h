// What softmax needs of a vector of floats. `Isa`, beside what attend.h names:
//
//   sub, mul, max(a, b)                    max is b where a is NaN, and a or NaN where b is
//   any_greater(a, b)                      in any lane
//   where_greater(a, b, x, y)              x where a > b, else y
//   shift_23(a)                            the bits shifted left
//   transpose(v)                           `width` vectors, as a square
#pragma once

namespace attention {
namespace {

// In place of -infinity, from which nothing can be subtracted: less than any score.
constexpr float lowest_score = -1e30f;

// 2^x for x <= 127, within 1 unit in the last place (8e-8); 0 below -126.5, NaN for NaN.
// x = n + r, |r| <= 1/2; 2^r by the polynomial of degree 6 that is 1 at 0 and whose relative error is smallest, 2e-9.
template <class Isa>
inline typename Isa::Vector power_of_two(typename Isa::Vector x) {
    // 1.5 * 2^23 + 127: what is added to it is rounded to a whole number, whose sum with 127 is in the lowest bits
    const auto round_by = Isa::all(12582912.0f + 127.0f);
    const auto bounded = Isa::max(Isa::all(-127.0f), x);
    const auto rounded = Isa::add(bounded, round_by);
    const auto r = Isa::sub(bounded, Isa::sub(rounded, round_by));
    auto series = Isa::all(1.5353362e-4f);
    series = Isa::add_product(series, r, Isa::all(1.3398875e-3f));
    series = Isa::add_product(series, r, Isa::all(9.6184369e-3f));
    series = Isa::add_product(series, r, Isa::all(5.5503324e-2f));
    series = Isa::add_product(series, r, Isa::all(2.4022648e-1f));
    series = Isa::add_product(series, r, Isa::all(6.9314718e-1f));
    series = Isa::add_product(series, r, Isa::all(1.0f));
    return Isa::mul(series, Isa::shift_23(rounded));
}

}  // namespace
}  // namespace attention
