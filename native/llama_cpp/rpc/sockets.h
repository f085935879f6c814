// TCP for workers: limits of time, and peers that vanish without a word are noticed.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

struct socket_t;

namespace bitexport {

// Connects within a few seconds. Until wait_without_limit, each wait for the peer is as short. Throws std::runtime_error, whose
// message continues "worker HOST:PORT ...".
int connect_to(const char * host, int port);

// Listens on an IPv4 address; port 0 stands for any free one. Throws std::runtime_error with the system's reason.
int listen_on(const std::string & host, int port);
int port_of(int socket);

// Prepares the connection of a client that was just accepted, as connect_to does.
void prepare(int socket);

// In this thread, receive_some reports the end of the connection once something can be read from `wake`; -1 for never.
void wake_by(int wake);

// The peer may compute for as long as it likes, as long as its machine is reached.
void wait_without_limit(int socket);

// As send and recv, but without SIGPIPE, and continued after a signal.
ssize_t send_some(int socket, const void * data, size_t size);
ssize_t receive_some(int socket, void * data, size_t size);

// Wakes up a thread that waits for the peer.
void hang_up(int socket);

// "192.168.0.2:40312"
std::string peer_of(int socket);

// Signals are for the main thread of the process.
void block_signals();

// A worker's last message is sent in place of an answer: this number in place of its size, the length of a text in 8 bytes,
// and the text, which continues "worker HOST:PORT ...".
constexpr uint64_t farewell_mark = ~uint64_t{0};

void say_farewell(int socket, const std::string & text);

// Receives the text for last_words.
void read_farewell(const std::shared_ptr<socket_t> & socket);

// The same after something could not be sent: the farewell may have arrived before.
void collect_farewell(int socket);

// Why the connection that this thread uses was lost: the farewell, or what the system says. Empties it.
std::string last_words();

}  // namespace bitexport
