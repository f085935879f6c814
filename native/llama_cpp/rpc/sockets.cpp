#include "sockets.h"

#include "transport.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <stdexcept>

namespace bitexport {

namespace {

constexpr int greeting_seconds = 5;
constexpr int farewell_seconds = 1;
constexpr int longest_wait_seconds = 2;  // for a peer that goes on sending after the farewell
constexpr int longest_farewell = 4096;

// A machine that does not answer for so long is lost.
constexpr int idle_seconds  = 5;
constexpr int probe_seconds = 2;
constexpr int probes        = 3;

// The same while data is on its way. The system also counts the time in which the other side does not read, so nothing is sent to
// a worker that computes: it answers when it is done.
constexpr int unread_seconds = 30;

thread_local std::string farewell;
thread_local int         wake_end  = -1;  // see wake_by
thread_local bool        unlimited = false;
thread_local int         last_error = 0;  // of send and recv; 0 if the peer closed the connection

void set(int socket, int level, int option, int value) {
    setsockopt(socket, level, option, &value, sizeof(value));
}

void set_limit(int socket, int seconds) {
    const timeval limit = {seconds, 0};
    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    unlimited = seconds == 0;
}

// False if there is nothing more to wait for.
bool wait_for(int socket) {
    if (wake_end < 0) {
        return true;
    }
    pollfd sources[] = {{socket, POLLIN, 0}, {wake_end, POLLIN, 0}};
    int    ready;
    do {
        ready = poll(sources, 2, unlimited ? -1 : greeting_seconds * 1000);
    } while (ready < 0 && errno == EINTR);
    return ready > 0 && sources[1].revents == 0;
}

std::string reason(int error) {
    std::string text = std::strerror(error);
    text[0]          = static_cast<char>(std::tolower(static_cast<unsigned char>(text[0])));
    return text;
}

sockaddr_in address_of(const char * host, int port) {
    addrinfo hints = {}, *found = nullptr;
    hints.ai_family   = AF_INET;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(host, nullptr, &hints, &found) != 0 || found == nullptr) {
        throw std::runtime_error(std::string("cannot be reached: ") + host + " is not an IPv4 address or a known name; check it");
    }
    sockaddr_in address = *reinterpret_cast<const sockaddr_in *>(found->ai_addr);
    freeaddrinfo(found);
    address.sin_port = htons(static_cast<uint16_t>(port));
    return address;
}

// 0, or why the connection was not made.
int connect_in_time(int socket, const sockaddr_in & address) {
    const int flags = fcntl(socket, F_GETFL);
    fcntl(socket, F_SETFL, flags | O_NONBLOCK);
    if (connect(socket, reinterpret_cast<const sockaddr *>(&address), sizeof(address)) != 0) {
        if (errno != EINPROGRESS) {
            return errno;
        }
        pollfd waiting = {socket, POLLOUT, 0};
        int    ready;
        do {
            ready = poll(&waiting, 1, greeting_seconds * 1000);
        } while (ready < 0 && errno == EINTR);
        if (ready <= 0) {
            return ready < 0 ? errno : ETIMEDOUT;
        }
        int       error = 0;
        socklen_t size  = sizeof(error);
        getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error != 0) {
            return error;
        }
    }
    fcntl(socket, F_SETFL, flags);
    return 0;
}

}  // namespace

int connect_to(const char * host, int port) {
    const sockaddr_in address = address_of(host, port);
    const int         opened  = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (opened < 0) {
        throw std::runtime_error("cannot be reached: " + reason(errno));
    }
    const int error = connect_in_time(opened, address);
    if (error != 0) {
        close(opened);
        throw std::runtime_error("cannot be reached: " + reason(error) +
                                 "; start `bitexport worker` there, and check the address and the firewall");
    }
    prepare(opened);
    return opened;
}

int listen_on(const std::string & host, int port) {
    const sockaddr_in address = address_of(host.c_str(), port);
    const int         opened  = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (opened < 0) {
        throw std::runtime_error(reason(errno));
    }
    set(opened, SOL_SOCKET, SO_REUSEADDR, 1);
    if (bind(opened, reinterpret_cast<const sockaddr *>(&address), sizeof(address)) != 0 || listen(opened, 8) != 0) {
        const std::string why = reason(errno);
        close(opened);
        throw std::runtime_error(why);
    }
    return opened;
}

