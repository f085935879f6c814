# The tiers of this architecture, but for scalar: <folder>/<architecture>_<name>.cpp has the kernels, peaks/<name>.cpp the peak
# loops, and TERNARY_<name>_OPTIONS are the compile options of both.
#
# Sets TERNARY_ARCH, TERNARY_TIERS and TERNARY_<name>_OPTIONS.
set(TERNARY_ARCH "")
set(TERNARY_TIERS "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND NOT TERNARY_SCALAR_ONLY)
    set(TERNARY_ARCH x86)
    set(TERNARY_TIERS avx2 avx512bw avx512vnni256 avxvnni avx512vnni avx512vbmi avx512gfni avx512amx)
    set(TERNARY_avx2_OPTIONS -mavx2)
    set(TERNARY_avx512bw_OPTIONS -mavx2 -mavx512f -mavx512bw -mavx512vl)
    set(TERNARY_avx512vnni256_OPTIONS -mavx2)  # names its one other instruction itself, as does avxvnni
    set(TERNARY_avxvnni_OPTIONS -mavx2)
    set(TERNARY_avx512vnni_OPTIONS -mavx2 -mavx512f -mavx512bw -mavx512vl -mavx512vnni)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
        # These warnings mistake the undefined pass-through operand in GCC's own AVX-512 headers for an uninitialized variable.
        list(APPEND TERNARY_avx512bw_OPTIONS -Wno-uninitialized -Wno-maybe-uninitialized)
        list(APPEND TERNARY_avx512vnni_OPTIONS -Wno-uninitialized -Wno-maybe-uninitialized)
    endif()
    set(TERNARY_avx512vbmi_OPTIONS ${TERNARY_avx512vnni_OPTIONS} -mavx512vbmi -mgfni)
    set(TERNARY_avx512gfni_OPTIONS ${TERNARY_avx512vbmi_OPTIONS})
    set(TERNARY_avx512amx_OPTIONS ${TERNARY_avx512vbmi_OPTIONS})  # names the instructions of AMX itself
    include(CheckCXXSourceCompiles)
    check_cxx_source_compiles("int main() { __asm__(\"{vex} vpdpbusd %ymm0, %ymm0, %ymm0\"); }" TERNARY_ASSEMBLER_HAS_VEX)
    if(NOT TERNARY_ASSEMBLER_HAS_VEX)
        message(FATAL_ERROR "The assembler of ${CMAKE_CXX_COMPILER} does not know AVX-VNNI. Use binutils 2.36 or Clang 13, or newer.")
    endif()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$" AND NOT TERNARY_SCALAR_ONLY)
    set(TERNARY_ARCH arm)
    set(TERNARY_TIERS neon dotprod i8mm)
    set(TERNARY_neon_OPTIONS -march=armv8-a)
    set(TERNARY_dotprod_OPTIONS -march=armv8.2-a+dotprod)
    set(TERNARY_i8mm_OPTIONS -march=armv8.2-a+dotprod+i8mm)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        # GCC would load and unpack codes ahead until no registers are left, and put accumulators on the stack.
        foreach(tier IN LISTS TERNARY_TIERS)
            list(APPEND TERNARY_${tier}_OPTIONS -fno-schedule-insns)
        endforeach()
    endif()
endif()
