# A wheel runs on every CPU of its architecture: it has one libggml-cpu for each level of instruction sets, and
# bitexport/runtime/levels.py loads the best one that the CPU can run, which level.cpp says. (The kernels for ternary weights,
# heads and attention choose among their own tiers, in every level.)
#
# BITEXPORT_LEVELS: the levels of this architecture, slowest first. BITEXPORT_LEVEL_<name>: the options GGML_<...> of llama.cpp
# that a level switches on, or for ARM the value of -march.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    set(BITEXPORT_LEVELS sse42 avx2 avx512 avx512vnni amx)
    set(BITEXPORT_LEVEL_sse42 SSE42)
    set(BITEXPORT_LEVEL_avx2 SSE42 AVX AVX2 FMA F16C BMI2)
    set(BITEXPORT_LEVEL_avx512 ${BITEXPORT_LEVEL_avx2} AVX512)
    set(BITEXPORT_LEVEL_avx512vnni ${BITEXPORT_LEVEL_avx512} AVX512_VBMI AVX512_VNNI)
    set(BITEXPORT_LEVEL_amx ${BITEXPORT_LEVEL_avx512vnni} AVX512_BF16 AMX_TILE AMX_INT8)
else()
    set(BITEXPORT_LEVELS armv8 dotprod i8mm)
    set(BITEXPORT_LEVEL_armv8 armv8-a)
    set(BITEXPORT_LEVEL_dotprod armv8.2-a+dotprod+fp16)
    set(BITEXPORT_LEVEL_i8mm armv8.6-a+dotprod+fp16+i8mm)
endif()

# Sets llama.cpp's options for one level.
function(bitexport_set_level name)
    if(NOT name IN_LIST BITEXPORT_LEVELS)
        message(FATAL_ERROR "BITEXPORT_LEVEL is ${name}; expected one of ${BITEXPORT_LEVELS}")
    endif()
    set(GGML_NATIVE OFF CACHE BOOL "" FORCE)
    if(name IN_LIST BITEXPORT_LEVELS AND BITEXPORT_LEVEL_${name} MATCHES "^armv")
        set(GGML_CPU_ARM_ARCH ${BITEXPORT_LEVEL_${name}} CACHE STRING "" FORCE)
    else()
        foreach(feature IN LISTS BITEXPORT_LEVEL_${name})
            set(GGML_${feature} ON CACHE BOOL "" FORCE)
        endforeach()
    endif()
endfunction()
