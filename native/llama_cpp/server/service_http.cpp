#include "service_http.h"
#include "service.h"

#include <cpp-httplib/httplib.h>
#include <nlohmann/json.hpp>

#include <set>

namespace bitexport {

namespace {

const std::set<std::string> page_paths = {"/", "/index.html", "/chat.css", "/chat.js"};

const std::set<std::string> readable_paths = {"/health", "/v1/health", "/metrics", "/v1/models"};

const std::set<std::string> computing_paths = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings",
                                               "/tokenize", "/detokenize", "/apply-template"};

void refuse(httplib::Response & response, int status, const char * type, const std::string & message) {
    response.status = status;
    response.set_content(
        nlohmann::json({{"error", {{"message", message}, {"type", type}, {"code", status}}}})
            .dump(-1, ' ', true, nlohmann::json::error_handler_t::replace),
        "application/json; charset=utf-8");
}

// The host of "http://[::1]:8080" and of "localhost:8080".
std::string host_of(std::string address) {
    const size_t scheme = address.find("://");
    if (scheme != std::string::npos) {
        address.erase(0, scheme + 3);
    }
    if (!address.empty() && address[0] == '[') {
        return address.substr(0, address.find(']') + 1);
    }
    return address.substr(0, address.find(':'));
}

bool is_this_machine(const std::string & address) {
    const std::string host = host_of(address);
    const bool  ipv4 = host.find_first_not_of("0123456789.") == std::string::npos;
    return host == "localhost" || (ipv4 && host.compare(0, 4, "127.") == 0) || host == "[::1]";
}

// What reads a JSON schema recurses into each level, and a deep one would end the server.
constexpr int most_levels = 500;

bool nests_deeper_than(int levels, const std::string & text) {
    int  depth     = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (in_string) {
            i += c == '\\' ? 1 : 0;
            in_string = c != '"';
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > levels) {
                return true;
            }
        } else if (c == ']' || c == '}') {
            --depth;
        }
    }
    return false;
}

// The arguments of a call are JSON in a string, which llama.cpp reads with the same recursion.
bool arguments_nest_deeply(const nlohmann::json & value) {
    if (!value.is_structured()) {
        return false;
    }
    for (const auto & [key, inner] : value.items()) {
        if (inner.is_string() ? key == "arguments" && nests_deeper_than(most_levels, inner.get_ref<const std::string &>())
                              : arguments_nest_deeply(inner)) {
            return true;
        }
    }
    return false;
}

// Whether the request goes on; otherwise the response says why not.
bool allow(entry found, httplib::Response & response) {
    switch (found) {
        case entry::open:
            return true;
        case entry::full:
            response.set_header("Retry-After", "1");
            refuse(response, 429, "overloaded_error",
                   std::to_string(service().requests) + " requests are in progress, as many as this server takes; try again");
            return false;
        case entry::stopping:
            response.set_header("Retry-After", "5");
            refuse(response, 503, "unavailable_error", "the server is stopping");
            return false;
    }
    return false;
}

}  // namespace

bool is_page(const std::string & path) {
    return service().active && page_paths.count(path) > 0;
}

void prepare_listener(httplib::Server & server) {
    if (!service().active) {
        return;
    }
    server.set_payload_max_length(service().body_bytes);
    server.set_post_routing_handler([](const httplib::Request & request, httplib::Response & response) {
        response.set_header("X-Content-Type-Options", "nosniff");
        if (is_page(request.path)) {
            response.set_header("Cache-Control", "no-cache");
            response.set_header("X-Frame-Options", "DENY");
        }
        request_record * record = current_request();
        if (record == nullptr) {
            return;
        }
        record->status = response.status;
        if (response.content_provider_ == nullptr || is_page(request.path)) {
            // an empty answer means that the client left while it was computed
            record->complete = !record->computing || !response.body.empty();
            end_request();
        }
    });
}

void arrive(const httplib::Request & request) {
    if (!service().active) {
        return;
    }
    auto record    = std::make_unique<request_record>();
    record->method = request.method;
    record->path   = request.path;
    record->client = request.remote_addr;
    begin_request(std::move(record));
}

bool admit(const httplib::Request & request, httplib::Response & response) {
    if (!service().active) {
        return true;
    }
    const bool reads    = request.method == "GET" || request.method == "HEAD";
    const bool computes = request.method == "POST" && computing_paths.count(request.path) > 0;
    if (!computes && !(reads && (page_paths.count(request.path) > 0 || readable_paths.count(request.path) > 0))) {
        refuse(response, 404, "not_found_error", request.method + " " + request.path + " is not served here");
        return false;
    }
    if (service().local_only) {
        const std::string origin = request.get_header_value("Origin");
        if (!is_this_machine(request.get_header_value("Host")) || !(origin.empty() || is_this_machine(origin))) {
            refuse(response, 403, "permission_error",
                   "without an API key, requests are answered only for localhost, and only to pages from there; start the "
                   "server with --api-key");
            return false;
        }
    }
    if (!computes) {
        return true;
    }
    const bool chats = request.path == "/v1/chat/completions" || request.path == "/apply-template";
    if (service().embeds && (chats || request.path == "/v1/completions")) {
        refuse(response, 400, "embedding_model", "this is an embedding model, which generates no text; use /v1/embeddings");
        return false;
    }
    if (!service().embeds && request.path == "/v1/embeddings") {
        refuse(response, 400, "generating_model", "this server generates text; an embedding model gives embeddings");
        return false;
    }
    if (chats && !service().chats) {
        refuse(response, 400, "no_chat_template", "this model has no chat template; use /v1/completions");
        return false;
    }
    if (request.has_header("X-Conversation-Id")) {
        refuse(response, 400, "invalid_request_error", "the header X-Conversation-Id is not supported");
        return false;
    }
    // otherwise the HTTP library reads on before it refuses
    if (request.get_header_value_u64("Content-Length") > service().body_bytes) {
        refuse(response, 413, "invalid_request_error",
               "the request is larger than the " + std::to_string(service().body_bytes) + " bytes that this server takes");
        return false;
    }
    // Here only to refuse before the body is read: whoever is slow to send it does not take a place from others.
    return allow(may_enter(), response);
}

bool admit_complete(const httplib::Request & request, httplib::Response & response) {
    if (!service().active) {
        return true;
    }
    const bool may_call = request.body.find("arguments") != std::string::npos || request.body.find("\\u") != std::string::npos;
    if (nests_deeper_than(most_levels, request.body) ||
        (may_call && arguments_nest_deeply(nlohmann::json::parse(request.body, nullptr, false)))) {
        refuse(response, 400, "invalid_request_error",
               "the request nests more than " + std::to_string(most_levels) + " levels deep");
        return false;
    }
    return allow(enter(), response);
}

}  // namespace bitexport
