// How the two sides make sure that they understand each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace bitexport {

// Both send who they are in 24 bytes of llama.cpp's own greeting, which it reserves for other transports than TCP.
constexpr size_t identity_bytes = 24;

void put_identity(uint8_t * bytes);

// "bitexport 0.1.0 (build 1a2b3c4d)", or "" if the bytes are not from us.
std::string identity_of(const uint8_t * bytes);

// Checks a worker's answer, on the client's side: `version` are the three numbers of llama.cpp's protocol and a fourth, which is
// 1 from a worker that serves somebody else. Throws std::runtime_error, whose message continues "worker HOST:PORT ...".
void check_greeting(bool answered, const uint8_t * version, const uint8_t * identity);
constexpr uint8_t busy = 1;

// Checks a client, on the worker's side. Throws std::runtime_error, whose message continues "worker HOST:PORT ..." on the
// client's side.
void check_client(const uint8_t * identity);

}  // namespace bitexport
