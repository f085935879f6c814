#include "greeting.h"

#include "sockets.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace bitexport {

namespace {

// The version, a space, and a digest of what decides whether two builds understand each other; see CMakeLists.txt.
constexpr char own[] = BITEXPORT_IDENTITY;

constexpr char   mark[]    = {'b', 'x', ' '};
constexpr size_t room      = identity_bytes - sizeof(mark);
static_assert(sizeof(own) - 1 <= room, "the version does not fit the greeting");

std::string described(std::string identity) {
    const size_t space = identity.rfind(' ');
    return "bitexport " + identity.substr(0, space) + " (build " + identity.substr(space + 1) + ")";
}

constexpr const char * advice = "; install the same version on all machines";

}  // namespace

void put_identity(uint8_t * bytes) {
    std::memset(bytes, 0, identity_bytes);
    std::memcpy(bytes, mark, sizeof(mark));
    std::memcpy(bytes + sizeof(mark), own, sizeof(own) - 1);
}

std::string identity_of(const uint8_t * bytes) {
    if (std::memcmp(bytes, mark, sizeof(mark)) != 0) {
        return "";
    }
    const auto * text   = reinterpret_cast<const char *>(bytes) + sizeof(mark);
    std::string  result(text, std::find(text, text + room, '\0'));
    // it will be printed
    std::replace_if(result.begin(), result.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
    return described(result);
}

void check_greeting(bool answered, const uint8_t * version, const uint8_t * identity) {
    if (!answered) {
        throw std::runtime_error(last_words());
    }
    const std::string theirs = identity_of(identity), ours = described(own);
    if (theirs.empty()) {
        throw std::runtime_error("is llama.cpp's rpc-server (protocol " + std::to_string(version[0]) + "." +
                                 std::to_string(version[1]) + "." + std::to_string(version[2]) + "), and this is " + ours +
                                 ", which needs a `bitexport worker`");
    }
    if (theirs != ours) {
        throw std::runtime_error("is " + theirs + ", and this is " + ours + advice);
    }
    if (version[3] == busy) {
        throw std::runtime_error("serves another program, and a worker serves one at a time; wait for it, or start another worker");
    }
}

void check_client(const uint8_t * identity) {
    const std::string theirs = identity_of(identity), ours = described(own);
    if (theirs != ours) {
        throw std::runtime_error("is " + ours + ", and this is " + (theirs.empty() ? "llama.cpp's client" : theirs) + advice);
    }
}

}  // namespace bitexport
