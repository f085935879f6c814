// The positions of the numbers in a GGUF header, so that a fuzzer can change them without damaging what is around them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct Spot {
    size_t offset;  // bytes from the start of the file
    size_t width;   // 1, 4 or 8 bytes
};

// Counts, lengths, types, dimensions and offsets of a sound GGUF file, in order; empty when it is not one.
std::vector<Spot> gguf_spots(const std::string & file);

// Where the tensors' data begins; 0 when the file is not sound.
size_t gguf_data_offset(const std::string & file);