int port_of(int socket) {
    sockaddr_in address = {};
    socklen_t   size    = sizeof(address);
    getsockname(socket, reinterpret_cast<sockaddr *>(&address), &size);
    return ntohs(address.sin_port);
}

void prepare(int socket) {
    set(socket, IPPROTO_TCP, TCP_NODELAY, 1);
    set(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
#ifdef __linux__
    set(socket, IPPROTO_TCP, TCP_KEEPIDLE, idle_seconds);
    set(socket, IPPROTO_TCP, TCP_KEEPINTVL, probe_seconds);
    set(socket, IPPROTO_TCP, TCP_KEEPCNT, probes);
    set(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, unread_seconds * 1000);
#endif
    set_limit(socket, greeting_seconds);
}

void wait_without_limit(int socket) {
    set_limit(socket, 0);
}

ssize_t send_some(int socket, const void * data, size_t size) {
    ssize_t sent;
    do {
        sent = send(socket, data, size, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    last_error = sent < 0 ? errno : last_error;
    return sent;
}

ssize_t receive_some(int socket, void * data, size_t size) {
    if (!wait_for(socket)) {
        return 0;
    }
    ssize_t received;
    do {
        received = recv(socket, data, size, 0);
    } while (received < 0 && errno == EINTR);
    last_error = received < 0 ? errno : 0;
    return received;
}

void wake_by(int wake) {
    wake_end  = wake;
    unlimited = false;
}

void hang_up(int socket) {
    shutdown(socket, SHUT_RDWR);
}

std::string peer_of(int socket) {
    sockaddr_in address = {};
    socklen_t   size    = sizeof(address);
    char        text[INET_ADDRSTRLEN] = "?";
    getpeername(socket, reinterpret_cast<sockaddr *>(&address), &size);
    inet_ntop(AF_INET, &address.sin_addr, text, sizeof(text));
    return std::string(text) + ":" + std::to_string(ntohs(address.sin_port));
}

void block_signals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
}

void say_farewell(int socket, const std::string & text) {
    const uint64_t head[2] = {farewell_mark, text.size()};
    wake_by(-1);
    set_limit(socket, farewell_seconds);
    if (send_some(socket, head, sizeof(head)) == static_cast<ssize_t>(sizeof(head))) {
        send_some(socket, text.data(), text.size());
    }
    // closing while the client still sends would discard the message on its side
    shutdown(socket, SHUT_WR);
    char       ignored[65536];
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(longest_wait_seconds);
    while (receive_some(socket, ignored, sizeof(ignored)) > 0 && std::chrono::steady_clock::now() < until) {
    }
}

void read_farewell(const std::shared_ptr<socket_t> & socket) {
    uint64_t size = 0;
    if (socket->recv_data(&size, sizeof(size)) && size <= longest_farewell) {
        std::string text(size, '\0');
        if (socket->recv_data(text.data(), size)) {
            farewell = text;
        }
    }
}

void collect_farewell(int socket) {
    char          message[2 * sizeof(uint64_t) + longest_farewell];
    const ssize_t received = recv(socket, message, sizeof(message), MSG_DONTWAIT);
    uint64_t      head[2]  = {};
    if (received >= static_cast<ssize_t>(sizeof(head))) {
        std::memcpy(head, message, sizeof(head));
    }
    if (head[0] == farewell_mark && head[1] <= static_cast<size_t>(received) - sizeof(head)) {
        farewell.assign(message + sizeof(head), head[1]);
    }
}

std::string last_words() {
    if (!farewell.empty()) {
        const std::string text = farewell;
        farewell.clear();
        return text;
    }
    if (last_error == EAGAIN || last_error == EWOULDBLOCK) {
        return "does not answer: it is not a `bitexport worker`, or it hangs; check the address, and start it again";
    }
    const std::string why = last_error == 0 ? "it closed the connection" : reason(last_error);
    return "is lost (" + why + "); start it again with `bitexport worker`, then this command";
}

}  // namespace bitexport
