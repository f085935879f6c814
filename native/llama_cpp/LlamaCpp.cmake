# Brings llama.cpp's source into the build tree: fetched by pip, checked, unpacked, patched.
#
# Sets BITEXPORT_LLAMA_CPP_SOURCE; puts the Python bindings of the same release into lib/python. Given BITEXPORT_LLAMA_CPP=DIR (cache or environment), a copy of that tree is
# patched instead; the same checks apply, so it must be the release that the patches were made for. The bindings are
# then those two folders above it, as in llama-cpp-python's source, or else the installed ones.
# With BITEXPORT_STOCK=ON nothing is patched: that build is the peer in tests.

set(BITEXPORT_LLAMA_CPP "$ENV{BITEXPORT_LLAMA_CPP}" CACHE STRING "Folder of a llama.cpp source tree to use instead of the pinned one")

set(BITEXPORT_DOWNLOAD_DIR ${CMAKE_BINARY_DIR}/download CACHE PATH "Where the source distribution is kept")

set(_lock ${CMAKE_CURRENT_LIST_DIR}/llama_cpp.lock)
set(_originals ${CMAKE_CURRENT_LIST_DIR}/patches/originals.sha256)
file(GLOB _patches CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/patches/*.patch)
list(SORT _patches)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${_lock} ${_originals} ${_patches})

file(STRINGS ${_lock} _lines REGEX "^[a-z0-9]+ = ")
foreach(_line IN LISTS _lines)
    string(REGEX MATCH "^([a-z0-9]+) = (.+)$" _ "${_line}")
    set(LLAMA_CPP_PYTHON_${CMAKE_MATCH_1} ${CMAKE_MATCH_2})
endforeach()

# Downloads the source distribution into the build tree unless it is there already; fails when its sha256 differs.
function(_bitexport_download out)
    find_package(Python3 REQUIRED COMPONENTS Interpreter)
    set(name llama_cpp_python-${LLAMA_CPP_PYTHON_version}.tar.gz)
    set(archive ${BITEXPORT_DOWNLOAD_DIR}/${name})
    if(NOT EXISTS ${archive})
        message(STATUS "Fetching llama-cpp-python ${LLAMA_CPP_PYTHON_version} (its source carries llama.cpp)")
        execute_process(
            COMMAND ${Python3_EXECUTABLE} -m pip download --quiet --disable-pip-version-check --no-deps
                    --no-binary llama-cpp-python --dest ${BITEXPORT_DOWNLOAD_DIR}
                    llama-cpp-python==${LLAMA_CPP_PYTHON_version}
            RESULT_VARIABLE failed)
        if(failed OR NOT EXISTS ${archive})
            message(FATAL_ERROR "pip could not fetch llama-cpp-python ${LLAMA_CPP_PYTHON_version}. Check that pip reaches "
                                "its package index, or set BITEXPORT_LLAMA_CPP to a llama.cpp source tree of that release.")
        endif()
    endif()
    file(SHA256 ${archive} actual)
    if(NOT actual STREQUAL LLAMA_CPP_PYTHON_sha256)
        file(REMOVE ${archive})
        message(FATAL_ERROR "${name} has sha256 ${actual}, but native/llama_cpp/llama_cpp.lock expects ${LLAMA_CPP_PYTHON_sha256}. "
                            "It was removed; run the build again, and do not use this index if it happens twice.")
    endif()
    set(${out} ${archive} PARENT_SCOPE)
endfunction()

# Every file that a patch touches must be byte for byte the one that the patch was made for: the patches carry no
# context lines, so this is what keeps them from landing in the wrong place.
function(_bitexport_patch source)
    file(STRINGS ${_originals} lines)
    foreach(line IN LISTS lines)
        string(REGEX MATCH "^([0-9a-f]+)  (.+)$" _ "${line}")
        set(expected ${CMAKE_MATCH_1})
        set(path ${CMAKE_MATCH_2})
        if(NOT EXISTS ${source}/${path})
            message(FATAL_ERROR "llama.cpp has no ${path}, which our patches change. Use the release in native/llama_cpp/llama_cpp.lock.")
        endif()
        file(SHA256 ${source}/${path} actual)
        if(NOT actual STREQUAL expected)
            message(FATAL_ERROR "llama.cpp's ${path} has sha256 ${actual}; our patches were made for ${expected}. "
                                "Use the release in native/llama_cpp/llama_cpp.lock, or refresh native/llama_cpp/patches.")
        endif()
    endforeach()
    find_program(GIT_EXECUTABLE git REQUIRED)
    foreach(patch IN LISTS _patches)
        # The ceiling keeps git from patching our own repository, which may contain the build tree.
        get_filename_component(ceiling ${source} DIRECTORY)
        execute_process(
            COMMAND ${CMAKE_COMMAND} -E env GIT_CEILING_DIRECTORIES=${ceiling}
                    ${GIT_EXECUTABLE} apply --unidiff-zero --whitespace=nowarn ${patch}
            WORKING_DIRECTORY ${source}
            RESULT_VARIABLE failed
            ERROR_VARIABLE reason)
        if(failed)
            message(FATAL_ERROR "The patch ${patch} does not apply to llama.cpp: ${reason}")
        endif()
    endforeach()
endfunction()

if(BITEXPORT_LLAMA_CPP AND NOT EXISTS ${BITEXPORT_LLAMA_CPP}/ggml/include/ggml.h)
    message(FATAL_ERROR "BITEXPORT_LLAMA_CPP is ${BITEXPORT_LLAMA_CPP}, which has no ggml/include/ggml.h. "
                        "Point it at the top folder of a llama.cpp source tree.")
endif()

# A stamp of everything that decides what the source looks like; unpack and patch again when it changes.
set(_inputs ${_lock} ${_originals} ${_patches} ${CMAKE_CURRENT_LIST_FILE})
set(_state "${BITEXPORT_LLAMA_CPP};${BITEXPORT_STOCK}")
foreach(_input IN LISTS _inputs)
    file(SHA256 ${_input} _digest)
    string(APPEND _state ";${_digest}")
endforeach()

set(BITEXPORT_LLAMA_CPP_SOURCE ${CMAKE_BINARY_DIR}/llama.cpp-source)
set(_bindings ${CMAKE_BINARY_DIR}/lib/python)
set(_stamp ${CMAKE_BINARY_DIR}/llama.cpp-source.stamp)
set(_have "")
if(EXISTS ${_stamp})
    file(READ ${_stamp} _have)
endif()

if(NOT _have STREQUAL _state)
    file(REMOVE ${_stamp})
    file(REMOVE_RECURSE ${BITEXPORT_LLAMA_CPP_SOURCE} ${CMAKE_BINARY_DIR}/unpack ${_bindings})
    if(BITEXPORT_LLAMA_CPP)
        file(COPY ${BITEXPORT_LLAMA_CPP}/ DESTINATION ${BITEXPORT_LLAMA_CPP_SOURCE} PATTERN .git EXCLUDE)
        get_filename_component(_release ${BITEXPORT_LLAMA_CPP}/../.. ABSOLUTE)
    else()
        _bitexport_download(_archive)
        # Old files keep their times, so that only what a patch changed is compiled again.
        set(_release ${CMAKE_BINARY_DIR}/unpack/llama_cpp_python-${LLAMA_CPP_PYTHON_version})
        file(ARCHIVE_EXTRACT INPUT ${_archive} DESTINATION ${CMAKE_BINARY_DIR}/unpack
             PATTERNS "*/vendor/llama.cpp/*" "*/llama_cpp/*.py" "*/LICENSE.md")
        file(RENAME ${_release}/vendor/llama.cpp ${BITEXPORT_LLAMA_CPP_SOURCE})
        # The distribution ships a submodule's link file, which would mislead every git call.
        file(REMOVE ${BITEXPORT_LLAMA_CPP_SOURCE}/.git)
    endif()
    if(EXISTS ${_release}/llama_cpp/llama_cpp.py)
        # Without its server, which needs packages of its own.
        file(COPY ${_release}/llama_cpp DESTINATION ${_bindings} FILES_MATCHING PATTERN "*.py" PATTERN server EXCLUDE)
        file(COPY_FILE ${_release}/LICENSE.md ${_bindings}/LICENSE.llama-cpp-python)
    endif()
    file(REMOVE_RECURSE ${CMAKE_BINARY_DIR}/unpack)
    if(NOT BITEXPORT_STOCK)
        _bitexport_patch(${BITEXPORT_LLAMA_CPP_SOURCE})
    endif()
    file(WRITE ${_stamp} "${_state}")
endif()
