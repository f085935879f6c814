#include "gguf_spots.h"

#include <cstring>
#include <stdexcept>

namespace {

// Reads a header, noting each number that it passes. Throws std::out_of_range past the end.
class Walker {
  public:
    explicit Walker(const std::string & file) : file_(file) {}

    uint64_t number(size_t width) {
        if (at_ + width > file_.size()) {
            throw std::out_of_range("header");
        }
        spots.push_back({at_, width});
        uint64_t value = 0;
        std::memcpy(&value, file_.data() + at_, width);
        at_ += width;
        return value;
    }

    void string() { skip(number(8)); }

    void value(uint64_t type) {
        static const size_t widths[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
        constexpr uint64_t string_type = 8, array_type = 9;
        if (type == string_type) {
            string();
        } else if (type == array_type) {
            array();
        } else if (type < sizeof(widths) / sizeof(*widths)) {
            number(widths[type] == 2 ? 1 : widths[type]);
            skip(widths[type] == 2 ? 1 : 0);
        } else {
            throw std::out_of_range("value type");
        }
    }

    size_t at() const { return at_; }

    std::vector<Spot> spots;

  private:
    // The first elements of a long array represent all of them: the vocabulary would crowd out everything else.
    void array() {
        constexpr size_t noted = 4;
        const uint64_t type  = number(4);
        const uint64_t count = number(8);
        for (uint64_t i = 0; i < count; ++i) {
            const size_t before = spots.size();
            value(type);
            if (i >= noted) {
                spots.resize(before);
            }
        }
    }

    void skip(uint64_t bytes) {
        if (bytes > file_.size() - at_) {
            throw std::out_of_range("string");
        }
        at_ += bytes;
    }

    const std::string & file_;
    size_t at_ = 0;
};

Walker walk(const std::string & file) {
    Walker header(file);
    header.number(4);  // magic
    header.number(4);  // version
    const uint64_t tensors = header.number(8);
    const uint64_t pairs   = header.number(8);
    for (uint64_t i = 0; i < pairs; ++i) {
        header.string();
        header.value(header.number(4));
    }
    for (uint64_t i = 0; i < tensors; ++i) {
        header.string();
        const uint64_t dimensions = header.number(4);
        for (uint64_t d = 0; d < dimensions; ++d) {
            header.number(8);
        }
        header.number(4);  // type
        header.number(8);  // offset
    }
    return header;
}

}  // namespace

std::vector<Spot> gguf_spots(const std::string & file) {
    try {
        return walk(file).spots;
    } catch (const std::out_of_range &) {
        return {};
    }
}

size_t gguf_data_offset(const std::string & file) {
    try {
        return (walk(file).at() + 31) / 32 * 32;
    } catch (const std::out_of_range &) {
        return 0;
    }
}
